// AnchoredAttention, version 1: the C interface to the CUDA kernels.
//
//   out[b,h,i] = sum_j softmax_j(scale * query[b,h,i] . key[b,h/group,j] + key_log_gain[b,j])
//                      * value_gain[b,j] * value[b,h/group,j]
//
// over the keys j that query i may see: j < kv_length[b] and, when causal, j <= i + kv_length[b] - q_len.
// A query that sees no key (or only keys of gain 0) gives 0. Accumulation is in float32.
//
// This header knows CUDA's runtime types and nothing else: no TensorRT, no PyTorch. The TensorRT plugin
// (plugin.cpp) and va_export.native call the same two functions.
#ifndef VA_EXPORT_ANCHORED_ATTENTION_H_
#define VA_EXPORT_ANCHORED_ATTENTION_H_

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef VA_EXPORT_API
#define VA_EXPORT_API __attribute__((visibility("default")))
#endif

// The largest head_dim and value_head_dim that the kernels take.
#define VA_ANCHORED_ATTENTION_MAX_HEAD_DIM 256

// Element type of query, key, value and out.
enum VaAnchoredAttentionDtype { VA_FLOAT16 = 0, VA_BFLOAT16 = 1, VA_FLOAT32 = 2 };

// Distances in elements between neighbours on one axis; the last axis (head_dim) is contiguous. Both
// (batch, heads, positions, head_dim) and packed heads (batch, positions, heads, head_dim) can be said so.
typedef struct VaAttentionStrides {
  int64_t batch;
  int64_t head;
  int64_t position;
} VaAttentionStrides;

typedef struct VaAnchoredAttentionParams {
  size_t struct_bytes;  // sizeof(VaAnchoredAttentionParams): a caller compiled against another layout is refused

  const void* query;          // (batch, query_heads, q_len, head_dim)
  const void* key;            // (batch, kv_heads, kv_len, head_dim)
  const void* value;          // (batch, kv_heads, kv_len, value_head_dim)
  const float* key_log_gain;  // (batch, kv_len), natural logarithm; -infinity is a gain of 0
  const float* value_gain;    // (batch, kv_len)
  const int64_t* kv_length;   // (batch,) valid keys per row, clamped to [0, kv_len]; NULL: all kv_len
  void* out;                  // (batch, query_heads, q_len, value_head_dim)
  void* workspace;            // device memory, aligned to 16 bytes; NULL: short q_len uses fewer blocks
  size_t workspace_bytes;

  int64_t batch;  // 1 .. 65535
  int64_t query_heads;
  int64_t kv_heads;  // divides query_heads; query head h reads kv head h / (query_heads / kv_heads); <= 65535
  int64_t q_len;
  int64_t kv_len;
  int64_t head_dim;        // 1 .. VA_ANCHORED_ATTENTION_MAX_HEAD_DIM
  int64_t value_head_dim;  // 1 .. VA_ANCHORED_ATTENTION_MAX_HEAD_DIM

  VaAttentionStrides query_strides;
  VaAttentionStrides key_strides;
  VaAttentionStrides value_strides;
  VaAttentionStrides out_strides;
  int64_t key_log_gain_batch_stride;  // the position axis of both gain vectors is contiguous
  int64_t value_gain_batch_stride;

  float scale;  // > 0, finite
  int32_t is_causal;
  int32_t dtype;  // VaAnchoredAttentionDtype
  int32_t reserved;
} VaAnchoredAttentionParams;

// Bytes of device memory that a launch with these sizes, or with a smaller batch, q_len or kv_len, can make use of as
// workspace (no pointer is read). A launch with less is right, and slower where q_len is short.
VA_EXPORT_API size_t va_anchored_attention_workspace_bytes(const VaAnchoredAttentionParams* params);

// Queues the attention on `stream` and returns. Allocates nothing and does not synchronise, so it may be
// captured in a CUDA graph. Deterministic: equal inputs give equal bits. cudaErrorInvalidValue: a size,
// stride, pointer or option outside what is said above; any other error is CUDA's own from the launch.
VA_EXPORT_API cudaError_t va_anchored_attention_launch(const VaAnchoredAttentionParams* params, cudaStream_t stream);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // VA_EXPORT_ANCHORED_ATTENTION_H_
