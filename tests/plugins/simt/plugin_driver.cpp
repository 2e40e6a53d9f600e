// The TensorRT plugin around the CPU build of its kernel: made from fields, serialised, made again, and run.
#include <cstring>
#include <memory>
#include <vector>

#include "anchored_attention/plugin.h"
#include "anchored_attention_host.cpp"
#include "common/logging.h"

namespace {

using nvinfer1::PluginTensorDesc;

struct CollectingLogger : nvinfer1::ILogger {
  std::string text;
  void log(Severity, const char* message) noexcept override { text += std::string(message) + "\n"; }
} collecting_logger;

struct Finder : nvinfer1::ILoggerFinder {
  nvinfer1::ILogger* findLogger() override { return &collecting_logger; }
} finder;

PluginTensorDesc desc(std::vector<int64_t> sizes, nvinfer1::DataType type) {
  PluginTensorDesc result{};
  result.dims.nbDims = static_cast<int32_t>(sizes.size());
  std::memcpy(result.dims.d, sizes.data(), sizes.size() * sizeof(int64_t));
  result.type = type;
  return result;
}

std::unique_ptr<nvinfer1::IPluginV3> create(const nvinfer1::PluginFieldCollection& fields,
                                            nvinfer1::TensorRTPhase phase) {
  static va_export::AnchoredAttentionCreator creator;
  return std::unique_ptr<nvinfer1::IPluginV3>(creator.createPlugin("node", &fields, phase));
}

nvinfer1::IPluginV3OneRuntime* runtime_of(nvinfer1::IPluginV3& plugin) {
  return static_cast<nvinfer1::IPluginV3OneRuntime*>(
      plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
}

// What the plugin, while it is built, asks for when these are the largest sizes.
size_t workspace_bytes(nvinfer1::IPluginV3& plugin, const std::vector<PluginTensorDesc>& inputs,
                       const PluginTensorDesc& output) {
  auto* build =
      static_cast<nvinfer1::IPluginV3OneBuild*>(plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
  std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic;
  for (const PluginTensorDesc& input : inputs) dynamic.push_back({input, input.dims, input.dims, input.dims});
  const nvinfer1::DynamicPluginTensorDesc result{output, output.dims, output.dims, output.dims};
  return build->getWorkspaceSize(dynamic.data(), static_cast<int32_t>(dynamic.size()), &result, 1);
}

}  // namespace

// What the plugin logged since the last call.
extern "C" VA_EXPORT_API const char* plugin_log() {
  static std::string last;
  last = collecting_logger.text;
  collecting_logger.text.clear();
  return last.c_str();
}

// Runs contiguous tensors through a plugin that went through serialisation and a clone for a context, as an engine
// does. params gives sizes, scale, is_causal, dtype and pointers; its strides are not read. Gives TensorRT's status.
extern "C" VA_EXPORT_API int run_plugin(const VaAnchoredAttentionParams* p) {
  va_export::set_logger_finder(&finder);
  const int64_t is_causal = p->is_causal;  // as one version of the ONNX parser hands it over
  const nvinfer1::PluginField fields[] = {{"scale", &p->scale, nvinfer1::PluginFieldType::kFLOAT32, 1},
                                          {"is_causal", &is_causal, nvinfer1::PluginFieldType::kINT64, 1}};
  const auto built = create({2, fields}, nvinfer1::TensorRTPhase::kBUILD);
  if (built == nullptr) return -10;
  const auto loaded = create(*runtime_of(*built)->getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME);
  if (loaded == nullptr) return -11;
  const std::unique_ptr<nvinfer1::IPluginV3> cloned(loaded->clone());
  const std::unique_ptr<nvinfer1::IPluginV3> attached(runtime_of(*cloned)->attachToContext(nullptr));

  const nvinfer1::DataType types[] = {nvinfer1::DataType::kHALF, nvinfer1::DataType::kBF16, nvinfer1::DataType::kFLOAT};
  const nvinfer1::DataType type = types[p->dtype], float32 = nvinfer1::DataType::kFLOAT;
  std::vector<PluginTensorDesc> inputs = {desc({p->batch, p->query_heads, p->q_len, p->head_dim}, type),
                                          desc({p->batch, p->kv_heads, p->kv_len, p->head_dim}, type),
                                          desc({p->batch, p->kv_heads, p->kv_len, p->value_head_dim}, type),
                                          desc({p->batch, p->kv_len}, float32), desc({p->batch, p->kv_len}, float32)};
  std::vector<const void*> pointers = {p->query, p->key, p->value, p->key_log_gain, p->value_gain};
  if (p->kv_length != nullptr) {
    inputs.push_back(desc({p->batch}, nvinfer1::DataType::kINT64));
    pointers.push_back(p->kv_length);
  }
  const PluginTensorDesc output = desc({p->batch, p->query_heads, p->q_len, p->value_head_dim}, type);
  nvinfer1::IPluginV3OneRuntime* runtime = runtime_of(*attached);
  const int32_t status = runtime->onShapeChange(inputs.data(), static_cast<int32_t>(inputs.size()), &output, 1);
  if (status != 0) return status;
  std::vector<float4> workspace(workspace_bytes(*built, inputs, output) / sizeof(float4));
  void* memory = workspace.empty() ? nullptr : workspace.data();
  return runtime->enqueue(inputs.data(), &output, pointers.data(), &p->out, memory, nullptr);
}
