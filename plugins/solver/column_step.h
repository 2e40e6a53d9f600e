// One ADMM iteration over some columns of the self-expression, for one instruction set.
//
// va_export/anchor/self_expression.py has the algebra and the names. Two things differ here. The state is stored
// transposed, so that column j of X is the contiguous row j of `state`; and because the step is column by column
// (only the stopping value couples columns), a thread takes a tile of columns through the whole iteration while they
// stay in its cache. With X⁺ = C + Fᵀg, s the diagonal of FFᵀ, and Z = 2C − X,
//
//     FZ⁺ = 2 FC⁺ − FX⁺ = 2 FC⁺ − (FC + s∘g),
//
// and C⁺ is sparse: of the two thin products, only Fᵀg is dense.
//
// This file is compiled once for each instruction set, and so must not instantiate anything that another translation
// unit could share: no templates of the standard library.
#pragma once

#include <cstdint>

namespace va {

constexpr int kGroup = 6;          // columns that the dense product's registers hold
constexpr int kTile = 4 * kGroup;  // columns of a unit of work
constexpr int kSlack = 16;         // entries that may be overwritten after a list's end
constexpr int kAlignment = 64;     // bytes; rows of padded arrays start there

// What an iteration reads and writes; T is float or double. Arrays are row-major.
template <typename T>
struct Problem {
  int64_t n, m, r;        // tokens; features and one; rank of the basis
  int64_t stride;         // r padded to kAlignment: row length of f_t, fc, fz
  const T* f_panels;      // [⌈n/width⌉][r][width]: F cut into panels of columns, zero-padded
  const T* basis_panels;  // [⌈m/width⌉][r][width]: Pᵀ likewise
  const T* basis;         // P [m][r]
  const T* f_t;           // Fᵀ [n][stride]
  const T* gain;          // [r]
  const T* spectrum;      // s [r]
  T rho, theta, error_threshold;
  T* state;  // Xᵀ [n][n]
  T* error;  // E'ᵀ [n][m]
  T* fc;     // (FC)ᵀ [n][stride]
  T* fz;     // (FZ)ᵀ [n][stride]
  // Where the features of E' are zero and U − UA = Pv leaves them far below the threshold, they stay zero until v has
  // moved far enough: |P(v − v')| <= ‖row of P‖ ‖v − v'‖. Pv, the largest product for many features, waits until then.
  T longest_row;  // max ‖row of P‖ over the features
  T* reference;   // v' [n][stride] when column j was last looked at
  T* slack;       // [n] how far an entry of Pv could move then; 0 if it has to be looked at
};

// A thread's own memory.
template <typename T>
struct Scratch {
  T* g;            // [kTile/kGroup][r][kGroup]
  T* v;            // likewise: PᵀE' + ρg
  T* projected;    // [r]: PᵀE' of a column
  T* block;        // [kGroup][width], width of the widest kernel
  int32_t* index;  // [n + kSlack]
  T* value;        // likewise
};

template <typename T>
struct Kernel {
  int width;  // columns of a panel
  // One iteration of columns [first, last), at most kTile; `row_sum` [n] receives Σ_j |T⁺ − T| over them.
  void (*step)(const Problem<T>&, const Scratch<T>&, int64_t first, int64_t last, T* row_sum);
  // FC and FZ of columns [first, last) from their X.
  void (*prepare)(const Problem<T>&, const Scratch<T>&, int64_t first, int64_t last);
};

namespace avx512 {
Kernel<float> kernel_f32();
Kernel<double> kernel_f64();
}  // namespace avx512
namespace avx2 {
Kernel<float> kernel_f32();
Kernel<double> kernel_f64();
}  // namespace avx2
namespace baseline {
Kernel<float> kernel_f32();
Kernel<double> kernel_f64();
}  // namespace baseline

}  // namespace va
