// Runs AnchoredAttention with every buffer on the heap at its exact size, for the address sanitizer to watch: a read or
// write one element outside stops the program. Prints how many launches it survived.
#include <cstdio>
#include <vector>

#include "anchored_attention_host.cpp"

namespace {

int missing_key_elements = 0;  // 1 makes a program that must be stopped

struct Shape {
  int64_t batch, query_heads, kv_heads, q_len, kv_len, head_dim, value_head_dim;
};

template <typename T>
bool run(const Shape& s, int32_t dtype, bool is_causal, bool has_lengths, bool packed) {
  const std::vector<T> query(s.batch * s.query_heads * s.q_len * s.head_dim);
  const std::vector<T> key(s.batch * s.kv_heads * s.kv_len * s.head_dim - missing_key_elements);
  const std::vector<T> value(s.batch * s.kv_heads * s.kv_len * s.value_head_dim);
  const std::vector<float> key_log_gain(s.batch * s.kv_len), value_gain(s.batch * s.kv_len);
  std::vector<int64_t> lengths(s.batch);
  for (int64_t b = 0; b < s.batch; ++b) lengths[b] = s.kv_len + 1 - 2 * b;  // one too many, then fewer
  std::vector<T> out(s.batch * s.query_heads * s.q_len * s.value_head_dim);
  const auto strides = [&](int64_t heads, int64_t positions, int64_t width) -> VaAttentionStrides {
    if (packed) return {heads * positions * width, width, heads * width};
    return {heads * positions * width, positions * width, width};
  };
  VaAnchoredAttentionParams p{};
  p.struct_bytes = sizeof(p);
  p.query = query.data();
  p.key = key.data();
  p.value = value.data();
  p.key_log_gain = key_log_gain.data();
  p.value_gain = value_gain.data();
  p.kv_length = has_lengths ? lengths.data() : nullptr;
  p.out = out.data();
  p.batch = s.batch;
  p.query_heads = s.query_heads;
  p.kv_heads = s.kv_heads;
  p.q_len = s.q_len;
  p.kv_len = s.kv_len;
  p.head_dim = s.head_dim;
  p.value_head_dim = s.value_head_dim;
  p.query_strides = strides(s.query_heads, s.q_len, s.head_dim);
  p.key_strides = strides(s.kv_heads, s.kv_len, s.head_dim);
  p.value_strides = strides(s.kv_heads, s.kv_len, s.value_head_dim);
  p.out_strides = strides(s.query_heads, s.q_len, s.value_head_dim);
  p.key_log_gain_batch_stride = p.value_gain_batch_stride = s.kv_len;
  p.scale = 1.0f;
  p.is_causal = is_causal;
  p.dtype = dtype;
  return va_anchored_attention_launch(&p, nullptr) == cudaSuccess;
}

}  // namespace

int main(int argument_count, char**) {
  missing_key_elements = argument_count - 1;  // any argument: one
  const Shape shapes[] = {{2, 7, 1, 5, 33, 8, 24},    {1, 4, 2, 17, 31, 80, 96}, {3, 2, 2, 33, 65, 64, 64},
                          {1, 2, 1, 3, 40, 250, 130}, {1, 3, 1, 40, 7, 5, 256},  {1, 1, 1, 1, 1, 1, 1}};
  int launches = 0;
  for (const Shape& shape : shapes) {
    for (int options = 0; options < 8; ++options) {
      const bool is_causal = options & 1, has_lengths = options & 2, packed = options & 4;
      const bool ran = options % 3 == 0   ? run<__half>(shape, VA_FLOAT16, is_causal, has_lengths, packed)
                       : options % 3 == 1 ? run<__nv_bfloat16>(shape, VA_BFLOAT16, is_causal, has_lengths, packed)
                                          : run<float>(shape, VA_FLOAT32, is_causal, has_lengths, packed);
      if (!ran) return 1;
      ++launches;
    }
  }
  std::printf("%d launches\n", launches);
  return 0;
}
