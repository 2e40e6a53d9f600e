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

// The Hopper kernel's emulation is slow under the sanitizer: a few launches, with keys that end within a tile.
int launch_hopper_kernel() {
  simt::gpu.architecture = 90;
  const int64_t before = simt::wgmma.total;
  bool ran = run<__half>({1, 4, 2, 17, 31, 80, 96}, VA_FLOAT16, true, false, false);
  ran = ran && run<__nv_bfloat16>({2, 2, 1, 33, 65, 64, 64}, VA_BFLOAT16, true, true, true);
  ran = ran && run<__half>({2, 1, 1, 20, 129, 64, 8}, VA_FLOAT16, false, true, true);
  return ran && simt::wgmma.total > before ? 3 : 0;
}

int launch_all_shapes() {
  const Shape shapes[] = {{2, 7, 1, 5, 33, 8, 24},    {1, 4, 2, 17, 31, 80, 96}, {3, 2, 2, 33, 65, 64, 64},
                          {1, 2, 1, 3, 40, 250, 130}, {1, 3, 1, 40, 7, 5, 256},  {1, 1, 1, 1, 1, 1, 1}};
  int launches = 0;
  for (const Shape& shape : shapes) {
    for (int options = 0; options < 8; ++options) {
      const bool is_causal = options & 1, has_lengths = options & 2, packed = options & 4;
      const bool ran = options % 3 == 0   ? run<__half>(shape, VA_FLOAT16, is_causal, has_lengths, packed)
                       : options % 3 == 1 ? run<__nv_bfloat16>(shape, VA_BFLOAT16, is_causal, has_lengths, packed)
                                          : run<float>(shape, VA_FLOAT32, is_causal, has_lengths, packed);
      if (!ran) return 0;
      ++launches;
    }
  }
  return launches;
}

}  // namespace

// Arguments: "hopper" for that kernel; another one, or one more, for a key buffer that is one element short.
int main(int argument_count, char** arguments) {
  const bool is_hopper = argument_count > 1 && std::strcmp(arguments[1], "hopper") == 0;
  missing_key_elements = argument_count - 1 - is_hopper;
  const int launches = is_hopper ? launch_hopper_kernel() : launch_all_shapes();
  std::printf("%d launches\n", launches);
  return launches > 0 ? 0 : 1;
}
