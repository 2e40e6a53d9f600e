// Labels from eigenvectors: Yu and Shi's discretisation ("Multiclass spectral clustering", ICCV 2003), with the start,
// order of operations and stopping rule of scikit-learn, for the same labels (va_export/anchor/spectral.py).
#pragma once

#include "solve.cuh"

namespace va_export {

constexpr int kMostRotations = 20;  // scikit-learn's

// embedding (k, n): D^-1/2 times the eigenvectors, each brought to one length, then each token's direction.
VA_PHASE void embed(const Shape& s, const Workspace& w, int n_subspaces, const double* vectors, unsigned* barrier,
                    double* shared) {
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
VA_PHASE void choose_rotation(const Shape& s, const Workspace& w, int n_subspaces, int first_row, unsigned* barrier,
                              double* shared) {
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
  double *overlap = w.cluster.small, *gram = (w.cluster.small + 1 * s.cluster_pitch * s.cluster_pitch),
         *vectors = (w.cluster.small + 3 * s.cluster_pitch * s.cluster_pitch);
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
    for (int t = 0; t < k; ++t)
      sum += rows[t * pitch + axis] * (w.cluster.small + 4 * s.cluster_pitch * s.cluster_pitch)[t * pitch + label];
    w.rotation[axis * k + label] = sum;
  }
  if (thread == 0) {
    const double cut = 2.0 * (s.tokens - agreement);
    w.control->is_discrete = fabs(cut - w.control->cut) < 2.220446049250313e-16;
    w.control->cut = cut;
  }
  __syncthreads();
}

}  // namespace va_export
