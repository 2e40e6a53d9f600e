// float32 to and from the element types of the tensors, rounding to nearest even.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace va_export {

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(__half x) {
  return __half2float(x);
}
__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

__device__ inline void from_float(float x, float* y) {
  *y = x;
}
__device__ inline void from_float(float x, __half* y) {
  *y = __float2half_rn(x);
}
__device__ inline void from_float(float x, __nv_bfloat16* y) {
  *y = __float2bfloat16_rn(x);
}

}  // namespace va_export
