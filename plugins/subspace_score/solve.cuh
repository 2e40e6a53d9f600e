// Kernel 4: ADMM, all its iterations in one launch, from one state X = A + T (va_export/anchor/self_expression.py has
// the algebra; factor.cuh the matrices). With C = soft(X), T = clip(X) off the diagonal, C = 0, T = X on it, and
// Z = C - T, an iteration has two forms. The thin one, on (features, tokens) matrices, for features <= tokens / 2, is,
// F being the factor with its constant first row left out of the sums,
//   X+ = C + F^T h               V = F Z+                       one pass over X; h has `direction` and `direction_0`
//   R  = E + rho L^-T h          E+ = soft(R), last row -rho g_0
//   h+ = F - L^-1 E+ - V
// and the Gram form's, on (tokens, tokens) matrices, with the projector M and the remainder B = I - A,
//   X+ = C + M (I - Z) - (error_map^T E + affine e_0^T)         E+ = soft(sqrt(lambda_z) Y B),  e_0+ = e_0 - ...
// Sums over tiles are added in the tiles' order, whatever block computed them.
#pragma once

#include "solve_gram.cuh"
#include "solve_thin.cuh"

namespace va_export {

// By itself, for the kernel has no registers left beside the addresses that it computes.
template <typename Form>
VA_PHASE void solve(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w, float* shared) {
  unsigned* barrier = &w.control->barrier[3];
  const double root = sqrt(w.control->lambda_z);
  const Numbers numbers{1.0f / p.rho, static_cast<float>(1.0 / sqrt(1.0 + s.tokens)), static_cast<float>(root),
                        static_cast<float>(w.control->lambda_e / root), __uint_as_float(w.control->longest_row)};
  float residual = INFINITY;
  int iteration = 0;
  while (residual >= p.eps && iteration < p.max_iter) {
    Form::iterate(p, s, w, numbers, iteration, barrier, shared);
    grid_sync(barrier);
    residual = worst_row(s, w, shared);
    ++iteration;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    w.control->iterations = iteration;
    w.control->residual = residual;
    w.control->final_buffer = s.is_gram && iteration % 2 != 0;
    if (!(residual <= 3.402823466e38f)) {
      w.control->status = VA_SCORE_OVERFLOW;
    } else if (residual >= fmaxf(kLargestResidual, p.eps)) {
      w.control->status = VA_SCORE_NO_RESULT;
    }
  }
}

// Grid: any, cooperative. Block: kThreads. Dynamic shared memory: Form::kSharedBytes.
template <typename Form>
__global__ void __launch_bounds__(kThreads, Form::kBlocks) solve_kernel(const VaSubspaceScoreParams p) {
  const Shape s(p);
  const Workspace w(p, s);
  if (!has_failed(w)) solve<Form>(p, s, w, static_cast<float*>(block_memory()));
}

}  // namespace va_export
