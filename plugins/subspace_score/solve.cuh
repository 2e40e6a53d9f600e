// Kernel 4: ADMM, all its iterations in one launch, from one state X = A + T (va_export/anchor/self_expression.py has
// the algebra; factor.cuh the matrices). With C = soft(X), T = clip(X) off the diagonal, C = 0, T = X on it, and
// Z = C - T, an iteration of the thin form is, F being the factor with its constant first row left out of the sums,
//   X+ = C + F^T h               V = F Z+                       one pass over X; h has `direction` and `direction_0`
//   R  = E + rho L^-T h          E+ = soft(R), last row -rho g_0
//   h+ = F - L^-1 E+ - V
// and of the Gram form, with the projector M and the remainder B = I - A,
//   X+ = C + M (I - Z) - (error_map^T E + affine e_0^T)         E+ = soft(sqrt(lambda_z) Y B),  e_0+ = e_0 - ...
// Sums over tiles are added in the tiles' order, whatever block computed them.
#pragma once

#include "factor.cuh"

namespace va_export {

// What follows from the settings and the weights.
struct Numbers {
  float theta;      // 1 / rho, the threshold of C
  float constant;   // the factor's first row
  float root;       // of lambda_z
  float threshold;  // of E: lambda_e / root
};

__device__ inline float clip(float x, float bound) {  // NaN stays NaN
  return x > bound ? bound : (x < -bound ? -bound : x);
}

// X+, from X and what is added to C; `moved` += |T+ - T|; gives Z+ = C+ - T+.
__device__ inline float advance_element(float* state, float old, float step, bool is_diagonal, float theta,
                                        float* moved) {
  const float dual = is_diagonal ? old : clip(old, theta);
  const float next = is_diagonal ? step : old - dual + step;
  const float next_dual = is_diagonal ? next : clip(next, theta);
  *moved += fabsf(next_dual - dual);
  *state = next;
  return next - 2.0f * next_dual;
}

// The thin form's two products over 64 x 64 tiles in shared memory, without padding: all three fit 48 KB.
// acc[r][c] += sum_k left[k][my_row() + r] * right[k][my_column() + c]
__device__ inline void multiply_upright(float (&acc)[kPer][kPer], const float* left, const float* right) {
#pragma unroll 4
  for (int k = 0; k < kTile; ++k) {
    const float4 x = *reinterpret_cast<const float4*>(left + k * kTile + my_row());
    const float4 z = *reinterpret_cast<const float4*>(right + k * kTile + my_column());
    const float xs[kPer] = {x.x, x.y, x.z, x.w}, zs[kPer] = {z.x, z.y, z.z, z.w};
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
#pragma unroll
      for (int c = 0; c < kPer; ++c) acc[r][c] += xs[r] * zs[c];
    }
  }
}

// acc[r][c] += sum_i left[my_row() + r][i] * right[i][my_column() + c]
__device__ inline void multiply_flat(float (&acc)[kPer][kPer], const float* left, const float* right) {
#pragma unroll 2
  for (int i = 0; i < kTile; i += kPer) {
    float zs[kPer][kPer];
#pragma unroll
    for (int t = 0; t < kPer; ++t) {
      const float4 z = *reinterpret_cast<const float4*>(right + (i + t) * kTile + my_column());
      zs[t][0] = z.x, zs[t][1] = z.y, zs[t][2] = z.z, zs[t][3] = z.w;
    }
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
      const float4 x = *reinterpret_cast<const float4*>(left + (my_row() + r) * kTile + i);
#pragma unroll
      for (int c = 0; c < kPer; ++c) {
        acc[r][c] += x.x * zs[0][c] + x.y * zs[1][c] + x.z * zs[2][c] + x.w * zs[3][c];
      }
    }
  }
}

