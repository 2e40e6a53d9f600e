// Kernel 5: from the solver's last state to labels and scores (va_export/anchor/spectral.py and sharing.py).
//   C, its row sums  ->  normalised affinity, in the state's place  ->  leading eigenvectors  ->  Yu and Shi's
//   discretisation ("Multiclass spectral clustering", ICCV 2003), as scikit-learn runs it  ->  score
#pragma once

#include "solve.cuh"

namespace va_export {

constexpr double kClusterTolerance = 1e-8;
constexpr int kMostRotations = 20;  // scikit-learn's
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
      shared[e / kTile * kPitch + e % kTile] = fabsf(w.state[static_cast<size_t>(j0 + e / kTile) * s.n + i0 + e % kTile]);
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

// embedding (k, n): D^-1/2 times the eigenvectors, each brought to one length, then each token's direction.
VA_PHASE void embed(const Shape& s, const Workspace& w, int n_subspaces, const double* vectors,
                             unsigned* barrier, double* shared) {
  double* length = w.cluster.small;
  for (int k = blockIdx.x; k < n_subspaces; k += gridDim.x) {
    double squares = 0.0;
    for (int i = static_cast<int>(threadIdx.x); i < s.tokens; i += kThreads) {
      const double x = vectors[static_cast<size_t>(k) * s.n + i] / w.degree[i];
      squares += x * x;
    }
    squares = block_sum(squares, shared);
    const bool flips = vectors[static_cast<size_t>(k) * s.n] > 0.0;  // scikit-learn's signs
    if (threadIdx.x == 0) length[k] = sqrt(squares / s.tokens) * (flips ? -1.0 : 1.0);
  }
  grid_sync(barrier);
  for (int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); i < s.tokens;
       i += static_cast<int>(gridDim.x) * kThreads) {
    double squares = 0.0;
    for (int k = 0; k < n_subspaces; ++k) {
      const double x = length[k] == 0.0 ? 0.0 : vectors[static_cast<size_t>(k) * s.n + i] / w.degree[i] / length[k];
      w.embedding[static_cast<size_t>(k) * s.n + i] = x;
      squares += x * x;
    }
    const double scale = squares > 0.0 ? 1.0 / sqrt(squares) : 1.0;
    for (int k = 0; k < n_subspaces; ++k) w.embedding[static_cast<size_t>(k) * s.n + i] *= scale;
    w.likeness[i] = 0.0;
  }
  grid_sync(barrier);
}

// rotation[:, 0] = the direction of first_row, then of the token that is most nearly orthogonal to those before.
VA_PHASE void choose_rotation(const Shape& s, const Workspace& w, int n_subspaces, int first_row,
                                       unsigned* barrier, double* shared) {
  const int groups = (s.tokens + kThreads - 1) / kThreads, thread = static_cast<int>(threadIdx.x);
  for (int k = thread; blockIdx.x == 0 && k < n_subspaces; k += kThreads) {
    w.rotation[k * n_subspaces] = w.embedding[static_cast<size_t>(k) * s.n + first_row];
  }
  grid_sync(barrier);
  for (int column = 1; column < n_subspaces; ++column) {
    for (int group = blockIdx.x; group < groups; group += gridDim.x) {
      const int i = group * kThreads + thread;
      double likeness = INFINITY;
      if (i < s.tokens) {
        double dot = 0.0;
        for (int k = 0; k < n_subspaces; ++k) {
          dot += w.embedding[static_cast<size_t>(k) * s.n + i] * w.rotation[k * n_subspaces + column - 1];
        }
        likeness = w.likeness[i] + fabs(dot);
        w.likeness[i] = likeness;
      }
      const double least = -block_max(-likeness, shared);
      const int row = static_cast<int>(-block_max(likeness == least ? -static_cast<double>(i) : -1e9, shared));
      if (thread == 0) {
        w.best[group] = least;
        w.best_row[group] = row;
      }
    }
    grid_sync(barrier);
    if (blockIdx.x == 0) {
      int chosen = 0;
      for (int group = 1; group < groups; ++group) {
        if (w.best[group] < w.best[chosen]) chosen = group;
      }
      const int row = w.best_row[chosen];
      for (int k = thread; k < n_subspaces; k += kThreads) {
        w.rotation[k * n_subspaces + column] = w.embedding[static_cast<size_t>(k) * s.n + row];
      }
    }
    grid_sync(barrier);
  }
}

