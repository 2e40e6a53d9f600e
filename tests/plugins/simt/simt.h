// Runs CUDA kernels on the CPU, one thread at a time, so that the very source of a kernel can be tested without a GPU.
//
// Every CUDA thread is a fiber. A fiber runs until it reaches a barrier (__syncthreads, __syncwarp, a shuffle), then
// the next one runs; the order is chosen by simt::set_schedule, and a kernel whose result depends on it has a race.
// What the hardware would not forgive is an error here: a barrier that some threads do not reach, shuffles that
// differ within a warp, more shared memory than was asked for. Shared memory holds NaNs before each block.
//
// It is no performance model and knows only what our kernels use. cuda_*.h beside this file include it.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
using cudaStream_t = void*;
using cudaEvent_t = void*;  // TensorRT's headers name it
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : error == cudaSuccess ? "no error" : "launch failure";
}
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kDefaultSharedBytes = 48 * 1024;
constexpr size_t kMostSharedBytes = 99 * 1024;  // of sm_86, sm_89 and sm_120, the smallest that we support
constexpr unsigned kWarpSize = 32;

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state = State::kReady;
  int shuffle_mask = 0;  // of the shuffle that it waits in; 0: __syncwarp
  float shuffled = 0.0f;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned running;
inline std::function<void()> body;
inline int schedule = 0;
inline size_t shared_limit = kDefaultSharedBytes;
inline char* shared_arena = nullptr;  // kMostSharedBytes + a guard, given by the file that includes the kernel
constexpr size_t kGuardBytes = 1024;

// 0: threads in order; 1: in reverse; else a random order, from this seed, anew after every barrier.
inline void set_schedule(int value) {
  schedule = value;
}

inline void wait(State state) {
  fibers[running].state = state;
  swapcontext(&fibers[running].context, &scheduler);
}

inline void run_thread() {
  body();
  wait(State::kDone);
}

inline bool fail(const char* reason) {
  std::fprintf(stderr, "simt: block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, reason);
  return false;
}

// Frees the threads whose barrier is complete. False where nobody can go on, or a barrier is used wrongly.
inline bool release_barriers() {
  bool freed = false;
  for (unsigned first = 0; first < fibers.size(); first += kWarpSize) {
    const State state = fibers[first].state;
    const int mask = fibers[first].shuffle_mask;
    bool same_state = true, same_mask = true;
    for (unsigned i = first; i < first + kWarpSize; ++i) {
      same_state &= fibers[i].state == state;
      same_mask &= fibers[i].shuffle_mask == mask;
    }
    if (!same_state) return fail("the threads of a warp wait at different barriers");
    if (state != State::kAtWarpBarrier) continue;
    if (!same_mask) return fail("the threads of a warp shuffle differently");
    for (unsigned i = first; i < first + kWarpSize; ++i) fibers[i].state = State::kReady;
    freed = true;
  }
  if (freed) return true;
  for (const Fiber& fiber : fibers) {
    if (fiber.state != fibers[0].state) return fail("some threads wait at __syncthreads that others have passed by");
  }
  for (Fiber& fiber : fibers) fiber.state = State::kReady;
  return true;
}

inline bool all_done() {
  for (const Fiber& fiber : fibers) {
    if (fiber.state != State::kDone) return false;
  }
  return true;
}

inline void prepare(Fiber& fiber) {
  fiber.state = State::kReady;
  getcontext(&fiber.context);
  fiber.context.uc_stack = {fiber.stack.get(), 0, kStackBytes};
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_thread, 0);
}

inline bool run_block(std::mt19937& random) {
  const unsigned count = static_cast<unsigned>(fibers.size());
  for (Fiber& fiber : fibers) prepare(fiber);
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) order[i] = schedule == 1 ? count - 1 - i : i;
  while (true) {
    if (schedule > 1) std::shuffle(order.begin(), order.end(), random);
    for (const unsigned i : order) {
      if (fibers[i].state != State::kReady) continue;
      running = i;
      threadIdx = dim3(i, 0, 0);
      swapcontext(&scheduler, &fibers[i].context);
    }
    if (all_done()) return true;
    if (!release_barriers()) return false;
  }
}

template <typename Argument>
cudaError_t launch(void (*kernel)(Argument), dim3 grid, dim3 block, void** arguments, size_t shared_bytes) {
  if (shared_bytes > shared_limit || block.x % kWarpSize != 0) return cudaErrorInvalidValue;
  shared_limit = kDefaultSharedBytes;  // the attribute is a function's own: the next launch must ask again
  if (fibers.size() != block.x) fibers = std::vector<Fiber>(block.x);
  gridDim = grid;
  blockDim = block;
  body = [&] { kernel(*static_cast<Argument*>(arguments[0])); };
  std::mt19937 random(static_cast<unsigned>(schedule));
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        std::memset(shared_arena, 0xff, kMostSharedBytes + kGuardBytes);  // NaNs
        if (!run_block(random)) return cudaErrorLaunchFailure;
        for (size_t i = shared_bytes; i < kMostSharedBytes + kGuardBytes; ++i) {
          if (shared_arena[i] != static_cast<char>(0xff)) {
            fail("a write beyond the shared memory that was asked for");
            return cudaErrorLaunchFailure;
          }
        }
      }
    }
  }
  return cudaSuccess;
}

}  // namespace simt

inline void __syncthreads() {
  simt::wait(simt::State::kAtBlockBarrier);
}

inline float __shfl_xor_sync(unsigned, float x, int mask) {
  const unsigned self = simt::running;
  simt::fibers[self].shuffled = x;
  simt::fibers[self].shuffle_mask = mask;
  simt::wait(simt::State::kAtWarpBarrier);
  const float other = simt::fibers[self ^ static_cast<unsigned>(mask)].shuffled;
  simt::fibers[self].shuffle_mask = 0;
  simt::wait(simt::State::kAtWarpBarrier);
  return other;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > simt::kMostSharedBytes) return cudaErrorInvalidValue;
  simt::shared_limit = static_cast<size_t>(bytes);
  return cudaSuccess;
}

template <typename Argument>
cudaError_t cudaLaunchKernel(void (*kernel)(Argument), dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  return simt::launch(kernel, grid, block, arguments, shared_bytes);
}
