// The AnchoredAttention kernel, its launcher and its C interface, compiled for the CPU.
#define VA_EXPORT_HAS_HOPPER

#include "simt.h"

#include "anchored_attention/anchored_attention.cu"
#include "anchored_attention/hopper/bfloat16.cu"
#include "anchored_attention/hopper/float16.cu"
#include "anchored_attention/mma/bfloat16.cu"
#include "anchored_attention/mma/float16.cu"
#include "kernel_table/kernel_table.cpp"

namespace va_export {
float4 shared_memory[(simt::kMostSharedBytes + simt::kGuardBytes) / sizeof(float4)];  // the kernel's `extern`
}

namespace {
const bool arena_is_set = [] {
  simt::shared_arena = reinterpret_cast<char*>(va_export::shared_memory);
  return true;
}();
}  // namespace

extern "C" VA_EXPORT_API void simt_set_schedule(int schedule) {
  simt::set_schedule(schedule);
}

// What the launcher believes of the GPU: it picks tiles by its architecture, splits by its number of multiprocessors.
extern "C" VA_EXPORT_API void simt_set_gpu(int architecture, int sm_count, int cache_bytes) {
  simt::gpu = {architecture, sm_count, cache_bytes};
}

// Products that wgmma has worked out so far in this process: whether a launch took the Hopper kernel.
extern "C" VA_EXPORT_API int64_t simt_wgmma_products() {
  return simt::wgmma.total;
}

// Whether the driver can make tensor maps.
extern "C" VA_EXPORT_API void simt_set_tensor_maps(int exist) {
  simt::has_tensor_maps = exist != 0;
}
