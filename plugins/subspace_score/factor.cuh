// Kernel 3: what stays the same in every iteration of ADMM, in float64, rounded to float32 at the end.
//
// With U = [sqrt(rho) 1^T; sqrt(lambda_z) Y] and rho I + U U^T = L L^T, the affine row first:
//   L = [l_00 0; l_1 L_1],  l_00 = sqrt(rho (1 + N)),  l_1 = sqrt(rho lambda_z) Y 1 / l_00,
//   L_1 L_1^T = rho I + lambda_z Y Y^T - l_1 l_1^T
// and the solver iterates on F = L^-1 U: its first row is the constant 1 / sqrt(1 + N), the others are
//   factor = L_1^-1 (sqrt(lambda_z) Y - l_1 1^T / sqrt(1 + N)).
// F F^T <= I, so that rounding errors are not amplified whatever the condition of U.
// Where features are many (Shape::is_gram), S = (lambda_z Y^T Y + rho 11^T + rho I)^-1 is taken instead, and
//   projector = I - rho S,  error_map = sqrt(lambda_z) Y S,  affine = sqrt(rho) S 1.
#pragma once

#include "prepare.cuh"

namespace va_export {

// The lower triangle of the system matrix; the identity in the padding.
VA_PHASE void multiply_system(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w, void* shared) {
  const int order = s.is_gram ? s.n : s.f, across = order / kTile;
  const double rho = p.rho, lambda = w.control->lambda_z;
  for (int item = blockIdx.x; item < across * across; item += gridDim.x) {
    const int a0 = item / across * kTile, b0 = item % across * kTile;
    if (b0 > a0) continue;
    double acc[kPer][kPer] = {};
    if (s.is_gram) {
      multiply<double, Along::kTile_, Along::kTile_>(
          acc, 0, s.features, [&](int k, int i) { return w.y[static_cast<size_t>(k) * s.n + a0 + i]; },
          [&](int k, int i) { return w.y[static_cast<size_t>(k) * s.n + b0 + i]; }, shared);
    } else {
      multiply<double, Along::kDepth_, Along::kDepth_>(
          acc, 0, s.tokens, [&](int i, int k) { return w.y[static_cast<size_t>(a0 + k) * s.n + i]; },
          [&](int i, int k) { return w.y[static_cast<size_t>(b0 + k) * s.n + i]; }, shared);
    }
    const int used = s.is_gram ? s.tokens : s.features;
    for_each_element(acc, a0, b0, [&](int a, int b, double x) {
      double value = lambda * x + (a == b ? rho : 0.0);
      value += s.is_gram ? rho : -w.linear[a] * w.linear[b];
      w.system[static_cast<size_t>(a) * order + b] = a < used && b < used ? value : (a == b ? 1.0 : 0.0);
    });
  }
}

// One diagonal tile: its Cholesky factor in place, and the factor's inverse. By one block, in shared memory.
VA_PHASE void factor_tile(double* matrix, double* inverse, int pitch, int* status, double* shared) {
  constexpr int kPitch = kTile + 1;
  const int thread = static_cast<int>(threadIdx.x);
  double* a = shared;
  __syncthreads();
  for (int e = thread; e < kTile * kTile; e += kThreads) {
    a[e / kTile * kPitch + e % kTile] = matrix[static_cast<size_t>(e / kTile) * pitch + e % kTile];
  }
  __syncthreads();
  for (int k = 0; k < kTile; ++k) {
    const double pivot = a[k * kPitch + k];
    __syncthreads();
    if (!(pivot > 0.0) && thread == 0) *status = VA_SCORE_OVERFLOW;  // NaN or infinities came in
    const double root = sqrt(pivot);
    for (int i = k + thread; i < kTile; i += kThreads) a[i * kPitch + k] = i == k ? root : a[i * kPitch + k] / root;
    __syncthreads();
    const int rest = kTile - 1 - k;
    for (int e = thread; e < rest * rest; e += kThreads) {
      const int i = k + 1 + e / rest, j = k + 1 + e % rest;
      if (j <= i) a[i * kPitch + j] -= a[i * kPitch + k] * a[j * kPitch + k];
    }
    __syncthreads();
  }
  for (int e = thread; e < kTile * kTile; e += kThreads) {
    const int i = e / kTile, j = e % kTile;
    matrix[static_cast<size_t>(i) * pitch + j] = j <= i ? a[i * kPitch + j] : 0.0;
    inverse[static_cast<size_t>(i) * pitch + j] = 0.0;
  }
  __syncthreads();
  if (thread < kTile) {  // a column a thread, read back from where the thread itself wrote it
    for (int i = thread; i < kTile; ++i) {
      double sum = i == thread ? 1.0 : 0.0;
      for (int k = thread; k < i; ++k) sum -= a[i * kPitch + k] * inverse[static_cast<size_t>(k) * pitch + thread];
      inverse[static_cast<size_t>(i) * pitch + thread] = sum / a[i * kPitch + i];
    }
  }
  __syncthreads();
}

// system = L L^T, lower triangle in place; inverse = L^-1, lower triangle, zero above the diagonal tiles' own.
VA_PHASE void invert_system(const Shape& s, const Workspace& w, unsigned* barrier, void* shared) {
  const int order = s.is_gram ? s.n : s.f, tiles = order / kTile;
  double *a = w.system, *inverse = w.inverse;
  const auto at = [&](int row, int column) { return static_cast<size_t>(row) * order + column; };
  for (int k = 0; k < tiles; ++k) {
    const int k0 = k * kTile;
    if (blockIdx.x == 0) {
      factor_tile(a + at(k0, k0), inverse + at(k0, k0), order, &w.control->status, static_cast<double*>(shared));
    }
    grid_sync(barrier);
    for (int i = k + 1 + static_cast<int>(blockIdx.x); i < tiles; i += static_cast<int>(gridDim.x)) {
      double acc[kPer][kPer] = {};
      multiply<double, Along::kDepth_, Along::kDepth_>(
          acc, 0, kTile, [&](int t, int r) { return a[at(i * kTile + r, k0 + t)]; },
          [&](int t, int c) { return inverse[at(k0 + c, k0 + t)]; }, shared);
      for_each_element(acc, i * kTile, k0, [&](int r, int c, double x) { a[at(r, c)] = x; });
    }
    grid_sync(barrier);
    const int rest = tiles - k - 1;
    for (int item = blockIdx.x; item < rest * rest; item += gridDim.x) {
      const int i0 = (k + 1 + item / rest) * kTile, j0 = (k + 1 + item % rest) * kTile;
      if (j0 > i0) continue;
      double acc[kPer][kPer] = {};
      multiply<double, Along::kDepth_, Along::kDepth_>(
          acc, 0, kTile, [&](int t, int r) { return a[at(i0 + r, k0 + t)]; },
          [&](int t, int c) { return a[at(j0 + c, k0 + t)]; }, shared);
      for_each_element(acc, i0, j0, [&](int r, int c, double x) { a[at(r, c)] -= x; });
    }
    grid_sync(barrier);
  }
  for (int i = 1; i < tiles; ++i) {
    const int i0 = i * kTile;
    for (int j = blockIdx.x; j < i; j += gridDim.x) {
      const int j0 = j * kTile;
      double acc[kPer][kPer] = {}, tile[kPer][kPer] = {};
      multiply<double, Along::kDepth_, Along::kTile_>(
          acc, j0, i0, [&](int t, int r) { return a[at(i0 + r, t)]; },
          [&](int t, int c) { return inverse[at(t, j0 + c)]; }, shared);
      for_each_element(acc, i0, j0, [&](int r, int c, double x) { inverse[at(r, c)] = x; });
      multiply<double, Along::kDepth_, Along::kTile_>(
          tile, 0, kTile, [&](int t, int r) { return inverse[at(i0 + r, i0 + t)]; },
          [&](int t, int c) { return inverse[at(i0 + t, j0 + c)]; }, shared);
      for_each_element(tile, i0, j0, [&](int r, int c, double x) { inverse[at(r, c)] = -x; });
    }
    grid_sync(barrier);
  }
}

// factor = L_1^-1 (sqrt(lambda_z) Y - l_1 1^T / sqrt(1 + N)), and coupling = -L_1^-1 l_1 / l_00.
VA_PHASE void make_thin_factors(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w, void* shared) {
  const double root = sqrt(w.control->lambda_z), constant = 1.0 / sqrt(1.0 + s.tokens);
  const double l_00 = sqrt(static_cast<double>(p.rho) * (1.0 + s.tokens));
  const int across = s.n / kTile, items = s.f / kTile * across;
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int k0 = item / across * kTile, i0 = item % across * kTile;
    double acc[kPer][kPer] = {};
    multiply<double, Along::kDepth_, Along::kTile_>(
        acc, 0, k0 + kTile, [&](int t, int k) { return w.inverse[static_cast<size_t>(k0 + k) * s.f + t]; },
        [&](int t, int i) {
          const double y = w.y[static_cast<size_t>(t) * s.n + i0 + i];
          return i0 + i < s.tokens ? root * y - constant * w.linear[t] : 0.0;
        },
        shared);
    for_each_element(acc, k0, i0, [&](int k, int i, double x) {
      const size_t at = static_cast<size_t>(k) * s.n + i;
      w.factor[at] = w.direction[at] = static_cast<float>(k < s.features ? x : 0.0);
      w.error[at] = 0.0f;
    });
  }
  for (int k = blockIdx.x; k < s.f; k += gridDim.x) {
    double sum = 0.0;
    for (int t = static_cast<int>(threadIdx.x); t <= k; t += kThreads) {
      sum += w.inverse[static_cast<size_t>(k) * s.f + t] * w.linear[t];
    }
    sum = block_sum(sum, static_cast<double*>(shared));
    if (threadIdx.x == 0) w.coupling[k] = static_cast<float>(-sum / l_00);
  }
  for (int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); i < s.n;
       i += static_cast<int>(gridDim.x) * kThreads) {
    w.error_0[i] = 0.0f;
    w.direction_0[i] = i < s.tokens ? static_cast<float>(constant) : 0.0f;
  }
}

