// Kernels for the emulation of sm_90 itself: products and copies whose operands the tests lay out, and faults that it
// must notice.
#include "simt.h"

#include "anchored_attention/hopper/layout.h"
#include "common/ptx_sm90.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace va_export;

alignas(1024) char arena[simt::kMostSharedBytes + simt::kGuardBytes];

// Bytes from the first shared address that is a multiple of 1024.
char* shared(uint32_t offset) {
  return arena + (-simt::kSharedBase & 1023) + offset;
}

uint64_t at(uint64_t descriptor, uint32_t offset) {
  return descriptor | (shared_address(shared(offset)) >> 4);
}

struct ProductArguments {
  const char* memory;  // 32 KB of shared memory: A at 0, B at 16 KB
  uint64_t a, b;       // descriptors without addresses
  uint32_t b_offset;
  const uint32_t* registers;  // 128 x 4 words of A, or nullptr: from shared memory
  float* d;                   // 128 x 64 numbers, added to
};

template <typename T>
void product(ProductArguments p) {
  if (threadIdx.x == 0) std::memcpy(shared(0), p.memory, 32 * 1024);
  __syncthreads();
  float d[16][4];
  uint32_t a[4];
  std::memcpy(d, p.d + 64 * threadIdx.x, sizeof(d));
  wgmma_fence();
  if (p.registers == nullptr) {
    wgmma_shared(d, at(p.a, 0), at(p.b, p.b_offset), true, T{});
  } else {
    std::memcpy(a, p.registers + 4 * threadIdx.x, sizeof(a));
    wgmma_registers(d, a, at(p.b, p.b_offset), T{});
  }
  wgmma_commit();
  wgmma_wait<0>();
  std::memcpy(p.d + 64 * threadIdx.x, d, sizeof(d));
}

struct CopyArguments {
  CUtensorMap map;
  int first[4];
  int bytes;
  char* out;
};

void copy(CopyArguments p) {
  uint64_t* barrier = reinterpret_cast<uint64_t*>(shared(32 * 1024));
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(barrier, p.bytes);
    copy_box(shared(0), &p.map, barrier, p.first[0], p.first[1], p.first[2], p.first[3]);
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  if (threadIdx.x == 0) std::memcpy(p.out, shared(0), p.bytes);
}

// What a kernel can do wrong. kRight and the rest run the same steps, each with one of them changed.
enum Fault {
  kRight,
  kNoInit,
  kNoInitFence,
  kTooFewBytes,
  kTooManyBytes,
  kTooManyArrivals,
  kNoStoreFence,
  kNoRegisterFence,
  kReadsTooEarly,
  kWritesTooEarly,
  kOverwritesWeights,
  kNoWait,
  kLeftOverArrival,
  kOtherCount,
  kNoTurn,
  kReadsCopyTooEarly
};

struct FaultArguments {
  CUtensorMap map;  // 64 x 16 elements of 1
  float* out;       // a number for each of 256 threads
};

