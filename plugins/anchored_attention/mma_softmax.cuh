// The online softmax of the tensor-core kernel, with the anchors' gains.
//
// With gK = exp(key_log_gain), gV = value_gain and any number m_i,
//   out_i = sum_j p_ij gK_j gV_j v_j / sum_j p_ij gK_j,   p_ij = 2^(c s_ij - m_i),   c = scale * log2(e).
// Folded form: m is the running maximum of the logits without gains, so the gains cost one multiplication a weight.
// It needs gK and gK gV near 1: the weights p gK gV are rounded to 16 bits, and float16 ends at 65504 above and loses
// bits below 2^-14. A tile with a gain outside [kLeastGain, kMostGain] takes the guarded form: gains go into the
// exponent, and m is the running maximum of c s_ij + log2(gK_j) + log2|gV_j|, with |gV| clamped to [2^-60, 2^60] there.
// As m may be any number, tiles of both forms add up in one row.
#pragma once

#include <math.h>

#include "block_view.cuh"
#include "mma_tile.cuh"

namespace va_export {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLeastGain = 1.0f / 16;
constexpr float kMostGain = 16384.0f;
constexpr float kMostLog2ValueGain = 60.0f;

__device__ inline bool is_foldable(float gain) {
  return gain >= kLeastGain && gain <= kMostGain;  // false for NaN
}

// One tile's gains in shared memory. unfoldable[w]: warp w found a gain outside the limits.
template <typename Tile>
struct TileGains {
  float2 folded[Tile::kKeys];   // gK, gK gV
  float2 guarded[Tile::kKeys];  // log2(gK), gV
  int unfoldable[Tile::kKeys / kLanes];
};

struct KeyGain {
  float key_log_gain, value_gain;
};

// Reads the gain of this thread's key; keys from `end` on weigh nothing.
template <typename Tile>
__device__ inline KeyGain fetch_gain(const float* key_log_gain, const float* value_gain, int first, int end) {
  const int key = first + static_cast<int>(threadIdx.x);
  const bool exists = static_cast<int>(threadIdx.x) < Tile::kKeys && key < end;
  return exists ? KeyGain{key_log_gain[key], value_gain[key]} : KeyGain{0.0f, 1.0f};
}

template <typename Tile>
__device__ inline void store_gain(KeyGain gain, TileGains<Tile>& gains) {
  const int key = static_cast<int>(threadIdx.x);
  if (key >= Tile::kKeys) return;  // whole warps
  const float log2_gain = gain.key_log_gain * kLog2e;
  const float key_gain = exp2f(log2_gain), product = key_gain * gain.value_gain;
  const bool foldable = is_foldable(key_gain) && is_foldable(product);
  gains.folded[key] = make_float2(key_gain, product);
  gains.guarded[key] = make_float2(log2_gain, gain.value_gain);
  const unsigned bad_lanes = __ballot_sync(0xffffffffu, !foldable);
  if (key % kLanes == 0) gains.unfoldable[key / kLanes] = static_cast<int>(bad_lanes);
}

template <typename Tile>
__device__ inline bool can_fold(const TileGains<Tile>& gains) {
  static_assert(Tile::kKeys == 32 || Tile::kKeys == 64, "one or two warps store the gains");
  return (gains.unfoldable[0] | gains.unfoldable[Tile::kKeys / kLanes - 1]) == 0;
}

// What a warp keeps of its rows: a lane has the rows lane / 4 and lane / 4 + 8 of each block of 16.
template <typename Tile>
struct RowState {
  float max[Tile::kRowBlocks][2];  // m, in units of log2
  float sum[Tile::kRowBlocks][2];  // of p gK; this lane's keys only, until the end
  float acc[Tile::kRowBlocks][Tile::kChunks][4];
};

template <typename Tile>
using Scores = float[Tile::kRowBlocks][Tile::kKeysOfWarp / 8][4];

// A row's four lanes hold all its keys.
__device__ inline float max_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float sum_of_row(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Sets to -infinity what a row may not see. first_row and first_key are the warp's first, in the head and the sequence.
template <typename Tile>
__device__ inline void mask_scores(const BlockView<Tile>& view, int first_row, int first_key, Scores<Tile>& scores) {
  const int lane_key = first_key + threadIdx.x % 4 * 2;
#pragma unroll
  for (int m = 0; m < Tile::kRowBlocks; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Computed anew on the few tiles at the diagonal, where keeping it would cost registers on all.
      const int visible = view.visible_of(first_row + m * 16 + h * 8 + threadIdx.x % kLanes / 4);
#pragma unroll
      for (int n = 0; n < Tile::kKeysOfWarp / 8; ++n) {
        if (lane_key + n * 8 >= visible) scores[m][n][2 * h] = -INFINITY;
        if (lane_key + n * 8 + 1 >= visible) scores[m][n][2 * h + 1] = -INFINITY;
      }
    }
  }
}

// Raises m to the largest of the scores times `factor`, and brings the sums so far to the new m.
template <typename Tile>
__device__ inline void raise_max(const Scores<Tile>& scores, float factor, RowState<Tile>& rows) {
#pragma unroll
  for (int m = 0; m < Tile::kRowBlocks; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float largest = -INFINITY;
#pragma unroll
      for (int n = 0; n < Tile::kKeysOfWarp / 8; ++n) {
        largest = fmaxf(largest, fmaxf(scores[m][n][2 * h], scores[m][n][2 * h + 1]));
      }
      const float new_max = fmaxf(rows.max[m][h], max_of_row(largest) * factor);
      const float keep = exp2_approx(new_max == -INFINITY ? 0.0f : rows.max[m][h] - new_max);
      rows.max[m][h] = new_max;
      rows.sum[m][h] *= keep;
#pragma unroll
      for (int d = 0; d < Tile::kChunks; ++d) {
        rows.acc[m][d][2 * h] *= keep;
        rows.acc[m][d][2 * h + 1] *= keep;
      }
    }
  }
}

