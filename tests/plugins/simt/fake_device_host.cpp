// A whole libva_plugins.so for the CPU, as the self-test sees it: the kernels' own sources in the emulation, an
// emulated GPU, and faults on demand.
//
// VA_FAKE_FAULT="KERNEL FAULT,…", such as "prefill/mma_sync hang", gives kernels a fault; they are named as in
// plugins/kernel_table. VA_FAKE_ARCHITECTURE=90 makes it a Hopper. Faults: element (one number is wrong), shape (so at
// q_len 128 alone), outside (it writes behind its output), flicker (not the same twice), stale (a graph keeps the
// kv_length that it was captured with), refuse (its launch fails), hang, crash, slow. The clock goes by kernel, not by
// time: simple 10 ms a launch, mma_sync 5, the best 3; slow ones 9.8.
#include "device_runtime.h"

#include <dlfcn.h>
#include <unistd.h>

#include <map>
#include <string>

#include "anchored_attention/anchored_attention.h"
#include "device/device.cpp"
#include "kernel_table/kernel_table.h"
#include "subspace_score/subspace_score.h"

namespace {

// ATTENTION_LIBRARY and SCORE_LIBRARY, paths, come with the compiler's command.
void* open_library(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) std::fprintf(stderr, "%s\n", dlerror());
  return library;
}

void* open_attention() {
  void* library = open_library(ATTENTION_LIBRARY);
  if (const char* architecture = std::getenv("VA_FAKE_ARCHITECTURE")) simt::gpu.architecture = std::atoi(architecture);
  const auto set_gpu = reinterpret_cast<void (*)(int, int, int)>(dlsym(library, "simt_set_gpu"));
  set_gpu(simt::gpu.architecture, simt::gpu.sm_count, simt::gpu.cache_bytes);
  return library;
}

void* library_of(const char* op) {
  static void* const attention = open_attention();
  static void* const score = open_library(SCORE_LIBRARY);
  return std::strcmp(op, "subspace_score") == 0 ? score : attention;
}

template <typename Function>
Function* real(Function*, const char* op, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library_of(op), name));
}
#define REAL(op, name) real(&name, op, #name)

const char* const kAttention = "anchored_attention";
const char* const kScore = "subspace_score";

// "prefill/mma_sync", and its fault or "".
struct Kernel {
  std::string name, fault;

  Kernel(const char* op, const char* phase) {
    const char* kernel = va_kernels_selected(0, op, phase);
    name = std::string(phase) + "/" + (kernel == nullptr ? "?" : kernel);
    const char* given = std::getenv("VA_FAKE_FAULT");
    const std::string text = "," + std::string(given == nullptr ? "" : given) + ",", prefix = "," + name + " ";
    const size_t begin = text.find(prefix);
    if (begin == std::string::npos) return;
    fault = text.substr(begin + prefix.size());
    fault.resize(fault.find(','));
  }

  double milliseconds() const {
    if (fault == "slow") return 9.8;
    if (name.find("/simple") != std::string::npos) return 10;
    return name.find("/mma_sync") != std::string::npos ? 5 : 3;
  }

  void fail_as_asked() const {
    if (fault == "hang") ::pause();
    if (fault == "crash") std::abort();
  }
};

int flickers = 0;

void spoil(const Kernel& kernel, const VaAnchoredAttentionParams& p) {
  auto* out = static_cast<uint16_t*>(p.out);  // strides of out say where its last element is
  const int64_t last = (p.batch - 1) * p.out_strides.batch + (p.query_heads - 1) * p.out_strides.head +
                       (p.q_len - 1) * p.out_strides.position + p.value_head_dim - 1;
  const bool is_wrong = kernel.fault == "element" || (kernel.fault == "shape" && p.q_len == 128) ||
                        (kernel.fault == "flicker" && ++flickers % 7 == 0);
  if (is_wrong) out[last] ^= kernel.fault == "flicker" ? 1 : 0x0200;  // a bit of 16-bit floats
  if (kernel.fault == "outside") out[last + 1] = 0;
}

}  // namespace

extern "C" VA_EXPORT_API const char* va_kernels_name(int device, const char* op, const char* phase, int index) {
  return REAL(op, va_kernels_name)(device, op, phase, index);
}

extern "C" VA_EXPORT_API cudaError_t va_kernels_select(int device, const char* op, const char* phase,
                                                       const char* kernel) {
  return REAL(op, va_kernels_select)(device, op, phase, kernel);
}

extern "C" VA_EXPORT_API const char* va_kernels_selected(int device, const char* op, const char* phase) {
  return REAL(op, va_kernels_selected)(device, op, phase);
}

extern "C" VA_EXPORT_API const char* va_plugins_contract() {
  return "{}";
}

extern "C" VA_EXPORT_API const char* va_plugins_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

extern "C" VA_EXPORT_API size_t va_anchored_attention_workspace_bytes(const VaAnchoredAttentionParams* params) {
  return REAL(kAttention, va_anchored_attention_workspace_bytes)(params);
}

extern "C" VA_EXPORT_API cudaError_t va_anchored_attention_launch(const VaAnchoredAttentionParams* params,
                                                                  cudaStream_t stream) {
  const Kernel kernel(kAttention, params->q_len > 16 ? "prefill" : "decode");
  kernel.fail_as_asked();
  if (kernel.fault == "refuse") return cudaErrorInvalidValue;
  const VaAnchoredAttentionParams p = *params;
  const std::vector<int64_t> queued(p.kv_length, p.kv_length + p.batch);
  return simt::run([=] {
    VaAnchoredAttentionParams now = p;
    if (kernel.fault == "stale") now.kv_length = queued.data();
    const cudaError_t error = REAL(kAttention, va_anchored_attention_launch)(&now, stream);
    spoil(kernel, now);
    simt::milliseconds += kernel.milliseconds();
    return error;
  });
}

extern "C" VA_EXPORT_API size_t va_subspace_score_workspace_bytes(const VaSubspaceScoreParams* params) {
  return REAL(kScore, va_subspace_score_workspace_bytes)(params);
}

extern "C" VA_EXPORT_API cudaError_t va_subspace_score_launch(const VaSubspaceScoreParams* params,
                                                              cudaStream_t stream) {
  const Kernel kernel(kScore, "products");
  kernel.fail_as_asked();
  const VaSubspaceScoreParams p = *params;
  return simt::run([=] {
    // The emulation takes a second for what a GPU does in a millisecond: what it worked out once is remembered.
    const char* tokens = static_cast<const char*>(p.tokens);
    const std::string key =
        kernel.name + std::string(tokens, static_cast<size_t>(p.token_count * p.dim) * sizeof(float));
    const size_t score_bytes = static_cast<size_t>(p.token_count) * sizeof(float);
    static std::map<std::string, std::pair<std::string, VaSubspaceScoreReport>> known;
    if (known.count(key) == 0) {
      const cudaError_t error = REAL(kScore, va_subspace_score_launch)(&p, stream);
      if (error != cudaSuccess) return error;
      known[key] = {std::string(reinterpret_cast<const char*>(p.sharing_score), score_bytes), *p.report};
    }
    std::memcpy(p.sharing_score, known[key].first.data(), score_bytes);
    *p.report = known[key].second;
    if (kernel.fault == "element") p.sharing_score[p.token_count - 1] += 0.01f;
    simt::milliseconds += kernel.milliseconds();
    return cudaSuccess;
  });
}
