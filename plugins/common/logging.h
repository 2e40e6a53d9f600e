// Messages to TensorRT's logger, found through the finder that TensorRT hands to a plugin library when it
// loads it.
#pragma once

#include <string>

#include "NvInferRuntime.h"

namespace va_export {

void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// Logs "<op> (node '<node>'): <reason>" as an error; to stderr where no logger is to be found.
void log_error(const char* op, const std::string& node, const std::string& reason);

}  // namespace va_export
