// AnchoredAttention on tensor cores (mma.sync, sm_80 and later): FlashAttention-2's loop for prefill, split KV for
// decode; the kernel and its launcher.
//
// One block owns Tile::kRows packed rows of one kv head. Key and value tiles arrive by cp.async: value tile j is copied
// while the queries meet key tile j, key tile j + 1 while the values are summed (Tile::kStages - 1 tiles earlier where
// there are more stages). S, P and O stay in registers.
#pragma once

#include <cuda_runtime.h>

#include "anchored_attention/mma/combine.cuh"
#include "anchored_attention/mma/mma.h"
#include "anchored_attention/mma/tile.cuh"

namespace va_export {

// Q tile: [kRows = positions x group, head_dim], swizzled; zeros where there is no such row or column.
template <typename Tile>
__device__ inline void load_queries(const TileView<Tile>& view, char* tile) {
  constexpr int kCopies = Tile::kRows * Tile::kChunks;
#pragma unroll 1  // once a block: not worth registers
  for (int index = threadIdx.x; index < kCopies; index += Tile::kThreads) {
    const int row = index / Tile::kChunks, chunk = index % Tile::kChunks;
    const bool exists = view.first_row + row < view.plan.row_count && chunk * kChunkElements < view.p.head_dim;
    const int64_t offset = exists ? row_offset(view.p.query_strides, view.work.batch, view.work.kv_head,
                                               view.plan.group, view.first_row + row) +
                                        chunk * kChunkElements
                                  : 0;
    cp_async_16(tile + swizzled_chunk<Tile::kChunks>(row, chunk) * 16,
                static_cast<const typename Tile::T*>(view.p.query) + offset, exists);
  }
}

// Starts the copy of key (or value) tile `tile`, [kKeys, width], into its stage, and always ends a group, so that
// groups count tiles.
template <typename Tile>
__device__ inline void load_keys(const TileView<Tile>& view, const void* tensor, const VaAttentionStrides& strides,
                                 int64_t width, int tile, char* stages) {
  if (tile < view.keys.end) {
    const int first = tile * Tile::kKeys;
    load_tile<Tile>(view.head(tensor, strides) + first * strides.position, strides.position, view.visible - first,
                    static_cast<int>(width), stages + (tile - view.keys.begin) % Tile::kStages * Tile::kTileBytes);
  }
  cp_async_commit();
}

// S to P of one key tile; brings O to the new row max.
template <typename Tile>
__device__ inline void weigh_keys(const TileView<Tile>& view, const TileGains<Tile::kKeys>& gains, int tile,
                                  RowState<Tile>& rows, Accumulator<Tile::kRowFragments, Tile::kWarpKeys>& scores) {
  const int first_row = view.first_row + Tile::warp_row(), first_key = tile * Tile::kKeys + Tile::warp_key();
  if (first_key + Tile::kWarpKeys > view.visible_of(first_row)) {
    // Computed anew on the few tiles at the diagonal, where keeping it would cost registers on all.
    mask_scores(scores, [&](int m, int h) {
      return view.visible_of(first_row + m * 16 + h * 8 + threadIdx.x % kWarpSize / 4) - first_key;
    });
  }
  float rescale[Tile::kRowFragments][2];
  softmax(view.p.scale * kLog2e, gains, Tile::warp_key(), rows.softmax, scores, rescale);
  rescale_rows(rescale, rows.out);
}

template <typename Tile>
__device__ inline void attend(const TileView<Tile>& view, char* shared, RowState<Tile>& rows) {
  const VaAnchoredAttentionParams& p = view.p;
  char* key_stages = shared + Tile::kKeyOffset;
  char* value_stages = shared + Tile::kValueOffset;
  const auto gains_of = [&](int tile) -> TileGains<Tile::kKeys>& {
    return *reinterpret_cast<TileGains<Tile::kKeys>*>(shared + Tile::kGainOffset + tile % 2 * Tile::kGainBytes);
  };
  const float* key_log_gain = p.key_log_gain + view.work.batch * p.key_log_gain_batch_stride;
  const float* value_gain = p.value_gain + view.work.batch * p.value_gain_batch_stride;
  const auto fetch = [&](int tile) {  // the gain of this thread's key; keys that nobody sees weigh nothing
    const int key = tile * Tile::kKeys + static_cast<int>(threadIdx.x);
    return fetch_gain(key_log_gain, value_gain, key, static_cast<int>(threadIdx.x) < Tile::kKeys && key < view.visible);
  };
  const auto store = [&](KeyGain gain, int tile) {  // whole warps
    if (threadIdx.x < Tile::kKeys) store_gain(gain, static_cast<int>(threadIdx.x), gains_of(tile));
  };
  const int begin = view.keys.begin, end = view.keys.end;

  load_queries<Tile>(view, shared);
#pragma unroll
  for (int stage = 0; stage < Tile::kStages; ++stage) {
    load_keys<Tile>(view, p.key, p.key_strides, p.head_dim, begin + stage, key_stages);
    if (stage + 1 < Tile::kStages) {
      load_keys<Tile>(view, p.value, p.value_strides, p.value_head_dim, begin + stage, value_stages);
    }
  }
  store(fetch(begin), begin);
  constexpr int kGroupsBehind = 2 * Tile::kStages - 2;
#pragma unroll 1
  for (int tile = begin; tile < end; ++tile) {
    const char* keys = key_stages + (tile - begin) % Tile::kStages * Tile::kTileBytes;
    const char* values = value_stages + (tile - begin) % Tile::kStages * Tile::kTileBytes;
    cp_async_wait<kGroupsBehind>();
    __syncthreads();  // the key tile and its gains are there; the value tile before it is no longer read
    const KeyGain next = fetch(tile + 1);  // before the copy: in the other order ptxas spills registers on sm_90
    load_keys<Tile>(view, p.value, p.value_strides, p.value_head_dim, tile + Tile::kStages - 1, value_stages);
    Accumulator<Tile::kRowFragments, Tile::kWarpKeys> scores;
    multiply_queries_keys<Tile>(shared, keys, scores);
    store(next, tile + 1);  // here, where fewer registers are in use than later
    cp_async_wait<kGroupsBehind>();
    __syncthreads();  // the value tile is there; the key tile is no longer read
    load_keys<Tile>(view, p.key, p.key_strides, p.head_dim, tile + Tile::kStages, key_stages);
    weigh_keys<Tile>(view, gains_of(tile), tile, rows, scores);
    add_weighted_values<Tile>(scores, values, rows.out);
  }
  cp_async_wait<0>();  // the queries of a block without keys are still on their way
  __syncthreads();
}

// Whether a launch picks this tile for the architecture that is compiled for: the others cost no compile time.
template <typename Tile>
__device__ constexpr bool runs_here() {
#ifdef __CUDA_ARCH__
  return Tile::kKeyWarps > 1 || Tile::kRowFragments == prefill_row_fragments(__CUDA_ARCH__ / 10, Tile::kHeadDim);
#else
  return true;
#endif
}

// Grid: work_count(plan) blocks of Tile::kThreads threads, Tile::kSharedBytes of dynamic shared memory. Pointers are
// aligned to 16 bytes, strides and head dimensions are multiples of 8. With plan.splits > 1 the results are partial:
// combine.cuh.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 2) mma_attention_kernel(const PlannedAttention attention) {
  if constexpr (runs_here<Tile>()) {
    extern __shared__ float4 shared_memory[];
    char* shared = reinterpret_cast<char*>(shared_memory);
    RowState<Tile> rows;
    attend<Tile>(TileView<Tile>(attention, blockIdx.x), shared, rows);
    const TileView<Tile> view(attention, opaque(blockIdx.x));  // anew: kept, it would take registers in the loop
    if constexpr (Tile::kKeyWarps == 1) {
      write_rows<Tile>(view, Tile::warp_row(), rows);
    } else {
      merge_warps<Tile>(view, shared, rows);
    }
  }
}

