// What every op has in common as a TensorRT plugin (IPluginV3), read from its contract: names, checks with reasons,
// formats and fields. An op adds what its table cannot say, its outputs and the launch.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "NvInferRuntime.h"
#include "common/op_contract.h"

namespace va_export {

Sizes sizes_of(const nvinfer1::Dims& dims);
Sizes sizes_of(const nvinfer1::DimsExprs& dims);

class OpPlugin : public nvinfer1::IPluginV3,
                 public nvinfer1::IPluginV3OneCore,
                 public nvinfer1::IPluginV3OneBuild,
                 public nvinfer1::IPluginV3OneRuntime {
 public:
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept final;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept final;

  const char* getPluginName() const noexcept final { return op_.name; }
  const char* getPluginVersion() const noexcept final { return op_.version; }
  const char* getPluginNamespace() const noexcept final { return op_.name_space; }

  int32_t getNbOutputs() const noexcept final { return static_cast<int32_t>(op_.outputs.size()); }
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t input_count, int32_t output_count) noexcept final;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept final;
  const char* getTimingCacheID() noexcept final { return timing_cache_id_.c_str(); }

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                        const nvinfer1::PluginTensorDesc* outputs, int32_t output_count) noexcept final;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept final;

 protected:
  // `timed_fields`: "-name=value" of the fields that change what a launch costs.
  OpPlugin(const OpContract& op, std::string node, const std::string& timed_fields);
  // The interfaces are not copied: TensorRT has its own state in them.
  OpPlugin(const OpPlugin& other);
  OpPlugin& operator=(const OpPlugin&) = delete;

  // Why inputs whose ranks and symbols fit the contract do not fit the op, or "". Sizes may be kUnknown.
  virtual std::string size_fault(const std::vector<Sizes>& inputs) const = 0;
  // The fields' values, in the contract's order.
  virtual std::vector<const void*> field_values() const = 0;

  // Why these inputs cannot be computed, by the contract and by size_fault; or "".
  std::string shape_fault(const std::vector<Sizes>& inputs) const;
  template <typename Desc, typename DimsOf>
  std::string shape_fault(const Desc* inputs, int32_t count, DimsOf dims_of) const {
    std::vector<Sizes> sizes;
    for (int32_t i = 0; i < count; ++i) sizes.push_back(sizes_of(dims_of(inputs[i])));
    return shape_fault(sizes);
  }
  std::string shape_fault(const nvinfer1::DimsExprs* inputs, int32_t count) const;

  // Logs the fault, where there is one, and gives the status that TensorRT wants: 0 for "no fault".
  int32_t report(const std::string& fault) const;
  int32_t report(cudaError_t error) const;

  const OpContract& op() const { return op_; }
  const std::string& node() const { return node_; }
  int32_t input_count() const { return input_count_; }  // as of the last onShapeChange: enqueue is not told

 private:
  const OpContract& op_;
  std::string node_;
  std::string timing_cache_id_;
  int32_t input_count_ = 0;
  std::vector<nvinfer1::PluginField> serialized_;
  nvinfer1::PluginFieldCollection collection_{};
};

// Makes plugins of one op from fields: node attributes at build time, serialised fields at run time.
class OpCreator : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept final;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept final { return &collection_; }
  const char* getPluginName() const noexcept final { return op_.name; }
  const char* getPluginVersion() const noexcept final { return op_.version; }
  const char* getPluginNamespace() const noexcept final { return op_.name_space; }

 protected:
  using Values = std::map<std::string, double>;  // all fields of the contract, by name

  explicit OpCreator(const OpContract& op);

  virtual std::string value_fault(const Values& values) const = 0;
  virtual nvinfer1::IPluginV3* make(const std::string& node, const Values& values) const = 0;

 private:
  const OpContract& op_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace va_export