// What exponents are taken relative to: where nothing was seen yet, 2^(-inf - 0) = 0 and not NaN.
__device__ inline float finite_base(float max) {
  return max == -INFINITY ? 0.0f : max;
}

// Replaces scores by weights, in the folded form. `gains` begins at the warp's first key.
template <typename Tile>
__device__ inline void folded_softmax(float log2_scale, const float2* gains, RowState<Tile>& rows,
                                      Scores<Tile>& scores) {
  raise_max<Tile>(scores, log2_scale, rows);
#pragma unroll
  for (int n = 0; n < Tile::kKeysOfWarp / 8; ++n) {
    const float4 pair = *reinterpret_cast<const float4*>(gains + n * 8 + threadIdx.x % 4 * 2);
#pragma unroll
    for (int m = 0; m < Tile::kRowBlocks; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float p = exp2_approx(scores[m][n][i] * log2_scale - finite_base(rows.max[m][i / 2]));
        rows.sum[m][i / 2] += p * (i % 2 == 0 ? pair.x : pair.z);
        scores[m][n][i] = p * (i % 2 == 0 ? pair.y : pair.w);
      }
    }
  }
}

__device__ inline float clamped_log2(float value_gain) {
  return fminf(fmaxf(log2f(fabsf(value_gain)), -kMostLog2ValueGain), kMostLog2ValueGain);
}

// Replaces scores by weights, in the guarded form. A masked score stays masked whatever its key's gains are.
template <typename Tile>
__device__ inline void guarded_softmax(float log2_scale, const float2* gains, RowState<Tile>& rows,
                                       Scores<Tile>& scores) {
  const float2* lane_gains = gains + threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < Tile::kKeysOfWarp / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 gain = lane_gains[n * 8 + i % 2];
      const float bias = gain.x + clamped_log2(gain.y);
#pragma unroll
      for (int m = 0; m < Tile::kRowBlocks; ++m) {
        const float s = scores[m][n][i];
        scores[m][n][i] = s == -INFINITY ? s : s * log2_scale + bias;
      }
    }
  }
  raise_max<Tile>(scores, 1.0f, rows);
#pragma unroll
  for (int n = 0; n < Tile::kKeysOfWarp / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float value_gain = lane_gains[n * 8 + i % 2].y, log2_value_gain = clamped_log2(value_gain);
#pragma unroll
      for (int m = 0; m < Tile::kRowBlocks; ++m) {
        const float y = scores[m][n][i] - finite_base(rows.max[m][i / 2]);
        const float weight = exp2_approx(y - log2_value_gain);
        rows.sum[m][i / 2] += weight;
        scores[m][n][i] = y == -INFINITY ? 0.0f : weight * value_gain;
      }
    }
  }
}

}  // namespace va_export
