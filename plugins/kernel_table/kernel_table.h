// Which kernels launches take: a table for each GPU, which its caller fills and launches read.
//
//   op                  phase                        kernels, the plain one first
//   anchored_attention  prefill (q_len above 16)     simple, mma_sync, and tensor_core (TMA, wgmma) on Hopper
//   anchored_attention  decode                       simple, mma_sync
//   subspace_score      products (of its solver)     simple, tensor_core
//
// Nothing chooses by itself: until va_kernels_select says otherwise, a launch takes `simple`, and so it does for shapes
// that the selected kernel does not serve. VA_EXPORT_ATTENTION_KERNEL and VA_EXPORT_SCORE_PRODUCTS in the environment
// come before the table; there, tensor_core is the best that the GPU and the phase have. A name that is none makes
// every launch of the op fail with cudaErrorInvalidValue.
//
// A launch reads its choice when it is queued: a captured graph keeps the one that it was captured with.
#ifndef VA_EXPORT_KERNEL_TABLE_H_
#define VA_EXPORT_KERNEL_TABLE_H_

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef VA_EXPORT_API
#define VA_EXPORT_API __attribute__((visibility("default")))
#endif

// The kernels that the library has for a GPU, by index; NULL beyond the last, and where there is no such GPU, op or
// phase. Names belong to the library.
VA_EXPORT_API const char* va_kernels_name(int device, const char* op, const char* phase, int index);

// Makes launches on that GPU take a kernel, from the next one on. cudaErrorInvalidValue: no such op, phase or kernel;
// cudaErrorNotSupported: a kernel for other GPUs; any other error is CUDA's own.
VA_EXPORT_API cudaError_t va_kernels_select(int device, const char* op, const char* phase, const char* kernel);

// What a launch on that GPU takes now, the environment included; NULL: no such GPU, op or phase, or the environment
// names no kernel.
VA_EXPORT_API const char* va_kernels_selected(int device, const char* op, const char* phase);

#ifdef __cplusplus
}  // extern "C"

namespace va_export {

enum class Phase { kPrefill, kDecode, kProducts };

// Places in the table above.
enum AttentionKernel { kSimpleAttention, kMmaSyncAttention, kTensorCoreAttention };
enum ScoreProducts { kSimpleProducts, kTensorCoreProducts };

// What a launch on the current GPU takes, a place in the phase's row of the table; it may lie beyond what the GPU has
// where the environment says so. cudaErrorInvalidValue: the environment names no kernel.
cudaError_t read_kernel(Phase phase, int* kernel);

}  // namespace va_export
#endif

#endif  // VA_EXPORT_KERNEL_TABLE_H_
