// Decode's last step in a block: adds what its warps found in their shares of the keys, always in the same order.
#pragma once

#include "block_view.cuh"
#include "mma_softmax.cuh"
#include "partials.cuh"

namespace va_export {

// Shared memory of the merge, in place of the key and value tiles. Rows have 8 floats of padding: the eight rows that
// a warp writes at a time begin in different banks.
template <typename Tile>
struct WarpSums {
  static constexpr int kRowFloats = Tile::kHeadDim + 8;
  float sums[Tile::kKeyWarps][kPartialRows][kRowFloats];
  SoftmaxStats stats[Tile::kKeyWarps][kPartialRows];
};

template <typename Tile>
__device__ inline void store_warp_sums(const RowState<Tile>& rows, WarpSums<Tile>& merged) {
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = h * 8 + lane / 4;
    const float total = sum_of_row(rows.sum[0][h]);
    if (lane % 4 == 0) merged.stats[warp][row] = SoftmaxStats{rows.max[0][h], total};
#pragma unroll
    for (int d = 0; d < Tile::kChunks; ++d) {
      float* pair = &merged.sums[warp][row][d * 8 + lane % 4 * 2];
      pair[0] = rows.acc[0][d][2 * h];
      pair[1] = rows.acc[0][d][2 * h + 1];
    }
  }
}

// The sums over all warps' keys for kChunkElements channels of one row.
template <typename Tile>
__device__ inline SoftmaxStats merge_chunk(const WarpSums<Tile>& merged, int row, int chunk,
                                           float (&sums)[kChunkElements]) {
  SoftmaxStats stats{-INFINITY, 0.0f};
#pragma unroll
  for (int w = 0; w < Tile::kKeyWarps; ++w) stats.max = fmaxf(stats.max, merged.stats[w][row].max);
#pragma unroll
  for (int c = 0; c < kChunkElements; ++c) sums[c] = 0.0f;
#pragma unroll
  for (int w = 0; w < Tile::kKeyWarps; ++w) {
    const float factor = rescale(merged.stats[w][row].max, stats.max);
    stats.sum += factor * merged.stats[w][row].sum;
#pragma unroll
    for (int c = 0; c < kChunkElements; ++c) sums[c] += factor * merged.sums[w][row][chunk * kChunkElements + c];
  }
  return stats;
}

// Writes the output, or with splits what combine_kernel adds up. A split without keys writes nothing.
template <typename Tile>
__device__ inline void merge_warps(const BlockView<Tile>& view, char* shared, const RowState<Tile>& rows) {
  static_assert(Tile::kRowWarps == 1 && Tile::kRowBlocks == 1, "one warp's rows are the block's");
  static_assert(sizeof(WarpSums<Tile>) <= 2 * Tile::kStages * Tile::kTileBytes, "the tiles' memory is enough");
  const bool is_partial = view.plan.splits > 1;
  if (is_partial && view.keys.begin >= view.keys.end) return;
  WarpSums<Tile>& merged = *reinterpret_cast<WarpSums<Tile>*>(shared + Tile::kKeyOffset);
  store_warp_sums<Tile>(rows, merged);
  __syncthreads();
  const int width = static_cast<int>(view.p.value_head_dim);
  const Partials partials(view.p.workspace, block_count(view.plan), width);
  for (int index = threadIdx.x; index < kPartialRows * Tile::kChunks; index += Tile::kThreads) {
    const int row = index / Tile::kChunks, chunk = index % Tile::kChunks;
    if (view.first_row + row >= view.plan.row_count || chunk * kChunkElements >= width) continue;
    float sums[kChunkElements];
    const SoftmaxStats stats = merge_chunk<Tile>(merged, row, chunk, sums);
    if (is_partial) {
      const int64_t slot_row = view.work.slot * kPartialRows + row;
      float4* to = reinterpret_cast<float4*>(partials.sums + slot_row * width + chunk * kChunkElements);
      to[0] = make_float4(sums[0], sums[1], sums[2], sums[3]);
      to[1] = make_float4(sums[4], sums[5], sums[6], sums[7]);
      if (chunk == 0) partials.stats[slot_row] = stats;
      continue;
    }
    const float factor = stats.sum == 0.0f ? 0.0f : 1.0f / stats.sum;  // a row that sees nothing has sum 0
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = pack(sums[2 * i] * factor, sums[2 * i + 1] * factor, typename Tile::T{});
    typename Tile::T* out = static_cast<typename Tile::T*>(view.p.out) +
                            view.row_offset(view.p.out_strides, view.first_row + row) + chunk * kChunkElements;
    *reinterpret_cast<uint4*>(out) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

}  // namespace va_export
