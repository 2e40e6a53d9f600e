// One iteration of the thin form: solve.cuh has its equations.
#pragma once

#include "admm.cuh"
#include "tf32.cuh"

namespace va_export {

constexpr int kNarrow = kFewestColumns;  // of a panel of the updates

// The thin form's two products over 64 x 64 tiles in shared memory, F^T h (multiply_tn, as BLAS says: the left factor
// transposed) and F Z+ (multiply_nn), written twice with one interface: in float32, and on tensor cores (tf32.cuh).
// row(r) and column(c) say which elements a thread has, neighbours at columns 2 c and 2 c + 1; kPitch and kStepPitch
// are the pitches of tiles of F and h, and of Z+.
struct PlainThinProducts {
  static constexpr int kRows = kPer, kColumns = kPer;
  static constexpr bool kLoadsAhead = false;  // so that all fits 48 KB
  static constexpr int kPitch = kTile, kStepPitch = kTile;
  static constexpr size_t kSharedBytes = 3 * kTile * kTile * sizeof(float);

  __device__ static int row(int r) { return my_row() + r; }
  __device__ static int column(int c) { return my_column() + c; }

  // acc[r][c] += sum_k left[k][row(r)] * right[k][column(c)]
  __device__ static void multiply_tn(float (&acc)[kRows][kColumns], const float* left, const float* right) {
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

  // acc[r][c] += sum_i left[row(r)][i] * right[i][column(c)]
  __device__ static void multiply_nn(float (&acc)[kRows][kColumns], const float* left, const float* right) {
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

  __device__ static void sum_rows(float (&x)[kRows], float* out, float*) {
    va_export::sum_rows(x);
    if (my_column() != 0) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) out[row(r)] = x[r];
  }
  __device__ static void sum_columns(float (&x)[kColumns], float* out, float* shared) {
    va_export::sum_columns(x, out, shared);
  }
};

struct TensorThinProducts {
  using Tiles = WarpTiles<2, 2, 4>;
  static constexpr int kRows = Tiles::kRows, kColumns = Tiles::kColumns;
  static constexpr bool kLoadsAhead = true;
  static constexpr int kPitch = kTile + 8, kStepPitch = kTile + 4;  // no two words of a load are in one bank
  static constexpr int kSums = kTile * (3 * kPitch + kStepPitch);   // where sum_rows adds up
  static constexpr size_t kSharedBytes = (kSums + Tiles::kWarpsAcross * kTile) * sizeof(float);
  static_assert(Tiles::kHeight == kTile && Tiles::kWidth == kTile, "the warps cover a tile");

  __device__ static int row(int r) { return Tiles::row(r); }
  __device__ static int column(int c) { return Tiles::column(c); }

  // acc[r][c] += sum_k left[k][row(r)] * right[k][column(c)]
  __device__ static void multiply_tn(float (&acc)[kRows][kColumns], const float* left, const float* right) {
    left += my_lane() % 4 * kPitch + Tiles::first_row() + my_lane() / 4;
    right += my_lane() % 4 * kPitch + Tiles::first_column() + my_lane() / 4;
    Tiles::Part part = {};
#pragma unroll 2
    for (int k = 0; k < kTile * kPitch; k += 8 * kPitch) {
      multiply_fragments(
          part, [&](int i, int step) { return left[k + step * kPitch + i]; },
          [&](int step, int j) { return right[k + step * kPitch + j]; });
    }
    Tiles::add_part(acc, part);
  }

  // acc[r][c] += sum_i left[row(r)][i] * right[i][column(c)]. What is depth t and t + 4 to the instruction is 2 t and
  // 2 t + 1 here: neighbours in memory.
  __device__ static void multiply_nn(float (&acc)[kRows][kColumns], const float* left, const float* right) {
    left += (Tiles::first_row() + my_lane() / 4) * kPitch + my_lane() % 4 * 2;
    right += my_lane() % 4 * 2 * kStepPitch + Tiles::first_column() + my_lane() / 4;
    Tiles::Part part = {};
#pragma unroll 2
    for (int i = 0; i < kTile; i += 8) {
      multiply_fragments(
          part, [&](int k, int step) { return left[k * kPitch + i + step / 4]; },
          [&](int step, int j) { return right[(i + step / 4) * kStepPitch + j]; });
    }
    Tiles::add_part(acc, part);
  }

