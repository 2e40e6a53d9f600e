// AnchoredAttention: checks the parameters and picks the kernel.
#include "anchored_attention.h"

#include <cuda_runtime.h>

#include <cmath>

#include "hopper/hopper.h"
#include "kernel_table/kernel_table.h"
#include "mma/mma.h"
#include "simple/attention.cuh"

namespace va_export {
namespace {

constexpr int64_t kMaxGridYZ = 65535;
constexpr int64_t kMaxRows = INT32_MAX - kTileRows;  // positions and packed rows are counted in int32

bool in_range(int64_t x, int64_t low, int64_t high) {
  return low <= x && x <= high;
}

bool is_valid(const VaAnchoredAttentionParams& p) {
  const bool pointers = p.query && p.key && p.value && p.key_log_gain && p.value_gain && p.out;
  const bool sizes = in_range(p.batch, 1, kMaxGridYZ) && in_range(p.kv_heads, 1, kMaxGridYZ) &&
                     in_range(p.query_heads, 1, kMaxRows) && p.query_heads % p.kv_heads == 0 &&
                     in_range(p.q_len, 1, kMaxRows) && in_range(p.kv_len, 1, kMaxRows) &&
                     p.q_len * (p.query_heads / p.kv_heads) <= kMaxRows &&
                     in_range(p.head_dim, 1, VA_ANCHORED_ATTENTION_MAX_HEAD_DIM) &&
                     in_range(p.value_head_dim, 1, VA_ANCHORED_ATTENTION_MAX_HEAD_DIM);
  return pointers && sizes && std::isfinite(p.scale) && p.scale > 0.0f;
}

// The kernel for 16-bit elements; only a library with code for sm_90a has the Hopper kernel.
template <typename T>
cudaError_t launch(const VaAnchoredAttentionParams& p, cudaStream_t stream) {
  int kernel = kSimpleAttention;
  const cudaError_t error = read_kernel(p.q_len > kMaxDecodeLen ? Phase::kPrefill : Phase::kDecode, &kernel);
  if (error != cudaSuccess) return error;
  if (kernel == kSimpleAttention || !mma_serves(p)) return launch_simple<T>(p, stream);
#ifdef VA_EXPORT_HAS_HOPPER
  if (kernel == kTensorCoreAttention && hopper_serves(p)) {
    const cudaError_t launched = launch_hopper<T>(p, stream);
    if (launched != cudaErrorNotSupported) return launched;
  }
#endif
  return launch_mma<T>(p, stream);
}

}  // namespace
}  // namespace va_export

extern "C" size_t va_anchored_attention_workspace_bytes(const VaAnchoredAttentionParams* params) {
  const bool is_known = params != nullptr && params->struct_bytes == sizeof(*params);
  return is_known ? va_export::mma_workspace_bytes(*params) : 0;
}

extern "C" cudaError_t va_anchored_attention_launch(const VaAnchoredAttentionParams* params, cudaStream_t stream) {
  if (params == nullptr || params->struct_bytes != sizeof(*params) || !va_export::is_valid(*params)) {
    return cudaErrorInvalidValue;
  }
  using namespace va_export;
  switch (params->dtype) {
    case VA_FLOAT16:
      return launch<__half>(*params, stream);
    case VA_BFLOAT16:
      return launch<__nv_bfloat16>(*params, stream);
    case VA_FLOAT32:
      return launch_simple<float>(*params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}
