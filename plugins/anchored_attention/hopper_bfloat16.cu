// The Hopper kernel for bfloat16.
#include "hopper_launch.cuh"

namespace va_export {

cudaError_t launch_hopper_bfloat16(const VaAnchoredAttentionParams& params, cudaStream_t stream) {
  return launch_hopper<__nv_bfloat16>(params, stream);
}

}  // namespace va_export
