// What plugins/device asks of the CUDA runtime, on the CPU: a launch is done when it returns, memory is the host's, and
// time is a clock that whoever plays the kernels sets forward. A graph holds what run() was given between the beginning
// and the end of its capture.
#pragma once

#include <cstdlib>

#include "simt.h"

enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
constexpr unsigned cudaStreamNonBlocking = 1;
struct cudaUUID_t {
  char bytes[16];
};
struct cudaDeviceProp {
  char name[256];
  cudaUUID_t uuid;
  int major, minor, multiProcessorCount;
};

namespace simt {

using Work = std::function<cudaError_t()>;
struct Graph {
  std::vector<Work> works;
};
inline Graph* capture = nullptr;  // that is being made
inline double milliseconds = 0;   // the clock

inline cudaError_t run(const Work& work) {
  if (capture == nullptr) return work();
  capture->works.push_back(work);
  return cudaSuccess;
}

}  // namespace simt

using cudaGraph_t = simt::Graph*;
using cudaGraphExec_t = simt::Graph*;

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return cudaErrorInvalidValue;
  *properties = {
      "Emulated GPU", {"GPU-0"}, simt::gpu.architecture / 10, simt::gpu.architecture % 10, simt::gpu.sm_count};
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  static char streams[16];
  static int count = 0;
  *stream = &streams[count++];
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  if (simt::capture != nullptr) return cudaErrorInvalidValue;
  simt::capture = new simt::Graph;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = simt::capture;
  simt::capture = nullptr;
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new simt::Graph(*graph);
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  return cudaGraphDestroy(graph);
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  for (const simt::Work& work : graph->works) {
    if (const cudaError_t error = work()) return error;
  }
  return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new double(0);
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  *static_cast<double*>(event) = simt::milliseconds;
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t before, cudaEvent_t after) {
  *milliseconds = static_cast<float>(*static_cast<double*>(after) - *static_cast<double*>(before));
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete static_cast<double*>(event);
  return cudaSuccess;
}
