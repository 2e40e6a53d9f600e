#!/usr/bin/env bash
# Runs the numeric tests as other processors would: with other kernels of the linear algebra, other instruction sets
# and other numbers of threads. A test that passes with some of them only has a tolerance, or decides something, by
# the order of a sum. Usage: bash scripts/test_on_processors.sh [setting ...]; arguments replace the settings below,
# each a list of VARIABLE=value in one word.
set -uo pipefail
cd "$(dirname "$0")/.."
unset OPENBLAS_CORETYPE ATEN_CPU_CAPABILITY MKL_CBWR DNNL_MAX_CPU_ISA OMP_NUM_THREADS OPENBLAS_NUM_THREADS

tests=(tests/anchor tests/ops tests/native tests/proof tests/models)
settings=("$@")
if [ ${#settings[@]} -eq 0 ]; then
  settings=(
    "OMP_NUM_THREADS=1"
    "OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2"
    "OMP_NUM_THREADS=1 OPENBLAS_CORETYPE=Prescott ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE DNNL_MAX_CPU_ISA=SSE41"
    "OMP_NUM_THREADS=1 OPENBLAS_CORETYPE=Haswell ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 DNNL_MAX_CPU_ISA=AVX2"
    "OMP_NUM_THREADS=1 OPENBLAS_CORETYPE=SkylakeX MKL_CBWR=AVX512 DNNL_MAX_CPU_ISA=AVX512_CORE"
  )
fi
failed=0
for setting in "${settings[@]}"; do
  echo "== $setting"
  # shellcheck disable=SC2086  # a setting is several words
  env $setting .venv/bin/python -m pytest -q -n 0 --no-header -p no:cacheprovider "${tests[@]}" | tail -n 12 || failed=1
done
exit $failed
