// The part of CUDA's cuda_bf16.h that the kernels use: a bfloat16 is the upper half of a float32.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t word = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &word, sizeof(y));
  return y;
}

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t word;
  std::memcpy(&word, &x, sizeof(word));
  if (x != x) return {static_cast<uint16_t>(word >> 16 | 0x40)};  // a NaN stays one
  const uint32_t round_to_even = 0x7fff + (word >> 16 & 1);
  return {static_cast<uint16_t>((word + round_to_even) >> 16)};
}
