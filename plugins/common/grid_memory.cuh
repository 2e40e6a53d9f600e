// Memory that blocks of one running grid share, and a block's shared memory. The CPU tests replace this file.
#pragma once

#include <cuda_runtime.h>

namespace va_export {

// The dynamic shared memory of this block, aligned to 16 bytes.
__device__ inline void* block_memory() {
  extern __shared__ float4 dynamic_shared_memory[];
  return dynamic_shared_memory;
}

// Returns when *counter has reached `target`; what others wrote before they raised it is visible then. One thread of a
// block waits, and all blocks run at once (cooperative launch), so that somebody raises it.
__device__ inline void wait_until_reached(const unsigned* counter, unsigned target) {
  unsigned count;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
  } while (static_cast<int>(count - target) < 0);
}

}  // namespace va_export
