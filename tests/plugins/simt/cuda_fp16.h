// The part of CUDA's cuda_fp16.h that the kernels use, on the compiler's own IEEE half.
#pragma once

struct __half {
  _Float16 bits;
};

inline float __half2float(__half x) {
  return static_cast<float>(x.bits);
}
inline __half __float2half_rn(float x) {
  return {static_cast<_Float16>(x)};
}
