// Tiles of the tensor-core kernel: their shapes, their place in shared memory, and the products of two tiles.
#pragma once

#include "common/ptx.cuh"
#include "geometry.h"

namespace va_export {

constexpr int kLanes = 32;
constexpr int kChunkElements = 8;  // 16-bit elements in 16 bytes

// Each of kRowWarps warps owns 16 * kRowBlocks rows. kKeyWarps warps share these rows and divide every tile of kKeys
// keys. kStages key and value tiles are in shared memory at a time.
template <typename Element, int kHeadDim_, int kRowWarps_, int kRowBlocks_, int kKeyWarps_, int kKeys_, int kStages_>
struct MmaTile {
  using T = Element;
  static constexpr int kHeadDim = kHeadDim_;  // head_dim and value_head_dim are at most this
  static constexpr int kRowWarps = kRowWarps_, kRowBlocks = kRowBlocks_, kKeyWarps = kKeyWarps_, kStages = kStages_;
  static constexpr int kThreads = kRowWarps * kKeyWarps * kLanes;
  static constexpr int kRows = kRowWarps * kRowBlocks * 16;
  static constexpr int kKeys = kKeys_;
  static constexpr int kKeysOfWarp = kKeys / kKeyWarps;
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kTileBytes = kKeys * kHeadDim * 2;

