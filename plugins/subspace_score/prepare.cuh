// Kernels 1 and 2: from the tokens as given to what the solver sees, and the weights of its error terms.
//   scale to unit, as float32, features first  ->  centred PCA where asked for  ->  lambda_e, lambda_z
#pragma once

#include "common/convert.cuh"
#include "eigen.cuh"
#include "scorable.h"

namespace va_export {

constexpr double kPcaTolerance = 1e-9;

// A barrier has passed between kernels; within one, `status` is set before a barrier and read after it.
__device__ inline bool has_failed(const Workspace& w) {
  return w.control->status != VA_SCORE_SOLVED;
}

// Largest magnitude, whether all numbers are finite, and how far the tokens are from the first.
template <typename T>
__device__ inline void inspect_tokens(const VaSubspaceScoreParams& p, const Workspace& w, float* shared) {
  const T* tokens = static_cast<const T*>(p.tokens);
  const int64_t count = p.token_count * p.dim;
  float most = 0.0f, apart = 0.0f;
  int not_finite = 0;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < count;
       e += static_cast<int64_t>(gridDim.x) * kThreads) {
    const float x = to_float(tokens[e]);
    not_finite |= !(fabsf(x) <= 3.402823466e38f);
    apart = larger(apart, fabsf(x - to_float(tokens[e % p.dim])));
    most = fabsf(x) > most ? fabsf(x) : most;
  }
  most = block_max(most, shared);
  apart = block_max(apart, shared);
  const float any_not_finite = block_max(static_cast<float>(not_finite), shared);
  if (threadIdx.x == 0) {
    // Numbers >= 0 are ordered as their bits are.
    atomicMax(&w.control->magnitude, __float_as_uint(most));
    atomicMax(&w.control->apart, __float_as_uint(apart));
    if (any_not_finite > 0.0f) atomicMax(&w.control->not_finite, 1);
  }
}

// tokens (d, n) = given / 2^exponent, in [-2, 2]; zero in the padding.
template <typename T>
__device__ inline void transpose_tokens(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w,
                                        int exponent, float* shared) {
  const T* given = static_cast<const T*>(p.tokens);
  const int across = s.n / kTile, items = s.d / kTile * across;
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int k0 = item / across * kTile, i0 = item % across * kTile;
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kThreads) {
      const int i = i0 + e / kTile, k = k0 + e % kTile;
      const bool exists = i < s.tokens && k < s.dim;
      const float x = exists ? to_float(given[static_cast<int64_t>(i) * s.dim + k]) : 0.0f;
      shared[e / kTile * (kTile + 1) + e % kTile] = static_cast<float>(ldexp(static_cast<double>(x), -exponent));
    }
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kThreads) {
      w.tokens[static_cast<size_t>(k0 + e / kTile) * s.n + i0 + e % kTile] =
          shared[e % kTile * (kTile + 1) + e / kTile];
    }
  }
}

// The sum over tokens of feature k, by a whole block.
__device__ inline double feature_sum(const float* features, const Shape& s, int k, double* shared) {
  double sum = 0.0;
  for (int i = static_cast<int>(threadIdx.x); i < s.tokens; i += kThreads) {
    sum += features[static_cast<size_t>(k) * s.n + i];
  }
  return block_sum(sum, shared);
}

// The Gram matrix of the centred tokens, of features or of tokens, whichever are fewer.
VA_PHASE void multiply_centred(const Shape& s, const Workspace& w, void* shared) {
  const bool of_features = s.dim <= s.tokens;
  const int order = round_up(s.pca_size, kTile), across = order / kTile;
  const auto centred = [&](int k, int i) {
    const bool exists = k < s.dim && i < s.tokens;
    return exists ? static_cast<double>(w.tokens[static_cast<size_t>(k) * s.n + i]) - w.mean[k] : 0.0;
  };
  for (int item = blockIdx.x; item < across * across; item += gridDim.x) {
    const int a0 = item / across * kTile, b0 = item % across * kTile;
    if (b0 > a0) continue;
    double acc[kPer][kPer] = {};
    if (of_features) {
      multiply<double, Along::kDepth_, Along::kDepth_>(
          acc, 0, s.tokens, [&](int i, int a) { return centred(a0 + a, i); },
          [&](int i, int b) { return centred(b0 + b, i); }, shared);
    } else {
      multiply<double, Along::kTile_, Along::kTile_>(
          acc, 0, s.dim, [&](int k, int a) { return centred(k, a0 + a); },
          [&](int k, int b) { return centred(k, b0 + b); }, shared);
    }
    for_each_element(acc, a0, b0, [&](int a, int b, double x) {
      w.gram[static_cast<size_t>(a) * order + b] = x;
      if (a0 != b0) w.gram[static_cast<size_t>(b) * order + a] = x;
    });
  }
}

