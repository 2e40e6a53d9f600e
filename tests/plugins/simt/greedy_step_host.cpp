// The greedy step, its kernel and its C interface, compiled for the CPU.
#include "simt.h"

#include "greedy_step/greedy_step.cu"

namespace va_export {
namespace {
float4 shared_memory[(simt::kMostSharedBytes + simt::kGuardBytes) / sizeof(float4)];  // the kernel's `extern`
const bool arena_is_set = [] {
  simt::shared_arena = reinterpret_cast<char*>(shared_memory);
  return true;
}();
}  // namespace
}  // namespace va_export

extern "C" VA_EXPORT_API void simt_set_schedule(int schedule) {
  simt::set_schedule(schedule);
}
