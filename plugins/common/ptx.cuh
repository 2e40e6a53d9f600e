// The PTX instructions that the tensor-core kernels use, one function each: PTX ISA 8.0, sections 9.7.8 (cp.async) and
// 9.7.13 (ldmatrix, mma). All need sm_80. The CPU tests replace this file by an emulation of the same functions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace va_export {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Loads four 8 x 8 matrices of 16-bit elements. Lane 8 i + r gives the address of row r of matrix i (16 bytes, aligned
// to 16). Lane l receives in matrix[i] the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i.
__device__ inline void ldmatrix_x4(uint32_t (&matrix)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(shared_address(row)));
}

// The same, with each matrix transposed on its way.
__device__ inline void ldmatrix_x4_transposed(uint32_t (&matrix)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(shared_address(row)));
}

// c (16 x 8, float32) += a (16 x 16, row-major) x b (16 x 8, column-major). With g = lane / 4 and t = 2 (lane % 4):
// a holds rows g, g + 8, g, g + 8 at columns t, t, t + 8, t + 8 (two neighbours each); b holds column g at rows t and
// t + 8; c holds row g at columns t, t + 1, then row g + 8. Lower halves of the words come first.
__device__ inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c (16 x 8, float32) += a (16 x 8, row-major) x b (8 x 8, column-major), of TF32 numbers in 32-bit words (split_tf32).
// With g = lane / 4 and t = lane % 4: a holds rows g, g + 8, g, g + 8 at columns t, t, t + 4, t + 4; b holds column g
// at rows t and t + 4; c holds row g at columns 2 t, 2 t + 1, then row g + 8. Its sums are rounded towards zero.
__device__ inline void mma_m16n8k8(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// x = big + small + at most 2^-21 |x|, both TF32: 8 bits of exponent, 10 of mantissa, the word's lower 13 bits zero.
// `big` is what cvt.rna.tf32.f32 gives (nearest, ties away from zero), without the two instructions that it takes to
// look for infinities: NaN and what has no TF32 come through in `small`.
__device__ inline void split_tf32(float x, uint32_t& big, uint32_t& small) {
  big = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
  small = __float_as_uint(x - __uint_as_float(big)) & 0xffffe000u;
}

// Starts a copy of 16 bytes from global to shared memory, past the L1 cache; where not `exists`, writes zeros and reads
// nothing. Both addresses are aligned to 16.
__device__ inline void cp_async_16(void* shared, const void* global, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(exists ? 16 : 0)
               : "memory");
}

// Makes one group of the copies that this thread started since the last group.
__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kGroups of this thread's latest groups are still under way.
template <int kGroups>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// x, of which the compiler believes nothing: what is computed from it inside a loop stays there and takes no register
// outside.
__device__ inline int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// 2^x within 2 units in the last place; 2^-infinity = 0.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two numbers rounded to nearest even, the first in the lower half.
__device__ inline uint32_t pack(float low, float high, __half) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

__device__ inline uint32_t pack(float low, float high, __nv_bfloat16) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

}  // namespace va_export