// A tile of a row-major matrix to shared memory.
__device__ inline void load_tile(float* tile, const float* matrix, size_t pitch) {
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile / 4; e += kThreads) {
    const int row = e / (kTile / 4), column = e % (kTile / 4) * 4;
    *reinterpret_cast<float4*>(tile + row * kTile + column) =
        *reinterpret_cast<const float4*>(matrix + row * pitch + column);
  }
}

// One strip of rows of one panel of columns: X+ there, its part of V, of the row sums of |T+ - T| and of the column
// sums of Z+. Features come in chunks of kTile.
__device__ inline void advance_strip(const Shape& s, const Workspace& w, const Numbers& numbers, int strip, int panel,
                                     float* shared) {
  const float theta = numbers.theta, constant = numbers.constant;
  const int chunks = s.f / kTile, j0 = panel * kTile;
  const int per_strip = (s.tiles + s.strips - 1) / s.strips;
  const int first = strip * per_strip, last = first + per_strip < s.tiles ? first + per_strip : s.tiles;
  float *left = shared, *right = left + kTile * kTile, *z = right + kTile * kTile;
  const float* direction = w.direction + j0;
  float* product = w.partial_product + static_cast<size_t>(strip) * s.f * s.n + j0;
  float sums[kPer] = {}, kept[kPer][kPer] = {};
  float start[kPer];
#pragma unroll
  for (int c = 0; c < kPer; ++c) start[c] = constant * w.direction_0[j0 + my_column() + c];
  for (int tile = first; tile < last; ++tile) {
    const int i0 = tile * kTile;
    float acc[kPer][kPer], moved[kPer] = {};
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
#pragma unroll
      for (int c = 0; c < kPer; ++c) acc[r][c] = start[c];
    }
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const size_t row = static_cast<size_t>(chunk) * kTile * s.n;
      __syncthreads();
      load_tile(left, w.factor + row + i0, s.n);
      if (chunks > 1 || tile == first) load_tile(right, direction + row, s.n);
      __syncthreads();
      multiply_upright(acc, left, right);
    }
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
      const int i = i0 + my_row() + r;
      float4* place = reinterpret_cast<float4*>(w.state + static_cast<size_t>(i) * s.n + j0 + my_column());
      const float4 old = *place;
      float x[kPer] = {old.x, old.y, old.z, old.w}, next[kPer];
#pragma unroll
      for (int c = 0; c < kPer; ++c) {
        const int j = j0 + my_column() + c;
        const bool exists = i < s.tokens && j < s.tokens;
        next[c] = advance_element(&x[c], x[c], exists ? acc[r][c] : 0.0f, i == j, theta, &moved[r]);
        sums[c] += next[c];
      }
      *place = make_float4(x[0], x[1], x[2], x[3]);
      *reinterpret_cast<float4*>(z + (my_row() + r) * kTile + my_column()) =
          make_float4(next[0], next[1], next[2], next[3]);
    }
    sum_rows(moved);
    if (my_column() == 0) {
#pragma unroll
      for (int r = 0; r < kPer; ++r) w.partial[static_cast<size_t>(panel) * s.n + i0 + my_row() + r] = moved[r];
    }
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const size_t row = static_cast<size_t>(chunk) * kTile * s.n;
      __syncthreads();
      if (chunks == 1) {
        multiply_flat(kept, left, z);
        continue;
      }
      load_tile(left, w.factor + row + i0, s.n);
      __syncthreads();
      float more[kPer][kPer] = {};
      multiply_flat(more, left, z);
      for_each_element(more, 0, 0, [&](int k, int j, float x) {
        float* place = product + row + static_cast<size_t>(k) * s.n + j;
        *place = tile == first ? x : *place + x;
      });
    }
  }
  if (chunks == 1) {
    for_each_element(kept, 0, 0, [&](int k, int j, float x) { product[static_cast<size_t>(k) * s.n + j] = x; });
  }
  sum_columns(sums, w.column_sum + static_cast<size_t>(strip) * s.n + j0, shared);
}

