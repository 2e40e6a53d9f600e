// AnchoredAttention as a TensorRT plugin (IPluginV3): it checks what it is given and forwards to the C
// interface.
#pragma once

#include <string>
#include <vector>

#include "anchored_attention.h"
#include "common/op_plugin.h"

namespace va_export {

// The two fields of the op. scale: multiplies the logits, > 0. is_causal: 0 or 1.
struct AnchoredAttentionFields {
  float scale;
  int32_t is_causal;
};

class AnchoredAttentionPlugin final : public OpPlugin {
 public:
  AnchoredAttentionPlugin(std::string node, AnchoredAttentionFields fields);

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
  // The sizes and contiguous strides of a launch, with no pointers.
  VaAnchoredAttentionParams launch_params(const nvinfer1::Dims& query, const nvinfer1::Dims& key,
                                          const nvinfer1::Dims& value, nvinfer1::DataType type) const;

  AnchoredAttentionFields fields_;
};

class AnchoredAttentionCreator final : public OpCreator {
 public:
  AnchoredAttentionCreator();

 private:
  std::string value_fault(const Values& values) const override;
  nvinfer1::IPluginV3* make(const std::string& node, const Values& values) const override;
};

}  // namespace va_export
