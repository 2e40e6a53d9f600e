// AnchoredAttention on Hopper (sm_90a): the copy engine (TMA) brings tiles, wgmma multiplies them; the kernel and its
// launcher.
//
// A block is persistent and works on one tile of 128 query rows after the other. Its warps are specialised: one
// warpgroup produces (producer.cuh), two consume. A consumer starts S of key tile j and, behind it, O += P V of tile
// j - 1, and makes P of S while O is still being summed. Consumers take turns in starting products (FlashAttention-3's
// ping-pong), so one's softmax runs under the other's products. P goes from registers into the second product.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "anchored_attention/hopper/hopper.h"
#include "anchored_attention/hopper/layout.h"
#include "anchored_attention/hopper/producer.cuh"

namespace va_export {

// Consumers start products in turn: 0, 1, 0, 1 ... Barrier kFirstTurn + i is where consumer i waits for its turn.
constexpr int kFirstTurn = 1;

template <typename Tile>
__device__ inline void wait_for_turn(int consumer) {
  named_barrier_sync(kFirstTurn + consumer, 2 * kWarpgroup);
}

template <typename Tile>
__device__ inline void give_turn(int consumer) {
  named_barrier_arrive(kFirstTurn + (consumer + 1) % Tile::kConsumers, 2 * kWarpgroup);
}

// One arrival for each warp: its lanes have read what they needed.
__device__ inline void release(uint64_t* empty) {
  __syncwarp();
  if (threadIdx.x % kWarpSize == 0) mbarrier_arrive(empty);
}

template <typename Tile>
__device__ inline void init_barriers(HopperBarriers<Tile::kStages>& barriers) {
  constexpr int kConsumerWarps = Tile::kConsumers * kWarpgroup / kWarpSize;
  mbarrier_init(&barriers.query_full, 1);
  mbarrier_init(&barriers.query_empty, kConsumerWarps);
  for (int stage = 0; stage < Tile::kStages; ++stage) {
    mbarrier_init(&barriers.key_full[stage], 1);
    mbarrier_init(&barriers.key_empty[stage], kConsumerWarps);
    mbarrier_init(&barriers.value_full[stage], 1);
    mbarrier_init(&barriers.value_empty[stage], kConsumerWarps);
    mbarrier_init(&barriers.value_clean[stage], kWarpSize);
    mbarrier_init(&barriers.gain_full[stage], kWarpSize);
    mbarrier_init(&barriers.gain_empty[stage], kConsumerWarps);
  }
  mbarrier_init_fence();
}

// What one consumer warpgroup has in registers and where it is in the rings.
template <typename Tile>
struct Consumer {
  const HopperArguments& arguments;
  const HopperShared<Tile> shared;
  const int index;
  RingPosition<Tile::kStages> key, value, gain;
  int query_parity = 0, clean_parities = 0;  // of value_clean: bit `stage`

  // Of the work tile at hand.
  int visible[2];    // keys that this lane's two rows may see
  int warp_visible;  // of the warp's first row, which sees least
  bool must_wait_for_zeros;
  RowState<Tile> rows;

  __device__ Consumer(const HopperArguments& arguments_, const HopperShared<Tile>& shared_, int index_)
      : arguments(arguments_), shared(shared_), index(index_) {}

  __device__ HopperBarriers<Tile::kStages>& barriers() const { return shared.barriers(); }
  __device__ int warp_row() const { return index * 64 + static_cast<int>(threadIdx.x) % kWarpgroup / kWarpSize * 16; }

  __device__ void start_work(const TileView<Tile>& view) {
    const int row = view.first_row + warp_row();
    warp_visible = view.visible_of(row);
    for (int h = 0; h < 2; ++h) visible[h] = view.visible_of(row + threadIdx.x % kWarpSize / 4 + 8 * h);
    must_wait_for_zeros = has_stale_values(view.keys.end, Tile::kKeys, view.valid_keys, view.p.kv_len);
    rows = {};
  }

  __device__ void multiply_keys(Accumulator<1, Tile::kKeys>& scores) {
    mbarrier_wait(&barriers().key_full[key.stage], key.parity);
    wgmma_fence();
    pin_registers(scores[0]);
    start_scores<Tile>(shared.queries() + index * 64 * Tile::kSwizzleBytes, shared.keys(key.stage), scores);
    wgmma_commit();
  }