VA_PHASE void advance_thin(const Shape& s, const Workspace& w, const Numbers& numbers, float* shared) {
  for (int item = blockIdx.x; item < s.strips * s.tiles; item += gridDim.x) {
    advance_strip(s, w, numbers, item / s.tiles, item % s.tiles, shared);
  }
}

// slots[t] = the largest row sum of |T+ - T| in tile t of the rows.
VA_PHASE void reduce_row_sums(const Shape& s, const Workspace& w, void* shared) {
  for (int tile = blockIdx.x; tile < s.tiles; tile += gridDim.x) {
    const int part = static_cast<int>(threadIdx.x) / kTile, i = tile * kTile + static_cast<int>(threadIdx.x) % kTile;
    float sum = 0.0f;
    for (int panel = part; panel < s.tiles; panel += kThreads / kTile) {
      sum += w.partial[static_cast<size_t>(panel) * s.n + i];
    }
    float* parts = static_cast<float*>(shared);
    __syncthreads();
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < kTile) {
      for (int other = 1; other < kThreads / kTile; ++other) sum += parts[other * kTile + threadIdx.x];
    }
    const float most = block_max(threadIdx.x < kTile ? sum : 0.0f, parts);
    if (threadIdx.x == 0) w.slots[tile] = most;
  }
}

// The largest of the slots; every block finds the same.
VA_PHASE float worst_row(const Shape& s, const Workspace& w, float* shared) {
  float most = 0.0f;
  for (int tile = static_cast<int>(threadIdx.x); tile < s.tiles; tile += kThreads) most = larger(most, w.slots[tile]);
  return block_max(most, shared);
}

// R = E + rho L^-T h, E+ = soft(R), and the affine row's e_0+ = -rho g_0.
VA_PHASE void update_thin_error(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w,
                                const Numbers& numbers, void* shared) {
  const int items = s.f / kTile * s.tiles;
  const float threshold = numbers.threshold;
  const float l_00 = sqrtf(p.rho * (1.0f + static_cast<float>(s.tokens)));
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int k0 = item / s.tiles * kTile, j0 = item % s.tiles * kTile;
    float acc[kPer][kPer] = {}, count = 0.0f;
    multiply<float, Along::kTile_, Along::kTile_>(
        acc, k0, s.f, [&](int t, int k) { return w.inverse[static_cast<size_t>(t) * s.f + k0 + k]; },
        [&](int t, int j) { return w.direction[static_cast<size_t>(t) * s.n + j0 + j]; }, shared);
    for_each_element(acc, k0, j0, [&](int k, int j, float g) {
      float* error = w.error + static_cast<size_t>(k) * s.n + j;
      const float remainder = k < s.features ? *error + p.rho * g : 0.0f;
      *error = remainder - clip(remainder, threshold);
      count += *error != 0.0f ? 1.0f : 0.0f;
    });
    const float any = block_max(count, static_cast<float*>(shared));
    if (threadIdx.x == 0) w.has_error[item] = any != 0.0f;
    if (k0 != 0) continue;
    const int part = static_cast<int>(threadIdx.x) / kTile, j = j0 + static_cast<int>(threadIdx.x) % kTile;
    float sum = 0.0f, *parts = static_cast<float*>(shared);
    for (int k = part; k < s.f; k += kThreads / kTile)
      sum += w.coupling[k] * w.direction[static_cast<size_t>(k) * s.n + j];
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < kTile) {
      for (int other = 1; other < kThreads / kTile; ++other) sum += parts[other * kTile + threadIdx.x];
      w.error_0[j] = -p.rho * (w.direction_0[j] / l_00 + sum);
    }
  }
}

