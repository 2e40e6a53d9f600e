// AnchoredAttention for every GPU: tiled attention with an online softmax, in plain float32 arithmetic.
//
// It is the kernel that must be right for every shape and type; the tensor-core kernels are measured against
// it. One block owns kTileRows query rows of one kv head and walks over the keys in tiles of kTileKeys, so
// memory is O(q_len) and each key is read once a block. The query heads that share a kv head are packed into
// the rows (row = position * group + head within the group), so that one decode step with a group of 4 still
// reads each key once. In a warp, lane = key while logits are formed and lane = channel while values are
// summed.
#pragma once

#include <cuda_runtime.h>

#include "anchored_attention/geometry.h"
#include "anchored_attention/softmax_state.cuh"
#include "common/convert.cuh"

namespace va_export {

constexpr int kWarps = 8;
constexpr int kRowsPerWarp = 4;
constexpr int kTileRows = kWarps * kRowsPerWarp;
constexpr int kTileKeys = kWarpSize;               // one key a lane
constexpr size_t kDefaultSharedBytes = 48 * 1024;  // more must be asked for, function by function

// Shared memory of one block, in floats. The key tile's rows have one float of padding, so that the 32 lanes,
// each reading its own key's channel d, hit 32 different banks; the value tile then reuses the same memory.
struct SharedLayout {
  int query_row;  // floats in a query row: head_dim rounded up to 4 for float4 reads, filled with zeros
  int key_row;
  int value_row;  // value_head_dim rounded up to the channels that the lanes hold, filled with zeros
  int tile;       // offset of the key or value tile
  int weights;    // offset of the softmax weights, (kWarps, kRowsPerWarp, kTileKeys)
  int total;

  __host__ __device__ SharedLayout(int head_dim, int channels) {
    query_row = (head_dim + 3) / 4 * 4;
    key_row = query_row + 1;
    value_row = channels;
    tile = kTileRows * query_row;
    const int widest = key_row > value_row ? key_row : value_row;
    weights = tile + kTileKeys * widest;
    total = weights + kTileRows * kTileKeys;
  }
};

__device__ inline float warp_max(float x) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, mask));
  return x;
}

__device__ inline float warp_sum(float x) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
  return x;
}

// What one warp keeps of its rows in registers. A lane has kChannelGroups channels of each row, 32 apart.
template <int kChannelGroups>
struct WarpRows {
  int visible[kRowsPerWarp];  // keys, counted from the first, that the row may see
  int most_visible = 0;
  SoftmaxState softmax[kRowsPerWarp];            // its sum of this lane's keys only, until the end
  float out[kRowsPerWarp][kChannelGroups] = {};  // the O accumulator
};

// Copies one row to shared memory as float32, all lanes of a warp together, and zeros up to padded_width.
template <typename T>
__device__ inline void load_row(const T* source, bool exists, int width, float* row, int padded_width) {
  for (int d = threadIdx.x % kWarpSize; d < padded_width; d += kWarpSize) {
    row[d] = exists && d < width ? to_float(source[d]) : 0.0f;
  }
}

// Loads `keys` rows of the key or value tile and zeros the others: what lies beyond the valid keys is never
// read.
template <typename T>
__device__ inline void load_tile(const T* source, int64_t position_stride, int keys, int width, float* tile,
                                 int tile_stride, int padded_width) {
#pragma unroll 1  // more rows in flight spill registers
  for (int j = threadIdx.x / kWarpSize; j < kTileKeys; j += kWarps) {
    load_row(source + j * position_stride, j < keys, width, tile + j * tile_stride, padded_width);
  }
}

// One step of the online softmax: this lane's key against the warp's rows. `logit` is scaled, in units of
// log2, and has the key's gain in it. Writes the weights times the key's value gain for add_values.
template <int kChannelGroups>
__device__ inline void update_softmax(const float (&logit)[kRowsPerWarp], int key, float value_gain,
                                      WarpRows<kChannelGroups>& rows, float* weights) {
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const bool seen = key < rows.visible[r];
    const float x = seen ? logit[r] : -INFINITY;
    SoftmaxState& softmax = rows.softmax[r];
    const float rescale = softmax.raise_max(warp_max(x));
    const float weight = exp2_approx(x - softmax.base());
    softmax.sum += weight;
#pragma unroll
    for (int t = 0; t < kChannelGroups; ++t) rows.out[r][t] *= rescale;
    weights[r * kTileKeys + threadIdx.x % kWarpSize] = seen ? weight * value_gain : 0.0f;
  }
}

