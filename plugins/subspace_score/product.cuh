// Products of float32 matrices, written twice with one interface, a tile of the result a block: PlainProduct multiplies
// and adds in float32; TensorProduct does it on tensor cores, as three products of TF32 numbers (tf32.cuh).
#pragma once

#include <type_traits>

#include "tf32.cuh"
#include "tile.cuh"

namespace va_export {

// A factor's part that belongs to a tile of the result: `size` rows or columns of it exist, counted from `at`.
struct Factor {
  const float* at;
  size_t pitch;
  int size;
};

// The second factor as it lies in memory.
struct AsItIs {
  __device__ float operator()(int, int, float x) const { return x; }
};

// Negated, so that a product is taken off.
struct Negated {
  __device__ float operator()(int, int, float x) const { return -x; }
};

// What both offer:
//   kSide                     rows and columns of a tile; its edge may be beyond the matrix, where factors count as 0
//   kRows, kColumns           that a thread has of it: row(r), column(c); columns 2 c and 2 c + 1 are neighbours
//   sum[r][c]                 the result, from zero
//   add(a, b, depth, change)  sum += over k < depth of a(k, row) * change(k, column, b(k, column)); `b` is (k, column)
//   in
//                             memory, `a` (k, row) with Along::kTile_ and (row, k) with kDepth_; depth: multiple of 32
//   sum_rows(x, out)          x has one number a row: out[row] = their sum over the tile's columns
//   sum_columns(x, out)       likewise
// sum_* write `existing` numbers. All are for the whole block, and `shared` has kSharedBytes.
class PlainProduct {
 public:
  static constexpr int kSide = kTile, kRows = kPer, kColumns = kPer;
  static constexpr size_t kSharedBytes = TileShape<float>::kBytes;
  static constexpr int kBlocks = 2;  // of a multiprocessor

  float sum[kRows][kColumns] = {};

  __device__ explicit PlainProduct(float* shared) : shared_(shared) {}
  __device__ static int row(int r) { return my_row() + r; }
  __device__ static int column(int c) { return my_column() + c; }

  template <Along kA, typename Change>
  __device__ void add(const Factor& a, const Factor& b, int depth, const Change& change) {
    multiply<float, kA, Along::kTile_>(
        sum, 0, depth,
        [&](int k, int i) { return kA == Along::kTile_ ? a.at[k * a.pitch + i] : a.at[i * a.pitch + k]; },
        [&](int k, int j) { return change(k, j, b.at[k * b.pitch + j]); }, shared_);
  }

  __device__ void sum_rows(float (&x)[kRows], float* out, int) {
    va_export::sum_rows(x);
    if (my_column() != 0) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) out[row(r)] = x[r];
  }

  __device__ void sum_columns(float (&x)[kColumns], float* out, int) { va_export::sum_columns(x, out, shared_); }

 private:
  float* shared_;
};

class TensorProduct {
 public:
  using Tiles = WarpTiles<4, 4, 4>;
  static constexpr int kSide = Tiles::kWidth, kRows = Tiles::kRows, kColumns = Tiles::kColumns;
  static constexpr int kDepth = 32;  // of a stage; two stages, one of them under way
  // Pitches that spread a fragment's 32 words over the banks: 8 mod 32 with k along the rows, 4 mod 32 across them.
  static constexpr int kPitch = kSide + 8, kDepthPitch = kDepth + 4;
  static constexpr int kFirst = kSide * kDepthPitch;  // words of the first factor's part, in the longer of the layouts
  static constexpr int kStage = kFirst + kDepth * kPitch;
  static constexpr size_t kSharedBytes = 2 * kStage * sizeof(float);
  static constexpr int kBlocks = 1;
  static_assert(kFirst >= kDepth * kPitch && Tiles::kHeight == kSide, "layout");

  float sum[kRows][kColumns] = {};

  __device__ explicit TensorProduct(float* shared) : shared_(shared) {}
  __device__ static int row(int r) { return Tiles::row(r); }
  __device__ static int column(int c) { return Tiles::column(c); }

