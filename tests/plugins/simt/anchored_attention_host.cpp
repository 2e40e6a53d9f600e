// The AnchoredAttention kernel, its launcher and its C interface, compiled for the CPU.
#include "simt.h"

#include "anchored_attention/anchored_attention.cu"

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
