// The largest eigenvalues of a symmetric matrix and their vectors: subspace iteration with a Chebyshev filter (Zhou,
// Saad, Tiago & Chelikowsky, "Self-consistent-field calculations using Chebyshev-filtered subspace iteration", 2006,
// algorithm 4.1), a Rayleigh-Ritz step between filters, and Jacobi rotations for the small problem. In float64. Starts
// from fixed numbers, takes a bounded number of steps, and depends on the grid's size in no bit.
//
// A vector is a row of its buffer: basis[k][i].
#pragma once

#include "tile.cuh"

namespace va_export {

constexpr int kMostOuterSteps = 40;
constexpr int kMostDegree = 20;
constexpr int kMostSweeps = 16;
constexpr int kMostBlock = 512;  // pairs of a Jacobi round fit the threads' arrays in shared memory

// What block 0 does alone with the small matrices.
struct SmallMatrices {
  double *gram, *product, *factor, *vectors, *rotation;  // (block, pitch)
  double *theta, *work;                                  // work: shared, 2 * kMostBlock + kThreads
  int block, pitch;
};

__device__ inline double start_value(unsigned k, unsigned i) {
  unsigned x = k * 0x9e3779b9u + i * 0x85ebca6bu + 0x27d4eb2fu;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return static_cast<double>(x ^ (x >> 16)) / 2147483648.0 - 1.0;
}

// Jacobi: turns `product` into a diagonal and `vectors`, at first the identity, into its eigenvectors, by rows.
VA_PHASE void jacobi(const SmallMatrices& m) {
  const int size = m.block + m.block % 2, pairs = size / 2, pitch = m.pitch, thread = static_cast<int>(threadIdx.x);
  double *a = m.product, *v = m.vectors, *cosine = m.work, *sine = m.work + kMostBlock / 2;
  double* sums = m.work + kMostBlock;
  // Round robin: player size - 1 stays, the others move on by one a round.
  const auto first = [&](int round, int pair) { return pair == 0 ? size - 1 : (round + pair) % (size - 1); };
  const auto second = [&](int round, int pair) { return pair == 0 ? round : (round + size - 1 - pair) % (size - 1); };
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    double outside = 0.0, inside = 0.0;
    for (int e = thread; e < size * size; e += kThreads) {
      const int i = e / size, j = e % size;
      const double x = i < m.block && j < m.block ? a[i * pitch + j] : 0.0;
      (i == j ? inside : outside) += x * x;
    }
    outside = block_sum(outside, sums);
    inside = block_sum(inside, sums);
    if (!(outside > 1e-30 * inside)) break;
    for (int round = 0; round < size - 1; ++round) {
      for (int t = thread; t < pairs; t += kThreads) {
        const int p = first(round, t), q = second(round, t);
        double c = 1.0, s = 0.0;
        if (p < m.block && q < m.block && a[p * pitch + q] != 0.0) {
          const double tau = (a[q * pitch + q] - a[p * pitch + p]) / (2.0 * a[p * pitch + q]);
          const double tangent = (tau >= 0.0 ? 1.0 : -1.0) / (fabs(tau) + sqrt(1.0 + tau * tau));
          c = 1.0 / sqrt(1.0 + tangent * tangent);
          s = tangent * c;
        }
        cosine[t] = c;
        sine[t] = s;
      }
      __syncthreads();
      for (int e = thread; e < pairs * pairs; e += kThreads) {
        const int t = e / pairs, u = e % pairs;
        const int p = first(round, t), q = second(round, t), k = first(round, u), l = second(round, u);
        if (p >= m.block || q >= m.block || k >= m.block || l >= m.block) {
          // With an odd number of vectors one sits out: its partner's row and column still turn with the others.
          const int row = p >= m.block ? q : p, column = k >= m.block ? l : k;
          const bool row_alone = p >= m.block || q >= m.block, column_alone = k >= m.block || l >= m.block;
          if (row_alone && !column_alone) {
            const double x = a[row * pitch + k], y = a[row * pitch + l];
            a[row * pitch + k] = cosine[u] * x - sine[u] * y;
            a[row * pitch + l] = sine[u] * x + cosine[u] * y;
          } else if (column_alone && !row_alone) {
            const double x = a[p * pitch + column], y = a[q * pitch + column];
            a[p * pitch + column] = cosine[t] * x - sine[t] * y;
            a[q * pitch + column] = sine[t] * x + cosine[t] * y;
          }
          continue;
        }
        const double pk = a[p * pitch + k], pl = a[p * pitch + l], qk = a[q * pitch + k], ql = a[q * pitch + l];
        const double top_k = cosine[t] * pk - sine[t] * qk, low_k = sine[t] * pk + cosine[t] * qk;
        const double top_l = cosine[t] * pl - sine[t] * ql, low_l = sine[t] * pl + cosine[t] * ql;
        a[p * pitch + k] = cosine[u] * top_k - sine[u] * top_l;
        a[p * pitch + l] = sine[u] * top_k + cosine[u] * top_l;
        a[q * pitch + k] = cosine[u] * low_k - sine[u] * low_l;
        a[q * pitch + l] = sine[u] * low_k + cosine[u] * low_l;
      }
      for (int e = thread; e < pairs * m.block; e += kThreads) {
        const int t = e / m.block, i = e % m.block, p = first(round, t), q = second(round, t);
        if (p >= m.block || q >= m.block) continue;
        const double x = v[p * pitch + i], y = v[q * pitch + i];
        v[p * pitch + i] = cosine[t] * x - sine[t] * y;
        v[q * pitch + i] = sine[t] * x + cosine[t] * y;
      }
      __syncthreads();
    }
  }
}

