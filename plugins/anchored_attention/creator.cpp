// Makes AnchoredAttention plugins from fields: node attributes at build time, serialised fields at run time.
#include <cmath>
#include <map>
#include <new>
#include <string>

#include "common/logging.h"
#include "common/op_fields.h"
#include "contract.h"
#include "plugin.h"

namespace va_export {
namespace {

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

AnchoredAttentionCreator::AnchoredAttentionCreator() : fields_(field_names(anchored_attention_contract())) {
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
  std::string fault =
      fields == nullptr ? "no fields were given" : read_fields(anchored_attention_contract(), *fields, &values);
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