// label = the indicator nearest to a token's direction; overlap[label][k] += the direction, over groups of tokens.
VA_PHASE void assign_labels(const Shape& s, const Workspace& w, int n_subspaces) {
  const int groups = (s.tokens + kThreads - 1) / kThreads, thread = static_cast<int>(threadIdx.x);
  for (int group = blockIdx.x; group < groups; group += gridDim.x) {
    const int start = group * kThreads, i = start + thread;
    if (i < s.tokens) {
      double most = -INFINITY;
      int label = 0;
      for (int column = 0; column < n_subspaces; ++column) {
        double dot = 0.0;
        for (int k = 0; k < n_subspaces; ++k) {
          dot += w.embedding[static_cast<size_t>(k) * s.n + i] * w.rotation[k * n_subspaces + column];
        }
        if (dot > most) {
          most = dot;
          label = column;
        }
      }
      w.label[i] = label;
    }
    __syncthreads();
    const int last = start + kThreads < s.tokens ? start + kThreads : s.tokens;
    for (int e = thread; e < n_subspaces * n_subspaces; e += kThreads) {
      const int label = e / n_subspaces, k = e % n_subspaces;
      double sum = 0.0;
      for (int token = start; token < last; ++token) {
        if (w.label[token] == label) sum += w.embedding[static_cast<size_t>(k) * s.n + token];
      }
      w.overlap[static_cast<size_t>(group) * n_subspaces * n_subspaces + e] = sum;
    }
  }
}

// The rows of `rows` (k, pitch), in order, made orthonormal; one that is nothing but rounding becomes a unit vector
// that those before lack most. Returns the sum of their lengths. One block.
VA_PHASE double orthonormalise(double* rows, const double* length, int k, int pitch, double* dots) {
  const int thread = static_cast<int>(threadIdx.x);
  double total = 0.0, longest = 0.0;
  for (int row = 0; row < k; ++row) longest = larger(longest, length[row]);
  for (int row = 0; row < k; ++row) {
    double* x = rows + row * pitch;
    const bool is_null = !(length[row] > 1e-12 * longest);
    total += is_null ? 0.0 : length[row];
    if (is_null) {
      double least = INFINITY;
      int chosen = 0;
      for (int axis = 0; axis < k; ++axis) {  // every thread finds the same
        double covered = 0.0;
        for (int other = 0; other < row; ++other) covered += rows[other * pitch + axis] * rows[other * pitch + axis];
        if (covered < least - 1e-9) {
          least = covered;
          chosen = axis;
        }
      }
      __syncthreads();
      for (int axis = thread; axis < k; axis += kThreads) x[axis] = axis == chosen ? 1.0 : 0.0;
    }
    for (int pass = 0; pass < 2; ++pass) {
      __syncthreads();
      for (int other = thread; other <= row; other += kThreads) {
        double dot = 0.0;
        for (int axis = 0; axis < k; ++axis) dot += rows[other * pitch + axis] * x[axis];
        dots[other] = dot;
      }
      __syncthreads();
      for (int axis = thread; axis < k; axis += kThreads) {
        double rest = x[axis];
        for (int other = 0; other < row; ++other) rest -= dots[other] * rows[other * pitch + axis];
        x[axis] = rest;
      }
    }
    __syncthreads();
    double squares = 0.0;
    for (int axis = 0; axis < k; ++axis) squares += x[axis] * x[axis];
    __syncthreads();
    for (int axis = thread; axis < k; axis += kThreads) x[axis] /= sqrt(squares);
  }
  __syncthreads();
  return total;
}

