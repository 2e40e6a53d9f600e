// Which rows, keys and bytes a block works on: the index arithmetic that the kernels share, on host and device.
//
// The query heads of a GQA group are packed into rows: row = position * group + head within the group. The keys that a
// row may see are a prefix of the sequence, so the causal mask is one number a row, which never falls from one row to
// the next.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "anchored_attention.h"

namespace va_export {

constexpr int kWarpSize = 32;
constexpr int kChunkElements = 8;    // a chunk is 16 bytes, what cp.async and ldmatrix move: 8 elements of 16 bits
constexpr int kDecodeTileKeys = 64;  // keys in a tile of the decode kernel

__host__ __device__ inline int64_t ceil_div(int64_t x, int64_t y) {
  return (x + y - 1) / y;
}

// Valid keys of one batch row: kv_length clamped to [0, kv_len].
__host__ __device__ inline int clip_kv_length(int64_t kv_length, int64_t kv_len) {
  return static_cast<int>(kv_length < 0 ? 0 : (kv_length > kv_len ? kv_len : kv_length));
}

__device__ inline int valid_keys_of(const VaAnchoredAttentionParams& p, int64_t batch) {
  return clip_kv_length(p.kv_length == nullptr ? p.kv_len : p.kv_length[batch], p.kv_len);
}

// Keys that packed row `row` may see: bottom-right causal, the last position sees every valid key.
__host__ __device__ inline int visible_keys(int row, int group, int64_t q_len, int valid_keys, bool is_causal) {
  if (!is_causal) return valid_keys;
  const int seen = row / group + 1 + (valid_keys - static_cast<int>(q_len));  // in this order, within int32
  return seen < 0 ? 0 : (seen > valid_keys ? valid_keys : seen);
}

// First element of a packed row of query or out: [batch, heads, positions, width] by its strides.
__device__ inline int64_t row_offset(const VaAttentionStrides& strides, int64_t batch, int64_t kv_head, int group,
                                     int row) {
  return batch * strides.batch + (kv_head * group + row % group) * strides.head +
         static_cast<int64_t>(row / group) * strides.position;
}

// Chunk of shared memory that holds chunk `chunk` of row `row`, in a tile whose rows have kChunks chunks. Eight
// neighbouring rows put equal chunks into eight different groups of banks, so ldmatrix has no bank conflict: rows that
// start in the same group of banks differ in the bits that are exclusive-ored in.
template <int kChunks>
__host__ __device__ constexpr int swizzled_chunk(int row, int chunk) {
  static_assert(kChunks % 2 == 0, "an odd number of chunks needs no swizzle");
  constexpr int kOffsets = kChunks % 8 == 0 ? 8 : (kChunks % 4 == 0 ? 4 : 2);  // a power of two that divides kChunks
  return row * kChunks + (chunk ^ (row / (8 / kOffsets) % kOffsets));
}

// How the rows of all heads become work tiles, in the order in which the GPU starts them.
struct TilePlan {
  int group;          // query heads that share a kv head
  int row_count;      // packed rows of one kv head
  int row_tiles;      // tiles of one kv head
  int kv_heads;       // of one batch row
  int heads;          // kv heads of the whole batch
  int section_heads;  // heads that are worked on together, because their keys and values fit into the L2 cache
  int splits;         // blocks that share the keys of one row tile (split KV)
};

// What one block works on at a time.
struct WorkTile {
  int batch;
  int kv_head;
  int row_tile;
  int split;
  int64_t slot;  // of its partial result
};

__host__ __device__ inline int64_t work_count(const TilePlan& plan) {
  return static_cast<int64_t>(plan.heads) * plan.row_tiles * plan.splits;
}

// Tiles of the last rows first: they are the longest when causal, and none is left for the end. Neighbours take the
// splits, then the heads of a section, so that all heads of a section come to their short tiles together.
__host__ __device__ inline WorkTile work_tile(const TilePlan& plan, int64_t work) {
  const int64_t index = work / plan.splits;
  const int64_t section_tiles = static_cast<int64_t>(plan.section_heads) * plan.row_tiles;
  const int first_head = static_cast<int>(index / section_tiles) * plan.section_heads;
  const int in_section = static_cast<int>(index % section_tiles);
  const int heads = plan.heads - first_head < plan.section_heads ? plan.heads - first_head : plan.section_heads;
  const int head = first_head + in_section % heads;
  WorkTile tile;
  tile.batch = head / plan.kv_heads;
  tile.kv_head = head % plan.kv_heads;
  tile.row_tile = plan.row_tiles - 1 - in_section / heads;
  tile.split = static_cast<int>(work % plan.splits);
  tile.slot = (static_cast<int64_t>(head) * plan.row_tiles + tile.row_tile) * plan.splits + tile.split;
  return tile;
}

// Heads whose keys and values fill at most half of the L2 cache, at least one.
__host__ __device__ inline int heads_in_cache(int64_t heads, int64_t bytes_of_head, int64_t cache_bytes) {
  const int64_t fitting = cache_bytes / 2 / bytes_of_head;
  return static_cast<int>(fitting < 1 ? 1 : (fitting > heads ? heads : fitting));
}

struct KeyRange {
  int begin, end;  // in key tiles
};

// The key tiles of one split, from the keys that are really there: all splits but the last have the same number, and
// those beyond the end have none.
__host__ __device__ inline KeyRange keys_of_split(int visible, int tile_keys, int splits, int split) {
  const int tiles = static_cast<int>(ceil_div(visible, tile_keys));
  const int each = static_cast<int>(ceil_div(tiles, splits));
  const int64_t begin = static_cast<int64_t>(each) * split;
  KeyRange range;
  range.begin = static_cast<int>(begin < tiles ? begin : tiles);
  range.end = static_cast<int>(begin + each < tiles ? begin + each : tiles);
  return range;
}

// Splits that have keys: the first so many.
__host__ __device__ inline int splits_in_use(int visible, int tile_keys, int splits) {
  const int64_t tiles = ceil_div(visible, tile_keys);
  return tiles == 0 ? 0 : static_cast<int>(ceil_div(tiles, ceil_div(tiles, splits)));
}

// What a launch may split into, whatever the GPU: it bounds the workspace.
constexpr int kMostSplitBlocks = 1024;
constexpr int kBlocksPerSm = 2;

// Blocks that share one row tile's keys so that all multiprocessors have work, within `slots` partial results and not
// more than there are key tiles. 1: no partial results.
__host__ __device__ inline int choose_splits(int64_t tiles, int64_t kv_len, int tile_keys, int sm_count,
                                             int64_t slots) {
  const int64_t wanted = static_cast<int64_t>(kBlocksPerSm) * sm_count / tiles;
  const int64_t key_tiles = ceil_div(kv_len, tile_keys), room = slots / tiles;
  int64_t splits = wanted < key_tiles ? wanted : key_tiles;
  splits = splits < room ? splits : room;
  return static_cast<int>(splits < 1 ? 1 : splits);
}

// Slots of partial results that any launch of these sizes, or of smaller ones, can use.
__host__ __device__ inline int64_t most_slots(int64_t tiles, int64_t kv_len, int tile_keys) {
  const int64_t key_tiles = ceil_div(kv_len, tile_keys);
  return tiles >= kMostSplitBlocks || key_tiles >= kMostSplitBlocks || tiles * key_tiles >= kMostSplitBlocks
             ? kMostSplitBlocks
             : tiles * key_tiles;
}

// What the tensor-core kernels are launched with.
struct PlannedAttention {
  VaAnchoredAttentionParams params;
  TilePlan plan;
};

// Where the rows and keys of one work tile are.
template <typename Tile>
struct TileView {
  const VaAnchoredAttentionParams& p;
  const TilePlan& plan;
  WorkTile work;
  int first_row;
  int valid_keys;
  int visible;  // keys that the tile's last row may see
  KeyRange keys;

