// The Hopper kernel as the dispatcher sees it. Parameters are such as hopper_serves accepts.
#pragma once

#include "anchored_attention/anchored_attention.h"
#include "anchored_attention/mma/mma.h"

namespace va_export {

constexpr int64_t kHopperRows = 128;  // positions in a tile

// Whether parameters that mma_serves accepts are ones for the Hopper kernel: more positions than decode takes, and
// tiles that can be counted.
inline bool hopper_serves(const VaAnchoredAttentionParams& p) {
  const bool is_prefill = p.q_len > kMaxDecodeLen;
  return is_prefill && p.batch * p.query_heads <= kMaxBlocks / ceil_div(p.q_len, kHopperRows);
}

// For __half and __nv_bfloat16. cudaErrorNotSupported, and nothing is queued: this GPU, its driver or the tensors'
// strides rule the kernel out.
template <typename T>
cudaError_t launch_hopper(const VaAnchoredAttentionParams& params, cudaStream_t stream);

}  // namespace va_export
