#!/usr/bin/env bash
# Make .venv and install the package into it with everything that exporting, TensorRT-RTX and the tests need.
# Idempotent: what is installed already and unchanged is left alone.
#   PYTHON=python3.12 scripts/setup.sh     another interpreter (3.11 or newer)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than Python 3.11; set PYTHON to a newer one" >&2
    exit 2
fi
if ! command -v c++ >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then
    echo "error: no C++ compiler was found; the TensorRT plugin needs one (Debian: apt-get install g++)" >&2
    exit 2
fi

# Python sources are used where they lie, and an installation knows them by name; what decides one is this.
wanted=$({
    cat pyproject.toml scripts/setup.sh $(find plugins -type f -not -path '*/__pycache__/*' | LC_ALL=C sort)
    find va_export -name '*.py' | LC_ALL=C sort
} | sha256sum | cut -d' ' -f1)
stamp=.venv/.installed
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
rm -f "$stamp"
echo "installing into .venv (a few minutes the first time)" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[export,rtx,test,dev]'
echo "$wanted" >"$stamp"