  template <Along kA, typename Change>
  __device__ void add(const Factor& a, const Factor& b, int depth, const Change& change) {
    const bool has_work = Tiles::first_row() < a.size && Tiles::first_column() < b.size;  // this warp
    __syncthreads();
    start<kA>(a, b, 0);
#pragma unroll 1
    for (int k0 = 0; k0 < depth; k0 += kDepth) {
      float* stage = shared_ + k0 / kDepth % 2 * kStage;
      cp_async_wait<0>();
      change_own(stage + kFirst, k0, change);
      __syncthreads();  // this stage is there, and nobody reads the other one
      if (k0 + kDepth < depth) start<kA>(a, b, k0 + kDepth);
      if (has_work) multiply_stage<kA>(stage);
    }
    __syncthreads();
  }

  __device__ void sum_rows(float (&x)[kRows], float* out, int existing) { Tiles::sum_rows(x, out, existing, shared_); }
  __device__ void sum_columns(float (&x)[kColumns], float* out, int existing) {
    Tiles::sum_columns(x, out, existing, shared_);
  }

 private:
  // Starts the copies of both factors' parts from k0 on; a thread copies the same places of every stage.
  template <Along kA>
  __device__ void start(const Factor& a, const Factor& b, int k0) {
    float* stage = shared_ + k0 / kDepth % 2 * kStage;
    if constexpr (kA == Along::kTile_) {
      copy_part<kDepth, kSide, kPitch>(stage, a.at + k0 * a.pitch, a.pitch, kDepth, a.size);
    } else {
      copy_part<kSide, kDepth, kDepthPitch>(stage, a.at + k0, a.pitch, a.size, kDepth);
    }
    copy_part<kDepth, kSide, kPitch>(stage + kFirst, b.at + k0 * b.pitch, b.pitch, kDepth, b.size);
    cp_async_commit();
  }

  // kHeight x kWidth elements of a matrix; zero where they are beyond the first `rows` and `columns`.
  template <int kHeight, int kWidth, int kTo>
  __device__ static void copy_part(float* to, const float* from, size_t pitch, int rows, int columns) {
#pragma unroll
    for (int e = 0; e < kHeight * kWidth / 4; e += kThreads) {
      const int row = (e + static_cast<int>(threadIdx.x)) / (kWidth / 4);
      const int column = static_cast<int>(threadIdx.x) % (kWidth / 4) * 4;
      const bool exists = row < rows && column < columns;
      cp_async_16(to + row * kTo + column, exists ? from + row * pitch + column : from, exists);
    }
  }

  // change() on the elements of b that this thread copied, which needs no barrier.
  template <typename Change>
  __device__ static void change_own(float* part, int k0, const Change& change) {
    if constexpr (!std::is_same<Change, AsItIs>::value) {
#pragma unroll
      for (int e = 0; e < kDepth * kSide / 4; e += kThreads) {
        const int row = (e + static_cast<int>(threadIdx.x)) / (kSide / 4);
        const int column = static_cast<int>(threadIdx.x) % (kSide / 4) * 4, k = k0 + row;
        float4* place = reinterpret_cast<float4*>(part + row * kPitch + column);
        const float4 x = *place;
        *place = make_float4(change(k, column, x.x), change(k, column + 1, x.y), change(k, column + 2, x.z),
                             change(k, column + 3, x.w));
      }
    }
  }

  // Tensor cores round their sums towards zero, so only those of one stage are theirs.
  template <Along kA>
  __device__ void multiply_stage(const float* stage) {
    constexpr int kStepK = kA == Along::kTile_ ? kPitch : 1, kStepRow = kA == Along::kTile_ ? 1 : kDepthPitch;
    const float* a = stage + my_lane() % 4 * kStepK + (Tiles::first_row() + my_lane() / 4) * kStepRow;
    const float* b = stage + kFirst + my_lane() % 4 * kPitch + Tiles::first_column() + my_lane() / 4;
    Tiles::Part part = {};
#pragma unroll
    for (int k0 = 0; k0 < kDepth; k0 += 8) {
      multiply_fragments(
          part, [&](int row, int k) { return a[(k0 + k) * kStepK + row * kStepRow]; },
          [&](int k, int column) { return b[(k0 + k) * kPitch + column]; });
    }
    Tiles::add_part(sum, part);
  }

  float* shared_;
};

}  // namespace va_export
