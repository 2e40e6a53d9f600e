// What the blocks that share one tile's keys leave in the workspace, and how softmax sums over different keys add up.
#pragma once

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdint.h>

namespace va_export {

constexpr int kPartialRows = 16;  // rows of a decode tile

// Sums over some keys, relative to 2^max: of the weights, and in `Partials::sums` of the weighted values.
struct alignas(8) SoftmaxStats {
  float max;  // -infinity: no key was seen
  float sum;
};

// Weighted sums (slots, kPartialRows, value_head_dim), then statistics (slots, kPartialRows).
struct Partials {
  float* sums;
  SoftmaxStats* stats;

  __host__ __device__ Partials(void* workspace, int64_t slots, int64_t value_head_dim)
      : sums(static_cast<float*>(workspace)),
        stats(reinterpret_cast<SoftmaxStats*>(sums + slots * kPartialRows * value_head_dim)) {}
};

__host__ __device__ inline int64_t partial_bytes(int64_t slots, int64_t value_head_dim) {
  return slots * kPartialRows *
         (value_head_dim * static_cast<int64_t>(sizeof(float)) + static_cast<int64_t>(sizeof(SoftmaxStats)));
}

// What sums relative to 2^max are worth relative to 2^new_max.
__device__ inline float rescale(float max, float new_max) {
  return new_max == -INFINITY ? 0.0f : exp2f(max - new_max);
}

}  // namespace va_export
