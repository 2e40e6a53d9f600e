#include "common/op_plugin.h"

#include "common/logging.h"
#include "common/op_fields.h"

namespace va_export {

using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

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

OpPlugin::OpPlugin(const OpContract& op, std::string node, const std::string& timed_fields)
    : op_(op), node_(std::move(node)), timing_cache_id_(std::string(op.name) + "-" + op.version + timed_fields) {}

OpPlugin::OpPlugin(const OpPlugin& other)
    : IPluginV3(),
      IPluginV3OneCore(),
      IPluginV3OneBuild(),
      IPluginV3OneRuntime(),
      op_(other.op_),
      node_(other.node_),
      timing_cache_id_(other.timing_cache_id_),
      input_count_(other.input_count_) {}

nvinfer1::IPluginCapability* OpPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
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

nvinfer1::IPluginV3* OpPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return clone();
}

std::string OpPlugin::shape_fault(const std::vector<Sizes>& inputs) const {
  const std::string fault = input_shape_fault(op_, inputs);
  return fault.empty() ? size_fault(inputs) : fault;
}

std::string OpPlugin::shape_fault(const DimsExprs* inputs, int32_t count) const {
  return shape_fault(inputs, count, [](const DimsExprs& dims) { return dims; });
}

int32_t OpPlugin::report(const std::string& fault) const {
  if (fault.empty()) return 0;
  log_error(op_.name, node_, fault);
  return -1;
}

int32_t OpPlugin::report(cudaError_t error) const {
  return error == cudaSuccess ? 0 : report(std::string("the launch failed: ") + cudaGetErrorString(error));
}

bool OpPlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t input_count,
                                         int32_t) noexcept {
  if (input_count > static_cast<int32_t>(op_.inputs.size())) return false;
  const PluginTensorDesc& desc = tensors[position].desc;
  const TensorSpec& spec = position < input_count ? op_.inputs[position] : op_.outputs[position - input_count];
  return desc.format == nvinfer1::TensorFormat::kLINEAR && type_fits(op_, spec, desc.type, tensors[0].desc.type);
}

int32_t OpPlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                  const DynamicPluginTensorDesc*, int32_t) noexcept {
  const auto smallest = [](const DynamicPluginTensorDesc& tensor) { return tensor.min; };
  const auto largest = [](const DynamicPluginTensorDesc& tensor) { return tensor.max; };
  const int32_t status = report(shape_fault(inputs, input_count, smallest));
  return status != 0 ? status : report(shape_fault(inputs, input_count, largest));
}

int32_t OpPlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc*,
                                int32_t) noexcept {
  input_count_ = input_count;
  return report(shape_fault(inputs, input_count, [](const PluginTensorDesc& tensor) { return tensor.dims; }));
}

const nvinfer1::PluginFieldCollection* OpPlugin::getFieldsToSerialize() noexcept {
  const std::vector<const void*> values = field_values();
  serialized_.clear();
  for (size_t i = 0; i < op_.fields.size(); ++i) {
    serialized_.emplace_back(op_.fields[i].name, values[i], op_.fields[i].type, 1);
  }
  collection_ = {static_cast<int32_t>(serialized_.size()), serialized_.data()};
  return &collection_;
}

OpCreator::OpCreator(const OpContract& op) : op_(op), fields_(field_names(op)) {
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginV3* OpCreator::createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                             nvinfer1::TensorRTPhase) noexcept {
  const std::string node = name == nullptr ? "" : name;
  Values values;
  std::string fault = fields == nullptr ? "no fields were given" : read_fields(op_, *fields, &values);
  if (fault.empty()) fault = value_fault(values);
  if (!fault.empty()) {
    log_error(op_.name, node, fault);
    return nullptr;
  }
  return make(node, values);
}

}  // namespace va_export
