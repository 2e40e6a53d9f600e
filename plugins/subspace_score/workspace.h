// Where everything lies in the workspace: computed by host and device alike from the sizes.
//
// Matrices are row-major with rows padded to kTile elements, and padded to kTile rows; what is in the padding is zero
// unless said otherwise. "Features first" means (features, tokens): neighbours in memory are tokens.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "subspace_score.h"

namespace va_export {

constexpr int kTile = 64;
constexpr int kMostStrips = 8;
constexpr int kFewestColumns = 16;  // of a panel
constexpr int kKernels = 5;
constexpr int kMomentStrip = 256;  // tokens whose products the eigensolver sums in one go

// State that kernels share, cleared before the first.
struct Control {
  unsigned barrier[kKernels];  // arrivals, one counter a kernel
  int status;                  // VaSubspaceScoreStatus
  int iterations;
  int final_buffer;  // 1: the solver's last state is in `other_state`
  float residual;
  int not_finite;
  unsigned magnitude;  // largest |token|, as the bits of a float
  unsigned apart;      // largest |token - first token|, likewise
  int exponent;        // tokens are divided by 2^exponent
  double lambda_e, lambda_z;
  unsigned longest_row;                       // bits of a bound on the norms of the rows of sqrt(lambda_z) Y; Gram form
  int panels_left_out;                        // of products with Y, in all iterations; Gram form
  int eigen_steps[2];                         // outer steps that PCA and the clustering took
  int has_affinity;                           // some token expresses another
  int is_discrete;                            // the labels are final
  double cut;                                 // as Yu and Shi's iteration last had it
  int size[VA_SUBSPACE_SCORE_MAX_SUBSPACES];  // tokens of each subspace
};

__host__ __device__ inline int round_up(int64_t x, int unit) {
  return static_cast<int>((x + unit - 1) / unit * unit);
}

// Sizes that follow from the parameters.
struct Shape {
  int tokens, dim, features;  // features: after PCA
  int n, d, f;                // the same, padded to kTile
  int tiles;                  // n / kTile
  bool has_pca, is_gram;      // is_gram: the solver works on (tokens, tokens) Gram matrices, not on (features, tokens)
  int strips;                 // of rows, into which the thin solver divides a panel of columns
  int pca_size, pca_block;    // order of the Gram matrix of PCA; vectors that are iterated
  int cluster_block;
  size_t cluster_pitch;  // of the clustering's small matrices

  __host__ __device__ explicit Shape(const VaSubspaceScoreParams& p) {
    tokens = static_cast<int>(p.token_count);
    dim = static_cast<int>(p.dim);
    has_pca = p.pca_rank > 0;
    features = has_pca ? p.pca_rank : dim;
    n = round_up(tokens, kTile);
    d = round_up(dim, kTile);
    f = round_up(features, kTile);
    tiles = n / kTile;
    is_gram = 2 * features > tokens;  // then a product with it costs less than the two thin ones
    const int wanted = (512 + tiles - 1) / tiles;
    strips = wanted < 1 ? 1 : (wanted > kMostStrips ? kMostStrips : wanted);
    if (strips > tiles) strips = tiles;
    const int per_strip = (tiles + strips - 1) / strips;
    strips = (tiles + per_strip - 1) / per_strip;  // none is empty
    pca_size = has_pca ? (dim < tokens ? dim : tokens) : 0;
    pca_block = block_for(p.pca_rank, pca_size);
    cluster_block = block_for(p.n_subspaces, tokens);
    cluster_pitch = static_cast<size_t>(round_up(cluster_block, kTile));
  }

  // More vectors than wanted, for convergence is the faster the farther the first unwanted one is.
  __host__ __device__ static int block_for(int wanted, int size) {
    const int block = wanted + 16;
    return block < size ? block : size;
  }
};

// Scratch of the eigensolver: see eigen.cuh.
struct EigenBuffers {
  double* basis;     // (3, block, size)
  double* moments;   // (strips, 2, block, block)
  double* small;     // (5, block, block)
  double* theta;     // (block,)
  double* residual;  // (tiles of size, block)
};

class Workspace {
 public:
  Control* control;
  float* tokens;   // (d, n): scaled, features first
  float* y;        // (f, n): what the solver sees; `tokens` itself without PCA
  double* mean;    // (d,)
  float* norm;     // (n,), L1
  float* length;   // (n,), L2
  float* partial;  // (3, tiles, n): sums or maxima over tiles, of rows or columns
  float* slots;    // (tiles,)
  float* state;    // (n, n): X, later the affinity
  float* other_state;