// Thread 0 copies 16 rows of 64 ones, of which the last 8 are then replaced by zeros; both warpgroups multiply weights
// of 1 with them: 8 everywhere. Group 0 goes first.
template <int kFault>
void steps(FaultArguments p) {
  uint64_t* barriers = reinterpret_cast<uint64_t*>(shared(8 * 1024));
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128;
  if (thread == 0) {
    if (kFault != kNoInit) mbarrier_init(barriers, 1);
    mbarrier_init(barriers + 1, kFault == kTooManyArrivals ? 31 : 32);
    if (kFault != kNoInitFence) mbarrier_init_fence();
    mbarrier_arrive_expect(barriers, 2048 + (kFault == kTooFewBytes ? -64 : kFault == kTooManyBytes ? 64 : 0));
    copy_box(shared(0), &p.map, barriers, 0, 0, 0, 0);
  }
  __syncthreads();
  if (thread < 32) {
    if (kFault != kReadsCopyTooEarly) mbarrier_wait(barriers, 0);
    zero_shared_16(shared(1024 + 32 * thread));
    zero_shared_16(shared(1024 + 32 * thread + 16));
    if (kFault != kNoStoreFence) store_fence();
    mbarrier_arrive(barriers + 1);
    __syncwarp();
  }
  mbarrier_wait(barriers + 1, 0);
  if (group == 1 && kFault != kNoTurn) named_barrier_sync(1, kFault == kOtherCount ? 128 : 256);
  float d[8][4] = {};
  uint32_t ones[4] = {0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00};
  if (kFault != kNoRegisterFence) wgmma_fence();
  wgmma_registers(d, ones, matrix_descriptor(shared_address(shared(0)), 2048, 1024, kSwizzle128), __half{});
  wgmma_commit();
  if (kFault == kReadsTooEarly) p.out[thread] = d[1][1];
  if (kFault == kWritesTooEarly) d[1][1] = 1.0f;
  if (kFault == kOverwritesWeights) ones[0] = 0;
  if (kFault != kNoWait) wgmma_wait<0>();
  if (group == 0) named_barrier_arrive(1, 256);
  if (kFault == kLeftOverArrival) named_barrier_arrive(2, 512);
  if (kFault != kReadsTooEarly) p.out[thread] = d[1][1];
}

template <int... kFaults>
auto fault_kernel(int which, std::integer_sequence<int, kFaults...>) {
  void (*const kernels[])(FaultArguments) = {steps<kFaults>...};
  return kernels[which];
}

bool encode(CUtensorMap& map, const uint16_t* tensor, const uint64_t* sizes, const uint64_t* byte_strides,
            const uint32_t* box, int swizzle) {
  const uint32_t steps[4] = {1, 1, 1, 1};
  return cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4, const_cast<uint16_t*>(tensor), sizes,
                                byte_strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                static_cast<CUtensorMapSwizzle>(swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <typename Arguments>
int run(void (*kernel)(Arguments), int threads, int schedule, Arguments& arguments) {
  simt::shared_arena = arena;
  simt::gpu.architecture = 90;
  simt::shared_limit = 40 * 1024;
  simt::set_schedule(schedule);
  void* pointers[] = {&arguments};
  return cudaLaunchKernel(kernel, dim3(1), dim3(threads), pointers, 40 * 1024, nullptr);
}

}  // namespace

EXPORT int run_product(int is_bfloat16, int schedule, const char* memory, uint64_t a, uint64_t b, uint32_t b_offset,
                       const uint32_t* registers, float* d) {
  ProductArguments arguments{memory, a, b, b_offset, registers, d};
  return run(is_bfloat16 ? product<__nv_bfloat16> : product<__half>, 128, schedule, arguments);
}

// -1: no such map.
EXPORT int run_copy(int schedule, const uint16_t* tensor, const uint64_t* sizes, const uint64_t* byte_strides,
                    const uint32_t* box, int swizzle, const int* first, char* out) {
  CopyArguments arguments{{}, {first[0], first[1], first[2], first[3]}, 0, out};
  arguments.bytes = static_cast<int>(box[0] * box[1] * box[2] * box[3] * 2);
  if (!encode(arguments.map, tensor, sizes, byte_strides, box, swizzle)) return -1;
  return run(copy, 64, schedule, arguments);
}

EXPORT int run_fault(int which, int schedule, float* out) {
  static uint16_t ones[16 * 64];
  for (uint16_t& one : ones) one = 0x3c00;
  const uint64_t sizes[4] = {64, 16, 1, 1}, byte_strides[3] = {128, 2048, 2048};
  const uint32_t box[4] = {64, 16, 1, 1};
  FaultArguments arguments{{}, out};
  if (!encode(arguments.map, ones, sizes, byte_strides, box, CU_TENSOR_MAP_SWIZZLE_128B)) return -1;
  return run(fault_kernel(which, std::make_integer_sequence<int, kReadsCopyTooEarly + 1>{}), 256, schedule, arguments);
}
