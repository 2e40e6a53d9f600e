// What libva_plugins.so exports beside the kernels' C functions: TensorRT's plugin library protocol, and the
// contract.
#include <cuda_runtime_api.h>

#include <string>

#include "NvInferRuntime.h"
#include "NvInferVersion.h"
#include "anchored_attention/contract.h"
#include "anchored_attention/plugin.h"
#include "common/logging.h"
#include "subspace_score/contract.h"
#include "subspace_score/plugin.h"

// Given by CMakeLists.txt: VA_EXPORT_VERSION, VA_EXPORT_CUDA_ARCHS (a JSON list of CMake's names: "80-real",
// ...).

namespace {

std::string contract_json() {
  const std::string headers = std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + "." +
                              std::to_string(NV_TENSORRT_PATCH);
  const std::string cuda = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  return std::string("{\"library_version\": \"" VA_EXPORT_VERSION "\", ") + "\"cuda_version\": \"" + cuda +
         "\", \"cuda_archs\": " VA_EXPORT_CUDA_ARCHS ", \"tensorrt_headers\": \"" + headers + "\", \"ops\": [" +
         va_export::to_json(va_export::anchored_attention_contract()) + ", " +
         va_export::to_json(va_export::subspace_score_contract()) + "]}";
}

}  // namespace

// TensorRT calls these two when it loads the library (IPluginRegistry::loadLibrary).
extern "C" VA_EXPORT_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static va_export::AnchoredAttentionCreator anchored_attention;
  static va_export::SubspaceScoreCreator subspace_score;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&anchored_attention, &subspace_score};
  count = sizeof(creators) / sizeof(creators[0]);
  return creators;
}

extern "C" VA_EXPORT_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  va_export::set_logger_finder(finder);
}

// The library and its ops as JSON; the text belongs to the library.
extern "C" VA_EXPORT_API const char* va_plugins_contract() {
  static const std::string text = contract_json();
  return text.c_str();
}

// CUDA's own words for a cudaError_t that a launch returned.
extern "C" VA_EXPORT_API const char* va_plugins_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