// dot[r] = query row r . key_row, over `width` channels, a multiple of 4.
__device__ inline void dot_queries(const float* query_rows, const float* key_row, int width,
                                   float (&dot)[kRowsPerWarp]) {
#pragma unroll 2
  for (int d = 0; d < width; d += 4) {
    const float k0 = key_row[d], k1 = key_row[d + 1], k2 = key_row[d + 2], k3 = key_row[d + 3];
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const float4 q = *reinterpret_cast<const float4*>(query_rows + r * width + d);
      dot[r] += q.x * k0 + q.y * k1 + q.z * k2 + q.w * k3;
    }
  }
}

// O [kRowsPerWarp, channels] += weights [kRowsPerWarp, keys] x values [keys, channels]. Takes keys four at a time: up
// to three too many, whose weights and values are zeros.
template <int kChannelGroups>
__device__ inline void add_values(const float* weights, const float* values, int keys, int value_row,
                                  WarpRows<kChannelGroups>& rows) {
  for (int j = 0; j < keys; j += 4) {
    float4 w[kRowsPerWarp];
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      w[r] = *reinterpret_cast<const float4*>(weights + r * kTileKeys + j);
    }
#pragma unroll
    for (int t = 0; t < kChannelGroups; ++t) {
      const float* v = values + j * value_row + t * kWarpSize + threadIdx.x % kWarpSize;
      const float v0 = v[0], v1 = v[value_row], v2 = v[2 * value_row], v3 = v[3 * value_row];
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        rows.out[r][t] += w[r].x * v0 + w[r].y * v1 + w[r].z * v2 + w[r].w * v3;
      }
    }
  }
}

// Walks over the keys that any row of the block may see.
template <typename T, int kChannelGroups>
__device__ inline void attend(const VaAnchoredAttentionParams& p, int block_visible, const SharedLayout& layout,
                              float* shared, WarpRows<kChannelGroups>& rows) {
  const int64_t batch = blockIdx.z, kv_head = blockIdx.y;
  const T* key = static_cast<const T*>(p.key) + batch * p.key_strides.batch + kv_head * p.key_strides.head;
  const T* value = static_cast<const T*>(p.value) + batch * p.value_strides.batch + kv_head * p.value_strides.head;
  const float* key_log_gain = p.key_log_gain + batch * p.key_log_gain_batch_stride;
  const float* value_gain = p.value_gain + batch * p.value_gain_batch_stride;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const float* query_rows = shared + warp * kRowsPerWarp * layout.query_row;
  float* tile = shared + layout.tile;
  float* weights = shared + layout.weights + warp * kRowsPerWarp * kTileKeys;

  for (int first = 0; first < block_visible; first += kTileKeys) {
    const int keys = block_visible - first < kTileKeys ? block_visible - first : kTileKeys;
    const bool warp_sees_tile = first < rows.most_visible;
    __syncthreads();  // the queries are written; the previous tile's values are no longer read
    // K tile: [kTileKeys, head_dim], then S: [kRowsPerWarp, one key a lane]
    load_tile(key + first * p.key_strides.position, p.key_strides.position, keys, static_cast<int>(p.head_dim), tile,
              layout.key_row, layout.query_row);
    __syncthreads();
    if (warp_sees_tile) {
      float logit[kRowsPerWarp] = {};
      dot_queries(query_rows, tile + lane * layout.key_row, layout.query_row, logit);
      const float gain = lane < keys ? key_log_gain[first + lane] : 0.0f;
      for (int r = 0; r < kRowsPerWarp; ++r) logit[r] = (logit[r] * p.scale + gain) * kLog2e;
      update_softmax(logit, first + lane, lane < keys ? value_gain[first + lane] : 0.0f, rows, weights);
    }
    __syncthreads();  // the weights are written; the keys are no longer read
    // V tile: [kTileKeys, value_head_dim]
    load_tile(value + first * p.value_strides.position, p.value_strides.position, keys,
              static_cast<int>(p.value_head_dim), tile, layout.value_row, layout.value_row);
    __syncthreads();
    if (warp_sees_tile) add_values(weights, tile, keys, layout.value_row, rows);
  }
}

