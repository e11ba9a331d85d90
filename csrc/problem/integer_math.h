// Whole numbers, on host and device.
#pragma once

#include <cstdint>

namespace unfoldconv {

// a / b rounded up, for b > 0 and any a.
constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b > 0); }

// The least multiple of `unit` that is not below `value`.
constexpr int64_t round_up(int64_t value, int64_t unit) { return ceil_div(value, unit) * unit; }

}  // namespace unfoldconv
