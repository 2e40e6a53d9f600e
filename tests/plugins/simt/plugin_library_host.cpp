// A plugin library with AnchoredAttention alone, to be linked with its kernels compiled for the CPU: the same plugin
// object behind the symbols of TensorRT's plugin library protocol, as library.cpp has them.
#include "anchored_attention/plugin.h"
#include "common/logging.h"

extern "C" VA_EXPORT_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static va_export::AnchoredAttentionCreator anchored_attention;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&anchored_attention};
  count = 1;
  return creators;
}

extern "C" VA_EXPORT_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  va_export::set_logger_finder(finder);
}
