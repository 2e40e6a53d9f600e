// Decode's second kernel: adds the partial results of the splits of each row, always in the same order.
#pragma once

#include "block_view.cuh"
#include "common/convert.cuh"
#include "partials.cuh"

namespace va_export {

constexpr int kCombineThreads = 128;

// Grid: (row_count, kv_heads, batch). Each thread has the channels threadIdx.x, threadIdx.x + kCombineThreads, ...
template <typename T>
__global__ void __launch_bounds__(kCombineThreads) combine_kernel(const MmaArguments arguments) {
  const VaAnchoredAttentionParams& p = arguments.attention;
  const TilePlan& plan = arguments.plan;
  const int row = static_cast<int>(blockIdx.x);
  const int64_t kv_head = blockIdx.y, batch = blockIdx.z;
  const int tile = row / kPartialRows;
  const int last_row = (tile + 1) * kPartialRows < plan.row_count ? (tile + 1) * kPartialRows - 1 : plan.row_count - 1;
  const int valid_keys = clip_kv_length(p.kv_length == nullptr ? p.kv_len : p.kv_length[batch], p.kv_len);
  const int visible = visible_keys(last_row, plan.group, p.q_len, valid_keys, p.is_causal != 0);
  const int used = splits_in_use(visible, kDecodeTileKeys, plan.splits);
  const int64_t first_slot = ((batch * plan.kv_heads + kv_head) * plan.row_tiles + tile) * plan.splits;
  const Partials partials(p.workspace, block_count(plan), p.value_head_dim);
  const SoftmaxStats* stats = partials.stats + first_slot * kPartialRows + row % kPartialRows;

  float max = -INFINITY, total = 0.0f;
  for (int s = 0; s < used; ++s) max = fmaxf(max, stats[s * kPartialRows].max);
  for (int s = 0; s < used; ++s) total += rescale(stats[s * kPartialRows].max, max) * stats[s * kPartialRows].sum;
  T* out = static_cast<T*>(p.out) + batch * p.out_strides.batch +
           (kv_head * plan.group + row % plan.group) * p.out_strides.head + row / plan.group * p.out_strides.position;
  for (int64_t channel = threadIdx.x; channel < p.value_head_dim; channel += kCombineThreads) {
    float sum = 0.0f;
    for (int s = 0; s < used; ++s) {
      const int64_t slot_row = (first_slot + s) * kPartialRows + row % kPartialRows;
      sum += rescale(stats[s * kPartialRows].max, max) * partials.sums[slot_row * p.value_head_dim + channel];
    }
    from_float(total == 0.0f ? 0.0f : sum / total, out + channel);  // a row that sees nothing has sum 0
  }
}

}  // namespace va_export
