// Where the rows and keys of one block of the tensor-core kernels are.
#pragma once

#include "anchored_attention.h"
#include "geometry.h"

namespace va_export {

struct MmaArguments {
  VaAnchoredAttentionParams attention;
  TilePlan plan;
};

// Where one block's rows and keys are.
template <typename Tile>
struct BlockView {
  const VaAnchoredAttentionParams& p;
  const TilePlan& plan;
  BlockWork work;
  int first_row;
  int valid_keys;
  int visible;  // keys that the block's last row may see
  KeyRange keys;

  __device__ BlockView(const MmaArguments& arguments, int64_t block)
      : p(arguments.attention), plan(arguments.plan), work(work_of_block(plan, block)) {
    first_row = work.tile * Tile::kRows;
    valid_keys = clip_kv_length(p.kv_length == nullptr ? p.kv_len : p.kv_length[work.batch], p.kv_len);
    const int last_row = first_row + Tile::kRows < plan.row_count ? first_row + Tile::kRows - 1 : plan.row_count - 1;
    visible = visible_of(last_row);
    // Only decode splits keys: the constants save prefill registers.
    keys = keys_of_split(visible, Tile::kKeys, Tile::kKeyWarps > 1 ? plan.splits : 1,
                         Tile::kKeyWarps > 1 ? work.split : 0);
  }

  __device__ int visible_of(int row) const {
    return visible_keys(row, plan.group, p.q_len, valid_keys, p.is_causal != 0);
  }

  // Element 0 of a packed row of query or out.
  __device__ int64_t row_offset(const VaAttentionStrides& strides, int row) const {
    return work.batch * strides.batch +
           (static_cast<int64_t>(work.kv_head) * plan.group + row % plan.group) * strides.head +
           row / plan.group * strides.position;
  }

  __device__ const typename Tile::T* head(const void* tensor, const VaAttentionStrides& strides) const {
    return static_cast<const typename Tile::T*>(tensor) + work.batch * strides.batch + work.kv_head * strides.head;
  }
};

}  // namespace va_export
