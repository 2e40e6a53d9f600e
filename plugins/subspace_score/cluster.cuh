// Kernel 5: from the solver's last state to labels and scores (va_export/anchor/spectral.py and sharing.py).
//   C, its row sums  ->  normalised affinity, in the state's place  ->  leading eigenvectors  ->  labels  ->  score
#pragma once

#include "discretise.cuh"

namespace va_export {

constexpr double kClusterTolerance = 1e-8;
constexpr double kMinMaxEps = 1e-5;  // the original's; it also keeps a constant score at 0

struct ClusterArguments {
  VaSubspaceScoreParams params;
  int first_row;  // the token from which the discretisation starts
};

// C, where asked for; per tile the row sums of C and |C| and the column sums of |C|. The state becomes C.
VA_PHASE void finish_state(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w, float* shared) {
  const float theta = 1.0f / p.rho;
  const size_t moved_on = static_cast<size_t>(s.tiles) * s.n;  // to the next of the partial sums
  const float* state = w.control->final_buffer ? w.other_state : w.state;
  for (int item = blockIdx.x; item < s.tiles * s.tiles; item += gridDim.x) {
    const int i0 = item / s.tiles * kTile, j0 = item % s.tiles * kTile;
    float signed_rows[kPer] = {}, rows[kPer] = {}, columns[kPer] = {};
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
#pragma unroll
      for (int c = 0; c < kPer; ++c) {
        const int i = i0 + my_row() + r, j = j0 + my_column() + c;
        const size_t at = static_cast<size_t>(i) * s.n + j;
        const float x = state[at];
        const bool exists = i < s.tokens && j < s.tokens;
        const float entry = i == j || !exists ? 0.0f : x - clip(x, theta);
        w.state[at] = entry;
        if (exists && p.self_expression != nullptr) p.self_expression[static_cast<int64_t>(i) * s.tokens + j] = entry;
        signed_rows[r] += entry;
        rows[r] += fabsf(entry);
        columns[c] += fabsf(entry);
      }
    }
    sum_rows(signed_rows);
    sum_rows(rows);
    if (my_column() == 0) {
#pragma unroll
      for (int r = 0; r < kPer; ++r) {
        const size_t at = static_cast<size_t>(j0 / kTile) * s.n + i0 + my_row() + r;
        w.partial[at] = signed_rows[r];
        w.partial[moved_on + at] = rows[r];
      }
    }
    sum_columns(columns, w.partial + 2 * moved_on + static_cast<size_t>(i0 / kTile) * s.n + j0, shared);
  }
}

// row_sum, and degree: the root of the affinity's row sum, 1 where a token neither expresses nor is expressed.
VA_PHASE void sum_expressions(const Shape& s, const Workspace& w) {
  const size_t moved_on = static_cast<size_t>(s.tiles) * s.n;
  for (int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); i < s.n;
       i += static_cast<int>(gridDim.x) * kThreads) {
    double total = 0.0, degree = 0.0;
    for (int tile = 0; tile < s.tiles; ++tile) {
      const size_t at = static_cast<size_t>(tile) * s.n + i;
      total += w.partial[at];
      degree += static_cast<double>(w.partial[moved_on + at]) + w.partial[2 * moved_on + at];
    }
    w.row_sum[i] = total;
    w.degree[i] = degree > 0.0 ? sqrt(degree) : 1.0;
    if (degree > 0.0) atomicMax(&w.control->has_affinity, 1);
    if (!(degree <= 1e300)) atomicMax(&w.control->status, static_cast<int>(VA_SCORE_OVERFLOW));
  }
}

// state = D^-1/2 (|C| + |C|^T) D^-1/2, a pair of tiles at a time.
VA_PHASE void make_affinity(const Shape& s, const Workspace& w, float* shared) {
  constexpr int kPitch = kTile + 1;
  for (int item = blockIdx.x; item < s.tiles * s.tiles; item += gridDim.x) {
    const int i0 = item / s.tiles * kTile, j0 = item % s.tiles * kTile;
    if (j0 > i0) continue;
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kThreads) {
      shared[e / kTile * kPitch + e % kTile] =
          fabsf(w.state[static_cast<size_t>(j0 + e / kTile) * s.n + i0 + e % kTile]);
    }
    __syncthreads();
    float sums[kPer][kPer];
    for_each_element(sums, i0, j0, [&](int i, int j, float& x) {
      const double both = fabsf(w.state[static_cast<size_t>(i) * s.n + j]) + shared[(j - j0) * kPitch + i - i0];
      x = static_cast<float>(both / (w.degree[i] * w.degree[j]));
    });
    __syncthreads();
    for_each_element(sums, i0, j0, [&](int i, int j, float x) {
      w.state[static_cast<size_t>(i) * s.n + j] = x;
      shared[(j - j0) * kPitch + i - i0] = x;
    });
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile && i0 != j0; e += kThreads) {
      w.state[static_cast<size_t>(j0 + e / kTile) * s.n + i0 + e % kTile] = shared[e / kTile * kPitch + e % kTile];
    }
  }
}