  __device__ TileView(const PlannedAttention& attention, int64_t index)
      : p(attention.params), plan(attention.plan), work(work_tile(plan, index)) {
    first_row = work.row_tile * Tile::kRows;
    valid_keys = valid_keys_of(p, work.batch);
    const int last_row = first_row + Tile::kRows < plan.row_count ? first_row + Tile::kRows - 1 : plan.row_count - 1;
    visible = visible_of(last_row);
    // Only decode splits keys: the constants save prefill registers.
    keys = keys_of_split(visible, Tile::kKeys, Tile::kKeyWarps > 1 ? plan.splits : 1,
                         Tile::kKeyWarps > 1 ? work.split : 0);
  }

  __device__ int visible_of(int row) const {
    return visible_keys(row, plan.group, p.q_len, valid_keys, p.is_causal != 0);
  }

  __device__ typename Tile::T* out_row(int row) const {
    return static_cast<typename Tile::T*>(p.out) + row_offset(p.out_strides, work.batch, work.kv_head, plan.group, row);
  }

  // [positions, width] of the work's kv head, of key or value.
  __device__ const typename Tile::T* head(const void* tensor, const VaAttentionStrides& strides) const {
    return static_cast<const typename Tile::T*>(tensor) + work.batch * strides.batch + work.kv_head * strides.head;
  }
};

// What a launch asks of the GPU that it is for.
struct Device {
  int sm_count, cache_bytes;
  int compute_capability;  // such as 90
};

inline cudaError_t read_device(Device& device) {
  int index = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&device.sm_count, cudaDevAttrMultiProcessorCount, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&device.cache_bytes, cudaDevAttrL2CacheSize, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  device.compute_capability = major * 10 + minor;
  return error;
}

}  // namespace va_export
