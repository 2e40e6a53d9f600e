// Index arithmetic of the Hopper kernel, on host and device: which tiles a block works on, and where 16-byte chunks of
// a tile lie in shared memory.
#pragma once

#include "geometry.h"

namespace va_export {

// Work `round` of block `block`, out of `blocks` that stay on the GPU: works are sorted by falling length, and dealt
// out forth and back, so that all blocks get about the same. A result at or beyond the number of works is none.
__host__ __device__ inline int64_t work_of_round(int64_t block, int64_t blocks, int64_t round) {
  return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
}

// Bytes of a row's part that is contiguous in shared memory: the widest swizzle whose span divides the head.
__host__ __device__ constexpr int swizzle_bytes(int head_dim) {
  return head_dim % 64 == 0 ? 128 : (head_dim % 32 == 0 ? 64 : 32);
}

// A tile of `rows` rows lies in panels of `swizzle` bytes a row, one panel after the other, each permuted as the copy
// engine does and wgmma expects. First byte of columns 16 `step` to 16 `step` + 15, for the products along head_dim.
__host__ __device__ constexpr int column_step_byte(int step, int rows, int swizzle) {
  return step * 32 / swizzle * rows * swizzle + step * 32 % swizzle;
}

// First byte of rows 16 `step` to 16 `step` + 15, for the products along the keys.
__host__ __device__ constexpr int row_step_byte(int step, int swizzle) {
  return step * 16 * swizzle;
}

// Where a matrix lies in shared memory, as wgmma wants it (PTX ISA, "Matrix Descriptor Format"). The shared address and
// the strides are multiples of 16 bytes below 2^18.
constexpr uint64_t kSwizzle128 = 1, kSwizzle64 = 2, kSwizzle32 = 3;

__host__ __device__ constexpr uint64_t matrix_descriptor(uint32_t address, uint32_t leading_bytes,
                                                         uint32_t stride_bytes, uint64_t swizzle) {
  return swizzle << 62 | static_cast<uint64_t>(stride_bytes >> 4) << 32 |
         static_cast<uint64_t>(leading_bytes >> 4) << 16 | (address & 0x3ffff) >> 4;
}

// Whether the last key tile of a range holds keys that are not valid and not outside the tensor either: what lies there
// is anything, even infinities, and a weight of 0 would not hide them.
__host__ __device__ inline bool has_foreign_values(int end_tile, int tile_keys, int valid_keys, int64_t kv_len) {
  return valid_keys<kv_len&& static_cast<int64_t>(end_tile) * tile_keys> valid_keys;
}

}  // namespace va_export