// h+ = F - L^-1 E+ - V
VA_PHASE void update_direction(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w,
                               const Numbers& numbers, void* shared) {
  const float constant = numbers.constant;
  const int items = s.f / kTile * s.tiles;
  const float l_00 = sqrtf(p.rho * (1.0f + static_cast<float>(s.tokens)));
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int k0 = item / s.tiles * kTile, panel = item % s.tiles, j0 = panel * kTile;
    float acc[kPer][kPer] = {};
    for (int t0 = 0; t0 <= k0; t0 += kTile) {
      if (!w.has_error[t0 / kTile * s.tiles + panel]) continue;
      multiply<float, Along::kDepth_, Along::kTile_>(
          acc, t0, t0 + kTile, [&](int t, int k) { return w.inverse[static_cast<size_t>(k0 + k) * s.f + t]; },
          [&](int t, int j) { return w.error[static_cast<size_t>(t) * s.n + j0 + j]; }, shared);
    }
    for_each_element(acc, k0, j0, [&](int k, int j, float mapped) {
      const size_t at = static_cast<size_t>(k) * s.n + j;
      float product = 0.0f;
      for (int strip = 0; strip < s.strips; ++strip) {
        product += w.partial_product[static_cast<size_t>(strip) * s.f * s.n + at];
      }
      const bool exists = j < s.tokens;
      w.direction[at] = exists ? w.factor[at] - w.coupling[k] * w.error_0[j] - mapped - product : 0.0f;
    });
    if (k0 == 0 && threadIdx.x < kTile) {
      const int j = j0 + static_cast<int>(threadIdx.x);
      float sum = 0.0f;
      for (int strip = 0; strip < s.strips; ++strip) sum += w.column_sum[static_cast<size_t>(strip) * s.n + j];
      w.direction_0[j] = j < s.tokens ? constant - w.error_0[j] / l_00 - constant * sum : 0.0f;
    }
  }
}

// The Gram form's X+ into `next`, B = I - A into `remainder`, and the column sums of B.
VA_PHASE void advance_gram(const Shape& s, const Workspace& w, const float* state, float* next, const Numbers& numbers,
                           float* shared) {
  const float theta = numbers.theta;
  for (int item = blockIdx.x; item < s.tiles * s.tiles; item += gridDim.x) {
    const int tile = item / s.tiles, panel = item % s.tiles, i0 = tile * kTile, j0 = panel * kTile;
    float acc[kPer][kPer] = {}, errors[kPer][kPer] = {};
    multiply<float, Along::kTile_, Along::kTile_>(
        acc, 0, s.n, [&](int t, int i) { return w.projector[static_cast<size_t>(t) * s.n + i0 + i]; },
        [&](int t, int j) {
          const float x = state[static_cast<size_t>(t) * s.n + j0 + j];
          return t == j0 + j ? 1.0f + x : 2.0f * clip(x, theta) - x;  // I - Z: Z is -X on the diagonal, X - 2T off it
        },
        shared);
    for (int k0 = 0; k0 < s.f; k0 += kTile) {
      if (!w.has_error[k0 / kTile * s.tiles + panel]) continue;
      multiply<float, Along::kTile_, Along::kTile_>(
          errors, k0, k0 + kTile, [&](int k, int i) { return w.error_map[static_cast<size_t>(k) * s.n + i0 + i]; },
          [&](int k, int j) { return w.error[static_cast<size_t>(k) * s.n + j0 + j]; }, shared);
    }
    float moved[kPer] = {}, sums[kPer] = {};
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
#pragma unroll
      for (int c = 0; c < kPer; ++c) {
        const int i = i0 + my_row() + r, j = j0 + my_column() + c;
        const size_t at = static_cast<size_t>(i) * s.n + j;
        const bool exists = i < s.tokens && j < s.tokens;
        const float old = state[at], step = exists ? acc[r][c] - errors[r][c] - w.affine[i] * w.error_0[j] : 0.0f;
        advance_element(next + at, old, step, i == j, theta, &moved[r]);
        // A = X+ - T = Z + step.
        const float a = i == j ? step - old : old - 2.0f * clip(old, theta) + step;
        const float rest = exists ? (i == j ? 1.0f : 0.0f) - a : 0.0f;
        w.remainder[at] = rest;
        sums[c] += rest;
      }
    }
    sum_rows(moved);
    if (my_column() == 0) {
#pragma unroll
      for (int r = 0; r < kPer; ++r) w.partial[static_cast<size_t>(panel) * s.n + i0 + my_row() + r] = moved[r];
    }
    sum_columns(sums, w.column_sum + static_cast<size_t>(tile) * s.n + j0, shared);
  }
}

