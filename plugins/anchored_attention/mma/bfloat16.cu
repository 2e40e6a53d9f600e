// The mma.sync kernels for bfloat16.
#include "anchored_attention/mma/attention.cuh"

template cudaError_t va_export::launch_mma<__nv_bfloat16>(const VaAnchoredAttentionParams&, cudaStream_t);
