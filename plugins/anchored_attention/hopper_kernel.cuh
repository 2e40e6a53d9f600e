// AnchoredAttention on Hopper (sm_90a): the copy engine (TMA) brings tiles, wgmma multiplies them.
//
// A block stays on its multiprocessor and works on one tile of 128 query rows after the other. One warpgroup produces
// (hopper_producer.cuh), two consume. A consumer starts the scores of key tile j and, behind them, the values of tile
// j - 1, and makes weights of the scores while the values are still being summed. Consumers take turns in starting
// products, so one's softmax runs under the other's products. Weights go from registers into the second product.
#pragma once

#include "hopper_producer.cuh"
#include "hopper_softmax.cuh"

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
  if (threadIdx.x % kLanes == 0) mbarrier_arrive(empty);
}

template <typename Tile>
__device__ inline void init_barriers(HopperBarriers<Tile::kStages>& barriers) {
  constexpr int kConsumerWarps = Tile::kConsumers * kWarpgroup / kLanes;
  mbarrier_init(&barriers.query_full, 1);
  mbarrier_init(&barriers.query_empty, kConsumerWarps);
  for (int stage = 0; stage < Tile::kStages; ++stage) {
    mbarrier_init(&barriers.key_full[stage], 1);
    mbarrier_init(&barriers.key_empty[stage], kConsumerWarps);
    mbarrier_init(&barriers.value_full[stage], 1);
    mbarrier_init(&barriers.value_empty[stage], kConsumerWarps);
    mbarrier_init(&barriers.value_clean[stage], kLanes);
    mbarrier_init(&barriers.gain_full[stage], kLanes);
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

  // Of the work at hand. This lane's two rows:
  int visible0, visible1;
  int warp_visible;  // of the warp's first row, which sees least
  bool must_wait_for_zeros;
  HopperRows rows;
  float acc[Tile::kHeadDim / 2];

  __device__ Consumer(const HopperArguments& arguments_, const HopperShared<Tile>& shared_, int index_)
      : arguments(arguments_), shared(shared_), index(index_) {}

  __device__ HopperBarriers<Tile::kStages>& barriers() const { return shared.barriers(); }
  __device__ int warp_row() const { return index * 64 + static_cast<int>(threadIdx.x) % kWarpgroup / kLanes * 16; }

  __device__ void start_work(const BlockView<Tile>& view) {
    const int row = view.first_row + warp_row();
    warp_visible = view.visible_of(row);
    visible0 = view.visible_of(row + threadIdx.x % kLanes / 4);
    visible1 = view.visible_of(row + threadIdx.x % kLanes / 4 + 8);
    must_wait_for_zeros = has_foreign_values(view.keys.end, Tile::kKeys, view.valid_keys, view.p.kv_len);
    rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
#pragma unroll
    for (int i = 0; i < Tile::kHeadDim / 2; ++i) acc[i] = 0.0f;
  }

  __device__ void start_scores(HopperScores<Tile>& scores) {
    mbarrier_wait(&barriers().key_full[key.stage], key.parity);
    wgmma_fence();
    pin_registers(scores);
    multiply_queries_keys<Tile>(shared.queries() + index * 64 * Tile::kSwizzleBytes, shared.keys(key.stage), scores);
    wgmma_commit();
  }

  __device__ void start_values(const HopperWeights<Tile>& weights) {
    mbarrier_wait(&barriers().value_full[value.stage], value.parity);
    if (must_wait_for_zeros) {  // the first value tile of a work
      mbarrier_wait(&barriers().value_clean[value.stage], clean_parities >> value.stage & 1);
      clean_parities ^= 1 << value.stage;
      must_wait_for_zeros = false;
    }
    wgmma_fence();
    pin_registers(acc);
    add_weighted_values<Tile>(weights, shared.values(value.stage), acc);
    wgmma_commit();
  }

  // After the wait for scores. Behind the last tile's, the queries of the next work may come.
  __device__ void release_keys(bool is_last) {
    release(&barriers().key_empty[key.stage]);
    key.advance();
    if (is_last) release(&barriers().query_empty);
  }

  __device__ void release_values() {
    release(&barriers().value_empty[value.stage]);
    value.advance();
  }

  __device__ void make_weights(int tile, HopperScores<Tile>& scores, float (&keep)[2]) {
    const int first_key = tile * Tile::kKeys;
    if (first_key + Tile::kKeys > warp_visible) mask_scores<Tile>(visible0 - first_key, visible1 - first_key, scores);
    mbarrier_wait(&barriers().gain_full[gain.stage], gain.parity);
    weigh<Tile>(arguments.rows.attention.scale * kLog2e, shared.gains(gain.stage), rows, scores, keep);
    release(&barriers().gain_empty[gain.stage]);
    gain.advance();
  }

  __device__ void attend(int tiles) {
    HopperScores<Tile> scores;
    HopperWeights<Tile> weights;
    float keep[2];
    mbarrier_wait(&barriers().query_full, query_parity);
    query_parity ^= 1;
    wait_for_turn<Tile>(index);
    start_scores(scores);
    give_turn<Tile>(index);
    wgmma_wait<0>();
    pin_registers(scores);
    release_keys(tiles == 1);
    make_weights(tiles - 1, scores, keep);
    round_weights<Tile>(scores, weights);
#pragma unroll 1
    for (int tile = tiles - 2; tile >= 0; --tile) {
      wait_for_turn<Tile>(index);
      start_scores(scores);
      start_values(weights);
      give_turn<Tile>(index);
      wgmma_wait<1>();
      pin_registers(scores);
      release_keys(tile == 0);
      make_weights(tile, scores, keep);
      wgmma_wait<0>();
      pin_registers(acc);
      pin_registers(weights);  // they are in use up to here
      release_values();
#pragma unroll
      for (int i = 0; i < Tile::kHeadDim / 2; ++i) acc[i] *= keep[i / 2 % 2];
      round_weights<Tile>(scores, weights);
    }
    start_values(weights);
    wgmma_wait<0>();
    pin_registers(acc);
    pin_registers(weights);
    release_values();
  }

  // Lanes of a row swap words until each has eight neighbouring channels, which it writes as 16 bytes.
  __device__ void write_rows(const BlockView<Tile>& view) const {
    const int lane = threadIdx.x % kLanes;
    constexpr int kChunks = Tile::kHeadDim / kChunkElements;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float total = sum_of_row(rows.sum[h]);
      const float factor = total == 0.0f ? 0.0f : 1.0f / total;  // a row that sees nothing has sum 0
      const int row = view.first_row + warp_row() + h * 8 + lane / 4;
      const bool exists = row < view.plan.row_count;
      typename Tile::T* out =
          static_cast<typename Tile::T*>(view.p.out) + view.row_offset(view.p.out_strides, exists ? row : 0);
#pragma unroll
      for (int first = 0; first < kChunks; first += 4) {
        uint32_t words[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int i = (first + c) * 4 + 2 * h;
          words[c] = first + c < kChunks ? pack(acc[i] * factor, acc[i + 1] * factor, typename Tile::T{}) : 0;
        }
        transpose_words(words, lane % 4);
        const int chunk = first + lane % 4;
        if (exists && chunk * kChunkElements < view.p.value_head_dim) {
          *reinterpret_cast<uint4*>(out + chunk * kChunkElements) = make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    }
  }

  // Four lanes have four words each: word i of lane j becomes word j of lane i.
  static __device__ void transpose_words(uint32_t (&words)[4], int lane) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i & bit) continue;
        const bool is_upper = (lane & bit) != 0;
        const uint32_t received = __shfl_xor_sync(0xffffffffu, is_upper ? words[i] : words[i | bit], bit);
        words[i] = is_upper ? received : words[i];
        words[i | bit] = is_upper ? words[i | bit] : received;
      }
    }
  }
};