template <typename Tile>
TilePlan plan_tiles(const VaAnchoredAttentionParams& p, const Device& device) {
  TilePlan plan;
  plan.group = static_cast<int>(p.query_heads / p.kv_heads);
  plan.row_count = static_cast<int>(p.q_len * plan.group);
  plan.row_tiles = static_cast<int>(ceil_div(plan.row_count, Tile::kRows));
  plan.kv_heads = static_cast<int>(p.kv_heads);
  plan.heads = static_cast<int>(p.batch * p.kv_heads);
  const int64_t bytes_of_head = p.kv_len * (p.head_dim + p.value_head_dim) * 2;
  plan.section_heads = heads_in_cache(plan.heads, bytes_of_head, device.cache_bytes);
  plan.splits = 1;
  if (Tile::kKeyWarps > 1 && p.workspace != nullptr) {
    const int64_t slots = static_cast<int64_t>(p.workspace_bytes) / partial_bytes(1, p.value_head_dim);
    const int64_t tiles = static_cast<int64_t>(plan.heads) * plan.row_tiles;
    plan.splits = choose_splits(tiles, p.kv_len, kDecodeTileKeys, device.sm_count,
                                slots < kMostSplitBlocks ? slots : kMostSplitBlocks);
  }
  return plan;
}

template <typename Tile>
cudaError_t launch_tile(const VaAnchoredAttentionParams& p, const Device& device, cudaStream_t stream) {
  PlannedAttention attention{p, plan_tiles<Tile>(p, device)};
  auto* kernel = mma_attention_kernel<Tile>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  if (error != cudaSuccess) return error;
  void* arguments[] = {&attention};
  const dim3 grid(static_cast<unsigned>(work_count(attention.plan)));
  error = cudaLaunchKernel(kernel, grid, dim3(Tile::kThreads), arguments, Tile::kSharedBytes, stream);
  if (error != cudaSuccess || attention.plan.splits == 1) return error;
  const dim3 rows(static_cast<unsigned>(attention.plan.row_count), static_cast<unsigned>(p.kv_heads),
                  static_cast<unsigned>(p.batch));
  return cudaLaunchKernel(combine_kernel<typename Tile::T>, rows, dim3(kCombineThreads), arguments, 0, stream);
}

