// The online softmax of one row: what is kept of the keys seen so far, and how states over different keys become one.
// Every kernel here keeps this state, whatever it multiplies with (Milakov and Gimelshein 2018, arXiv:1805.02867).
#pragma once

#include <cuda_runtime_api.h>
#include <math.h>

#include "common/ptx.cuh"

namespace va_export {

constexpr float kLog2e = 1.4426950408889634f;

// Of logits x_j in units of log2. The row of the O accumulator that goes with it holds sum_j 2^(x_j - max) v_j.
struct alignas(8) SoftmaxState {
  float max = -INFINITY;  // m, the row max; -infinity: no key was seen
  float sum = 0.0f;       // l, the row sum of 2^(x_j - max)

  // What sums relative to 2^max are worth relative to 2^new_max.
  __device__ float rescale(float new_max) const { return new_max == -INFINITY ? 0.0f : exp2_approx(max - new_max); }

  // Makes m at least `largest`, and brings l to it; the factor that does the same to the row of the O accumulator.
  __device__ float raise_max(float largest) {
    const float new_max = fmaxf(max, largest), factor = rescale(new_max);
    max = new_max;
    sum *= factor;
    return factor;
  }

  // What exponents are taken relative to: where no key was seen, 2^(-inf - 0) = 0 and not NaN.
  __device__ float base() const { return max == -INFINITY ? 0.0f : max; }

  // x / l; 0 for a row that sees no key, or only keys of gain 0.
  __device__ float normalise(float x) const { return sum == 0.0f ? 0.0f : x / sum; }
};

// The state of all keys, from `count` states over different ones, `stride` apart; added in this order.
__device__ inline SoftmaxState merge(const SoftmaxState* states, int count, int stride) {
  SoftmaxState all;
#pragma unroll 4
  for (int i = 0; i < count; ++i) all.max = fmaxf(all.max, states[i * stride].max);
#pragma unroll 4
  for (int i = 0; i < count; ++i) all.sum += states[i * stride].rescale(all.max) * states[i * stride].sum;
  return all;
}

}  // namespace va_export
