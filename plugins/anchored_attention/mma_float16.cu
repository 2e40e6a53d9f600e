// The tensor-core kernels for float16.
#include "mma_launch.cuh"

namespace va_export {

cudaError_t launch_mma_float16(const VaAnchoredAttentionParams& params, cudaStream_t stream) {
  return launch_mma<__half>(params, stream);
}

}  // namespace va_export