// S = L L^T in place of `gram`, lower triangle, after S was scaled to a unit diagonal; `scale` keeps what it was scaled
// by. A vector that the others already span gets a pivot of almost nothing, and its part of the result means nothing.
VA_PHASE void factor_gram(const SmallMatrices& m, double* scale) {
  const int b = m.block, pitch = m.pitch, thread = static_cast<int>(threadIdx.x);
  double* s = m.gram;
  for (int i = thread; i < b; i += kThreads) scale[i] = s[i * pitch + i] > 0.0 ? 1.0 / sqrt(s[i * pitch + i]) : 0.0;
  __syncthreads();
  for (int e = thread; e < b * b; e += kThreads) {
    const int i = e / b, j = e % b;
    s[i * pitch + j] = i == j ? 1.0 : s[i * pitch + j] * scale[i] * scale[j];
    m.product[i * pitch + j] *= scale[i] * scale[j];
  }
  __syncthreads();
  for (int k = 0; k < b; ++k) {
    const double pivot = s[k * pitch + k];
    __syncthreads();
    const double root = sqrt(pivot > 1e-14 ? pivot : 1e-14);
    for (int i = k + thread; i < b; i += kThreads) s[i * pitch + k] = i == k ? root : s[i * pitch + k] / root;
    __syncthreads();
    for (int e = thread; e < (b - k - 1) * (b - k - 1); e += kThreads) {
      const int i = k + 1 + e / (b - k - 1), j = k + 1 + e % (b - k - 1);
      if (j <= i) s[i * pitch + j] -= s[i * pitch + k] * s[j * pitch + k];
    }
    __syncthreads();
  }
}

// out = L^-1 in, for a matrix of b columns; in place.
VA_PHASE void solve_lower(const SmallMatrices& m, double* x) {
  for (int j = static_cast<int>(threadIdx.x); j < m.block; j += kThreads) {
    for (int i = 0; i < m.block; ++i) {
      double sum = x[i * m.pitch + j];
      for (int k = 0; k < i; ++k) sum -= m.gram[i * m.pitch + k] * x[k * m.pitch + j];
      x[i * m.pitch + j] = sum / m.gram[i * m.pitch + i];
    }
  }
  __syncthreads();
}

VA_PHASE void transpose_small(const SmallMatrices& m, double* x) {
  for (int e = static_cast<int>(threadIdx.x); e < m.block * m.block; e += kThreads) {
    const int i = e / m.block, j = e % m.block;
    if (j >= i) continue;
    const double swapped = x[i * m.pitch + j];
    x[i * m.pitch + j] = x[j * m.pitch + i];
    x[j * m.pitch + i] = swapped;
  }
  __syncthreads();
}

