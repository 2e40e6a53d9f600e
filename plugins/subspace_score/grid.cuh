// The grid as one team: a barrier of all blocks, and sums over a block in a fixed order.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/grid_memory.cuh"

namespace va_export {

constexpr int kThreads = 256;

// A phase of a kernel is a function that the compiler takes by itself: its registers are its own, and it compiles once.
#ifdef __CUDACC__
#define VA_PHASE __device__ __noinline__
#else
#define VA_PHASE inline
#endif

// All blocks of a cooperative launch meet. `arrived` counts arrivals since the launch began, and only grows.
__device__ inline void grid_sync(unsigned* arrived) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const unsigned ticket = atomicAdd(arrived, 1u);
    wait_until_reached(arrived, (ticket / gridDim.x + 1) * gridDim.x);
    __threadfence();
  }
  __syncthreads();
}

// The sum (or largest) of one number a thread, the same for every thread; `shared` holds kThreads numbers.
template <typename T>
__device__ inline T block_sum(T x, T* shared) {
  __syncthreads();
  shared[threadIdx.x] = x;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  const T sum = shared[0];
  __syncthreads();
  return sum;
}

// NaN wins.
template <typename T>
__device__ inline T larger(T a, T b) {
  return !(a >= b) ? (a == a ? b : a) : a;
}

template <typename T>
__device__ inline T block_max(T x, T* shared) {
  __syncthreads();
  shared[threadIdx.x] = x;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half)
      shared[threadIdx.x] = larger(shared[threadIdx.x], shared[threadIdx.x + half]);
    __syncthreads();
  }
  const T most = shared[0];
  __syncthreads();
  return most;
}

}  // namespace va_export
