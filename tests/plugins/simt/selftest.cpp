// Kernels with faults, which the emulation must notice.
#include "simt.h"

#include "common/grid_memory.cuh"
#include "common/ptx.cuh"
#include "cooperative.h"

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

// Thread i copies 16 bytes and reads their first word: right only where it waits for the copy.
template <bool kWaits>
void asynchronous_copy(Arguments a) {
  alignas(16) static const int source[4] = {7, 7, 7, 7};
  const int i = static_cast<int>(threadIdx.x);
  va_export::cp_async_16(arena + 16 * i, source, true);
  va_export::cp_async_commit();
  va_export::cp_async_wait<kWaits ? 0 : 1>();
  std::memcpy(a.out + i, arena + 16 * i, sizeof(int));
}

void misaligned_copy(Arguments) {
  va_export::cp_async_16(arena + 8, arena, true);
}

// The lanes' registers of one ldmatrix and one mma, as the tests wrote them.
struct WarpArguments {
  const uint16_t* shared;  // 32 rows of 8 elements
  const uint32_t *a, *b;   // 32 x 4 and 32 x 2 words
  uint32_t* matrix;        // 32 x 4, of ldmatrix
  uint32_t* transposed;
  float* c;  // 32 x 4, of mma, added to
};

template <typename T>
void warp_operations(WarpArguments p) {
  const unsigned lane = threadIdx.x;
  std::memcpy(arena + 16 * lane, p.shared + 8 * lane, 16);
  __syncwarp();
  uint32_t matrix[4], transposed[4], a[4];
  va_export::ldmatrix_x4(matrix, arena + 16 * lane);
  va_export::ldmatrix_x4_transposed(transposed, arena + 16 * lane);
  std::memcpy(p.matrix + 4 * lane, matrix, sizeof(matrix));
  std::memcpy(p.transposed + 4 * lane, transposed, sizeof(transposed));
  float c[4];
  std::memcpy(a, p.a + 4 * lane, sizeof(a));
  std::memcpy(c, p.c + 4 * lane, sizeof(c));
  va_export::mma_m16n8k16(c, a, p.b[2 * lane], p.b[2 * lane + 1], T{});
  std::memcpy(p.c + 4 * lane, c, sizeof(c));
}

// The lanes' registers of one mma on TF32.
struct Tf32Arguments {
  const uint32_t *a, *b;  // 32 x 4 and 32 x 2 words
  float* c;               // 32 x 4, added to
};

void tf32_operation(Tf32Arguments p) {
  const unsigned lane = threadIdx.x;
  uint32_t a[4], b[2];
  float c[4];
  std::memcpy(a, p.a + 4 * lane, sizeof(a));
  std::memcpy(b, p.b + 2 * lane, sizeof(b));
  std::memcpy(c, p.c + 4 * lane, sizeof(c));
  va_export::mma_m16n8k8(c, a, b);
  std::memcpy(p.c + 4 * lane, c, sizeof(c));
}

// Block i publishes i + 1 through its last thread, meets the others, and reads its neighbour's number: right only with
// a barrier of the grid in between, which hangs where one block stays away.
enum class Meeting { kAll, kNobody, kOneIsMissing };

template <Meeting kMeeting>
void neighbour_block(Arguments a) {
  unsigned* arrived = reinterpret_cast<unsigned*>(a.out + 63);
  int* mine = static_cast<int*>(va_export::block_memory());
  if (threadIdx.x == 0) mine[0] = static_cast<int>(blockIdx.x) + 1;
  __syncthreads();
  if (threadIdx.x == blockDim.x - 1) a.out[blockIdx.x] = mine[0];
  __syncthreads();
  const bool comes = kMeeting == Meeting::kAll || (kMeeting == Meeting::kOneIsMissing && blockIdx.x != 1);
  if (comes && threadIdx.x == 0) {
    atomicAdd(arrived, 1u);
    va_export::wait_until_reached(arrived, gridDim.x);
  }
  __syncthreads();
  if (threadIdx.x == 0) a.out[32 + blockIdx.x] = a.out[(blockIdx.x + 1) % gridDim.x];
}

void block_memory_overflow(Arguments) {
  static_cast<char*>(va_export::block_memory())[256 + threadIdx.x] = 0;
}

}  // namespace

// Launches one cooperative kernel with 4 blocks of 64 threads and 256 bytes of shared memory; `out` has 64 integers.
extern "C" __attribute__((visibility("default"))) int run_cooperative_selftest(int which, int schedule, int* out) {
  simt::set_schedule(schedule);
  Arguments arguments{out};
  void* pointers[] = {&arguments};
  void (*const kernels[])(Arguments) = {neighbour_block<Meeting::kAll>, neighbour_block<Meeting::kNobody>,
                                        neighbour_block<Meeting::kOneIsMissing>, block_memory_overflow};
  return cudaLaunchCooperativeKernel(kernels[which], dim3(4), dim3(64), pointers, 256, nullptr);
}

extern "C" __attribute__((visibility("default"))) int run_warp_operations(int is_bfloat16, const uint16_t* shared,
                                                                          const uint32_t* a, const uint32_t* b,
                                                                          uint32_t* matrix, uint32_t* transposed,
                                                                          float* c) {
  simt::shared_arena = arena;
  simt::set_schedule(2);
  WarpArguments arguments{shared, a, b, matrix, transposed, c};
  void* pointers[] = {&arguments};
  auto* kernel = is_bfloat16 ? warp_operations<__nv_bfloat16> : warp_operations<__half>;
  return cudaLaunchKernel(kernel, dim3(1), dim3(32), pointers, 512, nullptr);
}

extern "C" __attribute__((visibility("default"))) int run_tf32_operation(const uint32_t* a, const uint32_t* b,
                                                                         float* c) {
  simt::shared_arena = arena;
  simt::set_schedule(2);
  Tf32Arguments arguments{a, b, c};
  void* pointers[] = {&arguments};
  return cudaLaunchKernel(tf32_operation, dim3(1), dim3(32), pointers, 512, nullptr);
}

extern "C" __attribute__((visibility("default"))) void run_split_tf32(int count, const float* x, uint32_t* big,
                                                                      uint32_t* small) {
  for (int i = 0; i < count; ++i) va_export::split_tf32(x[i], big[i], small[i]);
}

// Launches one kernel with 64 threads and 256 bytes of shared memory; `out` has 64 integers.
extern "C" __attribute__((visibility("default"))) int run_selftest(int which, int schedule, size_t shared_bytes,
                                                                   int* out) {
  simt::shared_arena = arena;
  simt::set_schedule(schedule);
  Arguments arguments{out};
  void* pointers[] = {&arguments};
  void (*const kernels[])(Arguments) = {neighbour<true>,        neighbour<false>,        barrier_in_one_warp,
                                        barrier_in_half_a_warp, different_shuffles,      shared_overflow,
                                        misaligned_copy,        asynchronous_copy<true>, asynchronous_copy<false>};
  return cudaLaunchKernel(kernels[which], dim3(1), dim3(64), pointers, shared_bytes, nullptr);
}