// y (f, n) = scores of the tokens on the leading principal components.
VA_PHASE void project(const Shape& s, const Workspace& w, const double* vectors, void* shared) {
  const int order = round_up(s.pca_size, kTile);
  const bool of_features = s.dim <= s.tokens;
  const int across = s.n / kTile, items = s.f / kTile * across;
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int k0 = item / across * kTile, i0 = item % across * kTile;
    double acc[kPer][kPer] = {};
    if (of_features) {
      multiply<double, Along::kDepth_, Along::kTile_>(
          acc, 0, s.dim,
          [&](int d, int k) { return k0 + k < s.features ? vectors[static_cast<size_t>(k0 + k) * order + d] : 0.0; },
          [&](int d, int i) {
            return i0 + i < s.tokens ? w.tokens[static_cast<size_t>(d) * s.n + i0 + i] - w.mean[d] : 0.0;
          },
          shared);
    }
    for_each_element(acc, k0, i0, [&](int k, int i, double x) {
      double score = x;
      if (!of_features && k < s.features && i < s.tokens) {
        score = vectors[static_cast<size_t>(k) * order + i] * sqrt(w.pca.theta[k] > 0.0 ? w.pca.theta[k] : 0.0);
      }
      w.y[static_cast<size_t>(k) * s.n + i] = k < s.features && i < s.tokens ? static_cast<float>(score) : 0.0f;
    });
  }
}

// norm[i], length[i] = the L1 and L2 norms of token i; partial[t][i] = the largest |y_i . y_j| over the tokens j of
// tile t, j other than i.
VA_PHASE void measure_tokens(const Shape& s, const Workspace& w, void* shared) {
  for (int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); i < s.tokens;
       i += static_cast<int>(gridDim.x) * kThreads) {
    double sum = 0.0, squares = 0.0;
    for (int k = 0; k < s.features; ++k) {
      const double y = w.y[static_cast<size_t>(k) * s.n + i];
      sum += fabs(y);
      squares += y * y;
    }
    w.norm[i] = static_cast<float>(sum);
    w.length[i] = static_cast<float>(sqrt(squares));
  }
  for (int item = blockIdx.x; item < s.tiles * s.tiles; item += gridDim.x) {
    const int i0 = item / s.tiles * kTile, j0 = item % s.tiles * kTile;
    float acc[kPer][kPer] = {}, most[kPer] = {};
    multiply<float, Along::kTile_, Along::kTile_>(
        acc, 0, s.features, [&](int k, int i) { return w.y[static_cast<size_t>(k) * s.n + i0 + i]; },
        [&](int k, int j) { return w.y[static_cast<size_t>(k) * s.n + j0 + j]; }, shared);
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
#pragma unroll
      for (int c = 0; c < kPer; ++c) {
        const int i = i0 + my_row() + r, j = j0 + my_column() + c;
        if (i != j && j < s.tokens) most[r] = fmaxf(most[r], fabsf(acc[r][c]));
      }
      for (int mask = kAcross / 2; mask > 0; mask /= 2) {
        most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffffu, most[r], mask));
      }
      if (my_column() == 0) w.partial[static_cast<size_t>(j0 / kTile) * s.n + i0 + my_row() + r] = most[r];
    }
  }
}