  // Shared memory, in bytes: queries, kStages key tiles, kStages value tiles, the gains of two tiles.
  static constexpr int kKeyOffset = kRows * kHeadDim * 2;
  static constexpr int kValueOffset = kKeyOffset + kStages * kTileBytes;
  static constexpr int kGainOffset = kValueOffset + kStages * kTileBytes;
  static constexpr int kGainBytes = kKeys * 4 * static_cast<int>(sizeof(float)) + 16;
  static constexpr int kSharedBytes = kGainOffset + 2 * kGainBytes;
};

// Keys of a prefill tile. With two row blocks, sums and scores of wide heads and 64 keys would not fit into registers;
// at head_dim 128, two blocks of 64 keys would not fit into 100 KB of shared memory.
constexpr int prefill_keys(int head_dim, int row_blocks) {
  return head_dim > 96 || (row_blocks == 2 && head_dim > 64) ? 32 : 64;
}

// Prefill as FlashAttention-2 shapes it. A second row block for each warp halves the traffic from shared memory; where
// a multiprocessor has only 100 KB of it, wide heads take 64 rows a block, so that two blocks fit.
template <typename T, int kHeadDim, int kRowBlocks>
using PrefillTile = MmaTile<T, kHeadDim, 4, kRowBlocks, 1, prefill_keys(kHeadDim, kRowBlocks), 1>;

__host__ __device__ constexpr int prefill_row_blocks(int architecture, int head_dim) {
  const bool small = architecture == 86 || architecture == 89 || architecture == 120;
  return small && head_dim > 64 ? 1 : 2;
}

// Decode: few rows, so the warps divide the keys; two stages, because it lives on memory traffic.
template <typename T, int kHeadDim>
using DecodeTile = MmaTile<T, kHeadDim, 1, 1, 4, kDecodeTileKeys, 2>;

// Starts copies of the first `rows` rows into a swizzled tile of Tile::kKeys rows, and zeros the others and the columns
// from `width` on: nothing beyond them is read.
template <typename Tile>
__device__ inline void load_tile(const typename Tile::T* source, int64_t stride, int rows, int width, char* tile) {
  constexpr int kCopies = Tile::kKeys * Tile::kChunks, kThreads = Tile::kThreads, kChunks = Tile::kChunks;
  if constexpr (kThreads % kChunks == 0) {  // a thread keeps to its column
    constexpr int kStep = kThreads / kChunks;
    static_assert(Tile::kKeys % kStep == 0, "every thread copies the same number of chunks");
    const int chunk = threadIdx.x % kChunks;
    const typename Tile::T* from = source + threadIdx.x / kChunks * stride + chunk * kChunkElements;
#pragma unroll
    for (int i = 0; i < Tile::kKeys / kStep; ++i) {
      const int row = static_cast<int>(threadIdx.x) / kChunks + i * kStep;
      const bool exists = row < rows && chunk * kChunkElements < width;
      cp_async_16(tile + swizzled_chunk<kChunks>(row, chunk) * 16, exists ? from : source, exists);
      from += kStep * stride;
    }
  } else {
#pragma unroll
    for (int i = 0; i < (kCopies + kThreads - 1) / kThreads; ++i) {
      const int index = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = index / kChunks, chunk = index % kChunks;
      if (index >= kCopies) break;
      const bool exists = row < rows && chunk * kChunkElements < width;
      const typename Tile::T* from = exists ? source + row * stride + chunk * kChunkElements : source;
      cp_async_16(tile + swizzled_chunk<kChunks>(row, chunk) * 16, from, exists);
    }
  }
}

// scores = query rows of this warp x its keys, transposed; a lane's share as mma_m16n8k16 lays out c.
template <typename Tile>
__device__ inline void multiply_queries_keys(const char* queries, const char* keys, int first_row, int first_key,
                                             float (&scores)[Tile::kRowBlocks][Tile::kKeysOfWarp / 8][4]) {
  constexpr int kChunks = Tile::kChunks;
  const int lane = opaque(threadIdx.x % kLanes);  // addresses are cheaper to compute anew than to keep
#pragma unroll
  for (int m = 0; m < Tile::kRowBlocks; ++m) {
#pragma unroll
    for (int n = 0; n < Tile::kKeysOfWarp / 8; ++n) {
      scores[m][n][0] = scores[m][n][1] = scores[m][n][2] = scores[m][n][3] = 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < kChunks; k += 2) {
    uint32_t query[Tile::kRowBlocks][4];
#pragma unroll
    for (int m = 0; m < Tile::kRowBlocks; ++m) {
      const int row = first_row + m * 16 + lane % 16;
      ldmatrix_x4(query[m], queries + swizzled_chunk<kChunks>(row, k + lane / 16) * 16);
    }
#pragma unroll
    for (int n = 0; n < Tile::kKeysOfWarp / 8; n += 2) {
      uint32_t key[4];  // two words of eight keys, then of the next eight
      const int row = first_key + n * 8 + lane / 16 * 8 + lane % 8;
      ldmatrix_x4(key, keys + swizzled_chunk<kChunks>(row, k + lane / 8 % 2) * 16);
#pragma unroll
      for (int m = 0; m < Tile::kRowBlocks; ++m) {
        mma_m16n8k16(scores[m][n], query[m], key[0], key[1], typename Tile::T{});
        mma_m16n8k16(scores[m][n + 1], query[m], key[2], key[3], typename Tile::T{});
      }
    }
  }
}

// acc += weights x values. The weights never leave the registers: c of two neighbouring products is a of the next.
template <typename Tile>
__device__ inline void add_weighted_values(const float (&weights)[Tile::kRowBlocks][Tile::kKeysOfWarp / 8][4],
                                           const char* values, int first_key,
                                           float (&acc)[Tile::kRowBlocks][Tile::kChunks][4]) {
  const int lane = opaque(threadIdx.x % kLanes);  // addresses are cheaper to compute anew than to keep
#pragma unroll
  for (int n = 0; n < Tile::kKeysOfWarp / 8; n += 2) {
    uint32_t weight[Tile::kRowBlocks][4];
#pragma unroll
    for (int m = 0; m < Tile::kRowBlocks; ++m) {
      weight[m][0] = pack(weights[m][n][0], weights[m][n][1], typename Tile::T{});
      weight[m][1] = pack(weights[m][n][2], weights[m][n][3], typename Tile::T{});
      weight[m][2] = pack(weights[m][n + 1][0], weights[m][n + 1][1], typename Tile::T{});
      weight[m][3] = pack(weights[m][n + 1][2], weights[m][n + 1][3], typename Tile::T{});
    }
#pragma unroll
    for (int d = 0; d < Tile::kChunks; d += 2) {
      uint32_t value[4];
      const int row = first_key + n * 8 + lane % 16;
      ldmatrix_x4_transposed(value, values + swizzled_chunk<Tile::kChunks>(row, d + lane / 16) * 16);
#pragma unroll
      for (int m = 0; m < Tile::kRowBlocks; ++m) {
        mma_m16n8k16(acc[m][d], weight[m], value[0], value[1], typename Tile::T{});
        mma_m16n8k16(acc[m][d + 1], weight[m], value[2], value[3], typename Tile::T{});
      }
    }
  }
}

}  // namespace va_export
