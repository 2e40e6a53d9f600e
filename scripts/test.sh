#!/usr/bin/env bash
# Install, check and test, in that order. Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
scripts/check.sh
exec .venv/bin/pytest "$@"