// Rayleigh-Ritz for the basis V with Gram matrix S = V V^T and product T = V A V^T: theta, descending, and `rotation`
// such that rotation V are the orthonormal Ritz vectors.
VA_PHASE void rayleigh_ritz(const SmallMatrices& m) {
  const int b = m.block, pitch = m.pitch, thread = static_cast<int>(threadIdx.x);
  double* scale = m.theta;  // until the eigenvalues are known
  factor_gram(m, scale);
  // L^-1 T L^-T, symmetric: the two halves by turns.
  solve_lower(m, m.product);
  transpose_small(m, m.product);
  solve_lower(m, m.product);
  for (int e = thread; e < b * b; e += kThreads) {
    const int i = e / b, j = e % b;
    m.vectors[i * pitch + j] = i == j ? 1.0 : 0.0;
    m.factor[i * pitch + j] = i == j ? scale[i] : 0.0;
    if (j < i) {
      const double mean = 0.5 * (m.product[i * pitch + j] + m.product[j * pitch + i]);
      m.product[i * pitch + j] = m.product[j * pitch + i] = mean;
    }
  }
  __syncthreads();
  solve_lower(m, m.factor);  // L^-1 times the scaling
  jacobi(m);
  __syncthreads();
  for (int e = thread; e < b * b; e += kThreads) {
    const int k = e / b, j = e % b;
    const double value = m.product[k * pitch + k];
    int rank = 0;
    for (int other = 0; other < b; ++other) {
      const double x = m.product[other * pitch + other];
      rank += x > value || (x == value && other < k);
    }
    double sum = 0.0;
    for (int i = 0; i < b; ++i) sum += m.vectors[k * pitch + i] * m.factor[i * pitch + j];
    m.rotation[rank * pitch + j] = sum;
    if (j == 0) m.work[rank] = value;
  }
  __syncthreads();
  for (int i = thread; i < b; i += kThreads) m.theta[i] = m.work[i];
  __syncthreads();
}

// One eigenproblem, seen by every block of the grid.
template <typename Element>
class LeadingEigenpairs {
 public:
  // matrix: (size, pitch), symmetric, its spectrum above `lowest`. `shared`: TileShape<double>::kBytes.
  __device__ LeadingEigenpairs(const Element* matrix, int size, int pitch, int block, double lowest,
                               const EigenBuffers& buffers, unsigned* barrier, void* shared)
      : matrix_(matrix),
        size_(size),
        pitch_(pitch),
        block_(block),
        b_(round_up(block, kTile)),
        m_(round_up(size, kTile)),
        lowest_(lowest),
        e_(buffers),
        barrier_(barrier),
        shared_(shared) {}

  // Iterates until the residuals of the `wanted` largest are below tolerance * the largest eigenvalue's size. Returns
  // which buffer holds the vectors; buffers.theta has the values. `steps`: how many outer steps it took.
  __device__ int solve(int wanted, double tolerance, int* steps) {
    begin();
    int now = 0;  // the buffer that holds the basis
    for (int outer = 1;; ++outer) {
      const int product = (now + 1) % 3, rotated = (now + 2) % 3;
      apply(now, product, nullptr, 1.0, 0.0, 0.0);
      grid_sync(barrier_);
      multiply_moments(now, product);
      grid_sync(barrier_);
      if (blockIdx.x == 0) reduce_and_rotate();
      grid_sync(barrier_);
      rotate(now, product, rotated);
      grid_sync(barrier_);
      now = rotated;
      if (blockIdx.x == 0 && threadIdx.x == 0) *steps = outer;
      if (worst_residual(wanted) <= tolerance * largest() || outer == kMostOuterSteps || block_ == size_) return now;
      now = filter(now, outer <= 2 ? 1e4 : 1e7);
    }
  }

  // The vectors of one buffer, (block, size).
  __device__ double* basis(int index) const { return e_.basis + static_cast<size_t>(index) * b_ * m_; }

