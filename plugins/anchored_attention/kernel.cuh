// AnchoredAttention for every GPU: tiled attention with an online softmax, in plain float32 arithmetic.
//
// It is the kernel that must be right for every shape and type; the tensor-core kernels are measured against
// it. One block owns kTileRows query rows of one kv head and walks over the keys in tiles of kTileKeys, so
// memory is O(q_len) and each key is read once a block. The query heads that share a kv head are packed into
// the rows (row = position * group + head within the group), so that one decode step with a group of 4 still
// reads each key once. In a warp, lane = key while logits are formed and lane = channel while values are
// summed.
//
// The keys that a row may see are a prefix of the sequence (kv_length and the causal rule both cut its end),
// so the whole mask is one number a row: `visible`.
#pragma once

#include "anchored_attention.h"
#include "convert.cuh"

namespace va_export {

constexpr int kWarpSize = 32;
constexpr int kWarps = 8;
constexpr int kRowsPerWarp = 4;
constexpr int kTileRows = kWarps * kRowsPerWarp;
constexpr int kTileKeys = kWarpSize;  // one key a lane
constexpr float kLog2E = 1.4426950408889634f;

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

// Copies `rows` rows of `width` elements to shared memory as float32, one row a warp at a time, and fills the
// rest of the tile's tile_rows x padded_width with zeros: what lies beyond the valid keys is never read.
template <typename T>
__device__ void load_tile(const T* source, int64_t position_stride, int rows, int width, float* tile,
                          int tile_rows, int tile_stride, int padded_width) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  for (int row = warp; row < tile_rows; row += kWarps) {
    for (int d = lane; d < padded_width; d += kWarpSize) {
      const bool inside = row < rows && d < width;
      tile[row * tile_stride + d] = inside ? to_float(source[row * position_stride + d]) : 0.0f;
    }
  }
}

