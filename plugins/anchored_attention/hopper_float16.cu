// The Hopper kernel for float16.
#include "hopper_launch.cuh"

namespace va_export {

cudaError_t launch_hopper_float16(const VaAnchoredAttentionParams& params, cudaStream_t stream) {
  return launch_hopper<__half>(params, stream);
}

}  // namespace va_export