// rotation = V U^T of the overlap U S V^T, by the eigenvectors of overlap overlap^T. Block 0.
VA_PHASE void turn_rotation(const Shape& s, const Workspace& w, int n_subspaces, double* shared) {
  const int k = n_subspaces, pitch = round_up(k, kTile), thread = static_cast<int>(threadIdx.x);
  const int groups = (s.tokens + kThreads - 1) / kThreads;
  double *overlap = w.cluster.small, *gram = (w.cluster.small + 1 * s.cluster_pitch * s.cluster_pitch), *vectors = (w.cluster.small + 3 * s.cluster_pitch * s.cluster_pitch);
  double *rows = (w.cluster.small + 2 * s.cluster_pitch * s.cluster_pitch), *length = w.cluster.theta;
  for (int e = thread; e < k * k; e += kThreads) {
    double sum = 0.0;
    for (int group = 0; group < groups; ++group) sum += w.overlap[static_cast<size_t>(group) * k * k + e];
    overlap[e / k * pitch + e % k] = sum;
    vectors[e / k * pitch + e % k] = e / k == e % k ? 1.0 : 0.0;
  }
  __syncthreads();
  for (int e = thread; e < k * k; e += kThreads) {
    double sum = 0.0;
    for (int t = 0; t < k; ++t) sum += overlap[e / k * pitch + t] * overlap[e % k * pitch + t];
    gram[e / k * pitch + e % k] = sum;
  }
  __syncthreads();
  jacobi({nullptr, gram, nullptr, vectors, nullptr, nullptr, shared, k, pitch});
  __syncthreads();
  // Longest first, so that short ones do not disturb them; `gram`'s diagonal orders, its rest is free for the vectors.
  for (int e = thread; e < k * k; e += kThreads) {
    const int from = e / k, axis = e % k;
    const double value = gram[from * pitch + from];
    int rank = 0;
    for (int other = 0; other < k; ++other) {
      const double x = gram[other * pitch + other];
      rank += x > value || (x == value && other < from);
    }
    double sum = 0.0;
    for (int t = 0; t < k; ++t) sum += vectors[from * pitch + t] * overlap[t * pitch + axis];
    rows[rank * pitch + axis] = sum;
    (w.cluster.small + 4 * s.cluster_pitch * s.cluster_pitch)[rank * pitch + axis] = vectors[from * pitch + axis];
  }
  __syncthreads();
  for (int row = thread; row < k; row += kThreads) {
    double squares = 0.0;
    for (int axis = 0; axis < k; ++axis) squares += rows[row * pitch + axis] * rows[row * pitch + axis];
    length[row] = sqrt(squares);
  }
  __syncthreads();
  const double agreement = orthonormalise(rows, length, k, pitch, shared);
  for (int e = thread; e < k * k; e += kThreads) {
    const int axis = e / k, label = e % k;
    double sum = 0.0;
    for (int t = 0; t < k; ++t) sum += rows[t * pitch + axis] * (w.cluster.small + 4 * s.cluster_pitch * s.cluster_pitch)[t * pitch + label];
    w.rotation[axis * k + label] = sum;
  }
  if (thread == 0) {
    const double cut = 2.0 * (s.tokens - agreement);
    w.control->is_discrete = fabs(cut - w.control->cut) < 2.220446049250313e-16;
    w.control->cut = cut;
  }
  __syncthreads();
}

// score = min-max of row_sum * (tokens in the same subspace) / N. Block 0.
VA_PHASE void write_scores(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w,
                                    double* shared) {
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

// Scores and labels of tokens that were not solved: 0. What happened: the report. Block 0.
VA_PHASE void write_report(const VaSubspaceScoreParams& p, const Shape& s, const Workspace& w) {
  const bool is_solved = !has_failed(w);
  for (int i = static_cast<int>(threadIdx.x); !is_solved && i < s.tokens; i += kThreads) {
    p.sharing_score[i] = 0.0f;
    p.labels[i] = 0;
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
__global__ void __launch_bounds__(kThreads) cluster_kernel(const ClusterArguments arguments) {
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
