// Makes SubspaceScore plugins from fields: node attributes at build time, serialised fields at run time.
#include <map>
#include <new>
#include <sstream>
#include <string>

#include "common/logging.h"
#include "common/op_fields.h"
#include "contract.h"
#include "plugin.h"

namespace va_export {
namespace {

struct Range {
  const char* field;
  double low, high;
};

std::string value_fault(const std::map<std::string, double>& values) {
  // As subspace_score.h has them; beyond 1e20 and below 1e-20 float32 overflows.
  static const Range ranges[] = {{"n_subspaces", 1, VA_SUBSPACE_SCORE_MAX_SUBSPACES},
                                 {"pca_rank", 0, VA_SUBSPACE_SCORE_MAX_PCA_RANK},
                                 {"rho", 9.999e-21, 1.0001e20},
                                 {"alpha_e", 9.999e-21, 1.0001e20},
                                 {"alpha_z", 9.999e-21, 1.0001e20},
                                 {"eps", 1e-45, 3.4e38},
                                 {"max_iter", 1, 2147483647.0}};
  for (const Range& range : ranges) {
    const double value = values.at(range.field);
    if (range.low <= value && value <= range.high) continue;  // NaN is not
    std::ostringstream text;
    text << "field '" << range.field << "' is " << value << ", supported are " << range.low << " to " << range.high;
    return text.str();
  }
  return "";
}

}  // namespace

SubspaceScoreCreator::SubspaceScoreCreator() : fields_(field_names(subspace_score_contract())) {
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

const char* SubspaceScoreCreator::getPluginName() const noexcept {
  return subspace_score_contract().name;
}

const char* SubspaceScoreCreator::getPluginVersion() const noexcept {
  return subspace_score_contract().version;
}

const char* SubspaceScoreCreator::getPluginNamespace() const noexcept {
  return subspace_score_contract().name_space;
}

nvinfer1::IPluginV3* SubspaceScoreCreator::createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                                        nvinfer1::TensorRTPhase) noexcept {
  const std::string node = name == nullptr ? "" : name;
  std::map<std::string, double> values;
  std::string fault =
      fields == nullptr ? "no fields were given" : read_fields(subspace_score_contract(), *fields, &values);
  if (fault.empty()) fault = value_fault(values);
  if (!fault.empty()) {
    log_error(getPluginName(), node, fault);
    return nullptr;
  }
  const auto integer = [&](const char* field) { return static_cast<int32_t>(values.at(field)); };
  const auto real = [&](const char* field) { return static_cast<float>(values.at(field)); };
  const SubspaceScoreFields parsed{integer("n_subspaces"), integer("pca_rank"), real("rho"),        real("alpha_e"),
                                   real("alpha_z"),        real("eps"),         integer("max_iter")};
  return new (std::nothrow) SubspaceScorePlugin(node, parsed);
}

}  // namespace va_export
