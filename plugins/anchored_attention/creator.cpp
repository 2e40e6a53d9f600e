// Makes AnchoredAttention plugins from fields: node attributes at build time, serialised fields at run time.
#include <cmath>
#include <new>
#include <string>

#include "contract.h"
#include "plugin.h"

namespace va_export {

AnchoredAttentionCreator::AnchoredAttentionCreator() : OpCreator(anchored_attention_contract()) {}

std::string AnchoredAttentionCreator::value_fault(const Values& values) const {
  const double scale = values.at("scale"), is_causal = values.at("is_causal");
  if (!std::isfinite(scale) || scale <= 0.0) {
    return "field 'scale' is " + std::to_string(scale) + ", expected a number above 0";
  }
  if (is_causal != 0.0 && is_causal != 1.0) {
    return "field 'is_causal' is " + std::to_string(is_causal) + ", expected 0 or 1";
  }
  return "";
}

nvinfer1::IPluginV3* AnchoredAttentionCreator::make(const std::string& node, const Values& values) const {
  const AnchoredAttentionFields fields{static_cast<float>(values.at("scale")),
                                       static_cast<int32_t>(values.at("is_causal"))};
  return new (std::nothrow) AnchoredAttentionPlugin(node, fields);
}

}  // namespace va_export
