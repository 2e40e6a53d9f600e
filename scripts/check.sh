#!/usr/bin/env bash
# Everything that is checked without running the code: ruff (lint and format), mypy, clang-format.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=.venv/bin
# The stubs' own requirement, full TensorRT, cannot be installed from PyPI alone; the stubs do not need it.
"$bin/python" -c 'import importlib.metadata as m; m.version("tensorrt-stubs")' 2>/dev/null \
    || "$bin/python" -m pip install --quiet --disable-pip-version-check --no-deps tensorrt-stubs==10.13.0.35.1
"$bin/ruff" check .
"$bin/ruff" format --check --quiet .
"$bin/mypy"
git ls-files -- 'plugins/*.h' 'plugins/*.cpp' 'plugins/*.cu' 'plugins/*.cuh' 'tests/*.h' 'tests/*.cpp' \
    | xargs "$bin/clang-format" --dry-run -Werror
