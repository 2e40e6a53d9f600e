#include "plugin.h"

#include <new>

#include "contract.h"

namespace va_export {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

enum Input { kQuery, kKey, kValue, kKeyLogGain, kValueGain, kKvLength };

VaAttentionStrides contiguous(int64_t heads, int64_t positions, int64_t width) {
  return {heads * positions * width, positions * width, width};
}

int32_t dtype_of(DataType type) {
  return type == DataType::kHALF ? VA_FLOAT16 : type == DataType::kBF16 ? VA_BFLOAT16 : VA_FLOAT32;
}

}  // namespace

// The scale's value does not change the time that a launch takes.
AnchoredAttentionPlugin::AnchoredAttentionPlugin(std::string node, AnchoredAttentionFields fields)
    : OpPlugin(anchored_attention_contract(), std::move(node), "-is_causal=" + std::to_string(fields.is_causal)),
      fields_(fields) {}

nvinfer1::IPluginV3* AnchoredAttentionPlugin::clone() noexcept {
  return new (std::nothrow) AnchoredAttentionPlugin(*this);
}

// How heads divide, and how wide a head may be.
std::string AnchoredAttentionPlugin::size_fault(const std::vector<Sizes>& inputs) const {
  const int64_t query_heads = inputs[kQuery][1], kv_heads = inputs[kKey][1];
  if (query_heads != kUnknown && kv_heads != kUnknown && (kv_heads < 1 || query_heads % kv_heads != 0)) {
    return "query has " + std::to_string(query_heads) + " heads, which is no multiple of the " +
           std::to_string(kv_heads) + " heads of key and value";
  }
  for (const Input input : {kQuery, kValue}) {
    const int64_t width = inputs[input][3];
    if (width != kUnknown && (width < 1 || width > VA_ANCHORED_ATTENTION_MAX_HEAD_DIM)) {
      return std::string(op().inputs[input].name) + " has " + op().inputs[input].dims[3] + " = " +
             std::to_string(width) + ", supported are 1 to " + std::to_string(VA_ANCHORED_ATTENTION_MAX_HEAD_DIM);
    }
  }
  return "";
}

int32_t AnchoredAttentionPlugin::getOutputDataTypes(DataType* output_types, int32_t, const DataType* input_types,
                                                    int32_t input_count) const noexcept {
  const int32_t status = report(input_type_fault(op(), input_types, input_count));
  if (status == 0) output_types[0] = input_types[kQuery];
  return status;
}

int32_t AnchoredAttentionPlugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*,
                                                 int32_t, DimsExprs* outputs, int32_t,
                                                 nvinfer1::IExprBuilder&) noexcept {
  const int32_t status = report(shape_fault(inputs, input_count));
  if (status != 0) return status;
  outputs[0] = inputs[kQuery];
  outputs[0].d[3] = inputs[kValue].d[3];
  return 0;
}

size_t AnchoredAttentionPlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t,
                                                 const DynamicPluginTensorDesc*, int32_t) const noexcept {
  const VaAnchoredAttentionParams params =
      launch_params(inputs[kQuery].max, inputs[kKey].max, inputs[kValue].max, inputs[kQuery].desc.type);
  return va_anchored_attention_workspace_bytes(&params);
}

VaAnchoredAttentionParams AnchoredAttentionPlugin::launch_params(const Dims& query, const Dims& key, const Dims& value,
                                                                 DataType type) const {
  VaAnchoredAttentionParams params{};
  params.struct_bytes = sizeof(params);
  params.batch = query.d[0];
  params.query_heads = query.d[1];
  params.kv_heads = key.d[1];
  params.q_len = query.d[2];
  params.kv_len = key.d[2];
  params.head_dim = query.d[3];
  params.value_head_dim = value.d[3];
  params.query_strides = contiguous(params.query_heads, params.q_len, params.head_dim);
  params.key_strides = contiguous(params.kv_heads, params.kv_len, params.head_dim);
  params.value_strides = contiguous(params.kv_heads, params.kv_len, params.value_head_dim);
  params.out_strides = contiguous(params.query_heads, params.q_len, params.value_head_dim);
  params.key_log_gain_batch_stride = params.kv_len;
  params.value_gain_batch_stride = params.kv_len;
  params.scale = fields_.scale;
  params.is_causal = fields_.is_causal;
  params.dtype = dtype_of(type);
  return params;
}

int32_t AnchoredAttentionPlugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*,
                                         const void* const* inputs, void* const* outputs, void* workspace,
                                         cudaStream_t stream) noexcept {
  VaAnchoredAttentionParams params = launch_params(input_descs[kQuery].dims, input_descs[kKey].dims,
                                                   input_descs[kValue].dims, input_descs[kQuery].type);
  params.query = inputs[kQuery];
  params.key = inputs[kKey];
  params.value = inputs[kValue];
  params.key_log_gain = static_cast<const float*>(inputs[kKeyLogGain]);
  params.value_gain = static_cast<const float*>(inputs[kValueGain]);
  params.kv_length = input_count() > kKvLength ? static_cast<const int64_t*>(inputs[kKvLength]) : nullptr;
  params.out = outputs[0];
  params.workspace = workspace;
  params.workspace_bytes = va_anchored_attention_workspace_bytes(&params);
  return report(va_anchored_attention_launch(&params, stream));
}

std::vector<const void*> AnchoredAttentionPlugin::field_values() const {
  return {&fields_.scale, &fields_.is_causal};
}

}  // namespace va_export