  double* gram;  // PCA's (pca_size, pca_size)
  EigenBuffers pca;

  double *system, *inverse;     // of the order f (thin) or n (Gram): the matrix, then its Cholesky factor; its inverse
  double *linear, *lambda_sum;  // (f,): l_1; sums of the features
  float *factor, *direction, *error, *partial_product, *column_sum;
  float *error_0, *direction_0, *coupling;            // (n,), (n,), (f,)
  int* has_error;                                     // (f / kTile, n / kFewestColumns), or less of it
  float *projector, *remainder, *error_map, *affine;  // Gram form
  float *reference, *squares, *distances, *largest;   // (n, n), (tiles, n) twice, (2, f / kTile, tiles)

  EigenBuffers cluster;
  double *row_sum, *degree;    // (n,)
  double* embedding;           // (n_subspaces padded, n)
  double *rotation, *overlap;  // (k, k); (tiles, k, k)
  double *likeness, *best;     // (n,); (tiles,)
  int* best_row;
  int* label;  // (n,)

  size_t bytes = 0;

  __host__ __device__ Workspace(const VaSubspaceScoreParams& p, const Shape& s)
      : base_(static_cast<char*>(p.workspace)) {
    const size_t n = s.n, f = s.f, nn = n * n, fn = f * n;
    control = take<Control>(1);
    tokens = take<float>(static_cast<size_t>(s.d) * n);
    y = s.has_pca ? take<float>(fn) : tokens;
    norm = take<float>(n);
    length = take<float>(n);
    partial = take<float>(3 * s.tiles * n);
    slots = take<float>(s.tiles);
    state = take<float>(nn);
    other_state = s.is_gram ? take<float>(nn) : nullptr;
    const size_t common = bytes;

    mean = take<double>(s.d);
    gram = take<double>(static_cast<size_t>(round_up(s.pca_size, kTile)) * round_up(s.pca_size, kTile));
    take_eigen(&pca, s.pca_block, s.pca_size);
    size_t most = bytes;

    bytes = common;
    const size_t order = s.is_gram ? n : f;
    system = take<double>(order * order);
    inverse = take<double>(order * order);
    linear = take<double>(f);
    lambda_sum = take<double>(f);
    error = take<float>(fn);
    error_0 = take<float>(n);
    has_error = take<int>(f / kTile * (n / kFewestColumns));
    column_sum = take<float>((s.is_gram ? s.tiles : s.strips) * n);
    if (s.is_gram) {
      projector = take<float>(nn);
      remainder = take<float>(nn);
      error_map = take<float>(fn);
      affine = take<float>(n);
      reference = take<float>(nn);
      squares = take<float>(s.tiles * n);
      distances = take<float>(s.tiles * n);
      largest = take<float>(2 * (f / kTile) * s.tiles);
    } else {
      factor = take<float>(fn);
      direction = take<float>(fn);
      direction_0 = take<float>(n);
      coupling = take<float>(f);
      partial_product = take<float>(s.strips * fn);
    }
    most = bytes > most ? bytes : most;

    bytes = common;
    const size_t k = round_up(p.n_subspaces, kTile);
    take_eigen(&cluster, s.cluster_block, s.tokens);
    row_sum = take<double>(n);
    degree = take<double>(n);
    embedding = take<double>(k * n);
    rotation = take<double>(k * k);
    overlap = take<double>((s.tiles + 4) * k * k);
    likeness = take<double>(n);
    best = take<double>(s.tiles);
    best_row = take<int>(s.tiles);
    label = take<int>(n);
    bytes = bytes > most ? bytes : most;
  }

 private:
  template <typename T>
  __host__ __device__ T* take(size_t count) {
    T* array = reinterpret_cast<T*>(base_ + bytes);
    bytes += (count * sizeof(T) + 255) / 256 * 256;
    return array;
  }

  __host__ __device__ void take_eigen(EigenBuffers* e, int block, int size) {
    const size_t b = round_up(block, kTile), m = round_up(size, kTile);
    e->basis = take<double>(3 * b * m);
    e->moments = take<double>((m + kMomentStrip - 1) / kMomentStrip * 2 * b * b);
    e->small = take<double>(5 * b * b);
    e->theta = take<double>(b);
    e->residual = take<double>(m / kTile * b);
  }

  char* base_;
};

}  // namespace va_export
