// The Hopper kernel as the dispatcher sees it: one file an element type. Parameters are such as hopper_serves accepts.
#pragma once

#include "anchored_attention.h"
#include "mma_limits.h"

namespace va_export {

// Whether parameters that mma_serves accepts are ones for the Hopper kernel: more rows than decode takes.
inline bool hopper_serves(const VaAnchoredAttentionParams& p) {
  return p.q_len > kMaxDecodeLen && p.batch * p.query_heads <= INT32_MAX;
}

// cudaErrorNotSupported, and nothing is queued: this GPU, its driver or the tensors' strides rule the kernel out.
cudaError_t launch_hopper_float16(const VaAnchoredAttentionParams& params, cudaStream_t stream);
cudaError_t launch_hopper_bfloat16(const VaAnchoredAttentionParams& params, cudaStream_t stream);

}  // namespace va_export
