// Launches the Hopper kernel: tensor maps, the plan of tiles, and which head dimensions have an instance.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "device.h"
#include "hopper_kernel.cuh"
#include "hopper_launch.h"
#include "tensor_map.h"

namespace va_export {

// Rows are not packed: in the plan, heads are query heads, and those of one group follow each other.
template <typename Tile>
TilePlan plan_hopper(const VaAnchoredAttentionParams& p, const Device& device) {
  static_assert(Tile::kRows == kHopperRows, "hopper_serves counts these tiles");
  const int64_t group = p.query_heads / p.kv_heads;
  TilePlan plan;
  plan.group = 1;
  plan.row_count = static_cast<int>(p.q_len);
  plan.row_tiles = static_cast<int>(ceil_div(p.q_len, Tile::kRows));
  plan.kv_heads = static_cast<int>(p.query_heads);
  plan.heads = static_cast<int>(p.batch * p.query_heads);
  const int64_t bytes_of_head = p.kv_len * (p.head_dim + p.value_head_dim) * 2;
  plan.section_heads =
      static_cast<int>(heads_in_cache(p.batch * p.kv_heads, bytes_of_head, device.cache_bytes) * group);
  plan.splits = 1;
  return plan;
}

template <typename Tile>
bool make_tensor_maps(EncodeTiled encode, const VaAnchoredAttentionParams& p, HopperArguments& arguments) {
  constexpr bool kIsBfloat16 = std::is_same<typename Tile::T, __nv_bfloat16>::value;
  return make_tensor_map(encode, arguments.query, p.query, {p.head_dim, p.q_len, p.query_heads, p.batch},
                         p.query_strides, Tile::kRows, Tile::kHeadDim, kIsBfloat16) &&
         make_tensor_map(encode, arguments.key, p.key, {p.head_dim, p.kv_len, p.kv_heads, p.batch}, p.key_strides,
                         Tile::kKeys, Tile::kHeadDim, kIsBfloat16) &&
         make_tensor_map(encode, arguments.value, p.value, {p.value_head_dim, p.kv_len, p.kv_heads, p.batch},
                         p.value_strides, Tile::kKeys, Tile::kHeadDim, kIsBfloat16);
}

template <typename Tile>
cudaError_t launch_hopper_tile(const VaAnchoredAttentionParams& p, const Device& device, cudaStream_t stream) {
  const EncodeTiled encode = find_encode_tiled();
  HopperArguments argument;
  argument.rows = {p, plan_hopper<Tile>(p, device)};
  argument.group = static_cast<int>(p.query_heads / p.kv_heads);
  if (encode == nullptr || !make_tensor_maps<Tile>(encode, p, argument)) return cudaErrorNotSupported;
  auto* kernel = hopper_attention_kernel<Tile>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  if (error != cudaSuccess) return error;
  void* arguments[] = {&argument};
  const int64_t works = block_count(argument.rows.plan);
  const dim3 grid(static_cast<unsigned>(works < device.sm_count ? works : device.sm_count));
  return cudaLaunchKernel(kernel, grid, dim3(Tile::kThreads), arguments, Tile::kSharedBytes, stream);
}

// Widths in between run padded with zeros, which the copy engine writes without reading.
template <typename T>
cudaError_t launch_hopper(const VaAnchoredAttentionParams& p, cudaStream_t stream) {
  Device device;
  const cudaError_t error = read_device(device);
  if (error != cudaSuccess) return error;
  if (device.compute_capability != 90) return cudaErrorNotSupported;
  const int64_t width = p.head_dim > p.value_head_dim ? p.head_dim : p.value_head_dim;
  if (width <= 64) return launch_hopper_tile<HopperTile<T, 64>>(p, device, stream);
#ifndef VA_EXPORT_FEWER_HEAD_DIMS
  if (width <= 80) return launch_hopper_tile<HopperTile<T, 80>>(p, device, stream);
  if (width <= 96) return launch_hopper_tile<HopperTile<T, 96>>(p, device, stream);
#endif
  return launch_hopper_tile<HopperTile<T, 128>>(p, device, stream);
}

}  // namespace va_export
