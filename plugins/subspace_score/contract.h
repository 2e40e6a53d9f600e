// SubspaceScore, version 1, as its callers see it. Fields and inputs are the plugin's ABI: a change of either is a new
// version.
#pragma once

#include "common/op_contract.h"
#include "subspace_score.h"

namespace va_export {

inline const OpContract& subspace_score_contract() {
  using nvinfer1::DataType;
  using nvinfer1::PluginFieldType;
  // clang-format off: it is a table
  static const OpContract contract{
      "SubspaceScore",
      "1",
      "ai.videoanchor",
      {{"n_subspaces", PluginFieldType::kINT32},
       {"pca_rank", PluginFieldType::kINT32},
       {"rho", PluginFieldType::kFLOAT32},
       {"alpha_e", PluginFieldType::kFLOAT32},
       {"alpha_z", PluginFieldType::kFLOAT32},
       {"eps", PluginFieldType::kFLOAT32},
       {"max_iter", PluginFieldType::kINT32}},
      {{"tokens", "T", 2, {"N", "D"}, false}},
      {{"sharing_score", "float32", 1, {"N"}, false},
       {"labels", "int64", 1, {"N"}, false}},
      {DataType::kHALF, DataType::kBF16, DataType::kFLOAT},
      {{"max_tokens", VA_SUBSPACE_SCORE_MAX_TOKENS},
       {"max_dim", VA_SUBSPACE_SCORE_MAX_DIM},
       {"max_pca_rank", VA_SUBSPACE_SCORE_MAX_PCA_RANK},
       {"max_subspaces", VA_SUBSPACE_SCORE_MAX_SUBSPACES}}};
  // clang-format on
  return contract;
}

}  // namespace va_export
