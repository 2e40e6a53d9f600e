#include "logging.h"

#include <cxxabi.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <typeinfo>

namespace va_export {
using Severity = nvinfer1::ILogger::Severity;

// ILogger and ILoggerFinder have two binary layouts: in TensorRT 10 they are roots, in TensorRT-RTX 1.7 they derive
// from IVersionedInterface, whose functions come first. A call by the wrong layout calls another function, so these
// mirrors of both are used in place of the classes in the headers, and the object's own type says which. The mirrors
// must be visible outside this file: where the compiler sees that nobody implements them, it compiles the calls away.
struct PlainLogger {
  virtual void log(Severity severity, const char* message) noexcept = 0;

 protected:
  ~PlainLogger() = default;
};
struct VersionedLogger : nvinfer1::IVersionedInterface {
  virtual void log(Severity severity, const char* message) noexcept = 0;
};
struct PlainFinder {
  virtual void* findLogger() = 0;

 protected:
  ~PlainFinder() = default;
};
struct VersionedFinder : nvinfer1::IVersionedInterface {
  virtual void* findLogger() = 0;
};

namespace {

bool derives_from_versioned_interface(const std::type_info* type) {
  if (std::strcmp(type->name(), typeid(nvinfer1::IVersionedInterface).name()) == 0) return true;
  if (const auto* single = dynamic_cast<const abi::__si_class_type_info*>(type)) {
    return derives_from_versioned_interface(single->__base_type);
  }
  // Several bases: the first one shares the object's address and table of functions.
  const auto* several = dynamic_cast<const abi::__vmi_class_type_info*>(type);
  return several != nullptr && derives_from_versioned_interface(several->__base_info[0].__base_type);
}

bool is_versioned(void* object) {
  return derives_from_versioned_interface(&typeid(*static_cast<PlainLogger*>(object)));
}

std::atomic<void*> logger_finder{nullptr};

void* find_logger() {
  void* finder = logger_finder;
  if (finder == nullptr) return nullptr;
  return is_versioned(finder) ? static_cast<VersionedFinder*>(finder)->findLogger()
                              : static_cast<PlainFinder*>(finder)->findLogger();
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) {
  logger_finder = finder;
}

void log_error(const char* op, const std::string& node, const std::string& reason) {
  const std::string message = std::string(op) + " (node '" + node + "'): " + reason;
  void* logger = find_logger();
  if (logger == nullptr) {
    std::fprintf(stderr, "[va_plugins] %s\n", message.c_str());
  } else if (is_versioned(logger)) {
    static_cast<VersionedLogger*>(logger)->log(Severity::kERROR, message.c_str());
  } else {
    static_cast<PlainLogger*>(logger)->log(Severity::kERROR, message.c_str());
  }
}

}  // namespace va_export
