// Makes AnchoredAttention plugins from fields: node attributes at build time, serialised fields at run time.
#include <cmath>
#include <map>
#include <new>
#include <string>

#include "common/logging.h"
#include "contract.h"
#include "plugin.h"

namespace va_export {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

// The field's one number; is_number is false where it holds something else.
double number(const PluginField& field, bool* is_number) {
  *is_number = field.data != nullptr && field.length == 1;
  if (!*is_number) return 0.0;
  switch (field.type) {
    case PluginFieldType::kFLOAT32:
      return *static_cast<const float*>(field.data);
    case PluginFieldType::kFLOAT64:
      return *static_cast<const double*>(field.data);
    case PluginFieldType::kINT32:
      return *static_cast<const int32_t*>(field.data);
    case PluginFieldType::kINT64:
      return static_cast<double>(*static_cast<const int64_t*>(field.data));
    default:
      *is_number = false;
      return 0.0;
  }
}

bool is_integer(PluginFieldType type) {
  return type == PluginFieldType::kINT32 || type == PluginFieldType::kINT64;
}

// Reads every field of the collection into `values` by name, or gives the reason why that cannot be done.
std::string read_fields(const nvinfer1::PluginFieldCollection& fields, std::map<std::string, double>* values) {
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    const FieldSpec* spec = nullptr;
    for (const FieldSpec& known : anchored_attention_contract().fields) {
      if (std::string(known.name) == field.name) spec = &known;
    }
    const std::string name = std::string("field '") + field.name + "'";
    if (spec == nullptr) return name + " is unknown to version " + anchored_attention_contract().version;
    bool is_number = false;
    const double value = number(field, &is_number);
    // An integer attribute reaches the plugin as int32 or int64, as the ONNX parser's version would have it.
    if (!is_number || is_integer(spec->type) != is_integer(field.type)) {
      return name + " holds " + std::to_string(field.length) + " x " + type_name(field.type) + ", expected one " +
             type_name(spec->type);
    }
    if (!values->insert({spec->name, value}).second) return name + " is given twice";
  }
  for (const FieldSpec& spec : anchored_attention_contract().fields) {
    if (values->count(spec.name) == 0) return std::string("field '") + spec.name + "' is missing";
  }
  return "";
}

std::string value_fault(const std::map<std::string, double>& values) {
  const double scale = values.at("scale"), is_causal = values.at("is_causal");
  if (!std::isfinite(scale) || scale <= 0.0) {
    return "field 'scale' is " + std::to_string(scale) + ", expected a number above 0";
  }
  if (is_causal != 0.0 && is_causal != 1.0) {
    return "field 'is_causal' is " + std::to_string(is_causal) + ", expected 0 or 1";
  }
  return "";
}

}  // namespace

AnchoredAttentionCreator::AnchoredAttentionCreator() {
  for (const FieldSpec& spec : anchored_attention_contract().fields) {
    fields_.emplace_back(spec.name, nullptr, spec.type, 1);
  }
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

const char* AnchoredAttentionCreator::getPluginName() const noexcept {
  return anchored_attention_contract().name;
}

const char* AnchoredAttentionCreator::getPluginVersion() const noexcept {
  return anchored_attention_contract().version;
}

const char* AnchoredAttentionCreator::getPluginNamespace() const noexcept {
  return anchored_attention_contract().name_space;
}

nvinfer1::IPluginV3* AnchoredAttentionCreator::createPlugin(const char* name,
                                                            const nvinfer1::PluginFieldCollection* fields,
                                                            nvinfer1::TensorRTPhase) noexcept {
  const std::string node = name == nullptr ? "" : name;
  std::map<std::string, double> values;
  std::string fault = fields == nullptr ? "no fields were given" : read_fields(*fields, &values);
  if (fault.empty()) fault = value_fault(values);
  if (!fault.empty()) {
    log_error(getPluginName(), node, fault);
    return nullptr;
  }
  const AnchoredAttentionFields parsed{static_cast<float>(values.at("scale")),
                                       static_cast<int32_t>(values.at("is_causal"))};
  return new (std::nothrow) AnchoredAttentionPlugin(node, parsed);
}

}  // namespace va_export
