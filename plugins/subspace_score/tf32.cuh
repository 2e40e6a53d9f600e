// Products of float32 numbers by tensor cores, nearly as exact as in float32: with x = x_big + x_small, both TF32, x y
// is x_big y_small + x_small y_big + x_big y_big up to 2^-20 |x y|. Three products at eight times the rate of
// float32's.
#pragma once

#include "common/ptx.cuh"
#include "grid.cuh"

namespace va_export {

constexpr int kLanes = 32;

__device__ inline int my_lane() {
  return static_cast<int>(threadIdx.x) % kLanes;
}
__device__ inline int my_warp() {
  return static_cast<int>(threadIdx.x) / kLanes;
}

// How a block's warps, kWarpsAcross of them side by side, divide a tile of the result: each has kM x kN fragments, laid
// out as mma_m16n8k8 says. A thread has kRows x kColumns elements; columns 2 c and 2 c + 1 are neighbours.
template <int kM, int kN, int kWarpsAcross_>
struct WarpTiles {
  static constexpr int kWarpsAcross = kWarpsAcross_;
  static constexpr int kRows = 2 * kM, kColumns = 2 * kN;
  static constexpr int kWarpsDown = kThreads / kLanes / kWarpsAcross;
  static constexpr int kHeight = kWarpsDown * kM * 16, kWidth = kWarpsAcross * kN * 8;

  using Part = float[kM][kN][4];

  __device__ static int first_row() { return my_warp() / kWarpsAcross * kM * 16; }  // of the warp
  __device__ static int first_column() { return my_warp() % kWarpsAcross * kN * 8; }
  __device__ static int row(int r) { return first_row() + r * 8 + my_lane() / 4; }
  __device__ static int column(int c) { return first_column() + c / 2 * 8 + my_lane() % 4 * 2 + c % 2; }

  // sum[r][c] += part, in the order of row(r) and column(c).
  __device__ static void add_part(float (&sum)[kRows][kColumns], const Part& part) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sum[r][c] += part[r / 2][c / 2][r % 2 * 2 + c % 2];
    }
  }

  // x has a number a row: out[row] = the sum over the tile's columns, for `existing` rows. `shared`: kWarpsAcross *
  // kHeight floats.
  __device__ static void sum_rows(float (&x)[kRows], float* out, int existing, float* shared) {
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      for (int mask = 2; mask > 0; mask /= 2) x[r] += __shfl_xor_sync(0xffffffffu, x[r], mask);
      if (my_lane() % 4 == 0) shared[my_warp() % kWarpsAcross * kHeight + row(r)] = x[r];
    }
    add_warps(kWarpsAcross, kHeight, out, existing, shared);
  }

  // Likewise; `shared`: kWarpsDown * kWidth floats.
  __device__ static void sum_columns(float (&x)[kColumns], float* out, int existing, float* shared) {
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      for (int mask = 16; mask > 2; mask /= 2) x[c] += __shfl_xor_sync(0xffffffffu, x[c], mask);
      if (my_lane() < 4) shared[my_warp() / kWarpsAcross * kWidth + column(c)] = x[c];
    }
    add_warps(kWarpsDown, kWidth, out, existing, shared);
  }

 private:
  __device__ static void add_warps(int warps, int length, float* out, int existing, const float* shared) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < length && static_cast<int>(threadIdx.x) < existing) {
      float total = shared[threadIdx.x];
      for (int warp = 1; warp < warps; ++warp) total += shared[warp * length + threadIdx.x];
      out[threadIdx.x] = total;
    }
    __syncthreads();
  }
};

// One step of 8 in depth of a warp's kM x kN fragments. a(row, k) and b(k, column) give what this lane reads: rows from
// lane / 4 of the warp's first on, columns likewise, k from lane % 4 of the step's first on. The terms of a product
// follow one another with all columns' in between, so that they do not wait for one another.
template <int kM, int kN, typename A, typename B>
__device__ inline void multiply_fragments(float (&sum)[kM][kN][4], const A& a, const B& b) {
  uint32_t b_big[kN][2], b_small[kN][2];
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) split_tf32(b(i * 4, n * 8), b_big[n][i], b_small[n][i]);
  }
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    uint32_t a_big[4], a_small[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) split_tf32(a(m * 16 + i % 2 * 8, i / 2 * 4), a_big[i], a_small[i]);
#pragma unroll
    for (int term = 0; term < 3; ++term) {  // the small ones first
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        mma_m16n8k8(sum[m][n], term == 0 ? a_small : a_big, term == 1 ? b_small[n] : b_big[n]);
      }
    }
  }
}

}  // namespace va_export
