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

enum Output { kScore, kLabels };

int32_t dtype_of(DataType type) {
  return type == DataType::kHALF ? VA_SCORE_FLOAT16 : type == DataType::kBF16 ? VA_SCORE_BFLOAT16 : VA_SCORE_FLOAT32;
}

}  // namespace

// The penalties change how many iterations are taken, and nothing that a choice of tactic could.
SubspaceScorePlugin::SubspaceScorePlugin(std::string node, SubspaceScoreFields fields)
    : OpPlugin(subspace_score_contract(), std::move(node),
               "-n_subspaces=" + std::to_string(fields.n_subspaces) + "-pca_rank=" + std::to_string(fields.pca_rank)),
      fields_(fields) {}

nvinfer1::IPluginV3* SubspaceScorePlugin::clone() noexcept {
  return new (std::nothrow) SubspaceScorePlugin(*this);
}

// How many tokens there must be, and how many features.
std::string SubspaceScorePlugin::size_fault(const std::vector<Sizes>& inputs) const {
  const int64_t count = inputs[0][0], dim = inputs[0][1], least = fields_.n_subspaces > 2 ? fields_.n_subspaces : 2;
  const auto outside = [](const char* name, int64_t size, int64_t low, int64_t high) {
    return std::string("tokens has ") + name + " = " + std::to_string(size) + ", supported are " + std::to_string(low) +
           " to " + std::to_string(high);
  };
  if (count != kUnknown && (count < least || count > VA_SUBSPACE_SCORE_MAX_TOKENS)) {
    return outside("N", count, least, VA_SUBSPACE_SCORE_MAX_TOKENS) +
           " with n_subspaces = " + std::to_string(fields_.n_subspaces);
  }
  if (dim != kUnknown && (dim < 1 || dim > VA_SUBSPACE_SCORE_MAX_DIM)) {
    return outside("D", dim, 1, VA_SUBSPACE_SCORE_MAX_DIM);
  }
  for (const int64_t size : {count, dim}) {
    if (size != kUnknown && fields_.pca_rank > size) {
      return "pca_rank = " + std::to_string(fields_.pca_rank) + " is more than tokens of sizes (" +
             std::to_string(count) + ", " + std::to_string(dim) + ") have";
    }
  }
  return "";
}

int32_t SubspaceScorePlugin::getOutputDataTypes(DataType* output_types, int32_t, const DataType* input_types,
                                                int32_t input_count) const noexcept {
  const int32_t status = report(input_type_fault(op(), input_types, input_count));
  output_types[kScore] = DataType::kFLOAT;
  output_types[kLabels] = DataType::kINT64;
  return status;
}

int32_t SubspaceScorePlugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t,
                                             DimsExprs* outputs, int32_t, nvinfer1::IExprBuilder&) noexcept {
  const int32_t status = report(shape_fault(inputs, input_count));
  if (status != 0) return status;
  for (const Output output : {kScore, kLabels}) {
    outputs[output].nbDims = 1;
    outputs[output].d[0] = inputs[0].d[0];
  }
  return 0;
}

size_t SubspaceScorePlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t,
                                             const DynamicPluginTensorDesc*, int32_t) const noexcept {
  const VaSubspaceScoreParams params = launch_params(inputs[0].max, inputs[0].desc.type);
  return va_subspace_score_workspace_bytes(&params);
}

VaSubspaceScoreParams SubspaceScorePlugin::launch_params(const Dims& tokens, DataType type) const {
  VaSubspaceScoreParams params{};
  params.struct_bytes = sizeof(params);
  params.token_count = tokens.d[0];
  params.dim = tokens.d[1];
  params.dtype = dtype_of(type);
  params.n_subspaces = fields_.n_subspaces;
  params.pca_rank = fields_.pca_rank;
  params.max_iter = fields_.max_iter;
  params.rho = fields_.rho;
  params.alpha_e = fields_.alpha_e;
  params.alpha_z = fields_.alpha_z;
  params.eps = fields_.eps;
  return params;
}

int32_t SubspaceScorePlugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*,
                                     const void* const* inputs, void* const* outputs, void* workspace,
                                     cudaStream_t stream) noexcept {
  VaSubspaceScoreParams params = launch_params(input_descs[0].dims, input_descs[0].type);
  params.tokens = inputs[0];
  params.sharing_score = static_cast<float*>(outputs[kScore]);
  params.labels = static_cast<int64_t*>(outputs[kLabels]);
  params.workspace = workspace;
  params.workspace_bytes = va_subspace_score_workspace_bytes(&params);
  return report(va_subspace_score_launch(&params, stream));
}

std::vector<const void*> SubspaceScorePlugin::field_values() const {
  return {&fields_.n_subspaces, &fields_.pca_rank, &fields_.rho,     &fields_.alpha_e,
          &fields_.alpha_z,     &fields_.eps,      &fields_.max_iter};
}

}  // namespace va_export
