// AnchoredAttention, version 1, as its callers see it. Fields and inputs are the plugin's ABI: a change of
// either is a new version.
#pragma once

#include "anchored_attention.h"
#include "common/op_contract.h"

namespace va_export {

inline const OpContract& anchored_attention_contract() {
  using nvinfer1::DataType;
  using nvinfer1::PluginFieldType;
  // clang-format off: it is a table
  static const OpContract contract{
      "AnchoredAttention",
      "1",
      "ai.videoanchor",
      {{"scale", PluginFieldType::kFLOAT32}, {"is_causal", PluginFieldType::kINT32}},
      {{"query", "T", 4, {"batch", "query_heads", "q_len", "head_dim"}, false},
       {"key", "T", 4, {"batch", "kv_heads", "kv_len", "head_dim"}, false},
       {"value", "T", 4, {"batch", "kv_heads", "kv_len", "value_head_dim"}, false},
       {"key_log_gain", "float32", 2, {"batch", "kv_len"}, false},
       {"value_gain", "float32", 2, {"batch", "kv_len"}, false},
       {"kv_length", "int64", 1, {"batch"}, true}},
      {{"output", "T", 4, {"batch", "query_heads", "q_len", "value_head_dim"}, false}},
      {DataType::kHALF, DataType::kBF16, DataType::kFLOAT},
      {{"max_head_dim", VA_ANCHORED_ATTENTION_MAX_HEAD_DIM}}};
  // clang-format on
  return contract;
}

}  // namespace va_export
