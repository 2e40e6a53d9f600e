// The online softmax of the Hopper kernel: mma_softmax.cuh's two forms on the accumulators of wgmma.
//
// A lane has two of its warp's 16 rows, lane / 4 and lane / 4 + 8, and of each eight columns two: number 4 n + i of
// `scores` is of row i / 2 and column 8 n + lane % 4 * 2 + i % 2. The sums of weighted values are being added to while
// the weights are made, so they are brought to the new maximum later, by the factors `keep`.
#pragma once

#include "hopper_tile.cuh"

namespace va_export {

template <typename Tile>
using HopperScores = float[Tile::kKeys / 2];

struct HopperRows {
  float max[2];  // m, in units of log2
  float sum[2];  // of p gK; this lane's keys only, until the end
};

// Sets to -infinity what a row may not see: its keys from visible[h] on, counted from the tile's first.
template <typename Tile>
__device__ inline void mask_scores(int visible0, int visible1, HopperScores<Tile>& scores) {
  const int lane_key = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < Tile::kKeys / 2; ++i) {
    if (lane_key + i / 4 * 8 + i % 2 >= (i / 2 % 2 == 0 ? visible0 : visible1)) scores[i] = -INFINITY;
  }
}

// Raises m to the largest of the scores times `factor`, and brings the sums of weights to it.
template <typename Tile>
__device__ inline void raise_max(const HopperScores<Tile>& scores, float factor, HopperRows& rows, float (&keep)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < Tile::kKeys / 2; i += 4) {
      largest = fmaxf(largest, fmaxf(scores[i + 2 * h], scores[i + 2 * h + 1]));
    }
    const float new_max = fmaxf(rows.max[h], max_of_row(largest) * factor);
    keep[h] = exp2_approx(new_max == -INFINITY ? 0.0f : rows.max[h] - new_max);
    rows.max[h] = new_max;
    rows.sum[h] *= keep[h];
  }
}

template <typename Tile>
__device__ inline void folded_weights(float log2_scale, const HopperGains<Tile::kKeys>& gains, HopperRows& rows,
                                      HopperScores<Tile>& scores, float (&keep)[2]) {
  raise_max<Tile>(scores, log2_scale, rows, keep);
  const float base[2] = {finite_base(rows.max[0]), finite_base(rows.max[1])};
#pragma unroll
  for (int n = 0; n < Tile::kKeys / 8; ++n) {
    const float4 pair = *reinterpret_cast<const float4*>(gains.folded + n * 8 + threadIdx.x % 4 * 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float p = exp2_approx(scores[n * 4 + i] * log2_scale - base[i / 2]);
      rows.sum[i / 2] += p * (i % 2 == 0 ? pair.x : pair.z);
      scores[n * 4 + i] = p * (i % 2 == 0 ? pair.y : pair.w);
    }
  }
}

template <typename Tile>
__device__ inline void guarded_weights(float log2_scale, const HopperGains<Tile::kKeys>& gains, HopperRows& rows,
                                       HopperScores<Tile>& scores, float (&keep)[2]) {
  const float4* lane_gains = gains.guarded + threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < Tile::kKeys / 2; ++i) {
    const float s = scores[i];
    scores[i] = s == -INFINITY ? s : s * log2_scale + lane_gains[i / 4 * 8 + i % 2].x;
  }
  raise_max<Tile>(scores, 1.0f, rows, keep);
#pragma unroll
  for (int i = 0; i < Tile::kKeys / 2; ++i) {
    const float4 gain = lane_gains[i / 4 * 8 + i % 2];
    const float y = scores[i] - finite_base(rows.max[i / 2 % 2]);
    const float weight = exp2_approx(y - gain.y);
    rows.sum[i / 2 % 2] += weight;
    scores[i] = y == -INFINITY ? 0.0f : weight * gain.z;
  }
}

// Replaces scores by weights.
template <typename Tile>
__device__ inline void weigh(float log2_scale, const HopperGains<Tile::kKeys>& gains, HopperRows& rows,
                             HopperScores<Tile>& scores, float (&keep)[2]) {
  const int4 bad = *reinterpret_cast<const int4*>(gains.unfoldable);
  if ((bad.x | bad.y | bad.z | bad.w) == 0) {
    folded_weights<Tile>(log2_scale, gains, rows, scores, keep);
  } else {
    guarded_weights<Tile>(log2_scale, gains, rows, scores, keep);
  }
}

// Rounds the weights to what the next product takes: c of two neighbouring blocks of eight columns is a of one step.
template <typename Tile>
__device__ inline void round_weights(const HopperScores<Tile>& scores, HopperWeights<Tile>& weights) {
#pragma unroll
  for (int i = 0; i < Tile::kKeys / 4; ++i) {
    weights[i / 4][i % 4] = pack(scores[2 * i], scores[2 * i + 1], typename Tile::T{});
  }
}

}  // namespace va_export
