#!/usr/bin/env bash
# Install, check and test, in that order; with the ends of transformers' range too where nothing less is asked for. Further
# arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
scripts/check.sh
[ $# -gt 0 ] || scripts/test_versions.sh
# Test files run side by side, in the order of tests/conftest.py; a worker takes up to 8 GB. Threads of several workers on
# the same cores would only wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
