// The mma.sync kernels for float16.
#include "anchored_attention/mma/attention.cuh"

template cudaError_t va_export::launch_mma<__half>(const VaAnchoredAttentionParams&, cudaStream_t);
