// Tiles of the mma.sync kernel: their shapes, their place in shared memory, and the products of two tiles.
#pragma once

#include "anchored_attention/anchored_softmax.cuh"

namespace va_export {

// Each of kRowWarps warps owns kRowFragments fragments of 16 rows. kKeyWarps warps share these rows and divide every
// tile of kKeys keys. kStages key and value tiles are in shared memory at a time.
template <typename Element, int kHeadDim_, int kRowWarps_, int kRowFragments_, int kKeyWarps_, int kKeys_, int kStages_>
struct MmaTile {
  using T = Element;
  static constexpr int kHeadDim = kHeadDim_;  // head_dim and value_head_dim are at most this
  static constexpr int kRowWarps = kRowWarps_, kRowFragments = kRowFragments_, kKeyWarps = kKeyWarps_;
  static constexpr int kStages = kStages_;
  static constexpr int kThreads = kRowWarps * kKeyWarps * kWarpSize;
  static constexpr int kRows = kRowWarps * kRowFragments * 16;
  static constexpr int kKeys = kKeys_;
  static constexpr int kWarpKeys = kKeys / kKeyWarps;
  static constexpr int kChunks = kHeadDim / kChunkElements;
  static constexpr int kTileBytes = kKeys * kHeadDim * 2;

  // Shared memory, in bytes: queries, kStages key tiles, kStages value tiles, the gains of two tiles.
  static constexpr int kKeyOffset = kRows * kHeadDim * 2;
  static constexpr int kValueOffset = kKeyOffset + kStages * kTileBytes;
  static constexpr int kGainOffset = kValueOffset + kStages * kTileBytes;
  static constexpr int kGainBytes = static_cast<int>(sizeof(TileGains<kKeys>));
  static constexpr int kSharedBytes = kGainOffset + 2 * kGainBytes;

  // This warp's first row and key of a tile.
  __device__ static int warp_row() { return warp() % kRowWarps * kRowFragments * 16; }
  __device__ static int warp_key() { return warp() / kRowWarps * kWarpKeys; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }
};

// Keys of a prefill tile. With two row fragments, O and S of wide heads and 64 keys would not fit into registers; at
// head_dim 128, two blocks of 64 keys would not fit into 100 KB of shared memory.
constexpr int prefill_keys(int head_dim, int row_fragments) {
  return head_dim > 96 || (row_fragments == 2 && head_dim > 64) ? 32 : 64;
}

// Prefill as FlashAttention-2 shapes it. A second row fragment for each warp halves the traffic from shared memory;
// where a multiprocessor has only 100 KB of it, wide heads take 64 rows a block, so that two blocks fit.
template <typename T, int kHeadDim, int kRowFragments>
using PrefillTile = MmaTile<T, kHeadDim, 4, kRowFragments, 1, prefill_keys(kHeadDim, kRowFragments), 1>;

__host__ __device__ constexpr int prefill_row_fragments(int architecture, int head_dim) {
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

// S [16 kRowFragments, kWarpKeys] = Q [rows of this warp, head_dim] x K [its keys, head_dim], transposed.
template <typename Tile>
__device__ inline void multiply_queries_keys(const char* queries, const char* keys,
                                             Accumulator<Tile::kRowFragments, Tile::kWarpKeys>& scores) {
  constexpr int kChunks = Tile::kChunks;
  const int lane = opaque(threadIdx.x % kWarpSize);  // addresses are cheaper to compute anew than to keep
#pragma unroll
  for (int m = 0; m < Tile::kRowFragments; ++m) {
#pragma unroll
    for (int n = 0; n < Tile::kWarpKeys / 8; ++n) {
      scores[m][n][0] = scores[m][n][1] = scores[m][n][2] = scores[m][n][3] = 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < kChunks; k += 2) {
    uint32_t query[Tile::kRowFragments][4];
#pragma unroll
    for (int m = 0; m < Tile::kRowFragments; ++m) {
      const int row = Tile::warp_row() + m * 16 + lane % 16;
      ldmatrix_x4(query[m], queries + swizzled_chunk<kChunks>(row, k + lane / 16) * 16);
    }
#pragma unroll
    for (int n = 0; n < Tile::kWarpKeys / 8; n += 2) {
      uint32_t key[4];  // two words of eight keys, then of the next eight
      const int row = Tile::warp_key() + n * 8 + lane / 16 * 8 + lane % 8;
      ldmatrix_x4(key, keys + swizzled_chunk<kChunks>(row, k + lane / 8 % 2) * 16);
#pragma unroll
      for (int m = 0; m < Tile::kRowFragments; ++m) {
        mma_m16n8k16(scores[m][n], query[m], key[0], key[1], typename Tile::T{});
        mma_m16n8k16(scores[m][n + 1], query[m], key[2], key[3], typename Tile::T{});
      }
    }
  }
}

// O [16 kRowFragments, value_head_dim] += P [16 kRowFragments, kWarpKeys] x V [keys of this warp, value_head_dim].
template <typename Tile>
__device__ inline void add_weighted_values(const Accumulator<Tile::kRowFragments, Tile::kWarpKeys>& weights,
                                           const char* values, Accumulator<Tile::kRowFragments, Tile::kHeadDim>& out) {
  const int lane = opaque(threadIdx.x % kWarpSize);  // addresses are cheaper to compute anew than to keep
#pragma unroll
  for (int n = 0; n < Tile::kWarpKeys / 8; n += 2) {
    uint32_t weight[Tile::kRowFragments][4];
#pragma unroll
    for (int m = 0; m < Tile::kRowFragments; ++m) {
      round_weights(weights[m][n], weights[m][n + 1], weight[m], typename Tile::T{});
    }
#pragma unroll
    for (int d = 0; d < Tile::kChunks; d += 2) {
      uint32_t value[4];
      const int row = Tile::warp_key() + n * 8 + lane % 16;
      ldmatrix_x4_transposed(value, values + swizzled_chunk<Tile::kChunks>(row, d + lane / 16) * 16);
#pragma unroll
      for (int m = 0; m < Tile::kRowFragments; ++m) {
        mma_m16n8k16(out[m][d], weight[m], value[0], value[1], typename Tile::T{});
        mma_m16n8k16(out[m][d + 1], weight[m], value[2], value[3], typename Tile::T{});
      }
    }
  }
}

}  // namespace va_export
