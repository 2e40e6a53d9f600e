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

enum Output { kScore, kLabels };

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

template <typename Desc, typename DimsOf>
std::vector<Sizes> all_sizes(const Desc* inputs, int32_t count, DimsOf dims_of) {
  std::vector<Sizes> sizes;
  for (int32_t i = 0; i < count; ++i) sizes.push_back(sizes_of(dims_of(inputs[i])));
  return sizes;
}

int32_t dtype_of(DataType type) {
  return type == DataType::kHALF ? VA_SCORE_FLOAT16 : type == DataType::kBF16 ? VA_SCORE_BFLOAT16 : VA_SCORE_FLOAT32;
}

}  // namespace

SubspaceScorePlugin::SubspaceScorePlugin(std::string node, SubspaceScoreFields fields)
    : node_(std::move(node)), fields_(fields) {
  const OpContract& op = subspace_score_contract();
  // The penalties change how many iterations are taken, and nothing that a choice of tactic could.
  timing_cache_id_ = std::string(op.name) + "-" + op.version + "-n_subspaces=" + std::to_string(fields.n_subspaces) +
                     "-pca_rank=" + std::to_string(fields.pca_rank);
}

SubspaceScorePlugin::SubspaceScorePlugin(const SubspaceScorePlugin& other)
    : SubspaceScorePlugin(other.node_, other.fields_) {}

nvinfer1::IPluginCapability* SubspaceScorePlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
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

nvinfer1::IPluginV3* SubspaceScorePlugin::clone() noexcept {
  return new (std::nothrow) SubspaceScorePlugin(*this);
}

nvinfer1::IPluginV3* SubspaceScorePlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return clone();
}

const char* SubspaceScorePlugin::getPluginName() const noexcept {
  return subspace_score_contract().name;
}

const char* SubspaceScorePlugin::getPluginVersion() const noexcept {
  return subspace_score_contract().version;
}

const char* SubspaceScorePlugin::getPluginNamespace() const noexcept {
  return subspace_score_contract().name_space;
}

int32_t SubspaceScorePlugin::report(const std::string& fault) const {
  if (fault.empty()) return 0;
  log_error(getPluginName(), node_, fault);
  return -1;
}

// What the table of dimensions cannot say: how many tokens there must be, and how many features.
std::string SubspaceScorePlugin::token_fault(const std::vector<Sizes>& inputs) const {
  const std::string fault = input_shape_fault(subspace_score_contract(), inputs);
  if (!fault.empty()) return fault;
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
  const int32_t status = report(input_type_fault(subspace_score_contract(), input_types, input_count));
  output_types[kScore] = DataType::kFLOAT;
  output_types[kLabels] = DataType::kINT64;
  return status;
}

int32_t SubspaceScorePlugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t,
                                             DimsExprs* outputs, int32_t, nvinfer1::IExprBuilder&) noexcept {
  const auto itself = [](const DimsExprs& dims) { return dims; };
  const int32_t status = report(token_fault(all_sizes(inputs, input_count, itself)));
  if (status != 0) return status;
  for (const Output output : {kScore, kLabels}) {
    outputs[output].nbDims = 1;
    outputs[output].d[0] = inputs[0].d[0];
  }
  return 0;
}

bool SubspaceScorePlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                                    int32_t input_count, int32_t) noexcept {
  const OpContract& op = subspace_score_contract();
  if (input_count > static_cast<int32_t>(op.inputs.size())) return false;
  const PluginTensorDesc& desc = tensors[position].desc;
  const TensorSpec& spec = position < input_count ? op.inputs[position] : op.outputs[position - input_count];
  return desc.format == nvinfer1::TensorFormat::kLINEAR && type_fits(op, spec, desc.type, tensors[0].desc.type);
}

int32_t SubspaceScorePlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                             const DynamicPluginTensorDesc*, int32_t) noexcept {
  const auto smallest = [](const DynamicPluginTensorDesc& tensor) { return tensor.min; };
  const auto largest = [](const DynamicPluginTensorDesc& tensor) { return tensor.max; };
  const int32_t status = report(token_fault(all_sizes(inputs, input_count, smallest)));
  return status != 0 ? status : report(token_fault(all_sizes(inputs, input_count, largest)));
}

size_t SubspaceScorePlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t,
                                             const DynamicPluginTensorDesc*, int32_t) const noexcept {
  const VaSubspaceScoreParams params = launch_params(inputs[0].max, inputs[0].desc.type);
  return va_subspace_score_workspace_bytes(&params);
}

int32_t SubspaceScorePlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc*,
                                           int32_t) noexcept {
  const auto dims = [](const PluginTensorDesc& tensor) { return tensor.dims; };
  return report(token_fault(all_sizes(inputs, input_count, dims)));
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
  const cudaError_t error = va_subspace_score_launch(&params, stream);
  return error == cudaSuccess ? 0 : report(std::string("the launch failed: ") + cudaGetErrorString(error));
}

const nvinfer1::PluginFieldCollection* SubspaceScorePlugin::getFieldsToSerialize() noexcept {
  const void* data[] = {&fields_.n_subspaces, &fields_.pca_rank, &fields_.rho,     &fields_.alpha_e,
                        &fields_.alpha_z,     &fields_.eps,      &fields_.max_iter};  // in the table's order
  serialized_.clear();
  for (const FieldSpec& field : subspace_score_contract().fields) {
    serialized_.emplace_back(field.name, data[serialized_.size()], field.type, 1);
  }
  collection_ = {static_cast<int32_t>(serialized_.size()), serialized_.data()};
  return &collection_;
}

}  // namespace va_export
