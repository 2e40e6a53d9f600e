// Split KV: how decode adds up what warps, and then blocks, found in their shares of the keys, always in the same
// order.
#pragma once

#include "anchored_attention/anchored_softmax.cuh"
#include "anchored_attention/mma/mma.h"
#include "common/convert.cuh"

namespace va_export {

// Shared memory of the merge, in place of the key and value tiles. Rows have 8 floats of padding: the eight rows that
// a warp writes at a time begin in different banks.
template <typename Tile>
struct WarpPartials {
  float out[Tile::kKeyWarps][kPartialRows][Tile::kHeadDim + 8];
  SoftmaxState states[Tile::kKeyWarps][kPartialRows];
};

template <typename Tile>
__device__ inline void store_warp(const RowState<Tile>& rows, WarpPartials<Tile>& partials) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = h * 8 + lane / 4;
    const SoftmaxState& state = rows.softmax[0][h];
    const float sum = sum_of_row(state.sum);
    if (lane % 4 == 0) partials.states[warp][row] = SoftmaxState{state.max, sum};
#pragma unroll
    for (int d = 0; d < Tile::kChunks; ++d) {
      float* pair = &partials.out[warp][row][d * 8 + lane % 4 * 2];
      pair[0] = rows.out[0][d][2 * h];
      pair[1] = rows.out[0][d][2 * h + 1];
    }
  }
}

// Writes the output, or with splits what combine_kernel adds up. A split without keys writes nothing.
template <typename Tile>
__device__ inline void merge_warps(const TileView<Tile>& view, char* shared, const RowState<Tile>& rows) {
  static_assert(Tile::kRowWarps == 1 && Tile::kRowFragments == 1, "one warp's rows are the block's");
  static_assert(sizeof(WarpPartials<Tile>) <= 2 * Tile::kStages * Tile::kTileBytes, "the tiles' memory is enough");
  const bool is_partial = view.plan.splits > 1;
  if (is_partial && view.keys.begin >= view.keys.end) return;
  WarpPartials<Tile>& warps = *reinterpret_cast<WarpPartials<Tile>*>(shared + Tile::kKeyOffset);
  store_warp<Tile>(rows, warps);
  __syncthreads();
  const int width = static_cast<int>(view.p.value_head_dim);
  const Partials partials(view.p.workspace, work_count(view.plan), width);
  for (int index = threadIdx.x; index < kPartialRows * Tile::kChunks; index += Tile::kThreads) {
    const int row = index / Tile::kChunks, chunk = index % Tile::kChunks;
    if (view.first_row + row >= view.plan.row_count || chunk * kChunkElements >= width) continue;
    // O: [kKeyWarps, one row, kChunkElements] -> [kChunkElements]
    const SoftmaxState state = merge(&warps.states[0][row], Tile::kKeyWarps, kPartialRows);
    float out[kChunkElements] = {};
#pragma unroll
    for (int w = 0; w < Tile::kKeyWarps; ++w) {
      const float factor = warps.states[w][row].rescale(state.max);
#pragma unroll
      for (int c = 0; c < kChunkElements; ++c) out[c] += factor * warps.out[w][row][chunk * kChunkElements + c];
    }
    if (is_partial) {
      const int64_t slot_row = view.work.slot * kPartialRows + row;
      float4* to = reinterpret_cast<float4*>(partials.out + slot_row * width + chunk * kChunkElements);
      to[0] = make_float4(out[0], out[1], out[2], out[3]);
      to[1] = make_float4(out[4], out[5], out[6], out[7]);
      if (chunk == 0) partials.states[slot_row] = state;
      continue;
    }
    const float factor = state.normalise(1.0f);
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = pack(out[2 * i] * factor, out[2 * i + 1] * factor, typename Tile::T{});
    *reinterpret_cast<uint4*>(view.out_row(view.first_row + row) + chunk * kChunkElements) =
        make_uint4(words[0], words[1], words[2], words[3]);
  }
}

constexpr int kCombineThreads = 128;

// Decode's second kernel. Grid: (row_count, kv_heads, batch). Each thread has the channels threadIdx.x, threadIdx.x +
// kCombineThreads, ...
template <typename T>
__global__ void __launch_bounds__(kCombineThreads) combine_kernel(const PlannedAttention attention) {
  const VaAnchoredAttentionParams& p = attention.params;
  const TilePlan& plan = attention.plan;
  const int row = static_cast<int>(blockIdx.x);
  const int64_t kv_head = blockIdx.y, batch = blockIdx.z;
  const int tile = row / kPartialRows;
  const int last_row = (tile + 1) * kPartialRows < plan.row_count ? (tile + 1) * kPartialRows - 1 : plan.row_count - 1;
  const int visible = visible_keys(last_row, plan.group, p.q_len, valid_keys_of(p, batch), p.is_causal != 0);
  const int used = splits_in_use(visible, kDecodeTileKeys, plan.splits);
  const int64_t first_slot = ((batch * plan.kv_heads + kv_head) * plan.row_tiles + tile) * plan.splits;
  const Partials partials(p.workspace, work_count(plan), p.value_head_dim);
  const SoftmaxState* states = partials.states + first_slot * kPartialRows + row % kPartialRows;
  const SoftmaxState state = merge(states, used, kPartialRows);

  T* out = static_cast<T*>(p.out) + row_offset(p.out_strides, batch, kv_head, plan.group, row);
  for (int64_t channel = threadIdx.x; channel < p.value_head_dim; channel += kCombineThreads) {
    float sum = 0.0f;  // O: [used, one row, one channel] -> [one channel]
    for (int s = 0; s < used; ++s) {
      const int64_t slot_row = (first_slot + s) * kPartialRows + row % kPartialRows;
      sum += states[s * kPartialRows].rescale(state.max) * partials.out[slot_row * p.value_head_dim + channel];
    }
    from_float(state.normalise(sum), out + channel);
  }
}

}  // namespace va_export