// lambda_e = alpha_e / the second largest norm, lambda_z = alpha_z / the least of all tokens' largest products. Block
// 0.
VA_PHASE void choose_weights(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w, float* shared) {
  float first = 0.0f, second = 0.0f, least = 3.402823466e38f, longest = 0.0f, alone = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < s.tokens; i += kThreads) longest = fmaxf(longest, w.length[i]);
  longest = block_max(longest, shared);
  const float by_range = kRangeRoundings * longest, root = kAngleRoundings * sqrtf(static_cast<float>(s.features));
  for (int i = static_cast<int>(threadIdx.x); i < s.tokens; i += kThreads) {
    const float norm = w.norm[i];
    second = fmaxf(second, fminf(first, norm));
    first = fmaxf(first, norm);
    float most = 0.0f;
    for (int tile = 0; tile < s.tiles; ++tile) most = fmaxf(most, w.partial[static_cast<size_t>(tile) * s.n + i]);
    least = fminf(least, most);
    if (!(most > kRoundoff * longest * fmaxf(root * w.length[i], by_range))) alone = 1.0f;
  }
  least = -block_max(-least, shared);
  const bool is_lone = block_max(alone, shared) > 0.0f;
  const float largest = block_max(first, shared);
  // The largest once; beside it, every thread's best but the one that holds it.
  int holder = first == largest ? kThreads - static_cast<int>(threadIdx.x) : 0;
  const int chosen = static_cast<int>(block_max(static_cast<float>(holder), shared));
  const float runner_up = block_max(holder == chosen && chosen > 0 ? second : first, shared);
  if (threadIdx.x != 0) return;
  const double lambda_e = static_cast<double>(p.alpha_e) / runner_up, lambda_z = static_cast<double>(p.alpha_z) / least;
  w.control->lambda_e = is_lone ? 0.0 : lambda_e;
  w.control->lambda_z = is_lone ? 0.0 : lambda_z;
  if (is_lone) w.control->status = VA_SCORE_LONE_TOKEN;
}

// Grid: any, cooperative. Block: kThreads. Dynamic shared memory: kSharedBytes.
template <typename T>
__global__ void __launch_bounds__(kThreads) load_kernel(const VaSubspaceScoreParams p) {
  float* shared = static_cast<float*>(block_memory());
  const Shape s(p);
  const Workspace w(p, s);
  inspect_tokens<T>(p, w, shared);
  grid_sync(&w.control->barrier[0]);
  const float largest = __uint_as_float(w.control->magnitude), apart = __uint_as_float(w.control->apart);
  const int finding = w.control->not_finite                           ? VA_SCORE_NOT_FINITE
                      : apart > kEqualRoundings * kRoundoff * largest ? VA_SCORE_SOLVED
                                                                      : VA_SCORE_EQUAL_TOKENS;
  const bool is_first = blockIdx.x == 0 && threadIdx.x == 0;
  if (finding != VA_SCORE_SOLVED) {
    if (is_first) w.control->status = finding;
    return;
  }
  int exponent = 0;
  frexp(static_cast<double>(largest), &exponent);
  exponent -= 1;
  if (is_first) w.control->exponent = exponent;
  transpose_tokens<T>(p, s, w, exponent, shared);
}

// Grid: any, cooperative. Block: kThreads. Dynamic shared memory: kSharedBytes.
__global__ void __launch_bounds__(kThreads, 1) prepare_kernel(const VaSubspaceScoreParams p) {
  void* shared = block_memory();
  const Shape s(p);
  const Workspace w(p, s);
  if (has_failed(w)) return;
  unsigned* barrier = &w.control->barrier[1];
  if (s.has_pca) {
    for (int k = blockIdx.x; k < s.dim; k += gridDim.x) {
      const double sum = feature_sum(w.tokens, s, k, static_cast<double*>(shared));
      if (threadIdx.x == 0) w.mean[k] = sum / s.tokens;
    }
    grid_sync(barrier);
    multiply_centred(s, w, shared);
    grid_sync(barrier);
    LeadingEigenpairs<double> pairs(w.gram, s.pca_size, round_up(s.pca_size, kTile), s.pca_block, 0.0, w.pca, barrier,
                                    shared);
    const int basis = pairs.solve(s.features, kPcaTolerance, &w.control->eigen_steps[0]);
    project(s, w, pairs.basis(basis), shared);
    grid_sync(barrier);
  }
  measure_tokens(s, w, shared);
  grid_sync(barrier);
  if (blockIdx.x == 0) choose_weights(p, s, w, static_cast<float*>(shared));
}

}  // namespace va_export
