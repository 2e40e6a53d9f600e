// AnchoredAttention: checks the parameters, picks the instance of the kernel and launches it.
#include "anchored_attention.h"

#include <cuda_runtime.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "hopper_launch.h"
#include "kernel.cuh"
#include "mma_launch.h"
#include "mma_limits.h"

namespace va_export {
namespace {

constexpr int64_t kMaxGridYZ = 65535;
constexpr int64_t kMaxRows = INT32_MAX - kTileRows;  // positions and packed rows are counted in int32
constexpr size_t kDefaultSharedBytes = 48 * 1024;    // more must be asked for, function by function

bool in_range(int64_t x, int64_t low, int64_t high) {
  return low <= x && x <= high;
}

bool is_valid(const VaAnchoredAttentionParams& p) {
  const bool pointers = p.query && p.key && p.value && p.key_log_gain && p.value_gain && p.out;
  const bool sizes = in_range(p.batch, 1, kMaxGridYZ) && in_range(p.kv_heads, 1, kMaxGridYZ) &&
                     in_range(p.query_heads, 1, kMaxRows) && p.query_heads % p.kv_heads == 0 &&
                     in_range(p.q_len, 1, kMaxRows) && in_range(p.kv_len, 1, kMaxRows) &&
                     p.q_len * (p.query_heads / p.kv_heads) <= kMaxRows &&
                     in_range(p.head_dim, 1, VA_ANCHORED_ATTENTION_MAX_HEAD_DIM) &&
                     in_range(p.value_head_dim, 1, VA_ANCHORED_ATTENTION_MAX_HEAD_DIM);
  return pointers && sizes && std::isfinite(p.scale) && p.scale > 0.0f;
}

enum class KernelChoice { kSimple, kMmaSync, kTensorCore };

// The tensor-core kernels have been run by the emulator of the tests and by no GPU yet, so they are asked for by name.
// VA_EXPORT_ATTENTION_KERNEL=tensor_core takes the best that there is for the GPU, mma_sync the one for all GPUs. When
// engines/evidence shows them right and fast, they become the default.
KernelChoice kernel_choice() {
  const char* kernel = std::getenv("VA_EXPORT_ATTENTION_KERNEL");
  if (kernel != nullptr && std::strcmp(kernel, "tensor_core") == 0) return KernelChoice::kTensorCore;
  if (kernel != nullptr && std::strcmp(kernel, "mma_sync") == 0) return KernelChoice::kMmaSync;
  return KernelChoice::kSimple;
}

using Launch = cudaError_t (*)(const VaAnchoredAttentionParams&, cudaStream_t);

// One element type's kernels. `hopper` is nullptr in a library without code for sm_90a.
cudaError_t launch_best(const VaAnchoredAttentionParams& p, cudaStream_t stream, Launch hopper, Launch mma,
                        Launch simple) {
  const KernelChoice choice = mma_serves(p) ? kernel_choice() : KernelChoice::kSimple;
  if (choice == KernelChoice::kTensorCore && hopper != nullptr && hopper_serves(p)) {
    const cudaError_t error = hopper(p, stream);
    if (error != cudaErrorNotSupported) return error;
  }
  return choice == KernelChoice::kSimple ? simple(p, stream) : mma(p, stream);
}

#ifdef VA_EXPORT_HAS_HOPPER
constexpr Launch kHopperFloat16 = launch_hopper_float16, kHopperBfloat16 = launch_hopper_bfloat16;
#else
constexpr Launch kHopperFloat16 = nullptr, kHopperBfloat16 = nullptr;
#endif

template <typename T, int kChannelGroups>
cudaError_t launch(const VaAnchoredAttentionParams& p, cudaStream_t stream) {
  auto* kernel = anchored_attention_kernel<T, kChannelGroups>;
  const SharedLayout layout(static_cast<int>(p.head_dim), kChannelGroups * kWarpSize);
  const size_t shared_bytes = layout.total * sizeof(float);
  if (shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  const int64_t rows = p.q_len * (p.query_heads / p.kv_heads);
  const dim3 grid(static_cast<unsigned>((rows + kTileRows - 1) / kTileRows), static_cast<unsigned>(p.kv_heads),
                  static_cast<unsigned>(p.batch));
  VaAnchoredAttentionParams argument = p;
  void* arguments[] = {&argument};
  return cudaLaunchKernel(kernel, grid, dim3(kWarps * kWarpSize), arguments, shared_bytes, stream);
}

template <typename T>
cudaError_t launch_for_channels(const VaAnchoredAttentionParams& p, cudaStream_t stream) {
  if (p.value_head_dim <= 64) return launch<T, 2>(p, stream);
  if (p.value_head_dim <= 128) return launch<T, 4>(p, stream);
  return launch<T, 8>(p, stream);
}

}  // namespace
}  // namespace va_export

extern "C" size_t va_anchored_attention_workspace_bytes(const VaAnchoredAttentionParams* params) {
  const bool is_known = params != nullptr && params->struct_bytes == sizeof(*params);
  return is_known ? va_export::mma_workspace_bytes(*params) : 0;
}

extern "C" cudaError_t va_anchored_attention_launch(const VaAnchoredAttentionParams* params, cudaStream_t stream) {
  if (params == nullptr || params->struct_bytes != sizeof(*params) || !va_export::is_valid(*params)) {
    return cudaErrorInvalidValue;
  }
  using namespace va_export;
  switch (params->dtype) {
    case VA_FLOAT16:
      return launch_best(*params, stream, kHopperFloat16, launch_mma_float16, launch_for_channels<__half>);
    case VA_BFLOAT16:
      return launch_best(*params, stream, kHopperBfloat16, launch_mma_bfloat16, launch_for_channels<__nv_bfloat16>);
    case VA_FLOAT32:
      return launch_for_channels<float>(*params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}
