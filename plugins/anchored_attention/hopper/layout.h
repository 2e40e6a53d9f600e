// How tiles lie in the Hopper kernel's shared memory: the tensor maps with which the copy engine (TMA) writes them, and
// the matrix descriptors with which wgmma reads them; and which work tiles a persistent block takes.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "anchored_attention/geometry.h"

namespace va_export {

// Work tile `round` of block `block`, out of `blocks` that stay on the GPU: they are sorted by falling length, and
// dealt out forth and back, so that all blocks get about the same. A result at or beyond their number is none.
__host__ __device__ inline int64_t work_of_round(int64_t block, int64_t blocks, int64_t round) {
  return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
}

// Bytes of a row's part that is contiguous in shared memory: the widest swizzle whose span divides the head.
__host__ __device__ constexpr int swizzle_bytes(int head_dim) {
  return head_dim % 64 == 0 ? 128 : (head_dim % 32 == 0 ? 64 : 32);
}

// A tile [rows, head_dim] lies as panels [head_dim / columns, rows, columns], a panel's columns being the `swizzle`
// bytes that one swizzle atom spans, each permuted as the copy engine does and wgmma expects. First byte of columns 16
// `step` to 16 `step` + 15, for the products along head_dim.
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

// Whether the last key tile of a range holds stale keys, which are not valid and not outside the tensor either: what
// lies there is anything, even infinities, and a weight of 0 would not hide them.
__host__ __device__ inline bool has_stale_values(int end_tile, int tile_keys, int valid_keys, int64_t kv_len) {
  return valid_keys<kv_len&& static_cast<int64_t>(end_tile) * tile_keys> valid_keys;
}

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, or nullptr where it has none (before CUDA 12.0) or there is no driver: found at run time, so
// that the plugin library loads where the driver's is not.
inline EncodeTiled find_encode_tiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<EncodeTiled>(function);
}

struct TensorShape {
  int64_t width, positions, heads, batch;
};

// A map of a tensor of 16-bit elements whose boxes are `rows` positions of one panel of one head. False where the copy
// engine cannot take the strides: CUDA Driver API, cuTensorMapEncodeTiled.
inline bool make_tensor_map(EncodeTiled encode, CUtensorMap& map, const void* tensor, const TensorShape& shape,
                            const VaAttentionStrides& strides, int rows, int head_dim, bool is_bfloat16) {
  const int span = swizzle_bytes(head_dim);
  const cuuint64_t sizes[4] = {static_cast<cuuint64_t>(shape.width), static_cast<cuuint64_t>(shape.positions),
                               static_cast<cuuint64_t>(shape.heads), static_cast<cuuint64_t>(shape.batch)};
  // The stride of an axis of size 1 says nothing, and could be any number.
  const auto bytes = [&](int64_t size, int64_t stride) {
    return static_cast<cuuint64_t>((size == 1 ? shape.width : stride) * 2);
  };
  const cuuint64_t byte_strides[3] = {bytes(shape.positions, strides.position), bytes(shape.heads, strides.head),
                                      bytes(shape.batch, strides.batch)};
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(span / 2), static_cast<cuuint32_t>(rows), 1, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUtensorMapSwizzle swizzle = span == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : span == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                  : CU_TENSOR_MAP_SWIZZLE_32B;
  const CUtensorMapDataType type = is_bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encode(&map, type, 4, const_cast<void*>(tensor), sizes, byte_strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace va_export