// The architecture whose code the driver runs here, such as 86: that of the machine code, or of the PTX it came from.
template <typename Kernel>
cudaError_t compiled_architecture(Kernel* kernel, int& architecture) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess) architecture = attributes.ptxVersion;
  return error;
}

template <typename T, int kHeadDim>
cudaError_t launch_for_length(const VaAnchoredAttentionParams& p, const Device& device, cudaStream_t stream) {
  if (p.q_len <= kMaxDecodeLen) return launch_tile<DecodeTile<T, kHeadDim>>(p, device, stream);
  if constexpr (kHeadDim > 64) {
    int architecture = 0;
    const cudaError_t error = compiled_architecture(mma_attention_kernel<PrefillTile<T, kHeadDim, 1>>, architecture);
    if (error != cudaSuccess) return error;
    if (prefill_row_fragments(architecture, kHeadDim) == 1) {
      return launch_tile<PrefillTile<T, kHeadDim, 1>>(p, device, stream);
    }
  }
  return launch_tile<PrefillTile<T, kHeadDim, 2>>(p, device, stream);
}

// Widths in between run padded with zeros, which cost arithmetic and no memory traffic.
template <typename T>
cudaError_t launch_mma(const VaAnchoredAttentionParams& p, cudaStream_t stream) {
  Device device;
  const cudaError_t error = read_device(device);
  if (error != cudaSuccess) return error;
  const int64_t width = p.head_dim > p.value_head_dim ? p.head_dim : p.value_head_dim;
  if (width <= 64) return launch_for_length<T, 64>(p, device, stream);
#ifndef VA_EXPORT_FEWER_HEAD_DIMS
  if (width <= 80) return launch_for_length<T, 80>(p, device, stream);
  if (width <= 96) return launch_for_length<T, 96>(p, device, stream);
#endif
  return launch_for_length<T, 128>(p, device, stream);
}

}  // namespace va_export
