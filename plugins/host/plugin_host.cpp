#include "host/plugin_host.h"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "NvInferRuntime.h"

namespace {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::PluginTensorDesc;

using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
using SetLoggerFinder = void (*)(nvinfer1::ILoggerFinder*);

constexpr DataType kTypes[] = {DataType::kHALF, DataType::kBF16, DataType::kFLOAT};  // of VaAnchoredAttentionDtype

GetCreators get_creators = nullptr;

struct CollectingLogger : nvinfer1::ILogger {
  std::string text;
  void log(Severity, const char* message) noexcept override { text += std::string(message) + "\n"; }
} collecting_logger;

struct Finder : nvinfer1::ILoggerFinder {
  nvinfer1::ILogger* findLogger() override { return &collecting_logger; }
} finder;

template <typename Interface>
Interface* capability(IPluginV3& plugin, nvinfer1::PluginCapabilityType type) {
  return static_cast<Interface*>(plugin.getCapabilityInterface(type));
}

nvinfer1::IPluginV3OneBuild* build_of(IPluginV3& plugin) {
  return capability<nvinfer1::IPluginV3OneBuild>(plugin, nvinfer1::PluginCapabilityType::kBUILD);
}

nvinfer1::IPluginV3OneRuntime* runtime_of(IPluginV3& plugin) {
  return capability<nvinfer1::IPluginV3OneRuntime>(plugin, nvinfer1::PluginCapabilityType::kRUNTIME);
}

IPluginV3* plugin_of(VaPluginHostPlugin* plugin) {
  return reinterpret_cast<IPluginV3*>(plugin);
}

VaPluginHostPlugin* handle_of(IPluginV3* plugin) {
  return reinterpret_cast<VaPluginHostPlugin*>(plugin);
}

std::unique_ptr<IPluginV3> create(const nvinfer1::PluginFieldCollection& fields, nvinfer1::TensorRTPhase phase) {
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = get_creators(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
    if (std::string(creator->getPluginName()) == "AnchoredAttention") {
      return std::unique_ptr<IPluginV3>(creator->createPlugin("node", &fields, phase));
    }
  }
  return nullptr;
}

PluginTensorDesc describe(const std::vector<int64_t>& sizes, DataType type) {
  PluginTensorDesc desc{};
  desc.dims.nbDims = static_cast<int32_t>(sizes.size());
  std::memcpy(desc.dims.d, sizes.data(), sizes.size() * sizeof(int64_t));
  desc.type = type;
  return desc;
}

// Inputs, then the output.
std::vector<PluginTensorDesc> describe(const VaAnchoredAttentionParams& p) {
  const DataType type = kTypes[p.dtype], float32 = DataType::kFLOAT;
  std::vector<PluginTensorDesc> tensors = {describe({p.batch, p.query_heads, p.q_len, p.head_dim}, type),
                                           describe({p.batch, p.kv_heads, p.kv_len, p.head_dim}, type),
                                           describe({p.batch, p.kv_heads, p.kv_len, p.value_head_dim}, type),
                                           describe({p.batch, p.kv_len}, float32),
                                           describe({p.batch, p.kv_len}, float32)};
  if (p.kv_length != nullptr) tensors.push_back(describe({p.batch}, DataType::kINT64));
  tensors.push_back(describe({p.batch, p.query_heads, p.q_len, p.value_head_dim}, type));
  return tensors;
}

std::vector<DynamicPluginTensorDesc> as_dynamic(const std::vector<PluginTensorDesc>& tensors) {
  std::vector<DynamicPluginTensorDesc> dynamic;
  for (const PluginTensorDesc& tensor : tensors) dynamic.push_back({tensor, tensor.dims, tensor.dims, tensor.dims});
  return dynamic;
}

}  // namespace

extern "C" void va_plugin_host_use(void* get_creators_symbol, void* set_logger_finder_symbol) {
  get_creators = reinterpret_cast<GetCreators>(get_creators_symbol);
  reinterpret_cast<SetLoggerFinder>(set_logger_finder_symbol)(&finder);
}

