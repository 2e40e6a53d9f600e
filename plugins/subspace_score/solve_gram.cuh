// One iteration of the Gram form: solve.cuh has its equations. `Product` is one of product.cuh's two.
//
// Where the features of E are zero and sqrt(lambda_z) Y B stays far enough below their threshold, they remain zero, and
// the product with Y, twice as much arithmetic as all else where features are twice the tokens, is left out: an entry
// of Y (B - B') is at most ||row of Y|| ||column of B - B'||, where B' is the B with which the panel of columns was
// last looked at. The bound has room for the rounding errors of both products, so the result is the same in every bit.
#pragma once

#include "admm.cuh"
#include "product.cuh"

namespace va_export {

template <typename Product>
__device__ inline int tiles_across(int size) {
  return (size + Product::kSide - 1) / Product::kSide;
}

// Up to a tile's side, of a matrix of `size` rows or columns.
template <typename Product>
__device__ inline int tile_extent(int start, int size) {
  return size - start < Product::kSide ? size - start : Product::kSide;
}

// X+ into the other of the two states, B = I - A into `remainder`; and of B, by tiles, the column sums, the squares and
// the squared distance from B'.
template <typename Product>
VA_PHASE void advance_gram(const Shape& s, const Workspace& w, const Numbers& numbers, bool is_odd, float* shared) {
  const float* state = is_odd ? w.other_state : w.state;
  float* next = is_odd ? w.state : w.other_state;
  const float theta = numbers.theta;
  const int across = tiles_across<Product>(s.n);
  for (int item = blockIdx.x; item < across * across; item += gridDim.x) {
    const int tile = item / across, panel = item % across, i0 = tile * Product::kSide, j0 = panel * Product::kSide;
    const int rows = tile_extent<Product>(i0, s.n), columns = tile_extent<Product>(j0, s.n);
    const size_t pitch = static_cast<size_t>(s.n);
    Product product(shared);
    product.template add<Along::kTile_>(
        {w.projector + i0, pitch, rows}, {state + j0, pitch, columns}, s.n, [&](int t, int j, float x) {
          return t == j0 + j ? 1.0f + x : 2.0f * clip(x, theta) - x;  // I - Z: Z is -X on the diagonal, X - 2T off it
        });
    for (int k0 = 0; k0 < s.f; k0 += Product::kSide) {
      if (!w.has_error[k0 / Product::kSide * across + panel]) continue;
      product.template add<Along::kTile_>({w.error_map + k0 * pitch + i0, pitch, rows},
                                          {w.error + k0 * pitch + j0, pitch, columns}, tile_extent<Product>(k0, s.f),
                                          Negated{});
    }
    float moved[Product::kRows] = {}, sums[Product::kColumns] = {}, squares[Product::kColumns] = {},
          distances[Product::kColumns] = {};
#pragma unroll
    for (int r = 0; r < Product::kRows; ++r) {
      const int i = i0 + Product::row(r);
      if (i >= s.n) continue;
      const float affine = w.affine[i];
      float old[Product::kColumns], before[Product::kColumns];
#pragma unroll
      for (int c = 0; c < Product::kColumns; c += 2) {
        const int j = j0 + Product::column(c);
        const bool is_there = j < s.n;
        const float2 x = is_there ? *reinterpret_cast<const float2*>(state + i * pitch + j) : make_float2(0.0f, 0.0f);
        const float2 b =
            is_there ? *reinterpret_cast<const float2*>(w.reference + i * pitch + j) : make_float2(0.0f, 0.0f);
        old[c] = x.x, old[c + 1] = x.y, before[c] = b.x, before[c + 1] = b.y;
      }
#pragma unroll
      for (int c = 0; c < Product::kColumns; ++c) {
        const int j = j0 + Product::column(c);
        const bool exists = i < s.tokens && j < s.tokens;
        const float step = exists ? product.sum[r][c] - affine * w.error_0[j] : 0.0f, x = old[c];
        advance_element(&old[c], x, step, i == j, theta, &moved[r]);
        // A = X+ - T = Z + step.
        const float a = i == j ? step - x : x - 2.0f * clip(x, theta) + step;
        const float rest = exists ? (i == j ? 1.0f : 0.0f) - a : 0.0f, distance = rest - before[c];
        before[c] = rest;
        sums[c] += rest;
        squares[c] += rest * rest;
        distances[c] += distance * distance;
      }
#pragma unroll
      for (int c = 0; c < Product::kColumns; c += 2) {
        const int j = j0 + Product::column(c);
        if (j >= s.n) continue;
        *reinterpret_cast<float2*>(next + i * pitch + j) = make_float2(old[c], old[c + 1]);
        *reinterpret_cast<float2*>(w.remainder + i * pitch + j) = make_float2(before[c], before[c + 1]);
      }
    }
    product.sum_rows(moved, w.partial + panel * pitch + i0, rows);
    product.sum_columns(sums, w.column_sum + tile * pitch + j0, columns);
    product.sum_columns(squares, w.squares + tile * pitch + j0, columns);
    product.sum_columns(distances, w.distances + tile * pitch + j0, columns);
  }
}

// How far an entry of sqrt(lambda_z) Y B of this panel can be from where it was when `reference` was made: the largest
// bound of its columns; NaN where one is NaN.
template <typename Product>
__device__ inline float most_moved(const Shape& s, const Workspace& w, const Numbers& numbers, int j0, float* shared) {
  // A sum of n products in any order, or split for the tensor cores, is off by at most (n + 64) 2^-24 of the norms'
  // product; twice that, for now and for then, and twice again for the squares' own rounding.
  const float rounding = 4.0f * (static_cast<float>(s.n) + 64.0f) * 5.9604645e-8f;
  const int j = static_cast<int>(threadIdx.x);
  float bound = 0.0f;
  if (j < tile_extent<Product>(j0, s.n)) {
    float squares = 0.0f, distances = 0.0f;
    for (int tile = 0; tile < tiles_across<Product>(s.n); ++tile) {
      squares += w.squares[static_cast<size_t>(tile) * s.n + j0 + j];
      distances += w.distances[static_cast<size_t>(tile) * s.n + j0 + j];
    }
    const float moved = 1.001f * sqrtf(distances);
    bound = numbers.longest_row * (moved + rounding * (sqrtf(squares) + moved));
  }
  return block_max(bound, shared);
}

// E+ = soft(sqrt(lambda_z) Y B), e_0+ = e_0 - sqrt(rho) 1^T B. `largest` has for each tile the largest entry of the
// product when it was last computed: read from one half and written to the other, for blocks of one panel must agree.
template <typename Product>
VA_PHASE void update_gram_error(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w,
                                const Numbers& numbers, bool is_odd, float* shared) {
  const int half = s.f / kTile * s.tiles;
  const float* most = w.largest + (is_odd ? half : 0);
  float* most_next = w.largest + (is_odd ? 0 : half);
  const float root = numbers.root, threshold = numbers.threshold;
  const int across = tiles_across<Product>(s.n), down = tiles_across<Product>(s.f);
  const size_t pitch = static_cast<size_t>(s.n);
  for (int item = blockIdx.x; item < down * across; item += gridDim.x) {
    const int panel = item % across, k0 = item / across * Product::kSide, j0 = panel * Product::kSide;
    const int columns = tile_extent<Product>(j0, s.n);
    float largest = 0.0f;
    for (int k = static_cast<int>(threadIdx.x); k < down; k += kThreads) {
      largest = larger(largest, most[k * across + panel]);
    }
    largest = block_max(largest, shared);
    const bool stays_zero = largest + most_moved<Product>(s, w, numbers, j0, shared) < 0.999f * threshold;
    if (k0 == 0) {
      if (static_cast<int>(threadIdx.x) < columns) {
        const int j = j0 + static_cast<int>(threadIdx.x);
        float sum = 0.0f;
        for (int tile = 0; tile < across; ++tile) sum += w.column_sum[tile * pitch + j];
        w.error_0[j] -= sqrtf(p.rho) * sum;
      }
      if (stays_zero && threadIdx.x == 0) atomicAdd(&w.control->panels_left_out, 1);
      for (int e = static_cast<int>(threadIdx.x); !stays_zero && e < s.n * (columns / 4); e += kThreads) {
        const size_t at = e / (columns / 4) * pitch + j0 + e % (columns / 4) * 4;
        *reinterpret_cast<float4*>(w.reference + at) = *reinterpret_cast<const float4*>(w.remainder + at);
      }
    }
    if (stays_zero) {
      if (threadIdx.x == 0) most_next[item] = most[item];
      continue;
    }
    Product product(shared);
    product.template add<Along::kDepth_>({w.y + k0 * pitch, pitch, tile_extent<Product>(k0, s.f)},
                                         {w.remainder + j0, pitch, columns}, s.n, AsItIs{});
    float most_here = 0.0f, count = 0.0f;
#pragma unroll
    for (int r = 0; r < Product::kRows; ++r) {
      const int k = k0 + Product::row(r);
#pragma unroll
      for (int c = 0; c < Product::kColumns; ++c) {
        const int j = j0 + Product::column(c);
        if (k >= s.f || j >= s.n) continue;
        const float remainder = root * product.sum[r][c], error = remainder - clip(remainder, threshold);
        w.error[k * pitch + j] = error;
        count += error != 0.0f ? 1.0f : 0.0f;
        most_here = larger(most_here, fabsf(remainder));
      }
    }
    const float any = block_max(count, shared);
    most_here = block_max(most_here, shared);
    if (threadIdx.x == 0) {
      w.has_error[item] = any != 0.0f;
      most_next[item] = most_here;
    }
  }
}

template <typename Product>
struct GramForm {
  static constexpr size_t kSharedBytes = Product::kSharedBytes;
  static constexpr int kBlocks = Product::kBlocks;

  __device__ static void iterate(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w,
                                 const Numbers& numbers, int iteration, unsigned* barrier, float* shared) {
    const bool is_odd = iteration % 2 != 0;
    advance_gram<Product>(s, w, numbers, is_odd, shared);
    grid_sync(barrier);
    update_gram_error<Product>(p, s, w, numbers, is_odd, shared);
    reduce_row_sums(s, w, tiles_across<Product>(s.n), shared);
  }
};

}  // namespace va_export
