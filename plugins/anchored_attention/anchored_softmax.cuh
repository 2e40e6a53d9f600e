// The online softmax of the tensor-core kernels on the accumulators of their products, with the anchors' gains.
//
// With gK = exp(key_log_gain), gV = value_gain and any number m_i,
//   out_i = sum_j p_ij gK_j gV_j v_j / sum_j p_ij gK_j,   p_ij = 2^(c s_ij - m_i),   c = scale * log2(e).
// Folded form: m is the row max of the logits without gains, so the gains cost one multiplication a weight. It needs gK
// and gK gV near 1: the weights p gK gV are rounded to 16 bits, and float16 ends at 65504 above and loses bits below
// 2^-14. A key tile with a gain outside [kLeastGain, kMostGain] takes the guarded form: gains go into the exponent, and
// m is the row max of c s_ij + log2(gK_j) + log2|gV_j|, with |gV| clamped to [2^-60, 2^60] there. As m may be any
// number, tiles of both forms add up in one row.
#pragma once

#include "geometry.h"
#include "softmax_state.cuh"

namespace va_export {

constexpr float kLeastGain = 1.0f / 16;
constexpr float kMostGain = 16384.0f;
constexpr float kMostLog2ValueGain = 60.0f;

// One warp's share of the accumulators of mma.sync m16n8 and of wgmma: [fragments of 16 rows, columns / 8, 4]. Of 16
// rows and 8 columns a lane has rows h * 8 + lane / 4 and columns lane % 4 * 2 + i % 2, as number 2 h + i % 2.
template <int kRowFragments, int kColumns>
using Accumulator = float[kRowFragments][kColumns / 8][4];

// What a warp keeps of its rows between key tiles.
template <typename Tile>
struct RowState {
  SoftmaxState softmax[Tile::kRowFragments][2];               // sums of p gK; this lane's keys only, until the end
  Accumulator<Tile::kRowFragments, Tile::kHeadDim> out = {};  // O: [rows, value_head_dim]
};

// One key tile's gains in shared memory.
template <int kKeys>
struct alignas(16) TileGains {
  float2 folded[kKeys];               // gK, gK gV
  float4 guarded[kKeys];              // log2(gK) + log2|gV|, log2|gV|, gV, 0
  int unfoldable[kKeys / kWarpSize];  // of each 32 keys: nonzero where a gain is outside the folded form's limits
};

struct KeyGain {
  float key_log_gain, value_gain;
};

__device__ inline KeyGain fetch_gain(const float* key_log_gain, const float* value_gain, int key, bool exists) {
  return exists ? KeyGain{key_log_gain[key], value_gain[key]} : KeyGain{0.0f, 1.0f};
}

__device__ inline bool is_foldable(float gain) {
  return gain >= kLeastGain && gain <= kMostGain;  // false for NaN
}

// Prepares the gain of the tile's key `key`: a whole warp, 32 neighbouring keys.
template <int kKeys>
__device__ inline void store_gain(KeyGain gain, int key, TileGains<kKeys>& gains) {
  const float log2_gain = gain.key_log_gain * kLog2e;
  const float log2_value_gain = fminf(fmaxf(log2f(fabsf(gain.value_gain)), -kMostLog2ValueGain), kMostLog2ValueGain);
  const float key_gain = exp2f(log2_gain), product = key_gain * gain.value_gain;
  gains.folded[key] = make_float2(key_gain, product);
  gains.guarded[key] = make_float4(log2_gain + log2_value_gain, log2_value_gain, gain.value_gain, 0.0f);
  const unsigned bad_lanes = __ballot_sync(0xffffffffu, !(is_foldable(key_gain) && is_foldable(product)));
  if (key % kWarpSize == 0) gains.unfoldable[key / kWarpSize] = static_cast<int>(bad_lanes);
}

// A row's four lanes hold all its columns.
__device__ inline float max_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float sum_of_row(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Sets to -infinity what a row may not see: visible(m, h) counts its keys from the first column on.
template <int kM, int kN, typename Visible>
__device__ inline void mask_scores(float (&scores)[kM][kN][4], const Visible& visible) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int seen = visible(m, h) - static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        if (n * 8 >= seen) scores[m][n][2 * h] = -INFINITY;
        if (n * 8 + 1 >= seen) scores[m][n][2 * h + 1] = -INFINITY;
      }
    }
  }
}

// Raises the rows' m to the largest of the scores times `factor`; `rescale` is then due to the O accumulator.
template <int kM, int kN>
__device__ inline void raise_max(const float (&scores)[kM][kN][4], float factor, SoftmaxState (&rows)[kM][2],
                                 float (&rescale)[kM][2]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float largest = -INFINITY;
#pragma unroll
      for (int n = 0; n < kN; ++n) largest = fmaxf(largest, fmaxf(scores[m][n][2 * h], scores[m][n][2 * h + 1]));
      rescale[m][h] = rows[m][h].raise_max(max_of_row(largest) * factor);
    }
  }
}

