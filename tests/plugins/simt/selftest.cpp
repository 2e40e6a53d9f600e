// Kernels with faults, which the emulation must notice.
#include "simt.h"

namespace {

alignas(16) char arena[simt::kMostSharedBytes + simt::kGuardBytes];

struct Arguments {
  int* out;  // 64 integers
};

// Thread i publishes i, then reads its neighbour's number: right only with a barrier in between.
template <bool kHasBarrier>
void neighbour(Arguments a) {
  int* shared = reinterpret_cast<int*>(arena);
  const int i = static_cast<int>(threadIdx.x);
  shared[i] = i;
  if (kHasBarrier) __syncthreads();
  a.out[i] = shared[(i + 1) % 64];
}

void barrier_in_one_warp(Arguments) {
  if (threadIdx.x < 32) __syncthreads();
}

void barrier_in_half_a_warp(Arguments) {
  if (threadIdx.x % 32 < 16) __syncthreads();
}

void different_shuffles(Arguments) {
  __shfl_xor_sync(0xffffffffu, 1.0f, threadIdx.x % 2 ? 1 : 2);
}

void shared_overflow(Arguments) {
  arena[256 + threadIdx.x] = 0;
}

}  // namespace

// Launches one kernel with 64 threads and 256 bytes of shared memory; `out` has 64 integers.
extern "C" __attribute__((visibility("default"))) int run_selftest(int which, int schedule, size_t shared_bytes, int* out) {
  simt::shared_arena = arena;
  simt::set_schedule(schedule);
  Arguments arguments{out};
  void* pointers[] = {&arguments};
  void (*const kernels[])(Arguments) = {neighbour<true>,        neighbour<false>,   barrier_in_one_warp,
                                        barrier_in_half_a_warp, different_shuffles, shared_overflow};
  return cudaLaunchKernel(kernels[which], dim3(1), dim3(64), pointers, shared_bytes, nullptr);
}
