// Tensor maps for the copy engine (TMA), made without linking to the driver's library: it is found at run time, so the
// plugin library loads where there is none.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "anchored_attention.h"
#include "hopper_geometry.h"

namespace va_export {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, or nullptr where it has none (before CUDA 12.0) or there is no driver.
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
