// One ADMM iteration over some columns of the self-expression, for one instruction set.
//
// va_export/anchor/self_expression.py has the algebra and the names. Two things differ here. The state is stored
// transposed, so that column j of X is the contiguous row j of `state`; and because the step is column by column
// (only the stopping value couples columns), a thread takes a tile of columns through the whole iteration while they
// stay in its cache. With X⁺ = C + Fᵀg, s the diagonal of FFᵀ, and Z = 2C − X,
//
//     FZ⁺ = 2 FC⁺ − FX⁺ = 2 FC⁺ − (FC + s∘g),
//
// and C⁺ is sparse: of the two products, only Fᵀg is dense. The third one, Pv for E, is left to the columns for which
// a bound cannot show that E stays zero: `step` lists them, and `look` takes them together.
//
// Products are blocked: kDepth rows of a panel of F stay in the first cache while all columns of a task pass by, and a
// piece of F's rows in the second while their sparse columns are gathered. How many columns a task has changes no bit.
//
// This file is compiled once for each instruction set, and so must not instantiate anything that another translation
// unit could share: no templates of the standard library.
#pragma once

#include <cstdint>

namespace va {

constexpr int kGroup = 6;          // columns that the dense product's registers hold
constexpr int kTile = 4 * kGroup;  // columns whose part of the row sums is added up together; a task has some of these
constexpr int kDepth = 128;        // rows of a panel that are multiplied at a time
constexpr int kSlack = 16;         // entries that may be overwritten after a list's end
constexpr int kAlignment = 64;     // bytes; rows of padded arrays start there

// What an iteration reads and writes; T is float or double. Arrays are row-major.
template <typename T>
struct Problem {
  int64_t n, m, r;        // tokens; features and one; rank of the basis
  int64_t stride;         // r padded to kAlignment: row length of fc, fz, seen
  const T* f_panels;      // [⌈n/width⌉][r][width]: F cut into panels of columns, zero-padded
  const T* basis_panels;  // [⌈(m-1)/width⌉][r][width]: likewise of Pᵀ, the features alone
  const T* basis;         // P [m][r]
  const T* f_pieces;      // Fᵀ [n][stride] cut into pieces of columns, one behind the other: [n][piece] each, the last
                          // [n][what is left]
  const T* gain;          // [r]
  const T* spectrum;      // s [r]
  T rho, theta, error_threshold;
  T* state;  // Xᵀ [n][n]
  T* error;  // E'ᵀ [n][m]
  T* fc;     // (FC)ᵀ [n][stride]
  T* fz;     // (FZ)ᵀ [n][stride]
  // Where the features of E' are zero and U − UA = Pv leaves them far below the threshold, they stay zero until v has
  // moved far enough: |P(v − v')| <= ‖row of P‖ ‖v − v'‖. Pv, the largest product for many features, waits until then.
  T longest_row;       // max ‖row of P‖ over the features
  T* seen;             // v' [n][stride] when column j was last looked at
  T* slack;            // [n] how far an entry of Pv could move then; 0 where a feature of E' may not be zero
  uint8_t* must_look;  // [n] whether this iteration's Pv has to be computed
};

// A thread's own memory, for tasks of up to `columns` columns, a multiple of kTile.
template <typename T>
struct Scratch {
  T* coefficients;  // [columns/kGroup][r][kGroup]: g, or v
  T* v;             // [r]: PᵀE' + ρg of a column
  T* block;         // [columns/kGroup][kGroup][width]
  int64_t* ends;    // [columns + 1]: where columns' entries begin and end
  int32_t* index;   // [columns n + kSlack]
  T* value;         // likewise
};

template <typename T>
struct Kernel {
  int width;  // columns of a panel
  int piece;  // columns of a piece
  // One iteration of columns [first, last) but for E's features; row_sums [⌈n/kTile⌉][n] receives in row t Σ_j |T⁺ − T|
  // over tile t, and `must_look` which columns `look` has to take.
  void (*step)(const Problem<T>&, const Scratch<T>&, int64_t first, int64_t last, T* row_sums);
  // E's features of some columns.
  void (*look)(const Problem<T>&, const Scratch<T>&, const int64_t* columns, int64_t count);
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
