// The producer warpgroup of the Hopper kernel: one thread starts the copies, one warp prepares the gains.
//
// Key tiles come from the last to the first: only the first few that a row meets have to be masked, and the loads of
// the next work tile can begin while the last tile of this one is worked on.
#pragma once

#include "anchored_attention/hopper/tile.cuh"

namespace va_export {

// Copies the panels of one tile, [positions, head_dim] of one head, as announced on `full`.
template <typename Tile, int kPanelBytes>
__device__ inline void copy_tile(char* tile, const CUtensorMap* map, uint64_t* full, int position, int head,
                                 int batch) {
  mbarrier_arrive_expect(full, Tile::kPanels * kPanelBytes);
#pragma unroll
  for (int panel = 0; panel < Tile::kPanels; ++panel) {
    copy_box(tile + panel * kPanelBytes, map, full, panel * Tile::kPanelColumns, position, head, batch);
  }
}

// Run by one thread. Values are copied one step behind keys, as they are needed.
template <typename Tile>
__device__ inline void produce_tiles(const HopperArguments& arguments, const HopperShared<Tile>& shared) {
  auto& barriers = shared.barriers();
  for (const CUtensorMap* map : {&arguments.query, &arguments.key, &arguments.value}) prefetch_tensor_map(map);
  RingPosition<Tile::kStages> key, value;
  int query_parity = 0;
  const auto copy_keys = [&](int tile, int kv_head, int batch) {
    mbarrier_wait(&barriers.key_empty[key.stage], key.parity ^ 1);
    copy_tile<Tile, Tile::kPanelBytes>(shared.keys(key.stage), &arguments.key, &barriers.key_full[key.stage],
                                       tile * Tile::kKeys, kv_head, batch);
    key.advance();
  };
  for_each_work(arguments.rows.plan, [&](int64_t work) {
    const TileView<Tile> view(arguments.rows, work);
    const int tiles = view.keys.end, batch = view.work.batch;
    const int head = view.work.kv_head, kv_head = head / arguments.group;
    if (tiles == 0) return;
    mbarrier_wait(&barriers.query_empty, query_parity ^ 1);
    copy_tile<Tile, Tile::kQueryPanelBytes>(shared.queries(), &arguments.query, &barriers.query_full, view.first_row,
                                            head, batch);
    query_parity ^= 1;
    copy_keys(tiles - 1, kv_head, batch);
#pragma unroll 1
    for (int tile = tiles - 1; tile >= 0; --tile) {
      if (tile > 0) copy_keys(tile - 1, kv_head, batch);
      mbarrier_wait(&barriers.value_empty[value.stage], value.parity ^ 1);
      copy_tile<Tile, Tile::kPanelBytes>(shared.values(value.stage), &arguments.value,
                                         &barriers.value_full[value.stage], tile * Tile::kKeys, kv_head, batch);
      value.advance();
    }
  });
}

// Zeros the rows of a value tile from `row` on, all lanes of a warp together, and shows it to wgmma.
template <typename Tile>
__device__ inline void zero_rows(char* values, int row) {
  constexpr int kChunks = Tile::kSwizzleBytes / 16;
  for (int panel = 0; panel < Tile::kPanels; ++panel) {
    char* rows = values + panel * Tile::kPanelBytes;  // a permutation within a row stays within the row's bytes
    for (int i = row * kChunks + static_cast<int>(threadIdx.x % kWarpSize); i < Tile::kKeys * kChunks; i += kWarpSize) {
      zero_shared_16(rows + i * 16);
    }
  }
  store_fence();
}

// Run by one warp: the gains of every key tile, and the zeros in place of stale values.
template <typename Tile>
__device__ inline void produce_gains(const HopperArguments& arguments, const HopperShared<Tile>& shared) {
  const VaAnchoredAttentionParams& p = arguments.rows.params;
  auto& barriers = shared.barriers();
  const int lane = threadIdx.x % kWarpSize;
  RingPosition<Tile::kStages> ring;
  for_each_work(arguments.rows.plan, [&](int64_t work) {
    const TileView<Tile> view(arguments.rows, work);
    const float* key_log_gain = p.key_log_gain + view.work.batch * p.key_log_gain_batch_stride;
    const float* value_gain = p.value_gain + view.work.batch * p.value_gain_batch_stride;
#pragma unroll 1
    for (int tile = view.keys.end - 1; tile >= 0; --tile) {
      mbarrier_wait(&barriers.gain_empty[ring.stage], ring.parity ^ 1);
      auto& gains = shared.gains(ring.stage);
#pragma unroll 1
      for (int key = lane; key < Tile::kKeys; key += kWarpSize) {
        const int position = tile * Tile::kKeys + key;  // keys that nobody sees weigh nothing
        store_gain(fetch_gain(key_log_gain, value_gain, position, position < view.visible), key, gains);
      }
      mbarrier_arrive(&barriers.gain_full[ring.stage]);  // every lane
      if (tile + 1 == view.keys.end && has_stale_values(view.keys.end, Tile::kKeys, view.valid_keys, view.p.kv_len)) {
        // Values go round as gains do, but can be one round behind, where `full` would mean the round before: first the
        // stage must have been emptied.
        mbarrier_wait(&barriers.value_empty[ring.stage], ring.parity ^ 1);
        mbarrier_wait(&barriers.value_full[ring.stage], ring.parity);
        zero_rows<Tile>(shared.values(ring.stage), view.valid_keys - tile * Tile::kKeys);
        mbarrier_arrive(&barriers.value_clean[ring.stage]);
      }
      ring.advance();
    }
  });
}

}  // namespace va_export
