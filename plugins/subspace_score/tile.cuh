// Products of matrices, one 64 x 64 tile of the result a block: the only way in which this op multiplies.
#pragma once

#include "grid.cuh"
#include "workspace.h"

namespace va_export {

constexpr int kPer = 4;                // each thread has kPer x kPer elements of a tile
constexpr int kAcross = kTile / kPer;  // threads side by side

// First row and column of this thread's elements.
__device__ inline int my_row() {
  return static_cast<int>(threadIdx.x) / kAcross * kPer;
}
__device__ inline int my_column() {
  return static_cast<int>(threadIdx.x) % kAcross * kPer;
}

template <typename T>
struct TileShape {
  static constexpr int kDepth = sizeof(T) == 4 ? 32 : 16;
  static constexpr int kPitch = kTile + (sizeof(T) == 4 ? 4 : 2);  // keeps 16-byte alignment, spreads the banks
  static constexpr size_t kBytes = 2 * kDepth * kPitch * sizeof(T);
};

// Which index of a factor's element runs along memory: loads follow it.
enum class Along { kTile_, kDepth_ };

// acc[r][c] += sum over k in [first, last) of a(k, my_row() + r) * b(k, my_column() + c).
// a and b give single elements (k, position in the tile) from global memory. `shared`: TileShape<T>::kBytes.
template <typename T, Along kA, Along kB, typename A, typename B>
__device__ inline void multiply(T (&acc)[kPer][kPer], int first, int last, const A& a, const B& b, void* shared) {
  constexpr int kDepth = TileShape<T>::kDepth, kPitch = TileShape<T>::kPitch;
  T* left = static_cast<T*>(shared);
  T* right = left + kDepth * kPitch;
  const int row = my_row(), column = my_column();
  for (int start = first; start < last; start += kDepth) {
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < kDepth * kTile; e += kThreads) {
      const int ka = kA == Along::kTile_ ? e / kTile : e % kDepth, ia = kA == Along::kTile_ ? e % kTile : e / kDepth;
      const int kb = kB == Along::kTile_ ? e / kTile : e % kDepth, ib = kB == Along::kTile_ ? e % kTile : e / kDepth;
      left[ka * kPitch + ia] = start + ka < last ? static_cast<T>(a(start + ka, ia)) : T(0);
      right[kb * kPitch + ib] = start + kb < last ? static_cast<T>(b(start + kb, ib)) : T(0);
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kDepth; ++k) {
      T x[kPer], z[kPer];
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        x[i] = left[k * kPitch + row + i];
        z[i] = right[k * kPitch + column + i];
      }
#pragma unroll
      for (int r = 0; r < kPer; ++r) {
#pragma unroll
        for (int c = 0; c < kPer; ++c) acc[r][c] += x[r] * z[c];
      }
    }
  }
  __syncthreads();
}

// Calls f(row, column, acc[r][c]) for this thread's elements of a tile that starts at (first_row, first_column).
template <typename T, typename F>
__device__ inline void for_each_element(T (&acc)[kPer][kPer], int first_row, int first_column, const F& f) {
#pragma unroll
  for (int r = 0; r < kPer; ++r) {
#pragma unroll
    for (int c = 0; c < kPer; ++c) f(first_row + my_row() + r, first_column + my_column() + c, acc[r][c]);
  }
}

// x[r] = the sum over the tile's row; every thread of a row gets it.
__device__ inline void sum_rows(float (&x)[kPer]) {
#pragma unroll
  for (int r = 0; r < kPer; ++r) {
    for (int mask = kAcross / 2; mask > 0; mask /= 2) x[r] += __shfl_xor_sync(0xffffffffu, x[r], mask);
  }
}

// The sums over the tile's columns, written to out[0 .. kTile); `shared`: kThreads * kPer floats.
__device__ inline void sum_columns(const float (&x)[kPer], float* out, float* shared) {
  __syncthreads();
#pragma unroll
  for (int c = 0; c < kPer; ++c) shared[my_row() / kPer * kTile + my_column() + c] = x[c];
  __syncthreads();
  if (threadIdx.x < kTile) {
    float sum = 0.0f;
    for (int part = 0; part < kAcross; ++part) sum += shared[part * kTile + threadIdx.x];
    out[threadIdx.x] = sum;
  }
  __syncthreads();
}

}  // namespace va_export
