#include "logging.h"

#include <atomic>
#include <cstdio>

namespace va_export {
namespace {
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};
}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) {
  logger_finder = finder;
}

void log_error(const char* op, const std::string& node, const std::string& reason) {
  const std::string message = std::string(op) + " (node '" + node + "'): " + reason;
  nvinfer1::ILoggerFinder* finder = logger_finder;
  nvinfer1::ILogger* logger = finder == nullptr ? nullptr : finder->findLogger();
  if (logger != nullptr) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
  } else {
    std::fprintf(stderr, "[va_plugins] %s\n", message.c_str());
  }
}

}  // namespace va_export
