#include "kernel_table.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace va_export {
namespace {

constexpr int kMostDevices = 64;  // more than a machine has; GPUs beyond are refused
constexpr int kMostKernels = 3;

struct Row {
  const char* op;
  const char* phase;
  const char* variable;
  const char* kernels[kMostKernels];  // that the environment may name
  int everywhere;                     // so many of them run on every GPU
  int on_hopper;                      // and so many on compute capability 9.0
};

#ifdef VA_EXPORT_HAS_HOPPER
constexpr int kPrefillOnHopper = 3;
#else
constexpr int kPrefillOnHopper = 2;
#endif

// In the order of Phase.
constexpr Row kRows[] = {
    {"anchored_attention",
     "prefill",
     "VA_EXPORT_ATTENTION_KERNEL",
     {"simple", "mma_sync", "tensor_core"},
     2,
     kPrefillOnHopper},
    {"anchored_attention", "decode", "VA_EXPORT_ATTENTION_KERNEL", {"simple", "mma_sync", "tensor_core"}, 2, 2},
    {"subspace_score", "products", "VA_EXPORT_SCORE_PRODUCTS", {"simple", "tensor_core", nullptr}, 2, 2}};
constexpr int kRowCount = sizeof(kRows) / sizeof(kRows[0]);

std::atomic<int> selected[kMostDevices][kRowCount];  // zero: simple

int find_row(const char* op, const char* phase) {
  if (op == nullptr || phase == nullptr) return -1;
  for (int i = 0; i < kRowCount; ++i) {
    if (std::strcmp(kRows[i].op, op) == 0 && std::strcmp(kRows[i].phase, phase) == 0) return i;
  }
  return -1;
}

int find_kernel(const Row& row, const char* name) {
  for (int i = 0; name != nullptr && i < kMostKernels && row.kernels[i] != nullptr; ++i) {
    if (std::strcmp(row.kernels[i], name) == 0) return i;
  }
  return -1;
}

cudaError_t count_kernels(const Row& row, int device, int* count) {
  int major = 0, minor = 0;
  if (device < 0 || device >= kMostDevices) return cudaErrorInvalidValue;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  *count = major == 9 && minor == 0 ? row.on_hopper : row.everywhere;
  return error;
}

// -1: the environment names no kernel.
int kernel_of(int row, int device) {
  const char* name = std::getenv(kRows[row].variable);
  if (name != nullptr && *name != '\0') return find_kernel(kRows[row], name);
  return selected[device][row].load(std::memory_order_relaxed);
}

}  // namespace

cudaError_t read_kernel(Phase phase, int* kernel) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  *kernel = device < kMostDevices ? kernel_of(static_cast<int>(phase), device) : 0;
  return *kernel < 0 ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace va_export

extern "C" const char* va_kernels_name(int device, const char* op, const char* phase, int index) {
  using namespace va_export;
  const int row = find_row(op, phase);
  int count = 0;
  if (row < 0 || count_kernels(kRows[row], device, &count) != cudaSuccess) return nullptr;
  return index >= 0 && index < count ? kRows[row].kernels[index] : nullptr;
}

extern "C" cudaError_t va_kernels_select(int device, const char* op, const char* phase, const char* kernel) {
  using namespace va_export;
  const int row = find_row(op, phase);
  const int found = row < 0 ? -1 : find_kernel(kRows[row], kernel);
  if (found < 0) return cudaErrorInvalidValue;
  int count = 0;
  const cudaError_t error = count_kernels(kRows[row], device, &count);
  if (error != cudaSuccess) return error;
  if (found >= count) return cudaErrorNotSupported;
  selected[device][row].store(found, std::memory_order_relaxed);
  return cudaSuccess;
}

extern "C" const char* va_kernels_selected(int device, const char* op, const char* phase) {
  using namespace va_export;
  const int row = find_row(op, phase);
  int count = 0;
  if (row < 0 || count_kernels(kRows[row], device, &count) != cudaSuccess) return nullptr;
  const int kernel = kernel_of(row, device);
  if (kernel < 0) return nullptr;
  return kRows[row].kernels[kernel < count ? kernel : count - 1];
}
