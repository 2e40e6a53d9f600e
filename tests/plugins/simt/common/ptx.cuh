// plugins/common/ptx.cuh for the CPU: each function does what the PTX ISA says of its instruction, a warp at a time.
//
// Asynchronous copies are as late as the ISA permits: they land when their thread waits for their group, and until then
// the place that they go to holds NaNs. So neither a missing wait nor a copy over data in use goes unnoticed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "simt.h"

namespace va_export {

struct alignas(16) MatrixRow {
  uint16_t elements[8];
};

inline void require_shared_row(const void* row) {
  const char* address = static_cast<const char*>(row);
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) simt::fault("16 bytes of shared memory are misaligned");
  if (address < simt::shared_arena || address >= simt::shared_arena + simt::kMostSharedBytes) {
    simt::fault("an address is not in shared memory");
  }
}

inline void load_matrices(uint32_t (&matrix)[4], const void* row, bool is_transposed) {
  require_shared_row(row);
  const simt::Exchange<MatrixRow> rows(is_transposed ? simt::kLoadMatrixTransposed : simt::kLoadMatrix,
                                       *static_cast<const MatrixRow*>(row));
  const unsigned i = simt::lane() / 4, j = simt::lane() % 4 * 2;
  for (unsigned m = 0; m < 4; ++m) {
    const uint32_t low = is_transposed ? rows[8 * m + j].elements[i] : rows[8 * m + i].elements[j];
    const uint32_t high = is_transposed ? rows[8 * m + j + 1].elements[i] : rows[8 * m + i].elements[j + 1];
    matrix[m] = high << 16 | low;
  }
}

inline void ldmatrix_x4(uint32_t (&matrix)[4], const void* row) {
  load_matrices(matrix, row, false);
}

inline void ldmatrix_x4_transposed(uint32_t (&matrix)[4], const void* row) {
  load_matrices(matrix, row, true);
}

inline float float_of_bits(uint16_t bits, __half) {
  __half x;
  std::memcpy(&x, &bits, sizeof(x));
  return __half2float(x);
}

inline float float_of_bits(uint16_t bits, __nv_bfloat16) {
  return __bfloat162float({bits});
}

// What one lane gives to mma: its elements of a and b in the order of the ISA's a0 ... a7 and b0 ... b3.
struct MmaOperands {
  float a[8], b[4];
};

template <typename T>
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T type) {
  MmaOperands mine;
  const uint32_t b[2] = {b0, b1};
  for (int i = 0; i < 8; ++i) mine.a[i] = float_of_bits(static_cast<uint16_t>(a[i / 2] >> 16 * (i % 2)), type);
  for (int i = 0; i < 4; ++i) mine.b[i] = float_of_bits(static_cast<uint16_t>(b[i / 2] >> 16 * (i % 2)), type);
  const simt::Exchange<MmaOperands> warp(simt::kMma, mine);
  const unsigned group = simt::lane() / 4, in_group = simt::lane() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned column = in_group * 2 + i % 2;
    float sum = 0.0f;
    for (unsigned k = 0; k < 16; ++k) {
      // Row group + 8 (i / 2) of a: a0, a1 at columns below 8 of the upper rows, a2, a3 of the lower, a4 ... the rest.
      const unsigned a_index = k % 2 + i / 2 * 2 + k / 8 * 4, b_index = k % 2 + k / 8 * 2;
      sum += warp[group * 4 + k % 8 / 2].a[a_index] * warp[column * 4 + k % 8 / 2].b[b_index];
    }
    c[i] += sum;
  }
}

// Truncated, as tensor cores' sums are: the products are exact, and the result is the float next to it towards zero.
inline float round_towards_zero(double x) {
  const float nearest = static_cast<float>(x);
  const bool is_beyond = std::fabs(static_cast<double>(nearest)) > std::fabs(x);
  return is_beyond ? simt::float_of(simt::bits_of(nearest) - 1) : nearest;  // of infinity: the largest number
}

// One lane's elements of a and b, in the order of the ISA's a0 ... a3 and b0, b1.
struct Tf32Operands {
  float a[4], b[2];
};

inline float float_of_tf32(uint32_t word) {
  if (word % 0x2000u != 0) simt::fault("an operand of mma was not converted to TF32");
  return simt::float_of(word);
}

inline void mma_m16n8k8(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Tf32Operands mine;
  for (int i = 0; i < 4; ++i) mine.a[i] = float_of_tf32(a[i]);
  for (int i = 0; i < 2; ++i) mine.b[i] = float_of_tf32(b[i]);
  const simt::Exchange<Tf32Operands> warp(simt::kMmaTf32, mine);
  const unsigned group = simt::lane() / 4, in_group = simt::lane() % 4;
  double sums[4] = {c[0], c[1], c[2], c[3]};
  for (unsigned t = 0; t < 4; ++t) {
    const Tf32Operands &row = warp[group * 4 + t], &even = warp[in_group * 8 + t], &odd = warp[in_group * 8 + 4 + t];
    for (unsigned half = 0; half < 2; ++half) {  // a2 and a3 are the columns from 4 on, b1 the rows
      const double upper = row.a[2 * half], lower = row.a[2 * half + 1];
      sums[0] += upper * even.b[half];
      sums[1] += upper * odd.b[half];
      sums[2] += lower * even.b[half];
      sums[3] += lower * odd.b[half];
    }
  }
  for (int i = 0; i < 4; ++i) c[i] = round_towards_zero(sums[i]);
}

inline void split_tf32(float x, uint32_t& big, uint32_t& small) {
  big = (simt::bits_of(x) + 0x1000u) & 0xffffe000u;
  small = simt::bits_of(x - simt::float_of(big)) & 0xffffe000u;
}

inline void cp_async_16(void* shared, const void* global, bool exists) {
  require_shared_row(shared);
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) simt::fault("16 bytes of global memory are misaligned");
  simt::Fiber& fiber = simt::fibers[simt::running];
  std::memset(shared, 0xff, 16);
  fiber.copies.push_back({shared, exists ? global : nullptr, fiber.group});
}

inline void cp_async_commit() {
  ++simt::fibers[simt::running].group;
}

template <int kGroups>
void cp_async_wait() {
  simt::Fiber& fiber = simt::fibers[simt::running];
  std::vector<simt::Copy> later;
  for (const simt::Copy& copy : fiber.copies) {
    if (copy.group >= fiber.group - kGroups) {
      later.push_back(copy);
    } else if (copy.from == nullptr) {
      std::memset(copy.to, 0, 16);
    } else {
      std::memcpy(copy.to, copy.from, 16);
    }
  }
  fiber.copies.swap(later);
}

inline int opaque(int x) {
  return x;
}

inline float exp2_approx(float x) {
  return exp2f(x);
}

inline uint32_t bits_of(__half x) {
  uint16_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline uint32_t pack(float low, float high, __half) {
  return bits_of(__float2half_rn(high)) << 16 | bits_of(__float2half_rn(low));
}

inline uint32_t pack(float low, float high, __nv_bfloat16) {
  return static_cast<uint32_t>(__float2bfloat16_rn(high).bits) << 16 | __float2bfloat16_rn(low).bits;
}

}  // namespace va_export