template <typename Tile>
__device__ inline void consume(const HopperArguments& arguments, const HopperShared<Tile>& shared, int index) {
  Consumer<Tile> consumer(arguments, shared, index);
  if (index == Tile::kConsumers - 1) give_turn<Tile>(index);
  for_each_work(arguments.rows.plan, [&](int64_t work) {
    const BlockView<Tile> view(arguments.rows, work);
    consumer.start_work(view);
    if (view.keys.end > 0) consumer.attend(view.keys.end);
    consumer.write_rows(view);
  });
  if (index == 0) wait_for_turn<Tile>(index);  // the turn that nobody takes: no arrival stays behind
}

// Code of sm_90a, or the emulator's: elsewhere the kernel is empty, and is not launched.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
#define VA_EXPORT_HAS_WGMMA
#endif

// Grid: at most block_count(plan) blocks of Tile::kThreads threads, Tile::kSharedBytes of dynamic shared memory.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    hopper_attention_kernel(const __grid_constant__ HopperArguments arguments) {
#ifdef VA_EXPORT_HAS_WGMMA
  extern __shared__ float4 shared_memory[];
  const HopperShared<Tile> shared(reinterpret_cast<char*>(shared_memory));
  if (threadIdx.x == 0) init_barriers<Tile>(shared.barriers());
  __syncthreads();
  const int warpgroup = threadIdx.x / kWarpgroup, warp = threadIdx.x / kLanes;
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

}  // namespace va_export
