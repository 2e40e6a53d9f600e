// Which tokens have a score, and which end of the solver is a result: the numbers of va_export/anchor/scorable.py,
// which derives them, for float32. A test holds the two against each other.
#pragma once

namespace va_export {

constexpr float kRoundoff = 5.9604645e-8f;  // 2^-24
constexpr float kEqualRoundings = 16.0f;
constexpr float kRangeRoundings = 64.0f;
constexpr float kAngleRoundings = 8.0f;
constexpr float kLargestResidual = 0.5f;
constexpr int kNoScore = -1;

}  // namespace va_export
