// What a launch asks of the GPU that it is for.
#pragma once

#include <cuda_runtime.h>

namespace va_export {

struct Device {
  int sm_count, cache_bytes;
  int compute_capability;  // such as 90
};

inline cudaError_t read_device(Device& device) {
  int index = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&device.sm_count, cudaDevAttrMultiProcessorCount, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&device.cache_bytes, cudaDevAttrL2CacheSize, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  device.compute_capability = major * 10 + minor;
  return error;
}

}  // namespace va_export