  __device__ static void sum_rows(float (&x)[kRows], float* out, float* shared) {
    Tiles::sum_rows(x, out, kTile, shared + kSums);
  }
  __device__ static void sum_columns(float (&x)[kColumns], float* out, float* shared) {
    Tiles::sum_columns(x, out, kTile, shared);
  }
};

// Starts the copy of a tile of a row-major matrix to shared memory.
template <typename Products>
__device__ inline void copy_tile(float* tile, const float* matrix, size_t pitch) {
#pragma unroll
  for (int e = 0; e < kTile * kTile / 4; e += kThreads) {
    const int row = (e + static_cast<int>(threadIdx.x)) / (kTile / 4);
    const int column = static_cast<int>(threadIdx.x) % (kTile / 4) * 4;
    cp_async_16(tile + row * Products::kPitch + column, matrix + row * pitch + column, true);
  }
  cp_async_commit();
}

// X+ of one tile from the product with h; Z+ to shared memory, and what it adds to the sums.
template <typename Products>
__device__ inline void advance_tile(const Shape& s, const Workspace& w, const Numbers& numbers, int i0, int panel,
                                    const float (&acc)[Products::kRows][Products::kColumns],
                                    float (&sums)[Products::kColumns], float* z, float* shared) {
  const int j0 = panel * kTile;
  const size_t pitch = static_cast<size_t>(s.n);
  float moved[Products::kRows] = {};
#pragma unroll
  for (int r = 0; r < Products::kRows; ++r) {
    const int i = i0 + Products::row(r);
#pragma unroll
    for (int c = 0; c < Products::kColumns; c += 2) {
      const int j = j0 + Products::column(c);
      float2* place = reinterpret_cast<float2*>(w.state + i * pitch + j);
      const float2 old = *place;
      float x[2] = {old.x, old.y}, next[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const bool exists = i < s.tokens && j + e < s.tokens;
        const float step = exists ? acc[r][c + e] + numbers.constant * w.direction_0[j + e] : 0.0f;
        next[e] = advance_element(&x[e], x[e], step, i == j + e, numbers.theta, &moved[r]);
        sums[c + e] += next[e];
      }
      *place = make_float2(x[0], x[1]);
      *reinterpret_cast<float2*>(z + Products::row(r) * Products::kStepPitch + Products::column(c)) =
          make_float2(next[0], next[1]);
    }
  }
  Products::sum_rows(moved, w.partial + panel * pitch + i0, shared);
}

// One strip of rows of one panel of columns: X+ there, its part of V, of the row sums of |T+ - T| and of the column
// sums of Z+. All features are in one tile, so that V stays in registers.
template <typename Products>
VA_PHASE void advance_strip(const Shape& s, const Workspace& w, const Numbers& numbers, int strip, int panel,
                            float* shared) {
  const int per_strip = (s.tiles + s.strips - 1) / s.strips, j0 = panel * kTile;
  const int first = strip * per_strip, last = first + per_strip < s.tiles ? first + per_strip : s.tiles;
  const size_t pitch = static_cast<size_t>(s.n);
  float *right = shared + kTile * Products::kPitch, *z = right + kTile * Products::kPitch;
  float* other =
      Products::kLoadsAhead ? z + kTile * Products::kStepPitch : shared;  // where every second tile of F comes
  float sums[Products::kColumns] = {}, kept[Products::kRows][Products::kColumns] = {};
  __syncthreads();
  copy_tile<Products>(right, w.direction + j0, pitch);
  copy_tile<Products>(shared, w.factor + first * kTile, pitch);
  for (int tile = first; tile < last; ++tile) {
    const bool is_other = (tile - first) % 2 != 0;
    float* left = is_other ? other : shared;
    if (!Products::kLoadsAhead && tile > first) {
      __syncthreads();  // nobody reads the tile before any more
      copy_tile<Products>(left, w.factor + tile * kTile, pitch);
    }
    cp_async_wait<0>();
    __syncthreads();
    if (Products::kLoadsAhead && tile + 1 < last) {
      copy_tile<Products>(is_other ? shared : other, w.factor + (tile + 1) * kTile, pitch);
    }
    float acc[Products::kRows][Products::kColumns] = {};
    Products::multiply_tn(acc, left, right);
    advance_tile<Products>(s, w, numbers, tile * kTile, panel, acc, sums, z, shared);
    __syncthreads();
    Products::multiply_nn(kept, left, z);
  }
  float* product = w.partial_product + strip * pitch * s.f + j0;
#pragma unroll
  for (int r = 0; r < Products::kRows; ++r) {
#pragma unroll
    for (int c = 0; c < Products::kColumns; c += 2) {
      *reinterpret_cast<float2*>(product + Products::row(r) * pitch + Products::column(c)) =
          make_float2(kept[r][c], kept[r][c + 1]);
    }
  }
  __syncthreads();
  Products::sum_columns(sums, w.column_sum + strip * pitch + j0, shared);
}

// The same where features come in several chunks of kTile.
template <typename Products>
VA_PHASE void advance_strip_by_chunks(const Shape& s, const Workspace& w, const Numbers& numbers, int strip, int panel,
                                      float* shared) {
  const int per_strip = (s.tiles + s.strips - 1) / s.strips, j0 = panel * kTile;
  const int first = strip * per_strip, last = first + per_strip < s.tiles ? first + per_strip : s.tiles;
  const size_t pitch = static_cast<size_t>(s.n);
  float *right = shared + kTile * Products::kPitch, *z = right + kTile * Products::kPitch;
  float sums[Products::kColumns] = {};
  for (int tile = first; tile < last; ++tile) {
    float acc[Products::kRows][Products::kColumns] = {};
    for (int k0 = 0; k0 < s.f; k0 += kTile) {
      __syncthreads();  // nobody reads the tiles before any more
      copy_tile<Products>(shared, w.factor + k0 * pitch + tile * kTile, pitch);
      copy_tile<Products>(right, w.direction + k0 * pitch + j0, pitch);
      cp_async_wait<0>();
      __syncthreads();
      Products::multiply_tn(acc, shared, right);
    }
    advance_tile<Products>(s, w, numbers, tile * kTile, panel, acc, sums, z, shared);
    for (int k0 = 0; k0 < s.f; k0 += kTile) {
      __syncthreads();
      copy_tile<Products>(shared, w.factor + k0 * pitch + tile * kTile, pitch);
      cp_async_wait<0>();
      __syncthreads();
      float more[Products::kRows][Products::kColumns] = {};
      Products::multiply_nn(more, shared, z);
      float* product = w.partial_product + (static_cast<size_t>(strip) * s.f + k0) * pitch + j0;
#pragma unroll
      for (int r = 0; r < Products::kRows; ++r) {
#pragma unroll
        for (int c = 0; c < Products::kColumns; ++c) {
          float* place = product + Products::row(r) * pitch + Products::column(c);
          *place = tile == first ? more[r][c] : *place + more[r][c];
        }
      }
    }
  }
  __syncthreads();
  Products::sum_columns(sums, w.column_sum + strip * pitch + j0, shared);
}

template <typename Products>
__device__ inline void advance_thin(const Shape& s, const Workspace& w, const Numbers& numbers, float* shared) {
  for (int item = blockIdx.x; item < s.strips * s.tiles; item += gridDim.x) {
    if (s.f == kTile) {
      advance_strip<Products>(s, w, numbers, item / s.tiles, item % s.tiles, shared);
    } else {
      advance_strip_by_chunks<Products>(s, w, numbers, item / s.tiles, item % s.tiles, shared);
    }
  }
}

// The updates go through the features of a panel of kNarrow columns: few columns, so that many blocks have a panel, and
// all features, so that E+ and h+, which need one another only within a column, are one phase. A thread has kPer rows
// of a column of 64 x kNarrow elements.
__device__ inline int narrow_row() {
  return static_cast<int>(threadIdx.x) / kNarrow * kPer;
}
__device__ inline int narrow_column() {
  return static_cast<int>(threadIdx.x) % kNarrow;
}

// acc[r] += sum over k in [first, last) of a(k, narrow_row() + r) * b(k, narrow_column()); multiples of 32.
template <Along kA, typename A, typename B>
__device__ inline void multiply_narrow(float (&acc)[kPer], int first, int last, const A& a, const B& b, float* shared) {
  constexpr int kDepth = TileShape<float>::kDepth, kPitch = TileShape<float>::kPitch;
  float *left = shared, *right = left + kDepth * kPitch;
  for (int start = first; start < last; start += kDepth) {
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < kDepth * kTile; e += kThreads) {
      const int k = kA == Along::kTile_ ? e / kTile : e % kDepth, i = kA == Along::kTile_ ? e % kTile : e / kDepth;
      left[k * kPitch + i] = static_cast<float>(a(start + k, i));
    }
    for (int e = static_cast<int>(threadIdx.x); e < kDepth * kNarrow; e += kThreads) {
      right[e] = b(start + e / kNarrow, e % kNarrow);
    }
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kDepth; ++k) {
      const float4 x = *reinterpret_cast<const float4*>(left + k * kPitch + narrow_row());
      const float y = right[k * kNarrow + narrow_column()];
      acc[0] += x.x * y, acc[1] += x.y * y, acc[2] += x.z * y, acc[3] += x.w * y;
    }
  }
}

