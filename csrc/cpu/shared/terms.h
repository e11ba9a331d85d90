// What the correlation engines multiply: the type of a term for each dtype.
#pragma once

#include <string>

#include "cpu/kernels/kernels.h"
#include "runtime/parallel.h"
#include "runtime/rows.h"
#include "runtime/tasks.h"

namespace unfoldconv::cpu {

// The kernels for terms of type T over elements of type From.
template <class T_, class From_>
struct Terms {
  using T = T_;
  using From = From_;
  using Sum = typename SumOf<T>::type;
  static constexpr int64_t kHalves = std::is_same_v<T, Pair> ? 2 : 1;  // elements in a term
  using Element = std::conditional_t<kHalves == 2, uint16_t, T>;

  const Tiles<T>& tiles;
  const PackKernels<T, From>& pack;

  static int64_t count(int64_t elements) { return ceil_div(elements, kHalves); }
  // Lanes of a panel that holds `lanes` of them.
  int64_t width(int64_t lanes) const { return round_up(lanes, tiles.lanes); }
  int64_t most_lanes() const { return int64_t{tiles.lanes} * tiles.vectors; }
  // One tile; the thread holds a TileScope.
  void multiply(int64_t width, int64_t rows, const TileArguments<T>& arguments) const {
    const Tile<T> tile = rows > tiles.rows ? tiles.tall : tiles.tile[width / tiles.lanes - 1][rows - 1];
    tile(arguments, static_cast<int>(rows));
  }
  // Rows of the next tile of that width where so many are left.
  int64_t tile_rows(int64_t width, int64_t left) const {
    if (tiles.tall != nullptr && width == tiles.lanes && left >= tiles.tall_rows) return tiles.tall_rows;
    return std::min<int64_t>(tiles.rows, left);
  }
  Dots<T> dots(int64_t columns) const { return tiles.dots[columns - 1]; }
};

// While it lives, its thread may call the tiles. Other libraries use the same registers, so a task has one of its own.
template <class T>
class TileScope {
 public:
  explicit TileScope(const Tiles<T>& tiles) : leave_(tiles.leave) {
    if (tiles.enter) tiles.enter();
  }
  ~TileScope() {
    if (leave_) leave_();
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  void (*leave_)();
};

// Whether there are micro-kernels for a dtype, and what is said where there are none.
inline bool has_terms(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || is_16bit_float(dtype);
}
constexpr const char* kNoTerms = "there are micro-kernels for floating point only";

// Calls f(Terms<T, From>) with floats or doubles for the elements of a dtype. Returns whether it has any.
template <class F>
bool with_wide_terms(ScalarType dtype, F&& f) {
  const Kernels& k = kernels();
  switch (dtype) {
    case ScalarType::Float: f(Terms<float, float>{k.tiles.f32, k.pack.f32}); return true;
    case ScalarType::Double: f(Terms<double, double>{k.tiles.f64, k.pack.f64}); return true;
    case ScalarType::Half: f(Terms<float, Half>{k.tiles.f32, k.pack.f16_as_f32}); return true;
    case ScalarType::BFloat16: f(Terms<float, BFloat16>{k.tiles.f32, k.pack.bf16_as_f32}); return true;
    default: return false;
  }
}

// The same with what the instruction set in use multiplies.
template <class F>
bool with_terms(ScalarType dtype, F&& f) {
  const Kernels& k = kernels();
  if (dtype != ScalarType::BFloat16 || k.tiles.bf16.vectors == 0) return with_wide_terms(dtype, f);
  f(Terms<Pair, BFloat16>{k.tiles.bf16, k.pack.bf16});
  return true;
}

// A bias as sums begin with it: [groups, variants, rows], each group filled up to `pitch`.
template <class Terms>
void widen_bias(const void* bias, int64_t groups, int64_t variants, int64_t rows, int64_t pitch,
                typename Terms::Sum* to) {
  using From = typename Terms::From;
  for (int64_t group = 0; group < groups; ++group)
    for (int64_t m = 0; m < pitch; ++m)
      to[group * pitch + m] =
          m < variants * rows
              ? static_cast<typename Terms::Sum>(static_cast<const From*>(bias)[group * rows + m % rows])
              : typename Terms::Sum{};
}

}  // namespace unfoldconv::cpu