// E+ = soft(sqrt(lambda_z) Y B), e_0+ = e_0 - sqrt(rho) 1^T B.
VA_PHASE void update_gram_error(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w,
                                const Numbers& numbers, void* shared) {
  const float root = numbers.root, threshold = numbers.threshold;
  const int items = s.f / kTile * s.tiles;
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int k0 = item / s.tiles * kTile, j0 = item % s.tiles * kTile;
    float acc[kPer][kPer] = {}, count = 0.0f;
    multiply<float, Along::kDepth_, Along::kTile_>(
        acc, 0, s.n, [&](int i, int k) { return w.y[static_cast<size_t>(k0 + k) * s.n + i]; },
        [&](int i, int j) { return w.remainder[static_cast<size_t>(i) * s.n + j0 + j]; }, shared);
    for_each_element(acc, k0, j0, [&](int k, int j, float x) {
      const float remainder = root * x, error = remainder - clip(remainder, threshold);
      w.error[static_cast<size_t>(k) * s.n + j] = error;
      count += error != 0.0f ? 1.0f : 0.0f;
    });
    const float any = block_max(count, static_cast<float*>(shared));
    if (threadIdx.x == 0) w.has_error[item] = any != 0.0f;
    if (k0 == 0 && threadIdx.x < kTile) {
      const int j = j0 + static_cast<int>(threadIdx.x);
      float sum = 0.0f;
      for (int tile = 0; tile < s.tiles; ++tile) sum += w.column_sum[static_cast<size_t>(tile) * s.n + j];
      w.error_0[j] -= sqrtf(p.rho) * sum;
    }
  }
}

// Grid: any, cooperative. Block: kThreads. Dynamic shared memory: kSharedBytes.
__global__ void __launch_bounds__(kThreads, 2) solve_kernel(const VaSubspaceScoreParams p) {
  float* shared = static_cast<float*>(block_memory());
  const Shape s(p);
  const Workspace w(p, s);
  if (has_failed(w)) return;
  unsigned* barrier = &w.control->barrier[3];
  const double root = sqrt(w.control->lambda_z);
  const Numbers numbers{1.0f / p.rho, static_cast<float>(1.0 / sqrt(1.0 + s.tokens)), static_cast<float>(root),
                        static_cast<float>(w.control->lambda_e / root)};
  float residual = INFINITY;
  int iteration = 0;
  while (residual >= p.eps && iteration < p.max_iter) {
    if (s.is_gram) {
      const bool is_odd = iteration % 2 != 0;
      advance_gram(s, w, is_odd ? w.other_state : w.state, is_odd ? w.state : w.other_state, numbers, shared);
      grid_sync(barrier);
      update_gram_error(p, s, w, numbers, shared);
    } else {
      advance_thin(s, w, numbers, shared);
      grid_sync(barrier);
      update_thin_error(p, s, w, numbers, shared);
      grid_sync(barrier);
      update_direction(p, s, w, numbers, shared);
    }
    reduce_row_sums(s, w, shared);
    grid_sync(barrier);
    residual = worst_row(s, w, shared);
    ++iteration;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    w.control->iterations = iteration;
    w.control->residual = residual;
    w.control->final_buffer = s.is_gram && iteration % 2 != 0;
    if (!(residual <= 3.402823466e38f)) w.control->status = VA_SCORE_OVERFLOW;
  }
}

}  // namespace va_export
