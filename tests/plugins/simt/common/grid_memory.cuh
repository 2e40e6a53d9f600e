// plugins/common/grid_memory.cuh for the CPU: shared memory is a block's own, and waiting lets the others run.
#pragma once

#include "cooperative.h"

namespace va_export {

inline void* block_memory() {
  return simt::block_memory();
}

inline void wait_until_reached(const unsigned* counter, unsigned target) {
  while (static_cast<int>(*counter - target) < 0) simt::wait(simt::State::kSpinning);
}

}  // namespace va_export