// Grid: (ceil(q_len * group / kTileRows), kv_heads, batch). Block: kWarps * 32 threads. Dynamic shared
// memory: SharedLayout::total floats. Needs value_head_dim <= 32 * kChannelGroups.
template <typename T, int kChannelGroups>
__global__ void __launch_bounds__(kWarps* kWarpSize, 2) anchored_attention_kernel(const VaAnchoredAttentionParams p) {
  extern __shared__ float4 shared_memory[];
  float* shared = reinterpret_cast<float*>(shared_memory);
  const SharedLayout layout(static_cast<int>(p.head_dim), kChannelGroups * kWarpSize);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t batch = blockIdx.z, kv_head = blockIdx.y;
  const int group = static_cast<int>(p.query_heads / p.kv_heads);
  const int row_count = static_cast<int>(p.q_len) * group;
  // The last rows see the most keys when causal: start them first, so that no long block is left for the end.
  const int first_row = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTileRows;
  const int last_row = first_row + kTileRows < row_count ? first_row + kTileRows - 1 : row_count - 1;
  const int valid_keys = valid_keys_of(p, batch);
  const auto visible_of = [&](int row) { return visible_keys(row, group, p.q_len, valid_keys, p.is_causal != 0); };

  WarpRows<kChannelGroups> rows;
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int row = first_row + warp * kRowsPerWarp + r;
    rows.visible[r] = row < row_count ? visible_of(row) : 0;  // 0: it fills up the last tile
    rows.most_visible = rows.visible[r] > rows.most_visible ? rows.visible[r] : rows.most_visible;
    // Q tile: [kTileRows = positions x group, head_dim]
    load_row(static_cast<const T*>(p.query) + row_offset(p.query_strides, batch, kv_head, group, row), row < row_count,
             static_cast<int>(p.head_dim), shared + (warp * kRowsPerWarp + r) * layout.query_row, layout.query_row);
  }

  attend<T>(p, visible_of(last_row), layout, shared, rows);

#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    rows.softmax[r].sum = warp_sum(rows.softmax[r].sum);
    const int row = first_row + warp * kRowsPerWarp + r;
    if (row >= row_count) continue;
    T* out = static_cast<T*>(p.out) + row_offset(p.out_strides, batch, kv_head, group, row);
#pragma unroll
    for (int t = 0; t < kChannelGroups; ++t) {
      const int channel = t * kWarpSize + lane;
      if (channel < p.value_head_dim) from_float(rows.softmax[r].normalise(rows.out[r][t]), out + channel);
    }
  }
}

template <typename T, int kChannelGroups>
cudaError_t launch_channels(const VaAnchoredAttentionParams& p, cudaStream_t stream) {
  auto* kernel = anchored_attention_kernel<T, kChannelGroups>;
  const SharedLayout layout(static_cast<int>(p.head_dim), kChannelGroups * kWarpSize);
  const size_t shared_bytes = layout.total * sizeof(float);
  if (shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  const int64_t rows = p.q_len * (p.query_heads / p.kv_heads);
  const dim3 grid(static_cast<unsigned>((rows + kTileRows - 1) / kTileRows), static_cast<unsigned>(p.kv_heads),
                  static_cast<unsigned>(p.batch));
  VaAnchoredAttentionParams argument = p;
  void* arguments[] = {&argument};
  return cudaLaunchKernel(kernel, grid, dim3(kWarps * kWarpSize), arguments, shared_bytes, stream);
}

// Serves all valid parameters.
template <typename T>
cudaError_t launch_simple(const VaAnchoredAttentionParams& p, cudaStream_t stream) {
  if (p.value_head_dim <= 64) return launch_channels<T, 2>(p, stream);
  if (p.value_head_dim <= 128) return launch_channels<T, 4>(p, stream);
  return launch_channels<T, 8>(p, stream);
}

}  // namespace va_export