// R = E + rho L^-T h, E+ = soft(R), and the affine row's e_0+ = -rho g_0.
__device__ inline void update_thin_error(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w,
                                         const Numbers& numbers, int panel, float* shared) {
  const int j0 = panel * kNarrow, j = j0 + narrow_column();
  const size_t pitch = static_cast<size_t>(s.n);
  for (int k0 = 0; k0 < s.f; k0 += kTile) {
    float acc[kPer] = {}, count = 0.0f;
    multiply_narrow<Along::kTile_>(
        acc, k0, s.f, [&](int t, int k) { return w.inverse[static_cast<size_t>(t) * s.f + k0 + k]; },
        [&](int t, int column) { return w.direction[t * pitch + j0 + column]; }, shared);
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
      const int k = k0 + narrow_row() + r;
      float* error = w.error + k * pitch + j;
      const float remainder = k < s.features ? *error + p.rho * acc[r] : 0.0f;
      *error = remainder - clip(remainder, numbers.threshold);
      count += *error != 0.0f ? 1.0f : 0.0f;
    }
    const float any = block_max(count, shared);
    if (threadIdx.x == 0) w.has_error[k0 / kTile * (s.n / kNarrow) + panel] = any != 0.0f;
  }
  float sum = 0.0f;
  for (int k = static_cast<int>(threadIdx.x) / kNarrow; k < s.f; k += kThreads / kNarrow) {
    sum += w.coupling[k] * w.direction[k * pitch + j];
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < kNarrow) {
    for (int other = 1; other < kThreads / kNarrow; ++other) sum += shared[other * kNarrow + threadIdx.x];
    const float l_00 = sqrtf(p.rho * (1.0f + static_cast<float>(s.tokens)));
    w.error_0[j] = -p.rho * (w.direction_0[j] / l_00 + sum);
  }
  __syncthreads();
}