  __device__ void multiply_values(const WeightFragments<Tile>& weights) {
    mbarrier_wait(&barriers().value_full[value.stage], value.parity);
    if (must_wait_for_zeros) {  // the first value tile of a work tile
      mbarrier_wait(&barriers().value_clean[value.stage], clean_parities >> value.stage & 1);
      clean_parities ^= 1 << value.stage;
      must_wait_for_zeros = false;
    }
    wgmma_fence();
    pin_registers(rows.out[0]);
    start_values<Tile>(weights, shared.values(value.stage), rows.out);
    wgmma_commit();
  }

  // After the wait for S. Behind the last tile's, the queries of the next work tile may come.
  __device__ void release_keys(bool is_last) {
    release(&barriers().key_empty[key.stage]);
    key.advance();
    if (is_last) release(&barriers().query_empty);
  }

  __device__ void release_values() {
    release(&barriers().value_empty[value.stage]);
    value.advance();
  }

  // S to P of one key tile. O is still being added to, and is due to be brought to the new row max by `rescale`.
  __device__ void weigh_keys(int tile, Accumulator<1, Tile::kKeys>& scores, float (&rescale)[1][2]) {
    const int first_key = tile * Tile::kKeys;
    if (first_key + Tile::kKeys > warp_visible) {
      mask_scores(scores, [&](int, int h) { return visible[h] - first_key; });
    }
    mbarrier_wait(&barriers().gain_full[gain.stage], gain.parity);
    softmax(arguments.rows.params.scale * kLog2e, shared.gains(gain.stage), 0, rows.softmax, scores, rescale);
    release(&barriers().gain_empty[gain.stage]);
    gain.advance();
  }

  static __device__ void round(const Accumulator<1, Tile::kKeys>& scores, WeightFragments<Tile>& weights) {
#pragma unroll
    for (int k = 0; k < Tile::kKeys / 16; ++k) {
      round_weights(scores[0][2 * k], scores[0][2 * k + 1], weights[k], typename Tile::T{});
    }
  }

  __device__ void attend(int tiles) {
    Accumulator<1, Tile::kKeys> scores;  // S: [64, kKeys], 16 rows a warp
    WeightFragments<Tile> weights;       // P, rounded
    float rescale[1][2];
    mbarrier_wait(&barriers().query_full, query_parity);
    query_parity ^= 1;
    wait_for_turn<Tile>(index);
    multiply_keys(scores);
    give_turn<Tile>(index);
    wgmma_wait<0>();
    pin_registers(scores[0]);
    release_keys(tiles == 1);
    weigh_keys(tiles - 1, scores, rescale);
    round(scores, weights);
#pragma unroll 1
    for (int tile = tiles - 2; tile >= 0; --tile) {
      wait_for_turn<Tile>(index);
      multiply_keys(scores);
      multiply_values(weights);
      give_turn<Tile>(index);
      wgmma_wait<1>();
      pin_registers(scores[0]);
      release_keys(tile == 0);
      weigh_keys(tile, scores, rescale);
      wgmma_wait<0>();
      pin_registers(rows.out[0]);
      pin_registers(weights);  // they are in use up to here
      release_values();
      rescale_rows(rescale, rows.out);
      round(scores, weights);
    }
    multiply_values(weights);
    wgmma_wait<0>();
    pin_registers(rows.out[0]);
    pin_registers(weights);
    release_values();
  }
};

template <typename Tile>
__device__ inline void consume(const HopperArguments& arguments, const HopperShared<Tile>& shared, int index) {
  Consumer<Tile> consumer(arguments, shared, index);
  if (index == Tile::kConsumers - 1) give_turn<Tile>(index);
  for_each_work(arguments.rows.plan, [&](int64_t work) {
    const TileView<Tile> view(arguments.rows, work);
    consumer.start_work(view);
    if (view.keys.end > 0) consumer.attend(view.keys.end);
    write_rows<Tile>(view, consumer.warp_row(), consumer.rows);
  });
  if (index == 0) wait_for_turn<Tile>(index);  // the turn that nobody takes: no arrival stays behind
}

// Code of sm_90a, or the emulator's: elsewhere the kernel is empty, and is not launched.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
#define VA_EXPORT_HAS_WGMMA
#endif

// Grid: at most work_count(plan) blocks of Tile::kThreads threads, Tile::kSharedBytes of dynamic shared memory.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    hopper_attention_kernel(const __grid_constant__ HopperArguments arguments) {
#ifdef VA_EXPORT_HAS_WGMMA
  extern __shared__ float4 shared_memory[];
  const HopperShared<Tile> shared(reinterpret_cast<char*>(shared_memory));
  if (threadIdx.x == 0) init_barriers<Tile>(shared.barriers());
  __syncthreads();
  const int warpgroup = threadIdx.x / kWarpgroup, warp = threadIdx.x / kWarpSize;
  if (warpgroup == 0) {
    shrink_registers<Tile::kProducerRegisters>();
    if (threadIdx.x == 0) produce_tiles<Tile>(arguments, shared);
    if (warp == 1) produce_gains<Tile>(arguments, shared);
  } else {
    grow_registers<Tile::kConsumerRegisters>();
    consume<Tile>(arguments, shared, warpgroup - 1);
  }
#endif
}

