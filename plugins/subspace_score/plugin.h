// SubspaceScore as a TensorRT plugin (IPluginV3): it checks what it is given and forwards to the C
// interface.
#pragma once

#include <string>
#include <vector>

#include "common/op_plugin.h"
#include "subspace_score.h"

namespace va_export {

// The fields of the op, as va_export.settings.ScoreSettings has them.
struct SubspaceScoreFields {
  int32_t n_subspaces;
  int32_t pca_rank;
  float rho;
  float alpha_e;
  float alpha_z;
  float eps;
  int32_t max_iter;
};

class SubspaceScorePlugin final : public OpPlugin {
 public:
  SubspaceScorePlugin(std::string node, SubspaceScoreFields fields);

  nvinfer1::IPluginV3* clone() noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t output_count,
                             const nvinfer1::DataType* input_types, int32_t input_count) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t shape_input_count,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& expressions) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t output_count) const noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc* output_descs,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;

 private:
  std::string size_fault(const std::vector<Sizes>& inputs) const override;
  std::vector<const void*> field_values() const override;
  // The sizes and settings of a launch, with no pointers.
  VaSubspaceScoreParams launch_params(const nvinfer1::Dims& tokens, nvinfer1::DataType type) const;

  SubspaceScoreFields fields_;
};

class SubspaceScoreCreator final : public OpCreator {
 public:
  SubspaceScoreCreator();

 private:
  std::string value_fault(const Values& values) const override;
  nvinfer1::IPluginV3* make(const std::string& node, const Values& values) const override;
};

}  // namespace va_export
