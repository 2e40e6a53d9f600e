// Makes SubspaceScore plugins from fields: node attributes at build time, serialised fields at run time.
#include <new>
#include <sstream>
#include <string>

#include "contract.h"
#include "plugin.h"

namespace va_export {
namespace {

struct Range {
  const char* field;
  double low, high;
};

}  // namespace

SubspaceScoreCreator::SubspaceScoreCreator() : OpCreator(subspace_score_contract()) {}

std::string SubspaceScoreCreator::value_fault(const Values& values) const {
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

nvinfer1::IPluginV3* SubspaceScoreCreator::make(const std::string& node, const Values& values) const {
  const auto integer = [&](const char* field) { return static_cast<int32_t>(values.at(field)); };
  const auto real = [&](const char* field) { return static_cast<float>(values.at(field)); };
  const SubspaceScoreFields fields{integer("n_subspaces"), integer("pca_rank"), real("rho"),        real("alpha_e"),
                                   real("alpha_z"),        real("eps"),         integer("max_iter")};
  return new (std::nothrow) SubspaceScorePlugin(node, fields);
}

}  // namespace va_export
