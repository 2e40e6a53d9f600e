// The Hopper kernel for bfloat16.
#include "anchored_attention/hopper/attention.cuh"

template cudaError_t va_export::launch_hopper<__nv_bfloat16>(const VaAnchoredAttentionParams&, cudaStream_t);