// score = min-max of row_sum * (tokens in the same subspace) / N. Block 0.
VA_PHASE void write_scores(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w, double* shared) {
  const auto raw = [&](int i) { return w.row_sum[i] * w.control->size[w.label[i]] / s.tokens; };
  double least = INFINITY, most = -INFINITY;
  for (int i = static_cast<int>(threadIdx.x); i < s.tokens; i += kThreads) {
    least = fmin(least, raw(i));
    most = fmax(most, raw(i));
  }
  least = -block_max(-least, shared);
  most = block_max(most, shared);
  for (int i = static_cast<int>(threadIdx.x); i < s.tokens; i += kThreads) {
    p.sharing_score[i] = static_cast<float>((raw(i) - least) / (most - least + kMinMaxEps));
    p.labels[i] = w.label[i];
  }
}

// Of tokens that were not solved: scores 0, labels 0 where all are equal and kNoScore else. What happened: the report.
// Block 0.
VA_PHASE void write_report(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w) {
  const bool is_solved = !has_failed(w);
  const int label = w.control->status == VA_SCORE_EQUAL_TOKENS ? 0 : kNoScore;
  for (int i = static_cast<int>(threadIdx.x); !is_solved && i < s.tokens; i += kThreads) {
    p.sharing_score[i] = 0.0f;
    p.labels[i] = label;
  }
  if (threadIdx.x != 0 || p.report == nullptr) return;
  const Control& c = *w.control;
  p.report->status = c.status;
  p.report->iterations = c.iterations;
  p.report->residual = c.residual;
  p.report->reserved = 0.0f;
  p.report->lambda_e = ldexp(c.lambda_e, -c.exponent);
  p.report->lambda_z = ldexp(c.lambda_z, -2 * c.exponent);
}

// Grid: any, cooperative. Block: kThreads. Dynamic shared memory: kSharedBytes.
__global__ void __launch_bounds__(kThreads, 1) cluster_kernel(const ClusterArguments arguments) {
  void* memory = block_memory();
  double* shared = static_cast<double*>(memory);
  const VaSubspaceScoreParams& p = arguments.params;
  const Shape s(p);
  const Workspace w(p, s);
  unsigned* barrier = &w.control->barrier[4];
  const int k = p.n_subspaces, thread = static_cast<int>(threadIdx.x);
  if (!has_failed(w)) {
    finish_state(p, s, w, static_cast<float*>(memory));
    grid_sync(barrier);
    sum_expressions(s, w);
  } else if (p.self_expression != nullptr) {
    const int64_t count = p.token_count * p.token_count;
    for (int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + thread; e < count;
         e += static_cast<int64_t>(gridDim.x) * kThreads) {
      p.self_expression[e] = 0.0f;
    }
  }
  grid_sync(barrier);
  if (has_failed(w)) {
    if (blockIdx.x == 0) write_report(p, s, w);
    return;
  }
  if (w.control->has_affinity) {
    make_affinity(s, w, static_cast<float*>(memory));
    grid_sync(barrier);
    LeadingEigenpairs<float> pairs(w.state, s.tokens, s.n, s.cluster_block, -1.0, w.cluster, barrier, memory);
    const int basis = pairs.solve(k, kClusterTolerance, &w.control->eigen_steps[1]);
    embed(s, w, k, pairs.basis(basis), barrier, shared);
    choose_rotation(s, w, k, arguments.first_row, barrier, shared);
    for (int step = 0; step <= kMostRotations; ++step) {
      assign_labels(s, w, k);
      grid_sync(barrier);
      if (blockIdx.x == 0) turn_rotation(s, w, k, shared);
      grid_sync(barrier);
      if (w.control->is_discrete) break;
    }
  } else {
    for (int i = static_cast<int>(blockIdx.x) * kThreads + thread; i < s.tokens;
         i += static_cast<int>(gridDim.x) * kThreads) {
      w.label[i] = 0;
    }
    grid_sync(barrier);
  }
  for (int i = static_cast<int>(blockIdx.x) * kThreads + thread; i < s.tokens;
       i += static_cast<int>(gridDim.x) * kThreads) {
    atomicAdd(&w.control->size[w.label[i]], 1);
  }
  grid_sync(barrier);
  if (blockIdx.x != 0) return;
  write_scores(p, s, w, shared);
  write_report(p, s, w);
}

}  // namespace va_export