 private:
  __device__ double* small(int index) const { return e_.small + static_cast<size_t>(index) * b_ * b_; }
  __device__ double largest() const { return larger(fabs(e_.theta[0]), 1e-300); }

  VA_PHASE void begin() {
    const int64_t count = static_cast<int64_t>(b_) * m_;
    for (int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; e < count;
         e += static_cast<int64_t>(gridDim.x) * kThreads) {
      const int k = static_cast<int>(e / m_), i = static_cast<int>(e % m_);
      const bool exists = k < block_ && i < size_;
      const double value = block_ == size_ ? (i == k ? 1.0 : 0.0) : start_value(k, i);
      e_.basis[e] = exists ? value : 0.0;
      e_.basis[count + e] = e_.basis[2 * count + e] = 0.0;
    }
    grid_sync(barrier_);
  }

  // out = factor * (in A - shift * in) - back * other; `other` may be `out`, element by element.
  VA_PHASE void apply(int in, int out, const double* other, double factor, double shift, double back) {
    const double* from = basis(in);
    double* to = basis(out);
    const int across = m_ / kTile, items = b_ / kTile * across;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
      const int k0 = item / across * kTile, i0 = item % across * kTile;
      double acc[kPer][kPer] = {};
      multiply<double, Along::kDepth_, Along::kTile_>(
          acc, 0, size_, [&](int j, int k) { return from[static_cast<size_t>(k0 + k) * m_ + j]; },
          [&](int j, int i) { return i0 + i < size_ ? matrix_[static_cast<size_t>(j) * pitch_ + i0 + i] : Element(0); },
          shared_);
      for_each_element(acc, k0, i0, [&](int k, int i, double x) {
        const size_t at = static_cast<size_t>(k) * m_ + i;
        double value = factor * x - factor * shift * from[at];
        if (other != nullptr) value -= back * other[at];
        to[at] = k < block_ && i < size_ ? value : 0.0;
      });
    }
  }

  // Parts of V V^T and V (A V)^T, over strips of kMomentStrip elements.
  VA_PHASE void multiply_moments(int basis_index, int product) {
    const double* v = basis(basis_index);
    const int across = b_ / kTile, pairs = across * across, strips = (m_ + kMomentStrip - 1) / kMomentStrip;
    for (int item = blockIdx.x; item < strips * 2 * pairs; item += gridDim.x) {
      const int strip = item / (2 * pairs), which = item / pairs % 2;
      const int k0 = item % pairs / across * kTile, l0 = item % pairs % across * kTile;
      const double* w = basis(which == 0 ? basis_index : product);
      const int last = (strip + 1) * kMomentStrip;
      double acc[kPer][kPer] = {};
      multiply<double, Along::kDepth_, Along::kDepth_>(
          acc, strip * kMomentStrip, last < m_ ? last : m_,
          [&](int i, int k) { return v[static_cast<size_t>(k0 + k) * m_ + i]; },
          [&](int i, int l) { return w[static_cast<size_t>(l0 + l) * m_ + i]; }, shared_);
      double* part = e_.moments + static_cast<size_t>(strip * 2 + which) * b_ * b_;
      for_each_element(acc, k0, l0, [&](int k, int l, double x) { part[static_cast<size_t>(k) * b_ + l] = x; });
    }
  }

  VA_PHASE void reduce_and_rotate() {
    const int strips = (m_ + kMomentStrip - 1) / kMomentStrip;
    const size_t count = static_cast<size_t>(b_) * b_;
    for (size_t e = threadIdx.x; e < count; e += kThreads) {
      double gram = 0.0, product = 0.0;
      for (int strip = 0; strip < strips; ++strip) {
        gram += e_.moments[strip * 2 * count + e];
        product += e_.moments[(strip * 2 + 1) * count + e];
      }
      small(0)[e] = gram;
      small(1)[e] = product;
      small(4)[e] = 0.0;
    }
    __syncthreads();
    rayleigh_ritz(
        {small(0), small(1), small(2), small(3), small(4), e_.theta, static_cast<double*>(shared_), block_, b_});
  }

  // to = rotation V, and per tile of elements the squares of rotation (A V) - theta (rotation V).
  VA_PHASE void rotate(int basis_index, int product, int rotated) {
    const double *v = basis(basis_index), *av = basis(product), *rotation = small(4);
    double* to = basis(rotated);
    const int across = m_ / kTile, items = b_ / kTile * across;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
      const int k0 = item / across * kTile, i0 = item % across * kTile;
      double acc[kPer][kPer] = {}, image[kPer][kPer] = {};
      const auto turn = [&](int l, int k) { return rotation[static_cast<size_t>(k0 + k) * b_ + l]; };
      multiply<double, Along::kDepth_, Along::kTile_>(
          acc, 0, block_, turn, [&](int l, int i) { return v[static_cast<size_t>(l) * m_ + i0 + i]; }, shared_);
      multiply<double, Along::kDepth_, Along::kTile_>(
          image, 0, block_, turn, [&](int l, int i) { return av[static_cast<size_t>(l) * m_ + i0 + i]; }, shared_);
      for_each_element(acc, k0, i0, [&](int k, int i, double x) { to[static_cast<size_t>(k) * m_ + i] = x; });
      double* squares = static_cast<double*>(shared_);
#pragma unroll
      for (int r = 0; r < kPer; ++r) {
        const int k = k0 + my_row() + r;
        double sum = 0.0;
#pragma unroll
        for (int c = 0; c < kPer; ++c) {
          const double error = k < block_ ? image[r][c] - e_.theta[k] * acc[r][c] : 0.0;
          sum += error * error;
        }
        squares[(my_row() + r) * kAcross + my_column() / kPer] = sum;
      }
      __syncthreads();
      if (threadIdx.x < kTile) {
        double sum = 0.0;
        for (int part = 0; part < kAcross; ++part) sum += squares[threadIdx.x * kAcross + part];
        e_.residual[static_cast<size_t>(item % across) * b_ + k0 + threadIdx.x] = sum;
      }
    }
  }

  // Every block computes the same.
  VA_PHASE double worst_residual(int wanted) {
    double worst = 0.0;
    for (int k = static_cast<int>(threadIdx.x); k < wanted; k += kThreads) {
      double sum = 0.0;
      for (int tile = 0; tile < m_ / kTile; ++tile) sum += e_.residual[static_cast<size_t>(tile) * b_ + k];
      worst = larger(worst, sqrt(sum));
    }
    return block_max(worst, static_cast<double*>(shared_));
  }

  // Damps what belongs to eigenvalues in [lowest, smallest Ritz value], by a polynomial that raises the largest by at
  // most `amplification` over them: more would drown the others in its rounding errors.
  VA_PHASE int filter(int now, double amplification) {
    const double top = e_.theta[0], cut = larger(e_.theta[block_ - 1], lowest_);
    const double half = larger(0.5 * (cut - lowest_), 1e-10 * largest()), centre = lowest_ + half;
    const double growth = acosh(larger((top - centre) / half, 1.0 + 1e-12));
    const double fitting = log(2.0 * amplification) / growth;
    const int degree = !(fitting >= 1.0) ? 1 : (fitting > kMostDegree ? kMostDegree : static_cast<int>(fitting));
    const double first = half / (top - centre), twice = 2.0 / first;
    double sigma = first;
    int before = now, current = (now + 1) % 3;
    apply(before, current, nullptr, sigma / half, centre, 0.0);
    grid_sync(barrier_);
    for (int step = 2; step <= degree; ++step) {
      const double next = 1.0 / (twice - sigma);
      const int target = 3 - before - current;
      apply(current, target, basis(before), 2.0 * next / half, centre, sigma * next);
      grid_sync(barrier_);
      before = current;
      current = target;
      sigma = next;
    }
    return current;
  }

  const Element* matrix_;
  int size_, pitch_, block_, b_, m_;
  double lowest_;
  EigenBuffers e_;
  unsigned* barrier_;
  void* shared_;
};

}  // namespace va_export
