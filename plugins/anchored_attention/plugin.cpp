#include "plugin.h"

#include <new>

#include "common/logging.h"
#include "contract.h"

namespace va_export {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

enum Input { kQuery, kKey, kValue, kKeyLogGain, kValueGain, kKvLength };

Sizes sizes_of(const Dims& dims) {
  return Sizes(dims.d, dims.d + (dims.nbDims > 0 ? dims.nbDims : 0));
}

Sizes sizes_of(const DimsExprs& dims) {
  Sizes sizes;
  for (int axis = 0; axis < dims.nbDims; ++axis) {
    sizes.push_back(dims.d[axis]->isConstant() ? dims.d[axis]->getConstantValue() : kUnknown);
  }
  return sizes;
}

// What the table of dimensions cannot say: how heads divide, and how wide a head may be.
std::string shape_fault(const std::vector<Sizes>& inputs) {
  const OpContract& op = anchored_attention_contract();
  const std::string fault = input_shape_fault(op, inputs);
  if (!fault.empty()) return fault;
  const int64_t query_heads = inputs[kQuery][1], kv_heads = inputs[kKey][1];
  if (query_heads != kUnknown && kv_heads != kUnknown && (kv_heads < 1 || query_heads % kv_heads != 0)) {
    return "query has " + std::to_string(query_heads) + " heads, which is no multiple of the " +
           std::to_string(kv_heads) + " heads of key and value";
  }
  for (const Input input : {kQuery, kValue}) {
    const int64_t width = inputs[input][3];
    if (width != kUnknown && (width < 1 || width > VA_ANCHORED_ATTENTION_MAX_HEAD_DIM)) {
      return std::string(op.inputs[input].name) + " has " + op.inputs[input].dims[3] + " = " + std::to_string(width) +
             ", supported are 1 to " + std::to_string(VA_ANCHORED_ATTENTION_MAX_HEAD_DIM);
    }
  }
  return "";
}

template <typename Desc, typename DimsOf>
std::string shape_fault(const Desc* inputs, int32_t count, DimsOf dims_of) {
  std::vector<Sizes> sizes;
  for (int32_t i = 0; i < count; ++i) sizes.push_back(sizes_of(dims_of(inputs[i])));
  return shape_fault(sizes);
}

VaAttentionStrides contiguous(int64_t heads, int64_t positions, int64_t width) {
  return {heads * positions * width, positions * width, width};
}

int32_t dtype_of(DataType type) {
  return type == DataType::kHALF ? VA_FLOAT16 : type == DataType::kBF16 ? VA_BFLOAT16 : VA_FLOAT32;
}

}  // namespace

AnchoredAttentionPlugin::AnchoredAttentionPlugin(std::string node, AnchoredAttentionFields fields)
    : node_(std::move(node)), fields_(fields) {
  const OpContract& op = anchored_attention_contract();
  // The scale's value does not change the time that a launch takes.
  timing_cache_id_ = std::string(op.name) + "-" + op.version + "-is_causal=" + std::to_string(fields.is_causal);
}

AnchoredAttentionPlugin::AnchoredAttentionPlugin(const AnchoredAttentionPlugin& other)
    : AnchoredAttentionPlugin(other.node_, other.fields_) {
  input_count_ = other.input_count_;
}

nvinfer1::IPluginCapability* AnchoredAttentionPlugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* AnchoredAttentionPlugin::clone() noexcept {
  return new (std::nothrow) AnchoredAttentionPlugin(*this);
}

nvinfer1::IPluginV3* AnchoredAttentionPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return clone();
}

const char* AnchoredAttentionPlugin::getPluginName() const noexcept {
  return anchored_attention_contract().name;
}

const char* AnchoredAttentionPlugin::getPluginVersion() const noexcept {
  return anchored_attention_contract().version;
}

const char* AnchoredAttentionPlugin::getPluginNamespace() const noexcept {
  return anchored_attention_contract().name_space;
}

int32_t AnchoredAttentionPlugin::report(const std::string& fault) const {
  if (fault.empty()) return 0;
  log_error(getPluginName(), node_, fault);
  return -1;
}

int32_t AnchoredAttentionPlugin::getOutputDataTypes(DataType* output_types, int32_t, const DataType* input_types,
                                                    int32_t input_count) const noexcept {
  const int32_t status = report(input_type_fault(anchored_attention_contract(), input_types, input_count));
  if (status == 0) output_types[0] = input_types[kQuery];
  return status;
}

int32_t AnchoredAttentionPlugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*,
                                                 int32_t, DimsExprs* outputs, int32_t,
                                                 nvinfer1::IExprBuilder&) noexcept {
  const auto itself = [](const DimsExprs& dims) { return dims; };
  const int32_t status = report(shape_fault(inputs, input_count, itself));
  if (status != 0) return status;
  outputs[0] = inputs[kQuery];
  outputs[0].d[3] = inputs[kValue].d[3];
  return 0;
}

bool AnchoredAttentionPlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                                        int32_t input_count, int32_t) noexcept {
  const OpContract& op = anchored_attention_contract();
  if (input_count > static_cast<int32_t>(op.inputs.size())) return false;
  const PluginTensorDesc& desc = tensors[position].desc;
  const TensorSpec& spec = position < input_count ? op.inputs[position] : op.outputs[position - input_count];
  return desc.format == nvinfer1::TensorFormat::kLINEAR && type_fits(op, spec, desc.type, tensors[kQuery].desc.type);
}

int32_t AnchoredAttentionPlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                                 const DynamicPluginTensorDesc*, int32_t) noexcept {
  const auto smallest = [](const DynamicPluginTensorDesc& tensor) { return tensor.min; };
  const auto largest = [](const DynamicPluginTensorDesc& tensor) { return tensor.max; };
  const int32_t status = report(shape_fault(inputs, input_count, smallest));
  return status != 0 ? status : report(shape_fault(inputs, input_count, largest));
}

size_t AnchoredAttentionPlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t,
                                                 const DynamicPluginTensorDesc*, int32_t) const noexcept {
  const VaAnchoredAttentionParams params =
      launch_params(inputs[kQuery].max, inputs[kKey].max, inputs[kValue].max, inputs[kQuery].desc.type);
  return va_anchored_attention_workspace_bytes(&params);
}

int32_t AnchoredAttentionPlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count,
                                               const PluginTensorDesc*, int32_t) noexcept {
  const auto dims = [](const PluginTensorDesc& tensor) { return tensor.dims; };
  input_count_ = input_count;
  return report(shape_fault(inputs, input_count, dims));
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
  params.kv_length = input_count_ > kKvLength ? static_cast<const int64_t*>(inputs[kKvLength]) : nullptr;
  params.out = outputs[0];
  params.workspace = workspace;
  params.workspace_bytes = va_anchored_attention_workspace_bytes(&params);
  const cudaError_t error = va_anchored_attention_launch(&params, stream);
  return error == cudaSuccess ? 0 : report(std::string("the launch failed: ") + cudaGetErrorString(error));
}

const nvinfer1::PluginFieldCollection* AnchoredAttentionPlugin::getFieldsToSerialize() noexcept {
  serialized_.clear();
  for (const FieldSpec& field : anchored_attention_contract().fields) {
    const bool is_scale = field.type == nvinfer1::PluginFieldType::kFLOAT32;
    const void* data = is_scale ? static_cast<const void*>(&fields_.scale) : &fields_.is_causal;
    serialized_.emplace_back(field.name, data, field.type, 1);
  }
  collection_ = {static_cast<int32_t>(serialized_.size()), serialized_.data()};
  return &collection_;
}

}  // namespace va_export
