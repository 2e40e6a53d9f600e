// Runs CUDA kernels on the CPU, one thread at a time, so that the very source of a kernel can be tested without a GPU.
//
// Every CUDA thread is a fiber. A fiber runs until it reaches a barrier (__syncthreads, __syncwarp), an operation of
// the whole warp (a shuffle, a vote, ldmatrix, mma) or something that it waits for, then the next one runs; the order
// is chosen by simt::set_schedule, and a kernel whose result depends on it has a race. What the hardware would not
// forgive is an error here: a barrier that some threads do not reach, operations that differ within a warp, misaligned
// vectors, more shared memory than was asked for. Shared memory holds NaNs before each block.
//
// It is no performance model and knows only what our kernels use. cuda_*.h beside this file include it.
#pragma once

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

#include "context.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __shared__
#define __launch_bounds__(...)
#define __grid_constant__

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorSymbolNotFound = 500,
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
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrCooperativeLaunch = 95
};
struct cudaFuncAttributes {
  int ptxVersion;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kDefaultSharedBytes = 48 * 1024;
constexpr size_t kLeastSharedLimit = 99 * 1024;  // of sm_86, sm_89 and sm_120, the smallest that we support
constexpr size_t kMostSharedBytes = 227 * 1024;  // of sm_90
constexpr unsigned kWarpSize = 32;

enum class State { kReady, kSpinning, kAtBlockBarrier, kAtWarpBarrier, kWaiting, kDone };

constexpr size_t kSlotBytes = 64;

struct Copy {
  void* to;
  const void* from;  // nullptr: zeros
  int group;
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state = State::kReady;
  int operation = 0;                      // of the warp that it waits in; 0: __syncwarp
  unsigned operations = 0;                // so far
  alignas(16) char slots[2][kSlotBytes];  // what it gave to the last two operations
  std::vector<Copy> copies;               // asynchronous ones that have not landed
  int group = 0;                          // of the asynchronous copies that start next
  std::function<bool()> is_over;          // what it waits for, in State::kWaiting
};

// The GPU that host code sees; architecture as in cudaFuncAttributes::ptxVersion.
struct Gpu {
  int architecture = 80, sm_count = 4, cache_bytes = 1 << 20, is_cooperative = 1;
  size_t most_shared_bytes() const { return architecture == 90 ? kMostSharedBytes : kLeastSharedLimit; }
};
inline Gpu gpu;

// What the hardware does beside the threads, such as copies of boxes: hopper.h.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual void start_block() = 0;
  virtual bool has_work() const = 0;
  virtual void step(std::mt19937& random) = 0;  // does one piece of it
  virtual const char* end_block() = 0;          // what is left over that should not be, or nullptr
};
inline std::vector<Engine*> engines;

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

