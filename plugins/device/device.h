// A GPU for who has no CUDA runtime of its own: the self-test, which runs where neither PyTorch nor libcudart is.
//
// Every function acts on the calling thread's current device, returns a cudaError_t and, where nothing else is said,
// does not wait for the GPU.
#ifndef VA_EXPORT_DEVICE_H_
#define VA_EXPORT_DEVICE_H_

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef VA_EXPORT_API
#define VA_EXPORT_API __attribute__((visibility("default")))
#endif

typedef struct VaDeviceIdentity {
  size_t struct_bytes;  // sizeof(VaDeviceIdentity): a caller compiled against another layout is refused
  char name[256];
  unsigned char uuid[16];  // of the MIG instance where there is one
  int32_t major;           // compute capability
  int32_t minor;
  int32_t sm_count;
  int32_t cuda_version;  // the newest that the driver serves, such as 13000
} VaDeviceIdentity;

// Creates no context.
VA_EXPORT_API cudaError_t va_device_identify(int device, VaDeviceIdentity* identity);

VA_EXPORT_API cudaError_t va_device_use(int device);

// Lives until the process ends.
VA_EXPORT_API cudaError_t va_device_allocate(void** memory, size_t bytes);

// Between host and device either way, after all work of the device; returns when it is done.
VA_EXPORT_API cudaError_t va_device_copy(void* to, const void* from, size_t bytes);

VA_EXPORT_API cudaError_t va_device_create_stream(cudaStream_t* stream);

// Waits for the stream's work and tells what became of it.
VA_EXPORT_API cudaError_t va_device_synchronize(cudaStream_t stream);

// What is queued on the stream in between becomes a graph and does not run.
VA_EXPORT_API cudaError_t va_device_begin_capture(cudaStream_t stream);
VA_EXPORT_API cudaError_t va_device_end_capture(cudaStream_t stream, void** graph);
VA_EXPORT_API cudaError_t va_device_free_graph(void* graph);

// Runs a graph, waits for it, and tells how long it took on the GPU.
VA_EXPORT_API cudaError_t va_device_replay(void* graph, cudaStream_t stream, float* milliseconds);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // VA_EXPORT_DEVICE_H_
