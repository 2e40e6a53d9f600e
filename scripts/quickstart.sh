#!/usr/bin/env bash
# From a fresh clone to a bundle: install, export the embedded default model in FP16 with TensorRT-RTX engines, prove it on
# frames of a real clip. Prints the bundle's directory. Further arguments go to va-export.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/scripts/setup.sh"
exec "$root/.venv/bin/va-export" --model internvl2-tiny --fp16 \
    --output "$root/engines/internvl2-tiny-fp16" --overwrite "$@"
