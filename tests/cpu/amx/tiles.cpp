// The AMX micro-kernel on modelled tiles, one call at a time, for test_amx.py.
#define UNFOLDCONV_AMX_MODEL "../tests/cpu/amx/model.h"
#include "cpu/isa/amx/amx_pair_tiles.cpp"

using namespace unfoldconv::cpu;

// What a run reads lies at a[run * rows + row] and, in rows of `b_step` Pairs, at b + b_rows[run] * b_step.
extern "C" __attribute__((visibility("default"))) void multiply(int rows, int vectors, int run_count,
                                                                const int64_t* lengths, const Pair* const* a,
                                                                int64_t a_offset, const Pair* b, const int64_t* b_rows,
                                                                int64_t b_step, float* c, int64_t c_step, int start,
                                                                const float* bias) {
  constexpr int most_runs = 4;
  Run<Pair> runs[most_runs];
  for (int run = 0; run < run_count; ++run) runs[run] = {a + run * rows, b_rows[run], lengths[run], true};
  static const Tiles<Pair> tiles = [] {
    Kernels kernels{};
    amx::add_pair_tiles(kernels);
    return kernels.tiles.bf16;
  }();
  tiles.enter();
  tiles.tile[vectors - 1][rows - 1](
      {runs, run_count, a_offset, b, b_step, b_step, c, c_step, static_cast<Start>(start), bias}, rows);
  tiles.leave();
}