// Rows are not packed: in the plan, heads are query heads, and those of one group follow each other.
template <typename Tile>
TilePlan plan_hopper(const VaAnchoredAttentionParams& p, const Device& device) {
  static_assert(Tile::kRows == kHopperRows, "hopper_serves counts these tiles");
  const int64_t group = p.query_heads / p.kv_heads;
  TilePlan plan;
  plan.group = 1;
  plan.row_count = static_cast<int>(p.q_len);
  plan.row_tiles = static_cast<int>(ceil_div(p.q_len, Tile::kRows));
  plan.kv_heads = static_cast<int>(p.query_heads);
  plan.heads = static_cast<int>(p.batch * p.query_heads);
  const int64_t bytes_of_head = p.kv_len * (p.head_dim + p.value_head_dim) * 2;
  plan.section_heads =
      static_cast<int>(heads_in_cache(p.batch * p.kv_heads, bytes_of_head, device.cache_bytes) * group);
  plan.splits = 1;
  return plan;
}

template <typename Tile>
bool make_tensor_maps(EncodeTiled encode, const VaAnchoredAttentionParams& p, HopperArguments& arguments) {
  constexpr bool kIsBfloat16 = std::is_same<typename Tile::T, __nv_bfloat16>::value;
  return make_tensor_map(encode, arguments.query, p.query, {p.head_dim, p.q_len, p.query_heads, p.batch},
                         p.query_strides, Tile::kRows, Tile::kHeadDim, kIsBfloat16) &&
         make_tensor_map(encode, arguments.key, p.key, {p.head_dim, p.kv_len, p.kv_heads, p.batch}, p.key_strides,
                         Tile::kKeys, Tile::kHeadDim, kIsBfloat16) &&
         make_tensor_map(encode, arguments.value, p.value, {p.value_head_dim, p.kv_len, p.kv_heads, p.batch},
                         p.value_strides, Tile::kKeys, Tile::kHeadDim, kIsBfloat16);
}

template <typename Tile>
cudaError_t launch_hopper_tile(const VaAnchoredAttentionParams& p, const Device& device, cudaStream_t stream) {
  const EncodeTiled encode = find_encode_tiled();
  HopperArguments argument;
  argument.rows = {p, plan_hopper<Tile>(p, device)};
  argument.group = static_cast<int>(p.query_heads / p.kv_heads);
  if (encode == nullptr || !make_tensor_maps<Tile>(encode, p, argument)) return cudaErrorNotSupported;
  auto* kernel = hopper_attention_kernel<Tile>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  if (error != cudaSuccess) return error;
  void* arguments[] = {&argument};
  const int64_t works = work_count(argument.rows.plan);
  const dim3 grid(static_cast<unsigned>(works < device.sm_count ? works : device.sm_count));
  return cudaLaunchKernel(kernel, grid, dim3(Tile::kThreads), arguments, Tile::kSharedBytes, stream);
}

// Widths in between run padded with zeros, which the copy engine writes without reading.
template <typename T>
cudaError_t launch_hopper(const VaAnchoredAttentionParams& p, cudaStream_t stream) {
  Device device;
  const cudaError_t error = read_device(device);
  if (error != cudaSuccess) return error;
  if (device.compute_capability != 90) return cudaErrorNotSupported;
  const int64_t width = p.head_dim > p.value_head_dim ? p.head_dim : p.value_head_dim;
  if (width <= 64) return launch_hopper_tile<HopperTile<T, 64>>(p, device, stream);
#ifndef VA_EXPORT_FEWER_HEAD_DIMS
  if (width <= 80) return launch_hopper_tile<HopperTile<T, 80>>(p, device, stream);
  if (width <= 96) return launch_hopper_tile<HopperTile<T, 96>>(p, device, stream);
#endif
  return launch_hopper_tile<HopperTile<T, 128>>(p, device, stream);
}

}  // namespace va_export
