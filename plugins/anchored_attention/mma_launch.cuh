// Launches the tensor-core kernels: which shapes they serve, which tile and how many splits they get.
#pragma once

#include <cuda_runtime.h>

#include "combine_kernel.cuh"
#include "device.h"
#include "mma_kernel.cuh"
#include "mma_launch.h"
#include "mma_limits.h"

namespace va_export {

template <typename Tile>
TilePlan plan_tiles(const VaAnchoredAttentionParams& p, const Device& device) {
  TilePlan plan;
  plan.group = static_cast<int>(p.query_heads / p.kv_heads);
  plan.row_count = static_cast<int>(p.q_len * plan.group);
  plan.row_tiles = static_cast<int>(ceil_div(plan.row_count, Tile::kRows));
  plan.kv_heads = static_cast<int>(p.kv_heads);
  plan.heads = static_cast<int>(p.batch * p.kv_heads);
  const int64_t bytes_of_head = p.kv_len * (p.head_dim + p.value_head_dim) * 2;
  plan.section_heads = heads_in_cache(plan.heads, bytes_of_head, device.cache_bytes);
  plan.splits = 1;
  if (Tile::kKeyWarps > 1 && p.workspace != nullptr) {
    const int64_t slots = static_cast<int64_t>(p.workspace_bytes) / partial_bytes(1, p.value_head_dim);
    const int64_t tiles = static_cast<int64_t>(plan.heads) * plan.row_tiles;
    plan.splits = choose_splits(tiles, p.kv_len, kDecodeTileKeys, device.sm_count,
                                slots < kMostSplitBlocks ? slots : kMostSplitBlocks);
  }
  return plan;
}

template <typename Tile>
cudaError_t launch_tile(const VaAnchoredAttentionParams& p, const Device& device, cudaStream_t stream) {
  MmaArguments argument{p, plan_tiles<Tile>(p, device)};
  auto* kernel = mma_attention_kernel<Tile>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  if (error != cudaSuccess) return error;
  void* arguments[] = {&argument};
  const dim3 grid(static_cast<unsigned>(block_count(argument.plan)));
  error = cudaLaunchKernel(kernel, grid, dim3(Tile::kThreads), arguments, Tile::kSharedBytes, stream);
  if (error != cudaSuccess || argument.plan.splits == 1) return error;
  const dim3 rows(static_cast<unsigned>(argument.plan.row_count), static_cast<unsigned>(p.kv_heads),
                  static_cast<unsigned>(p.batch));
  return cudaLaunchKernel(combine_kernel<typename Tile::T>, rows, dim3(kCombineThreads), arguments, 0, stream);
}

// The architecture whose code the driver runs here, such as 86: that of the machine code, or of the PTX it came from.
template <typename Kernel>
cudaError_t compiled_architecture(Kernel* kernel, int& architecture) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess) architecture = attributes.ptxVersion;
  return error;
}

template <typename T, int kHeadDim>
cudaError_t launch_for_length(const VaAnchoredAttentionParams& p, const Device& device, cudaStream_t stream) {
  if (p.q_len <= kMaxDecodeLen) return launch_tile<DecodeTile<T, kHeadDim>>(p, device, stream);
  if constexpr (kHeadDim > 64) {
    int architecture = 0;
    const cudaError_t error = compiled_architecture(mma_attention_kernel<PrefillTile<T, kHeadDim, 1>>, architecture);
    if (error != cudaSuccess) return error;
    if (prefill_row_blocks(architecture, kHeadDim) == 1) {
      return launch_tile<PrefillTile<T, kHeadDim, 1>>(p, device, stream);
    }
  }
  return launch_tile<PrefillTile<T, kHeadDim, 2>>(p, device, stream);
}

// Widths in between run padded with zeros, which cost arithmetic and no memory traffic.
template <typename T>
cudaError_t launch_mma(const VaAnchoredAttentionParams& p, cudaStream_t stream) {
  Device device;
  const cudaError_t error = read_device(device);
  if (error != cudaSuccess) return error;
  const int64_t width = p.head_dim > p.value_head_dim ? p.head_dim : p.value_head_dim;
  if (width <= 64) return launch_for_length<T, 64>(p, device, stream);
#ifndef VA_EXPORT_FEWER_HEAD_DIMS
  if (width <= 80) return launch_for_length<T, 80>(p, device, stream);
  if (width <= 96) return launch_for_length<T, 96>(p, device, stream);
#endif
  return launch_for_length<T, 128>(p, device, stream);
}

}  // namespace va_export
