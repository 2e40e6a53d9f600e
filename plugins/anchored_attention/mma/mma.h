// The mma.sync kernels as the dispatcher sees them: what they serve, and the workspace that they can use.
#pragma once

#include "anchored_attention/anchored_attention.h"
#include "anchored_attention/geometry.h"
#include "anchored_attention/softmax_state.cuh"

namespace va_export {

constexpr int64_t kMaxDecodeLen = 16;  // q_len up to which keys are divided among warps and blocks
constexpr int64_t kMmaMaxHeadDim = 128;
constexpr int64_t kMinPrefillRows = 64;  // of any tile, so that the number of blocks can be bounded
constexpr int64_t kMaxBlocks = INT32_MAX;
constexpr int kPartialRows = 16;  // rows of a decode tile

// The workspace: what the blocks that share one row tile's keys leave there. O [slots, kPartialRows, value_head_dim],
// not normalised, then the softmax's states [slots, kPartialRows].
struct Partials {
  float* out;
  SoftmaxState* states;

  __host__ __device__ Partials(void* workspace, int64_t slots, int64_t value_head_dim)
      : out(static_cast<float*>(workspace)),
        states(reinterpret_cast<SoftmaxState*>(out + slots * kPartialRows * value_head_dim)) {}
};

__host__ __device__ inline int64_t partial_bytes(int64_t slots, int64_t value_head_dim) {
  return slots * kPartialRows *
         (value_head_dim * static_cast<int64_t>(sizeof(float)) + static_cast<int64_t>(sizeof(SoftmaxState)));
}

inline bool is_aligned(const void* pointer, const VaAttentionStrides& strides) {
  const auto is_multiple_of_8 = [](int64_t x) { return x % 8 == 0; };
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && is_multiple_of_8(strides.batch) &&
         is_multiple_of_8(strides.head) && is_multiple_of_8(strides.position);
}

inline bool is_multiple_of_8_within(int64_t width, int64_t most) {
  return width % 8 == 0 && width <= most;
}

// The row tiles of a decode launch.
inline int64_t decode_tiles(const VaAnchoredAttentionParams& p) {
  const int64_t positions = p.q_len < kMaxDecodeLen ? p.q_len : kMaxDecodeLen;
  return p.batch * p.kv_heads * ceil_div(positions * (p.query_heads / p.kv_heads), kPartialRows);
}

// Whether the tensor-core kernels take valid parameters: 16-bit elements, head dimensions that are multiples of 8 up to
// kMmaMaxHeadDim, everything aligned to 16 bytes.
inline bool mma_serves(const VaAnchoredAttentionParams& p) {
  const bool is_16_bit = p.dtype == VA_FLOAT16 || p.dtype == VA_BFLOAT16;
  const bool fits =
      is_multiple_of_8_within(p.head_dim, kMmaMaxHeadDim) && is_multiple_of_8_within(p.value_head_dim, kMmaMaxHeadDim);
  const int64_t rows = p.q_len * (p.query_heads / p.kv_heads);
  const int64_t tile_rows = p.q_len <= kMaxDecodeLen ? kPartialRows : kMinPrefillRows;
  const bool countable = ceil_div(rows, tile_rows) <= kMaxBlocks / (p.batch * p.kv_heads);
  return is_16_bit && fits && countable && is_aligned(p.query, p.query_strides) && is_aligned(p.key, p.key_strides) &&
         is_aligned(p.value, p.value_strides) && is_aligned(p.out, p.out_strides);
}

// Bytes of workspace with which a launch of these sizes, or of smaller ones, can split the keys as it likes.
inline size_t mma_workspace_bytes(const VaAnchoredAttentionParams& p) {
  const bool sizes_are_set = p.batch > 0 && p.kv_heads > 0 && p.query_heads >= p.kv_heads && p.q_len > 0 &&
                             p.kv_len > 0 && p.value_head_dim > 0 && p.value_head_dim <= kMmaMaxHeadDim;
  if (!sizes_are_set || p.dtype == VA_FLOAT32) return 0;
  const int64_t slots = most_slots(decode_tiles(p), p.kv_len, kDecodeTileKeys);
  return static_cast<size_t>(partial_bytes(slots, p.value_head_dim));
}

// For __half and __nv_bfloat16, each compiled in a file of its own, so that a build uses more than one core. Parameters
// are such as mma_serves accepts.
template <typename T>
cudaError_t launch_mma(const VaAnchoredAttentionParams& params, cudaStream_t stream);

}  // namespace va_export
