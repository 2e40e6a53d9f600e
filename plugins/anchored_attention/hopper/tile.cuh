// Tiles of the Hopper kernel: their shapes, their place in shared memory, and the products of two tiles.
#pragma once

#include "anchored_attention/anchored_softmax.cuh"
#include "anchored_attention/hopper/layout.h"
#include "common/ptx_sm90.cuh"

namespace va_export {

constexpr int kWarpgroup = 128;

// What the kernel is launched with. In `rows`, heads are query heads: their rows are not packed, since a tile of 128
// positions of one head is what the copy engine can fetch, and neighbouring blocks share keys through the L2 cache.
struct HopperArguments {
  CUtensorMap query, key, value;
  PlannedAttention rows;
  int group;  // query heads that share a kv head
};

// full: the data is there. empty: nobody reads it any more.
template <int kStages>
struct HopperBarriers {
  uint64_t query_full, query_empty;
  uint64_t key_full[kStages], key_empty[kStages];
  uint64_t value_full[kStages], value_empty[kStages];
  uint64_t gain_full[kStages], gain_empty[kStages];
  uint64_t value_clean[kStages];  // a value tile's stale rows are zero
};

// One producer warpgroup and kConsumers consumers, each of which owns 64 rows.
template <typename Element, int kHeadDim_>
struct HopperTile {
  using T = Element;
  static constexpr int kHeadDim = kHeadDim_;  // head_dim and value_head_dim are at most this
  static constexpr int kConsumers = 2, kKeyWarps = 1, kRowFragments = 1, kStages = 2;
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
  static constexpr int kGainBytes = static_cast<int>(sizeof(TileGains<kKeys>));
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
  __device__ TileGains<Tile::kKeys>& gains(int stage) const {
    return *reinterpret_cast<TileGains<Tile::kKeys>*>(base + Tile::kGainOffset + stage * Tile::kGainBytes);
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

// The work tiles of this block (a persistent one), the longest first.
template <typename Visit>
__device__ inline void for_each_work(const TilePlan& plan, Visit visit) {
  const int64_t works = work_count(plan);
  for (int64_t round = 0; round * gridDim.x < works; ++round) {
    const int64_t work = work_of_round(blockIdx.x, gridDim.x, round);
    if (work < works) visit(work);
  }
}

// Starts S [64, kKeys] = Q [64, head_dim] x K [kKeys, head_dim], transposed: a warp has 16 rows. Both have head_dim
// innermost; a step is 16 columns.
template <typename Tile>
__device__ inline void start_scores(const char* queries, const char* keys, Accumulator<1, Tile::kKeys>& scores) {
  const uint64_t query =
      matrix_descriptor(shared_address(queries), 16, 8 * Tile::kSwizzleBytes, Tile::kSwizzle);  // 16 is not used
  const uint64_t key = matrix_descriptor(shared_address(keys), 16, 8 * Tile::kSwizzleBytes, Tile::kSwizzle);
#pragma unroll
  for (int k = 0; k < Tile::kHeadDim / 16; ++k) {
    wgmma_shared(scores[0], query + (column_step_byte(k, Tile::kRows, Tile::kSwizzleBytes) >> 4),
                 key + (column_step_byte(k, Tile::kKeys, Tile::kSwizzleBytes) >> 4), k > 0, typename Tile::T{});
  }
}

// P in registers: [keys / 16, one fragment of 16 x 16].
template <typename Tile>
using WeightFragments = uint32_t[Tile::kKeys / 16][4];

// Starts O [64, value_head_dim] += P [64, kKeys] x V [kKeys, value_head_dim]. V has value_head_dim innermost, which is
// the product's N; a step is 16 keys.
template <typename Tile>
__device__ inline void start_values(const WeightFragments<Tile>& weights, const char* values,
                                    Accumulator<1, Tile::kHeadDim>& out) {
  const uint64_t value =
      matrix_descriptor(shared_address(values), Tile::kPanelBytes, 8 * Tile::kSwizzleBytes, Tile::kSwizzle);
#pragma unroll
  for (int k = 0; k < Tile::kKeys / 16; ++k) {
    wgmma_registers(out[0], weights[k], value + (row_step_byte(k, Tile::kSwizzleBytes) >> 4), typename Tile::T{});
  }
}

}  // namespace va_export
