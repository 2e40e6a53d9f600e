// Runs CUDA kernels on the CPU, one thread at a time, so that the very source of a kernel can be tested without a GPU.
//
// Every CUDA thread is a fiber. A fiber runs until it reaches a barrier (__syncthreads, __syncwarp) or an operation of
// the whole warp (a shuffle, a vote, ldmatrix, mma), then the next one runs; the order is chosen by simt::set_schedule,
// and a kernel whose result depends on it has a race. What the hardware would not forgive is an error here: a barrier
// that some threads do not reach, operations that differ within a warp, misaligned vectors, more shared memory than was
// asked for. Shared memory holds NaNs before each block.
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
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801
};
using cudaStream_t = void*;
using cudaEvent_t = void*;  // TensorRT's headers name it
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : error == cudaSuccess ? "no error" : "launch failure";
}
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrCooperativeLaunch = 95
};
struct cudaFuncAttributes {
  int ptxVersion;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kDefaultSharedBytes = 48 * 1024;
constexpr size_t kMostSharedBytes = 99 * 1024;  // of sm_86, sm_89 and sm_120, the smallest that we support
constexpr unsigned kWarpSize = 32;

enum class State { kReady, kSpinning, kAtBlockBarrier, kAtWarpBarrier, kDone };

constexpr size_t kSlotBytes = 64;

struct Copy {
  void* to;
  const void* from;  // nullptr: zeros
  int group;
};

// Where a fiber stopped. swapcontext asks the kernel for the signal mask each time, ten times the cost of the switch
// itself; on x86-64 what a call must keep is kept by hand. The sanitizers know swapcontext, so they get that.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define SIMT_SWITCHES_BY_HAND 1
struct Context {
  void* stack;
};
__attribute__((naked, noinline)) inline void switch_to(Context*, Context*) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov (%rsi), %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}
#else
using Context = ucontext_t;
inline void switch_to(Context* from, Context* to) {
  swapcontext(from, to);
}
#endif

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state = State::kReady;
  int operation = 0;                      // of the warp that it waits in; 0: __syncwarp
  unsigned operations = 0;                // so far
  alignas(16) char slots[2][kSlotBytes];  // what it gave to the last two operations
  std::vector<Copy> copies;               // asynchronous ones that have not landed
  int group = 0;                          // of the asynchronous copies that start next
};

// The GPU that host code sees; architecture as in cudaFuncAttributes::ptxVersion.
struct Gpu {
  int architecture = 80, sm_count = 4, cache_bytes = 1 << 20, is_cooperative = 1;
};
inline Gpu gpu;

inline std::vector<Fiber> fibers;
inline Context scheduler;
inline unsigned running;
inline std::function<void()> body;
inline int schedule = 0;
inline bool has_fault = false;  // a thread did what stops a kernel
inline size_t shared_limit = kDefaultSharedBytes;
inline char* shared_arena = nullptr;  // kMostSharedBytes + a guard, given by the file that includes the kernel
constexpr size_t kGuardBytes = 1024;

// 0: threads in order; 1: in reverse; else a random order, from this seed, anew after every barrier.
inline void set_schedule(int value) {
  schedule = value;
}

inline void wait(State state) {
  fibers[running].state = state;
  switch_to(&fibers[running].context, &scheduler);
}

inline void run_thread() {
  body();
  wait(State::kDone);
}

