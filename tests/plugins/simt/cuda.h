// The part of CUDA's driver API that makes tensor maps, as the CUDA Driver API documents cuTensorMapEncodeTiled.
#pragma once

#include "simt.h"

using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;
enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle {
  CU_TENSOR_MAP_SWIZZLE_NONE = 0,
  CU_TENSOR_MAP_SWIZZLE_32B,
  CU_TENSOR_MAP_SWIZZLE_64B,
  CU_TENSOR_MAP_SWIZZLE_128B
};
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };

struct alignas(64) CUtensorMap {
  cuuint64_t opaque[16];
};

namespace simt {

// What the emulated copy engine reads from a map. Elements have 16 bits.
struct TensorMap {
  const char* address;
  uint64_t sizes[4], byte_strides[4];
  uint32_t box[4];
  uint32_t swizzle_span;  // bytes: 0, 32, 64, 128
  uint32_t magic;
};
constexpr uint32_t kTensorMapMagic = 0x7e450a9;
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap), "a map holds it");

inline bool has_tensor_maps = true;  // of the driver

inline bool is_encodable(const TensorMap& map, const cuuint32_t* steps) {
  bool is_right = reinterpret_cast<uintptr_t>(map.address) % 16 == 0;
  for (int i = 0; i < 4; ++i) {
    is_right &= map.sizes[i] >= 1 && map.sizes[i] <= uint64_t{1} << 32;
    is_right &= map.box[i] >= 1 && map.box[i] <= 256 && steps[i] == 1;
    is_right &= i == 0 || (map.byte_strides[i] % 16 == 0 && map.byte_strides[i] < uint64_t{1} << 40);
  }
  const uint32_t inner_bytes = map.box[0] * 2;
  return is_right && inner_bytes % 16 == 0 && (map.swizzle_span == 0 || inner_bytes <= map.swizzle_span);
}

}  // namespace simt

inline CUresult cuTensorMapEncodeTiled(CUtensorMap* out, CUtensorMapDataType, cuuint32_t rank, void* address,
                                       const cuuint64_t* sizes, const cuuint64_t* byte_strides, const cuuint32_t* box,
                                       const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  if (rank != 4) return CUDA_ERROR_INVALID_VALUE;  // all that is emulated
  simt::TensorMap map{};
  map.address = static_cast<const char*>(address);
  map.byte_strides[0] = 2;
  for (int i = 0; i < 4; ++i) {
    map.sizes[i] = sizes[i];
    map.box[i] = box[i];
    if (i > 0) map.byte_strides[i] = byte_strides[i - 1];
  }
  map.swizzle_span = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 0 : 16u << swizzle;
  map.magic = simt::kTensorMapMagic;
  if (!simt::is_encodable(map, steps)) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(out, &map, sizeof(map));
  return CUDA_SUCCESS;
}

#define CUDART_VERSION 13000
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0, cudaDriverEntryPointSymbolNotFound = 1 };
constexpr unsigned long long cudaEnableDefault = 0;

inline cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* found) {
  const bool exists = simt::has_tensor_maps && std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
  *function = exists ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  *found = exists ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return exists ? cudaSuccess : cudaErrorSymbolNotFound;
}
