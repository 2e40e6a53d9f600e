#include "device.h"

#include <cuda_runtime_api.h>

#include <cstring>

extern "C" cudaError_t va_device_identify(int device, VaDeviceIdentity* identity) {
  if (identity == nullptr || identity->struct_bytes != sizeof(*identity)) return cudaErrorInvalidValue;
  cudaDeviceProp properties;
  cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error == cudaSuccess) error = cudaDriverGetVersion(&identity->cuda_version);
  if (error != cudaSuccess) return error;
  static_assert(sizeof(identity->name) <= sizeof(properties.name), "CUDA's name is as long");
  std::memcpy(identity->name, properties.name, sizeof(identity->name));
  identity->name[sizeof(identity->name) - 1] = '\0';
  std::memcpy(identity->uuid, properties.uuid.bytes, sizeof(identity->uuid));
  identity->major = properties.major;
  identity->minor = properties.minor;
  identity->sm_count = properties.multiProcessorCount;
  return cudaSuccess;
}

extern "C" cudaError_t va_device_use(int device) {
  return cudaSetDevice(device);
}

extern "C" cudaError_t va_device_allocate(void** memory, size_t bytes) {
  return cudaMalloc(memory, bytes);
}

extern "C" cudaError_t va_device_copy(void* to, const void* from, size_t bytes) {
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess ? cudaMemcpy(to, from, bytes, cudaMemcpyDefault) : error;
}

extern "C" cudaError_t va_device_create_stream(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking);
}

extern "C" cudaError_t va_device_synchronize(cudaStream_t stream) {
  return cudaStreamSynchronize(stream);
}

extern "C" cudaError_t va_device_begin_capture(cudaStream_t stream) {
  return cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
}

extern "C" cudaError_t va_device_end_capture(cudaStream_t stream, void** graph) {
  cudaGraph_t captured = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaError_t error = cudaStreamEndCapture(stream, &captured);
  if (error != cudaSuccess) return error;
  error = cudaGraphInstantiateWithFlags(&executable, captured, 0);
  cudaGraphDestroy(captured);
  *graph = executable;
  return error;
}

extern "C" cudaError_t va_device_free_graph(void* graph) {
  return cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

extern "C" cudaError_t va_device_replay(void* graph, cudaStream_t stream, float* milliseconds) {
  cudaEvent_t before = nullptr, after = nullptr;
  cudaError_t error = cudaEventCreate(&before);
  if (error == cudaSuccess) error = cudaEventCreate(&after);
  if (error == cudaSuccess) error = cudaEventRecord(before, stream);
  if (error == cudaSuccess) error = cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream);
  if (error == cudaSuccess) error = cudaEventRecord(after, stream);
  if (error == cudaSuccess) error = cudaEventSynchronize(after);
  if (error == cudaSuccess) error = cudaEventElapsedTime(milliseconds, before, after);
  if (before != nullptr) cudaEventDestroy(before);
  if (after != nullptr) cudaEventDestroy(after);
  return error;
}