inline bool fail(const char* reason) {
  std::fprintf(stderr, "simt: block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, reason);
  return false;
}

// Frees the threads of one block whose barrier is complete. False where nobody can go on, or a barrier is used wrongly.
// Of the warps that wait for none but their own threads, schedule 0 frees all; 1 the last, and others one by chance: so
// one warp runs far ahead of the rest, up to the next __syncthreads.
inline bool release_barriers(std::mt19937& random, unsigned begin, unsigned count) {
  std::vector<unsigned> warps;
  for (unsigned first = begin; first < begin + count; first += kWarpSize) {
    const State state = fibers[first].state;
    const int operation = fibers[first].operation;
    bool same_state = true, same_operation = true;
    for (unsigned i = first; i < first + kWarpSize; ++i) {
      same_state &= fibers[i].state == state;
      same_operation &= fibers[i].operation == operation;
    }
    if (!same_state) return fail("the threads of a warp wait at different barriers");
    if (state != State::kAtWarpBarrier) continue;
    if (!same_operation) return fail("the threads of a warp are in different operations");
    warps.push_back(first);
  }
  if (!warps.empty() && schedule == 1) warps = {warps.back()};
  if (!warps.empty() && schedule > 1) warps = {warps[random() % warps.size()]};
  for (const unsigned first : warps) {
    for (unsigned i = first; i < first + kWarpSize; ++i) fibers[i].state = State::kReady;
  }
  if (!warps.empty()) return true;
  for (unsigned i = begin; i < begin + count; ++i) {
    if (fibers[i].state != fibers[begin].state) {
      return fail("some threads wait at __syncthreads that others have passed by");
    }
  }
  for (unsigned i = begin; i < begin + count; ++i) fibers[i].state = State::kReady;
  return true;
}

inline unsigned lane() {
  return running % kWarpSize;
}

// Stops the kernel; the fiber never runs again.
inline void fault(const char* reason) {
  fail(reason);
  has_fault = true;
  wait(State::kDone);
}

// An operation of the whole warp: every lane gives a value and sees those of all lanes. One wait is enough, since a
// lane writes into the same slot again only after all others came to the operation in between.
enum Operation { kBallot = 1, kLoadMatrix, kLoadMatrixTransposed, kMma, kShuffle = 1000 };

template <typename Value>
class Exchange {
 public:
  Exchange(int operation, const Value& value) : slot_(fibers[running].operations++ % 2) {
    static_assert(sizeof(Value) <= kSlotBytes, "a slot holds a value");
    std::memcpy(fibers[running].slots[slot_], &value, sizeof(Value));
    fibers[running].operation = operation;
    wait(State::kAtWarpBarrier);
  }
  const Value& operator[](unsigned lane) const {
    return *reinterpret_cast<const Value*>(fibers[running / kWarpSize * kWarpSize + lane].slots[slot_]);
  }

 private:
  unsigned slot_;
};

inline bool all_done() {
  for (const Fiber& fiber : fibers) {
    if (fiber.state != State::kDone) return false;
  }
  return true;
}

inline void prepare(Fiber& fiber) {
  fiber.state = State::kReady;
  fiber.operation = 0;
  fiber.copies.clear();
#ifdef SIMT_SWITCHES_BY_HAND
  // Six registers, then run_thread as the address to return to, at which the stack is as after a call.
  const uintptr_t top = reinterpret_cast<uintptr_t>(fiber.stack.get() + kStackBytes) / 16 * 16 - 16;
  void** place = reinterpret_cast<void**>(top);
  *place = reinterpret_cast<void*>(run_thread);
  fiber.context.stack = place - 6;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack = {fiber.stack.get(), 0, kStackBytes};
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_thread, 0);
#endif
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
      switch_to(&scheduler, &fibers[i].context);
    }
    if (has_fault) return false;
    if (all_done()) return true;
    if (!release_barriers(random, 0, count)) return false;
  }
}

template <typename Argument>
cudaError_t launch(void (*kernel)(Argument), dim3 grid, dim3 block, void** arguments, size_t shared_bytes) {
  if (shared_bytes > shared_limit || block.x % kWarpSize != 0) return cudaErrorInvalidValue;
  shared_limit = kDefaultSharedBytes;  // the attribute is a function's own: the next launch must ask again
  has_fault = false;
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

inline void __syncwarp() {
  simt::fibers[simt::running].operation = 0;
  simt::wait(simt::State::kAtWarpBarrier);
}

inline float __shfl_xor_sync(unsigned, float x, int mask) {
  const simt::Exchange<float> warp(simt::kShuffle + mask, x);
  return warp[simt::lane() ^ static_cast<unsigned>(mask)];
}

inline unsigned __ballot_sync(unsigned, bool vote) {
  const simt::Exchange<bool> warp(simt::kBallot, vote);
  unsigned votes = 0;
  for (unsigned i = 0; i < simt::kWarpSize; ++i) votes |= static_cast<unsigned>(warp[i]) << i;
  return votes;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? simt::gpu.sm_count
           : attribute == cudaDevAttrCooperativeLaunch ? simt::gpu.is_cooperative
                                                       : simt::gpu.cache_bytes;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->ptxVersion = simt::gpu.architecture;
  return cudaSuccess;
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