// Grid: (ceil(q_len * group / kTileRows), kv_heads, batch). Block: kWarps * 32 threads.
// A lane holds kChannelGroups channels of each of its warp's rows: value_head_dim <= 32 * kChannelGroups.
template <typename T, int kChannelGroups>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    anchored_attention_kernel(const VaAnchoredAttentionParams p) {
  extern __shared__ float4 shared_memory[];
  float* shared = reinterpret_cast<float*>(shared_memory);
  const SharedLayout layout(static_cast<int>(p.head_dim), kChannelGroups * kWarpSize);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  float* query_tile = shared;
  float* tile = shared + layout.tile;
  float* weights = shared + layout.weights + warp * kRowsPerWarp * kTileKeys;

  const int64_t batch = blockIdx.z, kv_head = blockIdx.y;
  const int group = static_cast<int>(p.query_heads / p.kv_heads);
  const int row_count = static_cast<int>(p.q_len) * group;
  // The last rows see the most keys when causal: start them first, so that no long block is left for the end.
  const int first_row = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTileRows;

  int64_t valid_keys = p.kv_length == nullptr ? p.kv_len : p.kv_length[batch];
  valid_keys = valid_keys < 0 ? 0 : (valid_keys > p.kv_len ? p.kv_len : valid_keys);

  // How many keys, counted from the first, row `row` may see.
  auto visible_keys = [&](int row) -> int {
    if (row >= row_count) return 0;
    if (!p.is_causal) return static_cast<int>(valid_keys);
    const int64_t seen = row / group + valid_keys - p.q_len + 1;
    return static_cast<int>(seen < 0 ? 0 : (seen > valid_keys ? valid_keys : seen));
  };
  const int last_row = first_row + kTileRows < row_count ? first_row + kTileRows - 1 : row_count - 1;
  const int block_visible = visible_keys(last_row);

  int visible[kRowsPerWarp];
  int warp_visible = 0;
  float row_max[kRowsPerWarp], row_sum[kRowsPerWarp];  // row_sum: this lane's keys only, until the end
  float acc[kRowsPerWarp][kChannelGroups];
  for (int r = 0; r < kRowsPerWarp; ++r) {
    visible[r] = visible_keys(first_row + warp * kRowsPerWarp + r);
    warp_visible = visible[r] > warp_visible ? visible[r] : warp_visible;
    row_max[r] = -INFINITY;
    row_sum[r] = 0.0f;
    for (int t = 0; t < kChannelGroups; ++t) acc[r][t] = 0.0f;
  }

  const T* query = static_cast<const T*>(p.query) + batch * p.query_strides.batch;
  for (int row = warp; row < kTileRows; row += kWarps) {
    const int packed = first_row + row;
    const T* source = query + (kv_head * group + packed % group) * p.query_strides.head +
                      static_cast<int64_t>(packed / group) * p.query_strides.position;
    for (int d = lane; d < layout.query_row; d += kWarpSize) {
      const bool inside = packed < row_count && d < p.head_dim;
      query_tile[row * layout.query_row + d] = inside ? to_float(source[d]) : 0.0f;
    }
  }

  const T* key = static_cast<const T*>(p.key) + batch * p.key_strides.batch + kv_head * p.key_strides.head;
  const T* value =
      static_cast<const T*>(p.value) + batch * p.value_strides.batch + kv_head * p.value_strides.head;
  const float* key_log_gain = p.key_log_gain + batch * p.key_log_gain_batch_stride;
  const float* value_gain = p.value_gain + batch * p.value_gain_batch_stride;
  const float scale_log2 = p.scale * kLog2E;

  for (int first_key = 0; first_key < block_visible; first_key += kTileKeys) {
    const int keys = block_visible - first_key < kTileKeys ? block_visible - first_key : kTileKeys;
    __syncthreads();  // the previous value tile is no longer read, and the query tile is written
    load_tile(key + first_key * p.key_strides.position, p.key_strides.position, keys,
              static_cast<int>(p.head_dim), tile, kTileKeys, layout.key_row, layout.query_row);
    __syncthreads();

    if (first_key < warp_visible) {  // the same for all lanes of a warp
      float logit[kRowsPerWarp] = {};
      const float* key_row = tile + lane * layout.key_row;
      for (int d = 0; d < layout.query_row; d += 4) {
        const float k0 = key_row[d], k1 = key_row[d + 1], k2 = key_row[d + 2], k3 = key_row[d + 3];
        for (int r = 0; r < kRowsPerWarp; ++r) {
          const float4 q =
              *reinterpret_cast<const float4*>(query_tile + (warp * kRowsPerWarp + r) * layout.query_row + d);
          logit[r] += q.x * k0 + q.y * k1 + q.z * k2 + q.w * k3;
        }
      }

      const int k = first_key + lane;
      const float log2_gain = lane < keys ? key_log_gain[k] * kLog2E : 0.0f;
      const float gain = lane < keys ? value_gain[k] : 0.0f;
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const bool seen = k < visible[r];
        const float x = seen ? logit[r] * scale_log2 + log2_gain : -INFINITY;
        const float new_max = fmaxf(row_max[r], warp_max(x));
        const float base =
            new_max == -INFINITY ? 0.0f : new_max;  // nothing seen yet: exp2(-inf - 0) = 0, no NaN
        const float weight = exp2f(x - base);
        const float keep = exp2f(row_max[r] - base);
        row_max[r] = new_max;
        row_sum[r] = row_sum[r] * keep + weight;
        for (int t = 0; t < kChannelGroups; ++t) acc[r][t] *= keep;
        weights[r * kTileKeys + lane] = seen ? weight * gain : 0.0f;
      }
    }

    __syncthreads();  // the key tile is no longer read, and the weights are written
    load_tile(value + first_key * p.value_strides.position, p.value_strides.position, keys,
              static_cast<int>(p.value_head_dim), tile, kTileKeys, layout.value_row, layout.value_row);
    __syncthreads();

    if (first_key < warp_visible) {
      for (int j = 0; j < keys; j += 4) {  // up to three keys too many: their weights and values are zeros
        for (int t = 0; t < kChannelGroups; ++t) {
          const float* v = tile + j * layout.value_row + t * kWarpSize + lane;
          const float v0 = v[0], v1 = v[layout.value_row];
          const float v2 = v[2 * layout.value_row], v3 = v[3 * layout.value_row];
          for (int r = 0; r < kRowsPerWarp; ++r) {
            const float4 w = *reinterpret_cast<const float4*>(weights + r * kTileKeys + j);
            acc[r][t] += w.x * v0 + w.y * v1 + w.z * v2 + w.w * v3;
          }
        }
      }
    }
  }

  for (int r = 0; r < kRowsPerWarp; ++r) {
    const float total = warp_sum(row_sum[r]);
    const int row = first_row + warp * kRowsPerWarp + r;
    if (row >= row_count) continue;  // the same for all lanes of a warp
    T* out = static_cast<T*>(p.out) + batch * p.out_strides.batch +
             (kv_head * group + row % group) * p.out_strides.head +
             static_cast<int64_t>(row / group) * p.out_strides.position;
    for (int t = 0; t < kChannelGroups; ++t) {
      const int channel = t * kWarpSize + lane;
      if (channel < p.value_head_dim) from_float(total == 0.0f ? 0.0f : acc[r][t] / total, out + channel);
    }
  }
}

}  // namespace va_export