// S = L^-T L^-1, in place of `system`: both triangles.
VA_PHASE void multiply_inverse(const Shape& s, const Workspace& w, void* shared) {
  const int across = s.n / kTile;
  for (int item = blockIdx.x; item < across * across; item += gridDim.x) {
    const int a0 = item / across * kTile, b0 = item % across * kTile;
    if (b0 > a0) continue;
    double acc[kPer][kPer] = {};
    multiply<double, Along::kTile_, Along::kTile_>(
        acc, a0, s.n, [&](int t, int a) { return w.inverse[static_cast<size_t>(t) * s.n + a0 + a]; },
        [&](int t, int b) { return w.inverse[static_cast<size_t>(t) * s.n + b0 + b]; }, shared);
    for_each_element(acc, a0, b0, [&](int a, int b, double x) {
      w.system[static_cast<size_t>(a) * s.n + b] = x;
      if (a0 != b0) w.system[static_cast<size_t>(b) * s.n + a] = x;
    });
  }
}

VA_PHASE void make_gram_factors(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w, void* shared) {
  const double root = sqrt(w.control->lambda_z), rho = p.rho;
  const int across = s.n / kTile, items = s.f / kTile * across;
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int k0 = item / across * kTile, i0 = item % across * kTile;
    double acc[kPer][kPer] = {};
    multiply<double, Along::kDepth_, Along::kTile_>(
        acc, 0, s.tokens, [&](int t, int k) { return w.y[static_cast<size_t>(k0 + k) * s.n + t]; },
        [&](int t, int i) { return w.system[static_cast<size_t>(t) * s.n + i0 + i]; }, shared);
    for_each_element(acc, k0, i0, [&](int k, int i, double x) {
      const size_t at = static_cast<size_t>(k) * s.n + i;
      w.error_map[at] = static_cast<float>(k < s.features && i < s.tokens ? root * x : 0.0);
      w.error[at] = 0.0f;
    });
  }
  for (int k = blockIdx.x; k < s.features; k += gridDim.x) {
    double squares = 0.0;
    for (int i = static_cast<int>(threadIdx.x); i < s.tokens; i += kThreads) {
      const double y = w.y[static_cast<size_t>(k) * s.n + i];
      squares += y * y;
    }
    squares = block_sum(squares, static_cast<double*>(shared));
    // Numbers >= 0 are ordered as their bits are.
    const float longest = static_cast<float>(1.00001 * root * sqrt(squares));
    if (threadIdx.x == 0) atomicMax(&w.control->longest_row, __float_as_uint(longest));
  }
  for (int e = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); e < s.f / kTile * s.tiles;
       e += static_cast<int>(gridDim.x) * kThreads) {
    w.largest[e] = INFINITY;  // nothing has been looked at
  }
  for (int i = blockIdx.x; i < s.n; i += gridDim.x) {
    double sum = 0.0;
    for (int j = static_cast<int>(threadIdx.x); j < s.n; j += kThreads) {
      const double x = w.system[static_cast<size_t>(i) * s.n + j];
      const bool exists = i < s.tokens && j < s.tokens;
      sum += exists ? x : 0.0;
      w.projector[static_cast<size_t>(i) * s.n + j] = static_cast<float>(exists ? (i == j ? 1.0 : 0.0) - rho * x : 0.0);
    }
    sum = block_sum(sum, static_cast<double*>(shared));
    if (threadIdx.x == 0) {
      w.affine[i] = static_cast<float>(sqrt(rho) * sum);
      w.error_0[i] = 0.0f;
    }
  }
}

