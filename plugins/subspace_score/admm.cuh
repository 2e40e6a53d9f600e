// What both forms of ADMM's iteration share: the step of one element, and the stopping value.
#pragma once

#include "factor.cuh"

namespace va_export {

// What follows from the settings and the weights.
struct Numbers {
  float theta;        // 1 / rho, the threshold of C
  float constant;     // the factor's first row
  float root;         // of lambda_z
  float threshold;    // of E: lambda_e / root
  float longest_row;  // of sqrt(lambda_z) Y; Gram form
};

__device__ inline float clip(float x, float bound) {  // NaN stays NaN
  return x > bound ? bound : (x < -bound ? -bound : x);
}

// X+, from X and what is added to C; `moved` += |T+ - T|; gives Z+ = C+ - T+.
__device__ inline float advance_element(float* state, float old, float step, bool is_diagonal, float theta,
                                        float* moved) {
  const float dual = is_diagonal ? old : clip(old, theta);
  const float next = is_diagonal ? step : old - dual + step;
  const float next_dual = is_diagonal ? next : clip(next, theta);
  *moved += fabsf(next_dual - dual);
  *state = next;
  return next - 2.0f * next_dual;
}

// slots[t] = the largest row sum of |T+ - T| in tile t of the rows, from the sums over `panels` panels of columns.
VA_PHASE void reduce_row_sums(const Shape& s, const Workspace& w, int panels, void* shared) {
  for (int tile = blockIdx.x; tile < s.tiles; tile += gridDim.x) {
    const int part = static_cast<int>(threadIdx.x) / kTile, i = tile * kTile + static_cast<int>(threadIdx.x) % kTile;
    float sum = 0.0f;
    for (int panel = part; panel < panels; panel += kThreads / kTile) {
      sum += w.partial[static_cast<size_t>(panel) * s.n + i];
    }
    float* parts = static_cast<float*>(shared);
    __syncthreads();
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < kTile) {
      for (int other = 1; other < kThreads / kTile; ++other) sum += parts[other * kTile + threadIdx.x];
    }
    const float most = block_max(threadIdx.x < kTile ? sum : 0.0f, parts);
    if (threadIdx.x == 0) w.slots[tile] = most;
  }
}

// The largest of the slots; every block finds the same.
VA_PHASE float worst_row(const Shape& s, const Workspace& w, float* shared) {
  float most = 0.0f;
  for (int tile = static_cast<int>(threadIdx.x); tile < s.tiles; tile += kThreads) most = larger(most, w.slots[tile]);
  return block_max(most, shared);
}

}  // namespace va_export
