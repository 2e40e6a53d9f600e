// SubspaceScore: checks the parameters and launches the five kernels.
#include "subspace_score.h"

#include <cuda_runtime.h>

#include <cmath>
#include <random>

#include "cluster.cuh"
#include "kernel_table/kernel_table.h"

namespace va_export {
namespace {

constexpr size_t kSharedBytes = 48 * 1024;  // what every architecture gives without asking

static_assert(ThinForm<PlainThinProducts>::kSharedBytes <= kSharedBytes, "the thin form's three tiles");
static_assert(kThreads * kPer * sizeof(float) <= kSharedBytes, "the sums of a tile's columns");
static_assert(TileShape<double>::kBytes <= kSharedBytes && TileShape<float>::kBytes <= kSharedBytes, "a product");
static_assert(kTile * (kTile + 1) * sizeof(double) <= kSharedBytes, "a diagonal tile of the system");
static_assert((kMostBlock + kThreads) * sizeof(double) <= kSharedBytes, "Jacobi's angles and sums");
static_assert(VA_SUBSPACE_SCORE_MAX_PCA_RANK + 16 <= kMostBlock, "PCA's vectors");

bool in_range(double x, double low, double high) {
  return low <= x && x <= high;  // false for NaN
}

bool has_valid_sizes(const VaSubspaceScoreParams& p) {
  const int64_t least = p.n_subspaces > 2 ? p.n_subspaces : 2;
  const int64_t narrowest = p.token_count < p.dim ? p.token_count : p.dim;
  return p.token_count >= least && p.token_count <= VA_SUBSPACE_SCORE_MAX_TOKENS && p.dim >= 1 &&
         p.dim <= VA_SUBSPACE_SCORE_MAX_DIM && p.n_subspaces >= 1 && p.n_subspaces <= VA_SUBSPACE_SCORE_MAX_SUBSPACES &&
         p.pca_rank >= 0 && p.pca_rank <= narrowest && p.pca_rank <= VA_SUBSPACE_SCORE_MAX_PCA_RANK;
}

bool is_valid(const VaSubspaceScoreParams& p) {
  const bool pointers = p.tokens && p.sharing_score && p.labels && p.workspace;
  const bool aligned = reinterpret_cast<uintptr_t>(p.workspace) % 256 == 0;
  const bool settings = in_range(p.rho, 1e-20f, 1e20f) && in_range(p.alpha_e, 1e-20f, 1e20f) &&
                        in_range(p.alpha_z, 1e-20f, 1e20f) && std::isfinite(p.eps) && p.eps > 0.0f && p.max_iter >= 1;
  const bool has_type = p.dtype >= VA_SCORE_FLOAT16 && p.dtype <= VA_SCORE_FLOAT32;
  return pointers && aligned && settings && has_type && has_valid_sizes(p);
}

// The token from which scikit-learn's discretisation starts with random_state=0: after it drew N numbers for its
// eigensolver, one below N, from NumPy's legacy generator.
int discretisation_start(int tokens) {
  std::mt19937 random(0);
  random.discard(2ull * static_cast<unsigned long long>(tokens));  // a double takes two draws
  const unsigned most = static_cast<unsigned>(tokens) - 1;
  unsigned mask = most;
  for (int shift = 1; shift < 32; shift *= 2) mask |= mask >> shift;
  if (most == 0) return 0;
  while (true) {
    const unsigned drawn = static_cast<unsigned>(random()) & mask;
    if (drawn <= most) return static_cast<int>(drawn);
  }
}

// What a launch with exactly these sizes needs.
size_t workspace_bytes(VaSubspaceScoreParams sizes) {
  sizes.workspace = nullptr;
  return Workspace(sizes, Shape(sizes)).bytes;
}

// All blocks of a cooperative launch run at once: as many as fit, and no more than there is work for.
template <typename Argument>
cudaError_t launch(void (*kernel)(Argument), Argument argument, int useful_blocks, cudaStream_t stream,
                   size_t shared_bytes = kSharedBytes) {
  int device = 0, is_cooperative = 0, processors = 0, each = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess && shared_bytes > kSharedBytes) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&is_cooperative, cudaDevAttrCooperativeLaunch, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kThreads, shared_bytes);
  }
  if (error != cudaSuccess) return error;
  if (!is_cooperative || each < 1) return cudaErrorNotSupported;
  const int most = each * processors, blocks = useful_blocks < most ? useful_blocks : most;
  void* arguments[] = {&argument};
  return cudaLaunchCooperativeKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), arguments,
                                     shared_bytes, stream);
}