// Grid: any, cooperative. Block: kThreads. Dynamic shared memory: kSharedBytes.
__global__ void __launch_bounds__(kThreads) factor_kernel(const VaSubspaceScoreParams p) {
  void* shared = block_memory();
  const Shape s(p);
  const Workspace w(p, s);
  if (has_failed(w)) return;
  unsigned* barrier = &w.control->barrier[2];
  const double l_00 = sqrt(static_cast<double>(p.rho) * (1.0 + s.tokens));
  for (int k = blockIdx.x; !s.is_gram && k < s.f; k += gridDim.x) {
    const double sum = feature_sum(w.y, s, k, static_cast<double*>(shared));
    if (threadIdx.x == 0) w.linear[k] = sqrt(p.rho * w.control->lambda_z) * sum / l_00;
  }
  const int order = s.is_gram ? s.n : s.f;
  const int64_t count = static_cast<int64_t>(order) * order, states = static_cast<int64_t>(s.n) * s.n;
  const int64_t here = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t e = here; e < count; e += static_cast<int64_t>(gridDim.x) * kThreads) w.inverse[e] = 0.0;
  for (int64_t e = here; e < states; e += static_cast<int64_t>(gridDim.x) * kThreads) w.state[e] = 0.0f;
  for (int64_t e = here; e < s.f / kTile * (s.n / kFewestColumns); e += static_cast<int64_t>(gridDim.x) * kThreads) {
    w.has_error[e] = 0;
  }
  grid_sync(barrier);
  multiply_system(p, s, w, shared);
  grid_sync(barrier);
  invert_system(s, w, barrier, shared);
  if (s.is_gram) {
    multiply_inverse(s, w, shared);
    grid_sync(barrier);
    make_gram_factors(p, s, w, shared);
    return;
  }
  make_thin_factors(p, s, w, shared);
}

}  // namespace va_export
