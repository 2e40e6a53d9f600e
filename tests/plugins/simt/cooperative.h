// Cooperative launches on the CPU: all blocks' threads are alive at once, so that blocks can wait for one another.
// Blocks and threads run in the order that simt::set_schedule chose; simt.h has the rest.
#pragma once

#include "simt.h"

#define __float_as_uint simt::bits_of
#define __uint_as_float simt::float_of

namespace simt {

inline std::vector<std::vector<float4>> arenas;  // shared memory, block by block
inline unsigned launches;                        // of kernels so far

inline void* block_memory() {
  return arenas[blockIdx.x].data();
}

inline bool arena_overflowed(const std::vector<float4>& arena, size_t shared_bytes) {
  const char* bytes = reinterpret_cast<const char*>(arena.data());
  for (size_t i = shared_bytes; i < arena.size() * sizeof(float4); ++i) {
    if (bytes[i] != static_cast<char>(0xff)) return fail("a write beyond the shared memory that was asked for");
  }
  return true;
}

// Runs every thread that can run, block by block, until it waits. False where there was none.
inline bool run_ready(const std::vector<unsigned>& order) {
  bool any = false;
  for (const unsigned i : order) {
    if (fibers[i].state != State::kReady && fibers[i].state != State::kSpinning) continue;
    any |= fibers[i].state == State::kReady;
    running = i;
    blockIdx = dim3(i / blockDim.x);
    threadIdx = dim3(i % blockDim.x);
    shared_arena = reinterpret_cast<char*>(arenas[blockIdx.x].data());
    switch_to(&scheduler, &fibers[i].context);
    // One that still spins has done nothing; one that goes on after spinning has.
    any |= fibers[i].state != State::kSpinning;
    if (has_fault) return false;
  }
  return any;
}

// Frees what waits at complete barriers, in blocks where nobody can run; a block whose thread spins has such a one. As
// with the warps of a block, schedule 0 frees all, others one block, so that it runs far ahead of the rest.
inline bool release_blocks(std::mt19937& random, bool* fault) {
  std::vector<unsigned> stopped;
  for (unsigned block = 0; block < gridDim.x; ++block) {
    bool waits = false, runs = false;
    for (unsigned i = block * blockDim.x; i < (block + 1) * blockDim.x; ++i) {
      const State state = fibers[i].state;
      runs |= state == State::kReady || state == State::kSpinning;
      waits |= state == State::kAtBlockBarrier || state == State::kAtWarpBarrier;
    }
    if (waits && !runs) stopped.push_back(block);
  }
  if (!stopped.empty() && schedule == 1) stopped = {stopped.back()};
  if (!stopped.empty() && schedule > 1) stopped = {stopped[random() % stopped.size()]};
  for (const unsigned block : stopped) {
    blockIdx = dim3(block);
    *fault |= !release_barriers(random, {block * blockDim.x, blockDim.x});
  }
  return !stopped.empty();
}

inline cudaError_t run_cooperatively(size_t shared_bytes) {
  const unsigned count = gridDim.x * blockDim.x;
  if (fibers.size() != count) fibers = std::vector<Fiber>(count);
  for (Fiber& fiber : fibers) prepare(fiber);
  arenas.assign(gridDim.x, std::vector<float4>((shared_bytes + kGuardBytes) / sizeof(float4)));
  for (auto& arena : arenas) std::memset(static_cast<void*>(arena.data()), 0xff, arena.size() * sizeof(float4));
  has_fault = false;
  ++launches;
  std::mt19937 random(static_cast<unsigned>(schedule));
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) order[i] = schedule == 1 ? count - 1 - i : i;
  while (!all_done()) {
    if (schedule > 1) std::shuffle(order.begin(), order.end(), random);
    bool fault = false;
    const bool ran = run_ready(order);
    if (has_fault) return cudaErrorLaunchFailure;
    const bool released = release_blocks(random, &fault);
    if (fault) return cudaErrorLaunchFailure;
    if (!ran && !released && !all_done()) {
      fail("blocks wait for one another, and nobody comes");
      return cudaErrorLaunchFailure;
    }
  }
  for (const auto& arena : arenas) {
    if (!arena_overflowed(arena, shared_bytes)) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace simt

inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}

template <typename Argument>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Argument), dim3 grid, dim3 block, void** arguments,
                                        size_t shared_bytes, cudaStream_t) {
  if (shared_bytes > simt::shared_limit || block.x % simt::kWarpSize != 0) return cudaErrorInvalidValue;
  simt::shared_limit = simt::kDefaultSharedBytes;  // the attribute is a function's own: the next launch must ask again
  gridDim = grid;
  blockDim = block;
  simt::body = [&] { kernel(*static_cast<Argument*>(arguments[0])); };
  return simt::run_cooperatively(shared_bytes);
}

template <typename T>
T atomicAdd(T* place, T x) {
  const T old = *place;
  *place += x;
  return old;
}

template <typename T>
T atomicMax(T* place, T x) {
  const T old = *place;
  if (x > old) *place = x;
  return old;
}

inline void __threadfence() {}
