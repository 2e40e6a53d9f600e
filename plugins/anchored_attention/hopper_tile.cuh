// Tiles of the Hopper kernel: their shapes, their place in shared memory, and the products of two tiles.
#pragma once

#include "block_view.cuh"
#include "common/ptx_sm90.cuh"
#include "hopper_geometry.h"
#include "mma_softmax.cuh"

namespace va_export {

constexpr int kWarpgroup = 128;

// What the kernel is launched with. In `rows`, heads are query heads: their rows are not packed, since a tile of 128
// positions of one head is what the copy engine can fetch, and neighbouring blocks share keys through the L2 cache.
struct HopperArguments {
  CUtensorMap query, key, value;
  MmaArguments rows;
  int group;  // query heads that share a kv head
};

// full: the data is there. empty: nobody reads it any more.
template <int kStages>
struct HopperBarriers {
  uint64_t query_full, query_empty;
  uint64_t key_full[kStages], key_empty[kStages];
  uint64_t value_full[kStages], value_empty[kStages];
  uint64_t gain_full[kStages], gain_empty[kStages];
  uint64_t value_clean[kStages];  // a value tile's foreign rows are zero
};

// One tile's gains in shared memory: mma_softmax.cuh's, with what the guarded form needs worked out once a tile.
template <int kKeys>
struct alignas(16) HopperGains {
  float2 folded[kKeys];   // gK, gK gV
  float4 guarded[kKeys];  // log2(gK) + log2|gV|, log2|gV|, gV, 0
  int unfoldable[4];      // nonzero: a gain is outside the folded form's limits
};

// One producer warpgroup and kConsumers consumers, each of which owns 64 rows.
template <typename Element, int kHeadDim_>
struct HopperTile {
  using T = Element;
  static constexpr int kHeadDim = kHeadDim_;  // head_dim and value_head_dim are at most this
  static constexpr int kConsumers = 2, kKeyWarps = 1, kStages = 2;
  static constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
  static constexpr int kRows = kConsumers * 64;
  static constexpr int kKeys = 128;
  // setmaxnreg: together at most 65536 registers, and at the start 65536 / kThreads each.
  static constexpr int kProducerRegisters = 56, kConsumerRegisters = 224;

  // A tile lies in panels of kPanelColumns columns, the span of the swizzle.
  static constexpr int kSwizzleBytes = swizzle_bytes(kHeadDim);
  static constexpr int kPanelColumns = kSwizzleBytes / 2;
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr uint64_t kSwizzle =
      kSwizzleBytes == 128 ? kSwizzle128 : (kSwizzleBytes == 64 ? kSwizzle64 : kSwizzle32);
  static constexpr int kQueryPanelBytes = kRows * kSwizzleBytes, kPanelBytes = kKeys * kSwizzleBytes;
  static constexpr int kQueryBytes = kPanels * kQueryPanelBytes, kTileBytes = kPanels * kPanelBytes;

  // Shared memory, in bytes from a multiple of 1024: queries, key tiles, value tiles, gains, barriers.
  static constexpr int kKeyOffset = kQueryBytes;
  static constexpr int kValueOffset = kKeyOffset + kStages * kTileBytes;
  static constexpr int kGainOffset = kValueOffset + kStages * kTileBytes;
  static constexpr int kGainBytes = static_cast<int>(sizeof(HopperGains<kKeys>));
  static constexpr int kBarrierOffset = kGainOffset + kStages * kGainBytes;
  static constexpr int kSharedBytes = kBarrierOffset + static_cast<int>(sizeof(HopperBarriers<kStages>)) + 1024;
  static_assert(kKeyOffset % 1024 == 0 && kTileBytes % 1024 == 0 && kPanelBytes % 1024 == 0, "the swizzle's period");
  static_assert(kThreads * (65536 / kThreads / 8 * 8) <= 65536, "registers at the start");
  static_assert(kWarpgroup * (kProducerRegisters + kConsumers * kConsumerRegisters) <= 65536, "and later");
};

// A block's shared memory.
template <typename Tile>
struct HopperShared {
  char* base;

  __device__ explicit HopperShared(char* memory) : base(memory + (-shared_address(memory) & 1023)) {}
  __device__ char* queries() const { return base; }
  __device__ char* keys(int stage) const { return base + Tile::kKeyOffset + stage * Tile::kTileBytes; }
  __device__ char* values(int stage) const { return base + Tile::kValueOffset + stage * Tile::kTileBytes; }
  __device__ HopperGains<Tile::kKeys>& gains(int stage) const {
    return *reinterpret_cast<HopperGains<Tile::kKeys>*>(base + Tile::kGainOffset + stage * Tile::kGainBytes);
  }
  __device__ HopperBarriers<Tile::kStages>& barriers() const {
    return *reinterpret_cast<HopperBarriers<Tile::kStages>*>(base + Tile::kBarrierOffset);
  }
};

// A place in a ring of kStages stages, and how often it has gone round.
template <int kStages>
struct RingPosition {
  int stage = 0, parity = 0;

  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The works of this block, the longest first.
template <typename Visit>
__device__ inline void for_each_work(const TilePlan& plan, Visit visit) {
  const int64_t works = block_count(plan);
  for (int64_t round = 0; round * gridDim.x < works; ++round) {
    const int64_t work = work_of_round(blockIdx.x, gridDim.x, round);
    if (work < works) visit(work);
  }
}

// Starts scores = 64 query rows x the keys, transposed. Both have head_dim innermost; a step is 16 columns.
template <typename Tile>
__device__ inline void multiply_queries_keys(const char* queries, const char* keys, float (&scores)[Tile::kKeys / 2]) {
  const uint64_t query =
      matrix_descriptor(shared_address(queries), 16, 8 * Tile::kSwizzleBytes, Tile::kSwizzle);  // 16 is not used
  const uint64_t key = matrix_descriptor(shared_address(keys), 16, 8 * Tile::kSwizzleBytes, Tile::kSwizzle);
#pragma unroll
  for (int k = 0; k < Tile::kHeadDim / 16; ++k) {
    wgmma_shared(scores, query + (column_step_byte(k, Tile::kRows, Tile::kSwizzleBytes) >> 4),
                 key + (column_step_byte(k, Tile::kKeys, Tile::kSwizzleBytes) >> 4), k > 0, typename Tile::T{});
  }
}

template <typename Tile>
using HopperWeights = uint32_t[Tile::kKeys / 16][4];

// Starts acc += weights x values. The values have head_dim innermost, which is the product's N; a step is 16 keys.
template <typename Tile>
__device__ inline void add_weighted_values(const HopperWeights<Tile>& weights, const char* values,
                                           float (&acc)[Tile::kHeadDim / 2]) {
  const uint64_t value =
      matrix_descriptor(shared_address(values), Tile::kPanelBytes, 8 * Tile::kSwizzleBytes, Tile::kSwizzle);
#pragma unroll
  for (int k = 0; k < Tile::kKeys / 16; ++k) {
    wgmma_registers(acc, weights[k], value + (row_step_byte(k, Tile::kSwizzleBytes) >> 4), typename Tile::T{});
  }
}

}  // namespace va_export
