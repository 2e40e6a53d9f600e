// The AnchoredAttention kernel, its launcher and its C interface, compiled for the CPU.
#include "simt.h"

#include "anchored_attention/anchored_attention.cu"
#include "anchored_attention/mma_bfloat16.cu"
#include "anchored_attention/mma_float16.cu"

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
