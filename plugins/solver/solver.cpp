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

constexpr int kMostTiles = 4;     // of a task: with more, its coefficients leave the second cache
constexpr int kTasksAThread = 8;  // at least, so that threads end together

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

// rows [count][r] cut into pieces of columns of a matrix [count][stride], zero-padded: [count][piece] one after the
// other.
template <typename T>
Array<T> pieces_of(const T* rows, int64_t count, int64_t r, int64_t stride, int64_t piece) {
  Array<T> pieces(count * stride);
  for (int64_t start = 0; start < r; start += piece) {
    const int64_t length = std::min(piece, stride - start);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(pieces.get() + start * count + i * length, rows + i * r + start,
                  std::min(length, r - start) * sizeof(T));
    }
  }
  return pieces;
}

template <typename T>
Array<T> copy_of(const void* data, int64_t count) {
  Array<T> copy(count);
  std::memcpy(copy.get(), data, count * sizeof(T));
  return copy;
}

// Columns of a task. More share what is read of F, which only matters where a column's products take long.
int64_t columns_of_task(int64_t n, int64_t r, int64_t threads) {
  int64_t tiles = 1;
  while (r > kDepth && tiles < kMostTiles && 2 * tiles * kTile * kTasksAThread * threads <= n) tiles *= 2;
  return tiles * kTile;
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
    f_pieces_ = pieces_of(f_t, n, r, stride, kernel_.piece);
    basis_panels_ = panels_of(basis_.get(), m - 1, r, kernel_.width);
    fc_ = Array<T>(n * stride);
    fz_ = Array<T>(n * stride);
    row_sums_ = Array<T>(tiles_ * n);
    seen_ = Array<T>(n * stride);
    slack_ = Array<T>(n);
    must_look_ = Array<uint8_t>(n);
    to_look_.reserve(n);
    problem_ = {n,
                m,
                r,
                stride,
                f_panels_.get(),
                basis_panels_.get(),
                basis_.get(),
                f_pieces_.get(),
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
                seen_.get(),
                slack_.get(),
                must_look_.get()};
    const int64_t threads = std::min<int64_t>(std::max(given.threads, 1), tiles_);
    columns_ = columns_of_task(n, r, threads);
    for (int64_t i = 0; i < threads; ++i) memory_.emplace_back(problem_, columns_, kernel_.width);
    ThreadTeam team(static_cast<int>(threads));
    team.run(tasks_for(n), [this](int thread, int64_t task) {
      kernel_.prepare(problem_, memory_[thread].scratch, task * columns_, end_of(task, problem_.n));
    });
  }

  int64_t advance(int64_t max_iterations, double eps, double* residual) override {
    ThreadTeam team(static_cast<int>(memory_.size()));
    int64_t iterations = 0;
    do {
      team.run(tasks_for(problem_.n), [this](int thread, int64_t task) {
        kernel_.step(problem_, memory_[thread].scratch, task * columns_, end_of(task, problem_.n), row_sums_.get());
      });
      to_look_.clear();
      for (int64_t j = 0; j < problem_.n; ++j) {
        if (must_look_.get()[j]) to_look_.push_back(j);
      }
      const int64_t count = static_cast<int64_t>(to_look_.size());
      team.run(tasks_for(count), [this, count](int thread, int64_t task) {
        const int64_t first = task * columns_;
        kernel_.look(problem_, memory_[thread].scratch, to_look_.data() + first, end_of(task, count) - first);
      });
      *residual = worst_row();
      ++iterations;
    } while (*residual >= eps && iterations < max_iterations);
    return iterations;
  }

 private:
  struct Memory {
    Memory(const Problem<T>& p, int64_t columns, int64_t width)
        : coefficients(columns * p.r),
          v(p.r),
          block(columns * width),
          ends(columns + 1),
          index(columns * p.n + kSlack),
          value(columns * p.n + kSlack),
          scratch{coefficients.get(), v.get(), block.get(), ends.get(), index.get(), value.get()} {}
    Array<T> coefficients, v, block;
    Array<int64_t> ends;
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

  int64_t tasks_for(int64_t columns) const { return (columns + columns_ - 1) / columns_; }
  int64_t end_of(int64_t task, int64_t columns) const { return std::min((task + 1) * columns_, columns); }

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
  int64_t tiles_, columns_;
  Array<T> basis_, gain_, spectrum_, f_panels_, f_pieces_, basis_panels_, fc_, fz_, row_sums_, seen_, slack_;
  Array<uint8_t> must_look_;
  std::vector<int64_t> to_look_;
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
