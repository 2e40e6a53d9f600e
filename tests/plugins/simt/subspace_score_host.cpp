// The SubspaceScore kernels, their launcher and their C interface, compiled for the CPU.
#include "simt.h"

#include "cooperative.h"

#include "subspace_score/subspace_score.cu"

extern "C" VA_EXPORT_API void simt_set_schedule(int schedule) {
  simt::set_schedule(schedule);
}

// How many blocks run at once, which must change no bit of the result; and whether they can wait for one another.
extern "C" VA_EXPORT_API void simt_set_grid(int blocks, int is_cooperative) {
  simt::gpu.sm_count = blocks;
  simt::gpu.is_cooperative = is_cooperative;
}

// Kernels that ran so far.
extern "C" VA_EXPORT_API unsigned simt_launches() {
  return simt::launches;
}