extern "C" const char* va_plugin_host_log(void) {
  static std::string last;
  last = collecting_logger.text;
  collecting_logger.text.clear();
  return last.c_str();
}

extern "C" VaPluginHostPlugin* va_plugin_host_make(const VaAnchoredAttentionParams* p, int serialised) {
  const int64_t is_causal = p->is_causal;  // as one version of the ONNX parser hands it over
  const nvinfer1::PluginField fields[] = {{"scale", &p->scale, nvinfer1::PluginFieldType::kFLOAT32, 1},
                                          {"is_causal", &is_causal, nvinfer1::PluginFieldType::kINT64, 1}};
  std::unique_ptr<IPluginV3> plugin = create({2, fields}, nvinfer1::TensorRTPhase::kBUILD);
  if (plugin != nullptr && serialised != 0) {
    plugin = create(*runtime_of(*plugin)->getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME);
  }
  return handle_of(plugin.release());
}

extern "C" VaPluginHostPlugin* va_plugin_host_attach(VaPluginHostPlugin* plugin) {
  const std::unique_ptr<IPluginV3> cloned(plugin_of(plugin)->clone());
  return handle_of(runtime_of(*cloned)->attachToContext(nullptr));
}

extern "C" void va_plugin_host_release(VaPluginHostPlugin* plugin) {
  delete plugin_of(plugin);
}

extern "C" const char* va_plugin_host_timing_cache_id(VaPluginHostPlugin* plugin) {
  return build_of(*plugin_of(plugin))->getTimingCacheID();
}

extern "C" int va_plugin_host_build(VaPluginHostPlugin* plugin, const VaPluginHostTensor* given, int32_t inputs) {
  nvinfer1::IPluginV3OneBuild& build = *build_of(*plugin_of(plugin));
  std::vector<PluginTensorDesc> tensors;
  std::vector<DataType> types;
  for (int32_t i = 0; i <= inputs; ++i) {
    types.push_back(static_cast<DataType>(given[i].type));
    tensors.push_back(describe({given[i].sizes, given[i].sizes + given[i].rank}, types.back()));
  }
  DataType output_type{};
  if (build.getOutputDataTypes(&output_type, 1, types.data(), inputs) != 0) return 1;
  const std::vector<DynamicPluginTensorDesc> dynamic = as_dynamic(tensors);
  for (int32_t i = 0; i <= inputs; ++i) {
    if (!build.supportsFormatCombination(i, dynamic.data(), inputs, 1)) return 2;
  }
  if (build.configurePlugin(dynamic.data(), inputs, dynamic.data() + inputs, 1) != 0) return 3;
  return output_type == types.back() ? 0 : 4;
}

extern "C" size_t va_plugin_host_workspace_bytes(VaPluginHostPlugin* plugin, const VaAnchoredAttentionParams* p) {
  const std::vector<DynamicPluginTensorDesc> tensors = as_dynamic(describe(*p));
  const int32_t inputs = static_cast<int32_t>(tensors.size()) - 1;
  return build_of(*plugin_of(plugin))->getWorkspaceSize(tensors.data(), inputs, tensors.data() + inputs, 1);
}

extern "C" int va_plugin_host_enqueue(VaPluginHostPlugin* context, const VaAnchoredAttentionParams* p,
                                      cudaStream_t stream) {
  const std::vector<PluginTensorDesc> tensors = describe(*p);
  const int32_t inputs = static_cast<int32_t>(tensors.size()) - 1;
  const void* const pointers[] = {p->query, p->key, p->value, p->key_log_gain, p->value_gain, p->kv_length};
  void* output = p->out;
  nvinfer1::IPluginV3OneRuntime* runtime = runtime_of(*plugin_of(context));
  const int32_t status = runtime->onShapeChange(tensors.data(), inputs, &tensors[inputs], 1);
  if (status != 0) return status;
  return runtime->enqueue(tensors.data(), &tensors[inputs], pointers, &output, p->workspace, stream);
}