// h+ = F - L^-1 E+ - V
__device__ inline void update_direction(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w,
                                        const Numbers& numbers, int panel, float* shared) {
  const int j0 = panel * kNarrow, j = j0 + narrow_column();
  const size_t pitch = static_cast<size_t>(s.n);
  const bool exists = j < s.tokens;
  const float error_0 = w.error_0[j];
  for (int k0 = 0; k0 < s.f; k0 += kTile) {
    float acc[kPer] = {};
    for (int t0 = 0; t0 <= k0; t0 += kTile) {
      if (!w.has_error[t0 / kTile * (s.n / kNarrow) + panel]) continue;
      multiply_narrow<Along::kDepth_>(
          acc, t0, t0 + kTile, [&](int t, int k) { return w.inverse[static_cast<size_t>(k0 + k) * s.f + t]; },
          [&](int t, int column) { return w.error[t * pitch + j0 + column]; }, shared);
    }
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
      const int k = k0 + narrow_row() + r;
      const size_t at = k * pitch + j;
      float product = 0.0f;
      for (int strip = 0; strip < s.strips; ++strip) product += w.partial_product[strip * pitch * s.f + at];
      w.direction[at] = exists ? w.factor[at] - w.coupling[k] * error_0 - acc[r] - product : 0.0f;
    }
  }
  if (threadIdx.x < kNarrow) {
    const float l_00 = sqrtf(p.rho * (1.0f + static_cast<float>(s.tokens)));
    float sum = 0.0f;
    for (int strip = 0; strip < s.strips; ++strip) sum += w.column_sum[strip * pitch + j];
    w.direction_0[j] = exists ? numbers.constant - error_0 / l_00 - numbers.constant * sum : 0.0f;
  }
}

VA_PHASE void update_thin(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w, const Numbers& numbers,
                          float* shared) {
  for (int panel = blockIdx.x; panel < s.n / kNarrow; panel += gridDim.x) {
    update_thin_error(p, s, w, numbers, panel, shared);
    update_direction(p, s, w, numbers, panel, shared);
  }
}

template <typename Products>
struct ThinForm {
  static constexpr size_t kSharedBytes = Products::kSharedBytes;
  static constexpr int kBlocks = 2;

  __device__ static void iterate(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w,
                                 const Numbers& numbers, int, unsigned* barrier, float* shared) {
    advance_thin<Products>(s, w, numbers, shared);
    grid_sync(barrier);
    update_thin(p, s, w, numbers, shared);
    reduce_row_sums(s, w, s.tiles, shared);
  }
};

}  // namespace va_export
