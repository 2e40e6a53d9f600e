// The tensor-core kernels as the dispatcher sees them. Each element type is compiled in a file of its own, so that a
// build uses more than one core. Parameters are such as mma_serves accepts.
#pragma once

#include "anchored_attention.h"

namespace va_export {

cudaError_t launch_mma_float16(const VaAnchoredAttentionParams& params, cudaStream_t stream);
cudaError_t launch_mma_bfloat16(const VaAnchoredAttentionParams& params, cudaStream_t stream);

}  // namespace va_export
