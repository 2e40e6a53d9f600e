#include "solver/solver.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "solver/column_step.h"
#include "solver/thread_team.h"

struct VaSolver {
  virtual ~VaSolver() = default;
  virtual int64_t advance(int64_t max_iterations, double eps, double* residual) = 0;
};

namespace va {
namespace {

constexpr int kManyFeatures = 32;  // more repay remembering where their errors stand
constexpr int kWidest = 64;        // columns of the widest kernel's panel

bool runs_here(const char* isa) {
#if defined(__x86_64__)
  if (!std::strcmp(isa, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
  if (!std::strcmp(isa, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return !std::strcmp(isa, "baseline");
}

const char* best_isa() {
  for (const char* isa : {"avx512", "avx2"}) {
    if (runs_here(isa)) return isa;
  }
  return "baseline";
}

template <typename T>
Kernel<T> kernel_for(const char* isa) {
  const auto choose = [](auto f32, auto f64) {
    if constexpr (sizeof(T) == 4)
      return f32();
    else
      return f64();
  };
#if defined(__x86_64__)
  if (!std::strcmp(isa, "avx512")) return choose(avx512::kernel_f32, avx512::kernel_f64);
  if (!std::strcmp(isa, "avx2")) return choose(avx2::kernel_f32, avx2::kernel_f64);
#endif
  return choose(baseline::kernel_f32, baseline::kernel_f64);
}

// Zeroed, aligned memory.
template <typename T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t count) {
    const size_t bytes = (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    data_.reset(static_cast<T*>(std::aligned_alloc(kAlignment, bytes ? bytes : kAlignment)));
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, bytes);
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T, Free> data_;
};

// rows [count][r], as the columns of a matrix, cut into panels [⌈count/width⌉][r][width].
template <typename T>
Array<T> panels_of(const T* rows, int64_t count, int64_t r, int64_t width) {
  Array<T> panels((count + width - 1) / width * width * r);
  for (int64_t i = 0; i < count; ++i) {
    T* column = panels.get() + i / width * width * r + i % width;
    for (int64_t k = 0; k < r; ++k) column[k * width] = rows[i * r + k];
  }
  return panels;
}

template <typename T>
Array<T> copy_of(const void* data, int64_t count) {
  Array<T> copy(count);
  std::memcpy(copy.get(), data, count * sizeof(T));
  return copy;
}

template <typename T>
class Solver final : public VaSolver {
 public:
  Solver(const VaSolverProblem& given, const char* isa)
      : kernel_(kernel_for<T>(isa)), tiles_((given.n + kTile - 1) / kTile) {
    const int64_t n = given.n, m = given.m, r = given.r;
    constexpr int64_t kPad = kAlignment / sizeof(T);
    const int64_t stride = (r + kPad - 1) / kPad * kPad;
    const T* f_t = static_cast<const T*>(given.f_t);
    basis_ = copy_of<T>(given.basis, m * r);
    gain_ = copy_of<T>(given.gain, r);
    spectrum_ = copy_of<T>(given.spectrum, r);
    f_panels_ = panels_of(f_t, n, r, kernel_.width);
    basis_panels_ = panels_of(basis_.get(), m, r, kernel_.width);
    f_t_ = Array<T>(n * stride);
    for (int64_t j = 0; j < n; ++j) std::memcpy(f_t_.get() + j * stride, f_t + j * r, r * sizeof(T));
    fc_ = Array<T>(n * stride);
    fz_ = Array<T>(n * stride);
    row_sums_ = Array<T>(tiles_ * n);
    if (m > kManyFeatures) {
      reference_ = Array<T>(n * stride);
      slack_ = Array<T>(n);
    }
    problem_ = {n,
                m,
                r,
                stride,
                f_panels_.get(),
                basis_panels_.get(),
                basis_.get(),
                f_t_.get(),
                gain_.get(),
                spectrum_.get(),
                static_cast<T>(given.rho),
                static_cast<T>(1 / given.rho),
                static_cast<T>(given.error_threshold),
                static_cast<T*>(given.state),
                static_cast<T*>(given.error),
                fc_.get(),
                fz_.get(),
                longest_row(m - 1, r),
                reference_.get(),
                slack_.get()};
    const int threads = static_cast<int>(std::min<int64_t>(std::max(given.threads, 1), tiles_));
    for (int i = 0; i < threads; ++i) memory_.emplace_back(problem_);
    ThreadTeam team(threads);
    team.run(tiles_, [this](int thread, int64_t tile) {
      kernel_.prepare(problem_, memory_[thread].scratch, tile * kTile, end_of(tile));
    });
  }

  int64_t advance(int64_t max_iterations, double eps, double* residual) override {
    ThreadTeam team(static_cast<int>(memory_.size()));
    int64_t iterations = 0;
    do {
      team.run(tiles_, [this](int thread, int64_t tile) {
        kernel_.step(problem_, memory_[thread].scratch, tile * kTile, end_of(tile),
                     row_sums_.get() + tile * problem_.n);
      });
      *residual = worst_row();
      ++iterations;
    } while (*residual >= eps && iterations < max_iterations);
    return iterations;
  }

 private:
  struct Memory {
    explicit Memory(const Problem<T>& p)
        : g(kTile * p.r),
          v(kTile * p.r),
          projected(p.r),
          block(kGroup * kWidest),
          index(p.n + kSlack),
          value(p.n + kSlack),
          scratch{g.get(), v.get(), projected.get(), block.get(), index.get(), value.get()} {}
    Array<T> g, v, projected, block;
    Array<int32_t> index;
    Array<T> value;
    Scratch<T> scratch;
  };

  T longest_row(int64_t rows, int64_t r) const {
    double longest = 0;
    for (int64_t d = 0; d < rows; ++d) {
      double squares = 0;
      for (int64_t k = 0; k < r; ++k) squares += static_cast<double>(basis_.get()[d * r + k]) * basis_.get()[d * r + k];
      longest = std::max(longest, squares);
    }
    return static_cast<T>(std::sqrt(longest) * (1 + 1e-5));
  }

  int64_t end_of(int64_t tile) const { return std::min((tile + 1) * kTile, problem_.n); }

  // Tiles are added in their order, whatever thread took them: the result does not depend on the threads.
  double worst_row() {
    T* total = row_sums_.get();
    for (int64_t tile = 1; tile < tiles_; ++tile) {
      const T* sums = row_sums_.get() + tile * problem_.n;
      for (int64_t i = 0; i < problem_.n; ++i) total[i] += sums[i];
    }
    T worst = 0;
    for (int64_t i = 0; i < problem_.n; ++i) {
      if (!(total[i] <= worst)) worst = total[i];
      if (std::isnan(worst)) break;
    }
    return worst;
  }

  Kernel<T> kernel_;
  int64_t tiles_;
  Array<T> basis_, gain_, spectrum_, f_panels_, basis_panels_, f_t_, fc_, fz_, row_sums_, reference_, slack_;
  Problem<T> problem_;
  std::vector<Memory> memory_;
};

template <typename T>
void finish(T* state, int64_t n, T theta) {
  const auto soft = [theta](T x) { return x - std::min(std::max(x, -theta), theta); };
  constexpr int64_t kBlock = 32;
  for (int64_t rows = 0; rows < n; rows += kBlock) {
    for (int64_t columns = rows; columns < n; columns += kBlock) {
      for (int64_t i = rows; i < std::min(rows + kBlock, n); ++i) {
        for (int64_t j = std::max(columns, i + 1); j < std::min(columns + kBlock, n); ++j) {
          const T upper = state[i * n + j];
          state[i * n + j] = soft(state[j * n + i]);
          state[j * n + i] = soft(upper);
        }
      }
    }
  }
  for (int64_t i = 0; i < n; ++i) state[i * n + i] = 0;
}

}  // namespace
}  // namespace va

VaSolver* va_solver_create(const VaSolverProblem* problem, const char* isa) {
  isa = isa ? isa : va::best_isa();
  if (!va::runs_here(isa)) return nullptr;
  try {
    if (problem->is_double) return new va::Solver<double>(*problem, isa);
    return new va::Solver<float>(*problem, isa);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

int64_t va_solver_advance(VaSolver* solver, int64_t max_iterations, double eps, double* residual) {
  return solver->advance(max_iterations, eps, residual);
}

void va_solver_destroy(VaSolver* solver) {
  delete solver;
}

void va_solver_finish(void* state, int64_t n, double rho, int32_t is_double) {
  if (is_double) {
    va::finish(static_cast<double*>(state), n, 1 / rho);
  } else {
    va::finish(static_cast<float*>(state), n, static_cast<float>(1 / rho));
  }
}

const char* va_solver_isa() {
  return va::best_isa();
}
