// C interface of libva_solver.so: ADMM for sparse self-expression on the CPU. va_export/native/solver.py calls it.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VA_SOLVER_API __attribute__((visibility("default")))

// Arrays are contiguous, of one element type, and row-major; n tokens, m features and one, basis of rank r. The solver
// copies all but `state` and `error`, which it updates in place and which must outlive it.
typedef struct VaSolverProblem {
  int64_t n, m, r;
  const void* basis;     // P [m, r]
  const void* f_t;       // Fᵀ [n, r]
  const void* gain;      // [r]
  const void* spectrum;  // [r]
  double rho, error_threshold;
  void* state;  // Xᵀ [n, n]; zeros for a cold start
  void* error;  // E'ᵀ [n, m]; likewise
  int32_t is_double;
  int32_t threads;  // at least 1
} VaSolverProblem;

typedef struct VaSolver VaSolver;

// NULL where memory is short or no such `isa` ("avx512", "avx2", "baseline"; NULL for the best) runs here.
VA_SOLVER_API VaSolver* va_solver_create(const VaSolverProblem* problem, const char* isa);

// Iterates until the residual, max row sum of |A − C|, is below eps or not a number, at most max_iterations times
// (at least once). Returns how many it took.
VA_SOLVER_API int64_t va_solver_advance(VaSolver* solver, int64_t max_iterations, double eps, double* residual);

VA_SOLVER_API void va_solver_destroy(VaSolver* solver);

// Turns the state Xᵀ [n, n] into C [n, n] in place.
VA_SOLVER_API void va_solver_finish(void* state, int64_t n, double rho, int32_t is_double);

// The instruction set that a NULL `isa` means.
VA_SOLVER_API const char* va_solver_isa(void);

#ifdef __cplusplus
}
#endif
