// AnchoredAttention on tensor cores (mma.sync, sm_80 and later): FlashAttention-2's loop for prefill, split keys for
// decode.
//
// One block owns Tile::kRows packed rows of one kv head. Key and value tiles arrive by cp.async: value tile j is copied
// while the queries meet key tile j, key tile j + 1 while the values are summed (Tile::kStages - 1 tiles earlier where
// there are more stages). Scores, weights and sums stay in registers.
#pragma once

#include "mma_merge.cuh"

namespace va_export {

template <typename Tile>
__device__ inline void load_queries(const BlockView<Tile>& view, char* tile) {
  constexpr int kCopies = Tile::kRows * Tile::kChunks;
#pragma unroll 1  // once a block: not worth registers
  for (int index = threadIdx.x; index < kCopies; index += Tile::kThreads) {
    const int row = index / Tile::kChunks, chunk = index % Tile::kChunks;
    const bool exists = view.first_row + row < view.plan.row_count && chunk * kChunkElements < view.p.head_dim;
    const int64_t offset = exists ? view.row_offset(view.p.query_strides, view.first_row + row) + chunk * 8 : 0;
    cp_async_16(tile + swizzled_chunk<Tile::kChunks>(row, chunk) * 16,
                static_cast<const typename Tile::T*>(view.p.query) + offset, exists);
  }
}

// Starts the copy of key (or value) tile `tile` into its stage, and always ends a group, so that groups count tiles.
template <typename Tile>
__device__ inline void load_keys(const BlockView<Tile>& view, const void* tensor, const VaAttentionStrides& strides,
                                 int64_t width, int tile, char* stages) {
  if (tile < view.keys.end) {
    const int first = tile * Tile::kKeys;
    load_tile<Tile>(view.head(tensor, strides) + first * strides.position, strides.position, view.visible - first,
                    static_cast<int>(width), stages + (tile - view.keys.begin) % Tile::kStages * Tile::kTileBytes);
  }
  cp_async_commit();
}

// Masks the scores of one key tile where a row of the warp does not see all of it, and makes weights of them.
template <typename Tile>
__device__ inline void weigh_keys(const BlockView<Tile>& view, const TileGains<Tile>& gains, int tile,
                                  RowState<Tile>& rows, Scores<Tile>& scores) {
  const int warp = threadIdx.x / kLanes;
  const int warp_row = warp % Tile::kRowWarps * Tile::kRowBlocks * 16;
  const int warp_key = warp / Tile::kRowWarps * Tile::kKeysOfWarp;
  const int first_key = tile * Tile::kKeys + warp_key;
  if (first_key + Tile::kKeysOfWarp > view.visible_of(view.first_row + warp_row)) {
    mask_scores<Tile>(view, view.first_row + warp_row, first_key, scores);
  }
  const float log2_scale = view.p.scale * kLog2e;
  if (can_fold<Tile>(gains)) {
    folded_softmax<Tile>(log2_scale, gains.folded + warp_key, rows, scores);
  } else {
    guarded_softmax<Tile>(log2_scale, gains.guarded + warp_key, rows, scores);
  }
}

template <typename Tile>
__device__ inline void attend(const BlockView<Tile>& view, char* shared, RowState<Tile>& rows) {
  const VaAnchoredAttentionParams& p = view.p;
  char* key_stages = shared + Tile::kKeyOffset;
  char* value_stages = shared + Tile::kValueOffset;
  const auto gains_of = [&](int tile) -> TileGains<Tile>& {
    return *reinterpret_cast<TileGains<Tile>*>(shared + Tile::kGainOffset + tile % 2 * Tile::kGainBytes);
  };
  const float* key_log_gain = p.key_log_gain + view.work.batch * p.key_log_gain_batch_stride;
  const float* value_gain = p.value_gain + view.work.batch * p.value_gain_batch_stride;
  const int warp = threadIdx.x / kLanes;
  const int warp_row = warp % Tile::kRowWarps * Tile::kRowBlocks * 16;
  const int warp_key = warp / Tile::kRowWarps * Tile::kKeysOfWarp;
  const int begin = view.keys.begin, end = view.keys.end;

  load_queries<Tile>(view, shared);
#pragma unroll
  for (int stage = 0; stage < Tile::kStages; ++stage) {
    load_keys<Tile>(view, p.key, p.key_strides, p.head_dim, begin + stage, key_stages);
    if (stage + 1 < Tile::kStages) {
      load_keys<Tile>(view, p.value, p.value_strides, p.value_head_dim, begin + stage, value_stages);
    }
  }
  store_gain<Tile>(fetch_gain<Tile>(key_log_gain, value_gain, begin * Tile::kKeys, view.visible), gains_of(begin));
  constexpr int kGroupsBehind = 2 * Tile::kStages - 2;
#pragma unroll 1
  for (int tile = begin; tile < end; ++tile) {
    const char* keys = key_stages + (tile - begin) % Tile::kStages * Tile::kTileBytes;
    const char* values = value_stages + (tile - begin) % Tile::kStages * Tile::kTileBytes;
    cp_async_wait<kGroupsBehind>();
    __syncthreads();  // the key tile and its gains are there; the value tile before it is no longer read
    load_keys<Tile>(view, p.value, p.value_strides, p.value_head_dim, tile + Tile::kStages - 1, value_stages);
    const KeyGain next = fetch_gain<Tile>(key_log_gain, value_gain, (tile + 1) * Tile::kKeys, view.visible);
    Scores<Tile> scores;
    multiply_queries_keys<Tile>(shared, keys, warp_row, warp_key, scores);
    store_gain<Tile>(next, gains_of(tile + 1));  // here, where fewer registers are in use than later
    cp_async_wait<kGroupsBehind>();
    __syncthreads();  // the value tile is there; the key tile is no longer read
    load_keys<Tile>(view, p.key, p.key_strides, p.head_dim, tile + Tile::kStages, key_stages);
    weigh_keys<Tile>(view, gains_of(tile), tile, rows, scores);
    add_weighted_values<Tile>(scores, values, warp_key, rows.acc);
  }
  cp_async_wait<0>();  // the queries of a block without keys are still on their way
  __syncthreads();
}

template <typename Tile>
__device__ inline void start_rows(RowState<Tile>& rows) {
#pragma unroll
  for (int m = 0; m < Tile::kRowBlocks; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      rows.max[m][h] = -INFINITY;
      rows.sum[m][h] = 0.0f;
    }
#pragma unroll
    for (int d = 0; d < Tile::kChunks; ++d) {
      rows.acc[m][d][0] = rows.acc[m][d][1] = rows.acc[m][d][2] = rows.acc[m][d][3] = 0.0f;
    }
  }
}

