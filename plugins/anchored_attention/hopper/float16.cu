// The Hopper kernel for float16.
#include "anchored_attention/hopper/attention.cuh"

template cudaError_t va_export::launch_hopper<__half>(const VaAnchoredAttentionParams&, cudaStream_t);