inline unsigned bits_of(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float float_of(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
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

// Waits until `is_over`, if it is not so already.
inline void wait_until(std::function<bool()> is_over) {
  while (!is_over()) {
    fibers[running].is_over = is_over;
    wait(State::kWaiting);
  }
}

// Some threads that follow one another: those of a block where several blocks are alive (cooperative.h), or of a warp.
struct Range {
  unsigned first, count;
};

// A warp whose threads are all at the same warp barrier may go on, and a thread whose condition holds.
inline bool find_candidates(Range block, std::vector<Range>& candidates) {
  for (unsigned first = block.first; first < block.first + block.count; first += kWarpSize) {
    unsigned at_barrier = 0, same_operation = 0;
    for (unsigned i = first; i < first + kWarpSize; ++i) {
      at_barrier += fibers[i].state == State::kAtWarpBarrier;
      same_operation += fibers[i].operation == fibers[first].operation;
      if (fibers[i].state == State::kWaiting && fibers[i].is_over()) candidates.push_back({i, 1});
    }
    if (at_barrier != kWarpSize) continue;
    if (same_operation != kWarpSize) return fail("the threads of a warp are in different operations");
    candidates.push_back({first, kWarpSize});
  }
  return true;
}

inline bool all_done() {
  return std::all_of(fibers.begin(), fibers.end(), [](const Fiber& fiber) { return fiber.state == State::kDone; });
}

inline size_t count_in(State state) {
  return std::count_if(fibers.begin(), fibers.end(), [=](const Fiber& fiber) { return fiber.state == state; });
}

inline bool release_block_barrier(Range block) {
  const auto begin = fibers.begin() + block.first, end = begin + block.count;
  const auto waits = [](const Fiber& fiber) { return fiber.state == State::kAtBlockBarrier; };
  if (!std::all_of(begin, end, waits)) return false;
  for (auto fiber = begin; fiber != end; ++fiber) fiber->state = State::kReady;
  return true;
}

// Leaves the candidates of one warp: the first in an order by chance, which changes now and then. So some warps run far
// ahead, and others wait as long as they may.
inline std::vector<unsigned> preference;
inline void keep_preferred(std::vector<Range>& candidates, std::mt19937& random) {
  const size_t warps = fibers.size() / kWarpSize;
  if (preference.size() != warps || random() % 64 == 0) {
    preference.resize(warps);
    for (unsigned& place : preference) place = static_cast<unsigned>(random());
  }
  const auto place = [](const Range& c) { return preference[c.first / kWarpSize]; };
  const auto best = std::min_element(candidates.begin(), candidates.end(),
                                     [&](const Range& a, const Range& b) { return place(a) < place(b); });
  const unsigned warp = best->first / kWarpSize;
  const auto is_other = [&](const Range& c) { return c.first / kWarpSize != warp; };
  candidates.erase(std::remove_if(candidates.begin(), candidates.end(), is_other), candidates.end());
}

// Frees threads of a block that may go on: schedule 0 all; 1 the last warp (or thread), and others one by chance: so
// one warp runs far ahead of the rest, up to the next barrier of the block. Engines work when no thread can, as late as
// possible; with a schedule by chance also in between. False where nobody can go on, or a barrier is used wrongly.
inline bool release_barriers(std::mt19937& random, Range block) {
  std::vector<Range> candidates;
  if (!find_candidates(block, candidates)) return false;
  const bool is_chance = schedule > 1 && random() % 4 == 0;
  if (candidates.empty() && !is_chance && release_block_barrier(block)) return true;
  for (Engine* engine : engines) {
    if (!engine->has_work() || !(candidates.empty() || is_chance)) continue;
    engine->step(random);
    return !has_fault;
  }
  if (candidates.empty() && release_block_barrier(block)) return true;
  if (candidates.empty()) return fail("threads wait for what never happens: others are elsewhere, or have ended");
  if (schedule == 1) candidates = {candidates.back()};
  if (schedule > 1) keep_preferred(candidates, random);
  for (const Range& candidate : candidates) {
    for (unsigned i = candidate.first; i < candidate.first + candidate.count; ++i) fibers[i].state = State::kReady;
  }
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
enum Operation { kBallot = 1, kLoadMatrix, kLoadMatrixTransposed, kMma, kMmaTf32, kShuffle = 1000 };

template <typename Value>
class Exchange {
 public:
  Exchange(int operation, const Value& value) : slot_(fibers[running].operations++ % 2) {
    static_assert(sizeof(Value) <= kSlotBytes, "a slot holds a value");
    std::memcpy(fibers[running].slots[slot_], &value, sizeof(Value));
    fibers[running].operation = operation;
    wait(State::kAtWarpBarrier);
    lanes_ = &fibers[running / kWarpSize * kWarpSize];
  }
  const Value& operator[](unsigned lane) const { return *reinterpret_cast<const Value*>(lanes_[lane].slots[slot_]); }

 private:
  unsigned slot_;
  const Fiber* lanes_;
};

inline void prepare(Fiber& fiber) {
  fiber.state = State::kReady;
  fiber.operation = 0;
  fiber.copies.clear();
  start_at(run_thread, fiber.stack.get() + kStackBytes, kStackBytes, fiber.context);
}

inline bool end_block() {
  for (Engine* engine : engines) {
    if (const char* left_over = engine->end_block()) return fail(left_over);
  }
  return true;
}

// Frees the threads whose conditions hold, in the midst of others, which need not come to a barrier first.
inline void wake_waiting() {
  for (Fiber& fiber : fibers) {
    if (fiber.state == State::kWaiting && fiber.is_over()) fiber.state = State::kReady;
  }
}

inline bool run_block(std::mt19937& random) {
  const unsigned count = static_cast<unsigned>(fibers.size());
  for (Fiber& fiber : fibers) prepare(fiber);
  for (Engine* engine : engines) engine->start_block();
  preference.clear();
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) order[i] = schedule == 1 ? count - 1 - i : i;
  while (true) {
    if (schedule > 1) std::shuffle(order.begin(), order.end(), random);
    for (const unsigned i : order) {
      if (fibers[i].state != State::kReady) continue;
      running = i;
      threadIdx = dim3(i, 0, 0);
      switch_to(&scheduler, &fibers[i].context);
      if (schedule > 1 && random() % 16 == 0) wake_waiting();
    }
    if (has_fault) return false;
    if (count_in(State::kReady) > 0) continue;
    if (all_done()) return end_block();
    if (!release_barriers(random, {0, count})) return false;
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

template <typename Value>
Value __shfl_xor_sync(unsigned, Value x, int mask) {
  const simt::Exchange<Value> warp(simt::kShuffle + mask, x);
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
  *value = attribute == cudaDevAttrMultiProcessorCount      ? simt::gpu.sm_count
           : attribute == cudaDevAttrL2CacheSize            ? simt::gpu.cache_bytes
           : attribute == cudaDevAttrCooperativeLaunch      ? simt::gpu.is_cooperative
           : attribute == cudaDevAttrComputeCapabilityMajor ? simt::gpu.architecture / 10
                                                            : simt::gpu.architecture % 10;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->ptxVersion = simt::gpu.architecture;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > simt::gpu.most_shared_bytes()) return cudaErrorInvalidValue;
  simt::shared_limit = static_cast<size_t>(bytes);
  return cudaSuccess;
}

template <typename Argument>
cudaError_t cudaLaunchKernel(void (*kernel)(Argument), dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  return simt::launch(kernel, grid, block, arguments, shared_bytes);
}
