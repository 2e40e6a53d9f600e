// The SubspaceScore kernels, their launcher and their C interface, compiled for the CPU.
#include "simt.h"

#include "cooperative.h"

#include "kernel_table/kernel_table.cpp"
#include "subspace_score/subspace_score.cu"

extern "C" VA_EXPORT_API void simt_set_schedule(int schedule) {
  simt::set_schedule(schedule);
}

// How many blocks run at once, which must change no bit of the result; and whether they can wait for one another.
extern "C" VA_EXPORT_API void simt_set_grid(int blocks, int is_cooperative) {
  simt::gpu.sm_count = blocks;
  simt::gpu.is_cooperative = is_cooperative;
}

// Products with Y that the solver left out in the launch that had this workspace: its first bytes are the kernels' own.
extern "C" VA_EXPORT_API int simt_panels_left_out(const void* workspace) {
  return static_cast<const va_export::Control*>(workspace)->panels_left_out;
}

// Kernels that ran so far.
extern "C" VA_EXPORT_API unsigned simt_launches() {
  return simt::launches;
}

namespace {

// One product of float32 matrices by a single block: a is (k, row), or (row, k) where `is_depth_first`; b (k, column).
struct ProductArguments {
  va_export::Factor a, b;
  float* out;  // (a.size, b.size)
  int depth, is_depth_first;
};

template <typename Product>
void multiply_once(ProductArguments p) {
  using va_export::Along;
  using va_export::AsItIs;
  Product product(static_cast<float*>(va_export::block_memory()));
  if (p.is_depth_first) {
    product.template add<Along::kDepth_>(p.a, p.b, p.depth, AsItIs{});
  } else {
    product.template add<Along::kTile_>(p.a, p.b, p.depth, AsItIs{});
  }
  for (int r = 0; r < Product::kRows; ++r) {
    for (int c = 0; c < Product::kColumns; ++c) {
      const int row = Product::row(r), column = Product::column(c);
      if (row < p.a.size && column < p.b.size) p.out[row * p.b.size + column] = product.sum[r][c];
    }
  }
}

// The thin form's two products of 64 x 64 tiles, with one tile of F: F^T right (tn) and F right (nn).
struct ThinArguments {
  const float *factor, *right;
  float *tn, *nn;
};

template <typename Products>
void multiply_thin(ThinArguments p) {
  constexpr int kTile = va_export::kTile;
  float* left = static_cast<float*>(va_export::block_memory());
  float *right = left + kTile * Products::kPitch, *z = right + kTile * Products::kPitch;
  va_export::copy_tile<Products>(left, p.factor, kTile);
  va_export::copy_tile<Products>(right, p.right, kTile);
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += va_export::kThreads) {
    z[e / kTile * Products::kStepPitch + e % kTile] = p.right[e];
  }
  va_export::cp_async_wait<0>();
  __syncthreads();
  float tn[Products::kRows][Products::kColumns] = {}, nn[Products::kRows][Products::kColumns] = {};
  Products::multiply_tn(tn, left, right);
  Products::multiply_nn(nn, left, z);
  for (int r = 0; r < Products::kRows; ++r) {
    for (int c = 0; c < Products::kColumns; ++c) {
      p.tn[Products::row(r) * kTile + Products::column(c)] = tn[r][c];
      p.nn[Products::row(r) * kTile + Products::column(c)] = nn[r][c];
    }
  }
}

template <typename Argument>
int run_block(void (*kernel)(Argument), Argument argument, size_t shared_bytes) {
  void* pointers[] = {&argument};
  simt::shared_limit = shared_bytes;
  return cudaLaunchCooperativeKernel(kernel, dim3(1), dim3(va_export::kThreads), pointers, shared_bytes, nullptr);
}

}  // namespace

extern "C" VA_EXPORT_API int run_score_product(int on_tensor_cores, int is_depth_first, const float* a, const float* b,
                                               int rows, int columns, int depth, float* out) {
  using namespace va_export;
  const size_t a_pitch = static_cast<size_t>(is_depth_first ? depth : rows), b_pitch = static_cast<size_t>(columns);
  const ProductArguments p{{a, a_pitch, rows}, {b, b_pitch, columns}, out, depth, is_depth_first};
  return on_tensor_cores ? run_block(multiply_once<TensorProduct>, p, TensorProduct::kSharedBytes)
                         : run_block(multiply_once<PlainProduct>, p, PlainProduct::kSharedBytes);
}

extern "C" VA_EXPORT_API int run_score_thin_products(int on_tensor_cores, const float* factor, const float* right,
                                                     float* tn, float* nn) {
  using namespace va_export;
  const ThinArguments p{factor, right, tn, nn};
  return on_tensor_cores ? run_block(multiply_thin<TensorThinProducts>, p, TensorThinProducts::kSharedBytes)
                         : run_block(multiply_thin<PlainThinProducts>, p, PlainThinProducts::kSharedBytes);
}