cudaError_t launch_load(const VaSubspaceScoreParams& p, int blocks, cudaStream_t stream) {
  switch (p.dtype) {
    case VA_SCORE_FLOAT16:
      return launch(load_kernel<__half>, p, blocks, stream);
    case VA_SCORE_BFLOAT16:
      return launch(load_kernel<__nv_bfloat16>, p, blocks, stream);
    default:
      return launch(load_kernel<float>, p, blocks, stream);
  }
}

template <typename Form>
cudaError_t launch_form(const VaSubspaceScoreParams& p, int blocks, cudaStream_t stream) {
  constexpr size_t kBytes = Form::kSharedBytes > kSharedBytes ? Form::kSharedBytes : kSharedBytes;
  return launch(solve_kernel<Form>, p, blocks, stream, kBytes);
}

cudaError_t launch_solver(const VaSubspaceScoreParams& p, bool is_gram, int blocks, cudaStream_t stream) {
  int products = kSimpleProducts;
  const cudaError_t error = read_kernel(Phase::kProducts, &products);
  if (error != cudaSuccess) return error;
  const bool on_tensor_cores = products == kTensorCoreProducts;
  if (is_gram) {
    return on_tensor_cores ? launch_form<GramForm<TensorProduct>>(p, blocks, stream)
                           : launch_form<GramForm<PlainProduct>>(p, blocks, stream);
  }
  return on_tensor_cores ? launch_form<ThinForm<TensorThinProducts>>(p, blocks, stream)
                         : launch_form<ThinForm<PlainThinProducts>>(p, blocks, stream);
}

}  // namespace
}  // namespace va_export

extern "C" size_t va_subspace_score_workspace_bytes(const VaSubspaceScoreParams* params) {
  if (params == nullptr || params->struct_bytes != sizeof(*params) || !va_export::has_valid_sizes(*params)) return 0;
  // Fewer tokens can need more, where the solver takes the Gram form; it changes its mind between two token counts, and
  // within a tile of tokens the first count is the one that tends to Gram, the last the one that has the most of all
  // else.
  size_t most = va_export::workspace_bytes(*params);
  const int64_t least = params->n_subspaces > 2 ? params->n_subspaces : 2;
  VaSubspaceScoreParams sizes = *params;
  for (int64_t tile = 0; tile < params->token_count; tile += va_export::kTile) {
    for (const int64_t count : {tile + 1, tile + va_export::kTile}) {
      sizes.token_count = count;
      if (count < least || count < params->pca_rank || count > params->token_count) continue;
      const size_t bytes = va_export::workspace_bytes(sizes);
      most = bytes > most ? bytes : most;
    }
  }
  return most;
}

extern "C" cudaError_t va_subspace_score_launch(const VaSubspaceScoreParams* params, cudaStream_t stream) {
  using namespace va_export;
  if (params == nullptr || params->struct_bytes != sizeof(*params) || !is_valid(*params) ||
      params->workspace_bytes < workspace_bytes(*params)) {
    return cudaErrorInvalidValue;
  }
  const VaSubspaceScoreParams& p = *params;
  const Shape shape(p);
  const int tiles = shape.tiles * shape.tiles, chunks = shape.f / kTile * shape.tiles;
  const int useful = tiles > chunks ? tiles : chunks;
  cudaError_t error = cudaMemsetAsync(p.workspace, 0, sizeof(Control), stream);
  if (error == cudaSuccess) error = launch_load(p, useful, stream);
  if (error == cudaSuccess) error = launch(prepare_kernel, p, useful, stream);
  if (error == cudaSuccess) error = launch(factor_kernel, p, useful, stream);
  if (error == cudaSuccess) error = launch_solver(p, shape.is_gram, useful, stream);
  if (error == cudaSuccess) {
    error = launch(cluster_kernel, ClusterArguments{p, discretisation_start(shape.tokens)}, useful, stream);
  }
  return error;
}
