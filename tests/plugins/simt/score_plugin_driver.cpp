// The SubspaceScore plugin around the CPU build of its kernels: made from fields, serialised, made again, and run.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "common/logging.h"
#include "subspace_score/plugin.h"

namespace {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

struct CollectingLogger : nvinfer1::ILogger {
  std::string text;
  void log(Severity, const char* message) noexcept override { text += std::string(message) + "\n"; }
} collecting_logger;

struct Finder : nvinfer1::ILoggerFinder {
  nvinfer1::ILogger* findLogger() override { return &collecting_logger; }
} finder;

PluginTensorDesc desc(std::vector<int64_t> sizes, DataType type) {
  PluginTensorDesc result{};
  result.dims.nbDims = static_cast<int32_t>(sizes.size());
  std::memcpy(result.dims.d, sizes.data(), sizes.size() * sizeof(int64_t));
  result.type = type;
  return result;
}

std::unique_ptr<nvinfer1::IPluginV3> create(const nvinfer1::PluginFieldCollection& fields,
                                            nvinfer1::TensorRTPhase phase) {
  static va_export::SubspaceScoreCreator creator;
  return std::unique_ptr<nvinfer1::IPluginV3>(creator.createPlugin("node", &fields, phase));
}

template <typename Capability>
Capability* capability(nvinfer1::IPluginV3& plugin, nvinfer1::PluginCapabilityType type) {
  return static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

}  // namespace

// What the plugin logged since the last call.
extern "C" VA_EXPORT_API const char* score_plugin_log() {
  static std::string last;
  last = collecting_logger.text;
  collecting_logger.text.clear();
  return last.c_str();
}

// Scores contiguous tokens by a plugin that went through serialisation and a clone for a context, as an engine does,
// with the workspace that the built plugin asked for up to `most_tokens`. Gives TensorRT's status.
extern "C" VA_EXPORT_API int run_score_plugin(const VaSubspaceScoreParams* p, int64_t most_tokens) {
  va_export::set_logger_finder(&finder);
  simt::gpu.sm_count = 2;
  const int64_t max_iter = p->max_iter;  // as one version of the ONNX parser hands it over
  const nvinfer1::PluginField fields[] = {{"n_subspaces", &p->n_subspaces, PluginFieldType::kINT32, 1},
                                          {"pca_rank", &p->pca_rank, PluginFieldType::kINT32, 1},
                                          {"rho", &p->rho, PluginFieldType::kFLOAT32, 1},
                                          {"alpha_e", &p->alpha_e, PluginFieldType::kFLOAT32, 1},
                                          {"alpha_z", &p->alpha_z, PluginFieldType::kFLOAT32, 1},
                                          {"eps", &p->eps, PluginFieldType::kFLOAT32, 1},
                                          {"max_iter", &max_iter, PluginFieldType::kINT64, 1}};
  const auto built = create({7, fields}, nvinfer1::TensorRTPhase::kBUILD);
  if (built == nullptr) return -10;
  using Kind = nvinfer1::PluginCapabilityType;
  auto* build = capability<nvinfer1::IPluginV3OneBuild>(*built, Kind::kBUILD);
  auto* built_runtime = capability<nvinfer1::IPluginV3OneRuntime>(*built, Kind::kRUNTIME);
  const auto loaded = create(*built_runtime->getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME);
  if (loaded == nullptr) return -11;
  const std::unique_ptr<nvinfer1::IPluginV3> cloned(loaded->clone());
  const std::unique_ptr<nvinfer1::IPluginV3> attached(
      capability<nvinfer1::IPluginV3OneRuntime>(*cloned, Kind::kRUNTIME)->attachToContext(nullptr));
  auto* runtime = capability<nvinfer1::IPluginV3OneRuntime>(*attached, Kind::kRUNTIME);

  const DataType types[] = {DataType::kHALF, DataType::kBF16, DataType::kFLOAT};
  DataType output_types[2];
  if (build->getOutputDataTypes(output_types, 2, &types[p->dtype], 1) != 0) return -12;
  if (output_types[0] != DataType::kFLOAT || output_types[1] != DataType::kINT64) return -13;
  const PluginTensorDesc tokens = desc({p->token_count, p->dim}, types[p->dtype]);
  const PluginTensorDesc outputs[] = {desc({p->token_count}, DataType::kFLOAT),
                                      desc({p->token_count}, DataType::kINT64)};
  DynamicPluginTensorDesc dynamic{tokens, tokens.dims, tokens.dims, tokens.dims};
  dynamic.max.d[0] = most_tokens;
  const DynamicPluginTensorDesc dynamic_outputs[] = {{outputs[0], outputs[0].dims, outputs[0].dims, outputs[0].dims},
                                                     {outputs[1], outputs[1].dims, outputs[1].dims, outputs[1].dims}};
  for (int position = 0; position < 3; ++position) {
    const DynamicPluginTensorDesc all[] = {dynamic, dynamic_outputs[0], dynamic_outputs[1]};
    if (!build->supportsFormatCombination(position, all, 1, 2)) return -14;
  }
  int32_t status = build->configurePlugin(&dynamic, 1, dynamic_outputs, 2);
  if (status == 0) status = runtime->onShapeChange(&tokens, 1, outputs, 2);
  if (status != 0) return status;
  const size_t bytes = build->getWorkspaceSize(&dynamic, 1, dynamic_outputs, 2);
  const std::unique_ptr<void, decltype(&std::free)> workspace(std::aligned_alloc(256, bytes), std::free);
  const void* inputs[] = {p->tokens};
  void* results[] = {p->sharing_score, p->labels};
  return runtime->enqueue(&tokens, outputs, inputs, results, workspace.get(), nullptr);
}
