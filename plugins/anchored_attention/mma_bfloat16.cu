// The tensor-core kernels for bfloat16.
#include "mma_launch.cuh"

namespace va_export {

cudaError_t launch_mma_bfloat16(const VaAnchoredAttentionParams& params, cudaStream_t stream) {
  return launch_mma<__nv_bfloat16>(params, stream);
}

}  // namespace va_export