// Rounds a warp's rows, and writes them through the shared memory of its queries in 16-byte pieces.
template <typename Tile>
__device__ inline void write_rows(const BlockView<Tile>& view, char* shared, const RowState<Tile>& rows) {
  const int lane = threadIdx.x % kLanes;
  const int warp_row = threadIdx.x / kLanes * Tile::kRowBlocks * 16;
#pragma unroll
  for (int m = 0; m < Tile::kRowBlocks; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float total = sum_of_row(rows.sum[m][h]);
      const float factor = total == 0.0f ? 0.0f : 1.0f / total;  // a row that sees nothing has sum 0
      const int row = warp_row + m * 16 + h * 8 + lane / 4;
#pragma unroll
      for (int d = 0; d < Tile::kChunks; ++d) {
        char* chunk = shared + swizzled_chunk<Tile::kChunks>(row, d) * 16;
        reinterpret_cast<uint32_t*>(chunk)[lane % 4] =
            pack(rows.acc[m][d][2 * h] * factor, rows.acc[m][d][2 * h + 1] * factor, typename Tile::T{});
      }
    }
  }
  __syncwarp();
  typename Tile::T* out = static_cast<typename Tile::T*>(view.p.out);
#pragma unroll 1  // once a block: not worth registers
  for (int index = lane; index < Tile::kRowBlocks * 16 * Tile::kChunks; index += kLanes) {
    const int row = warp_row + index / Tile::kChunks, chunk = index % Tile::kChunks;
    if (view.first_row + row >= view.plan.row_count || chunk * kChunkElements >= view.p.value_head_dim) continue;
    const int64_t offset = view.row_offset(view.p.out_strides, view.first_row + row) + chunk * kChunkElements;
    *reinterpret_cast<float4*>(out + offset) =
        *reinterpret_cast<const float4*>(shared + swizzled_chunk<Tile::kChunks>(row, chunk) * 16);
  }
}

// Whether a launch picks this tile for the architecture that is compiled for: the others cost no compile time.
template <typename Tile>
__device__ constexpr bool runs_here() {
#ifdef __CUDA_ARCH__
  return Tile::kKeyWarps > 1 || Tile::kRowBlocks == prefill_row_blocks(__CUDA_ARCH__ / 10, Tile::kHeadDim);
#else
  return true;
#endif
}

// Grid: block_count(plan) blocks of Tile::kThreads threads, Tile::kSharedBytes of dynamic shared memory. Pointers are
// aligned to 16 bytes, strides and head dimensions are multiples of 8. With plan.splits > 1 the results are partial:
// combine_kernel.cuh.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 2) mma_attention_kernel(const MmaArguments arguments) {
  if constexpr (runs_here<Tile>()) {
    extern __shared__ float4 shared_memory[];
    char* shared = reinterpret_cast<char*>(shared_memory);
    RowState<Tile> rows;
    start_rows<Tile>(rows);
    attend<Tile>(BlockView<Tile>(arguments, blockIdx.x), shared, rows);
    const BlockView<Tile> view(arguments, opaque(blockIdx.x));  // anew: kept, it would take registers in the loop
    if constexpr (Tile::kKeyWarps == 1) {
      write_rows<Tile>(view, shared, rows);
    } else {
      merge_warps<Tile>(view, shared, rows);
    }
  }
}

}  // namespace va_export