template <int kM, int kN>
__device__ inline void rescale_rows(const float (&rescale)[kM][2], float (&out)[kM][kN][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[m][n][i] *= rescale[m][i / 2];
    }
  }
}

// `gains` begins at this lane's first key.
template <int kM, int kN>
__device__ inline void folded_softmax(float log2_scale, const float2* gains, SoftmaxState (&rows)[kM][2],
                                      float (&scores)[kM][kN][4], float (&rescale)[kM][2]) {
  raise_max(scores, log2_scale, rows, rescale);
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    const float4 pair = *reinterpret_cast<const float4*>(gains + n * 8);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float p = exp2_approx(scores[m][n][i] * log2_scale - rows[m][i / 2].base());
        rows[m][i / 2].sum += p * (i % 2 == 0 ? pair.x : pair.z);
        scores[m][n][i] = p * (i % 2 == 0 ? pair.y : pair.w);
      }
    }
  }
}

// The same in the guarded form. A masked score stays masked whatever its key's gains are.
template <int kM, int kN>
__device__ inline void guarded_softmax(float log2_scale, const float4* gains, SoftmaxState (&rows)[kM][2],
                                       float (&scores)[kM][kN][4], float (&rescale)[kM][2]) {
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float bias = gains[n * 8 + i % 2].x;
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const float s = scores[m][n][i];
        scores[m][n][i] = s == -INFINITY ? s : s * log2_scale + bias;
      }
    }
  }
  raise_max(scores, 1.0f, rows, rescale);
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 gain = gains[n * 8 + i % 2];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const float y = scores[m][n][i] - rows[m][i / 2].base();
        const float weight = exp2_approx(y - gain.y);
        rows[m][i / 2].sum += weight;
        scores[m][n][i] = y == -INFINITY ? 0.0f : weight * gain.z;
      }
    }
  }
}

// Replaces a warp's scores S by the weights P = p gK gV, from the tile's key `first_key` on.
template <int kKeys, int kM, int kN>
__device__ inline void softmax(float log2_scale, const TileGains<kKeys>& gains, int first_key,
                               SoftmaxState (&rows)[kM][2], float (&scores)[kM][kN][4], float (&rescale)[kM][2]) {
  int unfoldable = 0;
#pragma unroll
  for (int w = 0; w < kKeys / kWarpSize; ++w) unfoldable |= gains.unfoldable[w];
  const int lane_key = first_key + threadIdx.x % 4 * 2;
  if (unfoldable == 0) {
    folded_softmax(log2_scale, gains.folded + lane_key, rows, scores, rescale);
  } else {
    guarded_softmax(log2_scale, gains.guarded + lane_key, rows, scores, rescale);
  }
}

// Rounds P of 16 keys to the first operand of the second product, O += P V: accumulators of two neighbouring blocks of
// 8 columns are one fragment of 16, and never leave the registers.
template <typename T>
__device__ inline void round_weights(const float (&left)[4], const float (&right)[4], uint32_t (&fragment)[4], T type) {
  fragment[0] = pack(left[0], left[1], type);
  fragment[1] = pack(left[2], left[3], type);
  fragment[2] = pack(right[0], right[1], type);
  fragment[3] = pack(right[2], right[3], type);
}

// Four lanes have four words each: word i of lane j becomes word j of lane i.
__device__ inline void transpose_words(uint32_t (&words)[4], int lane) {
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

// Writes O / l of a warp whose first row in the tile is `warp_row`. The four lanes of a row swap words until each has
// eight neighbouring channels, which it writes as 16 bytes.
template <typename Tile>
__device__ inline void write_rows(const TileView<Tile>& view, int warp_row, const RowState<Tile>& rows) {
  using T = typename Tile::T;
  const int lane = threadIdx.x % kWarpSize;
  constexpr int kChunks = Tile::kHeadDim / kChunkElements;
#pragma unroll
  for (int m = 0; m < Tile::kRowFragments; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      SoftmaxState state = rows.softmax[m][h];
      state.sum = sum_of_row(state.sum);
      const float factor = state.normalise(1.0f);
      const int row = view.first_row + warp_row + m * 16 + h * 8 + lane / 4;
      const bool exists = row < view.plan.row_count;
      T* out = view.out_row(exists ? row : 0);
#pragma unroll
      for (int first = 0; first < kChunks; first += 4) {
        uint32_t words[4] = {};
#pragma unroll
        for (int c = 0; c < 4 && first + c < kChunks; ++c) {
          const float (&o)[4] = rows.out[m][first + c];
          words[c] = pack(o[2 * h] * factor, o[2 * h + 1] * factor, T{});
        }
        transpose_words(words, lane % 4);
        const int chunk = first + lane % 4;
        if (exists && chunk * kChunkElements < view.p.value_head_dim) {
          *reinterpret_cast<uint4*>(out + chunk * kChunkElements) = make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    }
  }
}

}  // namespace va_export
