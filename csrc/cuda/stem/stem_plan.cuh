// How a problem of stem_launch.h is cut up: the cheapest tile, by a count of instructions, whose box fits into shared
// memory with as few chunks of terms as possible. Neither depends on the batch or on addresses, so sums of one image do
// not.
#pragma once

#include <cmath>
#include <tuple>

#include "cuda/depthwise/depthwise_axis.cuh"
#include "cuda/shared/plan_cache.h"
#include "cuda/stem/stem_launch.h"
#include "cuda/stem/stem_tile.cuh"

namespace unfoldconv::cuda {

struct StemProblem {
  ScalarType dtype;
  const Geometry<3>& geometry;
  const DirectOperand& image;
  const DirectOperand& result;         // of the forward pass, or its gradient
  int64_t most_positions, most_terms;  // of a tile and of a chunk
};

// Whether the elements of an image come in pieces of neighbours along `inner`, if its beginning is at an address that
// allows it.
struct StemStride {
  int64_t size, stride;
};
inline bool in_pieces(int64_t piece, StemStride inner, std::initializer_list<StemStride> outer) {
  bool result = inner.stride == 1 && inner.size % piece == 0;
  for (const StemStride& step : outer) result &= step.size == 1 || step.stride % piece == 0;
  return result;
}

// Whether every image of a batch is.
inline bool is_aligned(const DirectOperand& images, ScalarType dtype) {
  const auto& [count, stride, axis_stride] = images.layout;
  return reinterpret_cast<uintptr_t>(images.data) % kPieceBytes == 0 &&
         (count[0] == 1 || stride[0] * element_size(dtype) % kPieceBytes == 0);
}

// Whether offsets inside of one image fit 32 bits, those of places beside it too.
inline bool in_reach(const StemProblem& problem) {
  const Geometry<3>& g = problem.geometry;
  double largest =
      std::max(image_reach(problem.image.layout, g.image), image_reach(problem.result.layout, g.positions));
  for (int axis = 0; axis < 3; ++axis) {
    const double reach = std::fabs(static_cast<double>(g.padding_low[axis])) +
                         (static_cast<double>(g.positions[axis]) + kStemPositions) * g.stride[axis] +
                         static_cast<double>(g.kernel[axis]) * g.dilation[axis] + g.image[axis];
    largest = std::max(largest, reach * problem.image.layout.count[2]);
  }
  constexpr int64_t most_kernel = 1 << 15;  // more taps are hardly a stem
  return largest <= std::min(limits.index, double{1 << 30}) && g.tap_numel() <= most_kernel;
}

// What the plan of a problem depends on, as far as both kernels share it. Addresses are not among it.
inline PlanKey key_of(ScalarType dtype, const Geometry<3>& geometry, const DirectOperand& image,
                      const DirectOperand& result) {
  PlanKey key({static_cast<int64_t>(dtype), static_cast<int64_t>(limits.index), limits.busy});
  return key.add(geometry).add(image.layout).add(result.layout);
}

// The image and how its lines lie.
inline StemTiling make_tiling(const StemProblem& problem) {
  const Geometry<3>& g = problem.geometry;
  const auto& [count, stride, axis] = problem.image.layout;
  StemTiling tiling{};
  for (int i = 0; i < 3; ++i) {
    tiling.positions[i] = static_cast<int>(g.positions[i]), tiling.stride[i] = static_cast<int>(g.stride[i]);
    tiling.dilation[i] = static_cast<int>(g.kernel[i] == 1 ? 1 : g.dilation[i]);
    tiling.padding_low[i] = static_cast<int>(g.padding_low[i]), tiling.kernel[i] = static_cast<int>(g.kernel[i]);
  }
  tiling.channels = static_cast<int>(count[2]);
  tiling.image_batch = stride[0], tiling.image_channel = static_cast<int>(stride[2]);
  tiling.image_z = static_cast<int>(axis[0]), tiling.image_y = static_cast<int>(axis[1]);
  tiling.size_z = static_cast<int>(g.image[0]), tiling.size_y = static_cast<int>(g.image[1]);
  tiling.interleaved = count[2] > 1 && stride[2] > 0 && axis[2] == count[2] * stride[2];
  tiling.image_step = static_cast<int>(tiling.interleaved ? stride[2] : axis[2]);
  tiling.line_size = static_cast<int>(g.image[2] * (tiling.interleaved ? count[2] : 1));
  tiling.pieces =
      in_pieces(kPieceBytes / element_size(problem.dtype), {tiling.line_size, tiling.image_step},
                {{tiling.interleaved ? 1 : count[2], stride[2]}, {g.image[0], axis[0]}, {g.image[1], axis[1]}});
  return tiling;
}

// Cuts the terms into as few chunks as there can be, so that fits() of the tiling is true, which is told of the box and
// the terms; or returns false.
template <class Fits>
bool cut_terms(StemTiling& tiling, int64_t step, int64_t most_terms, Fits&& fits) {
  const int size[] = {tiling.channels, tiling.kernel[0], tiling.kernel[1], tiling.kernel[2]};
  int chunk[] = {size[0], size[1], size[2], size[3]};
  const int unit = tiling.interleaved ? tiling.channels : 1, piece = static_cast<int>(step / 2);
  const auto span = [&](int axis, int taps) { return (taps - 1) * int64_t{tiling.dilation[axis]} + 1; };
  const auto cut = [&] {
    const int64_t terms = int64_t{chunk[0]} * chunk[1] * chunk[2] * chunk[3];
    const int64_t step_z = std::min<int64_t>(tiling.stride[0], span(0, chunk[1]));
    const int64_t step_y = std::min<int64_t>(tiling.stride[1], span(1, chunk[2]));
    const int64_t z = (tiling.tile[0] - 1) * step_z + span(0, chunk[1]);
    const int64_t y = (tiling.tile[1] - 1) * step_y + span(1, chunk[2]);
    const int64_t x = ((tiling.tile[2] - 1) * int64_t{tiling.stride[2]} + span(2, chunk[3])) * unit;
    const int64_t pitch = tiling.pieces ? round_up(x + piece - 1, piece) : x;
    const double lines = static_cast<double>(tiling.interleaved ? 1 : chunk[0]) * z * y;
    if (terms > most_terms || lines * pitch > kSharedBytes) return false;
    tiling.chunk_channels = chunk[0];
    std::copy(chunk + 1, chunk + 4, tiling.chunk_taps);
    tiling.chunk_terms = static_cast<int>(terms), tiling.padded_terms = static_cast<int>(round_up(terms, step));
    tiling.box_z = static_cast<int>(z), tiling.box_y = static_cast<int>(y), tiling.pitch = static_cast<int>(pitch);
    tiling.lines = static_cast<int>(lines);
    tiling.step_z = static_cast<int>(step_z), tiling.step_y = static_cast<int>(step_y);
    tiling.elements = static_cast<int>(x);
    tiling.items = static_cast<int>(tiling.pieces ? pitch / piece : x);
    return fits();
  };
  for (int axis = 0; axis < 4; chunk[axis++] = 1)
    for (int parts = 1; parts <= size[axis]; ++parts) {
      const int part = static_cast<int>(ceil_div(size[axis], parts));
      if (parts > 1 && part == chunk[axis]) continue;  // as before
      chunk[axis] = part;
      if (cut()) return true;
    }
  return false;
}

// What dividers are for, once tile and chunk are chosen.
inline void finish_tiling(StemTiling& tiling, int64_t batch) {
  int64_t tiles[] = {batch, 0, 0, 0}, terms[] = {tiling.chunk_channels, 0, 0, 0};
  int64_t chunks[] = {ceil_div(tiling.channels, tiling.chunk_channels), 0, 0, 0};
  tiling.tile_count = batch, tiling.chunk_count = static_cast<int>(chunks[0]);
  for (int axis = 0; axis < 3; ++axis) {
    tiles[1 + axis] = ceil_div(tiling.positions[axis], tiling.tile[axis]);
    terms[1 + axis] = tiling.chunk_taps[axis];
    chunks[1 + axis] = ceil_div(tiling.kernel[axis], tiling.chunk_taps[axis]);
    tiling.tile_count *= tiles[1 + axis];
    tiling.chunk_count *= static_cast<int>(chunks[1 + axis]);
  }
  tiling.tiles = Unraveler<4, int64_t>(tiles);
  tiling.terms = Unraveler<4, int>(terms), tiling.chunks = Unraveler<4, int>(chunks);
  tiling.width = Divider<int>(tiling.tile[2]), tiling.height = Divider<int>(tiling.tile[1]);
  tiling.line_z = Divider<int>(tiling.box_z), tiling.line_y = Divider<int>(tiling.box_y);
  tiling.position_z = Divider<int>(tiling.step_z), tiling.position_y = Divider<int>(tiling.step_y);
}

// Whether neighbouring rows are nearer in memory than neighbouring positions.
inline bool rows_innermost_in(const PlaneLayout<3>& layout) { return layout.stride[2] < layout.axis_stride[2]; }

// The rows of a result, which are in pieces only if every tile is.
inline StemRows make_rows(const StemProblem& problem, const StemTiling& tiling) {
  const auto& [count, stride, axis] = problem.result.layout;
  const auto& positions = problem.geometry.positions;
  const int64_t piece = kPieceBytes / element_size(problem.dtype);
  StemRows rows;
  rows.batch_stride = stride[0], rows.row_stride = static_cast<int>(stride[2]);
  for (int i = 0; i < 3; ++i) rows.axis_stride[i] = static_cast<int>(axis[i]);
  rows.rows_innermost = rows_innermost_in(problem.result.layout);
  const StemStride inner = rows.rows_innermost ? StemStride{count[2], stride[2]} : StemStride{positions[2], axis[2]};
  rows.pieces = in_pieces(piece, inner, {{positions[0], axis[0]}, {positions[1], axis[1]}});
  if (rows.rows_innermost)
    rows.pieces &= positions[2] == 1 || axis[2] % piece == 0;
  else
    rows.pieces &= tiling.tile[2] % piece == 0 && (count[2] == 1 || stride[2] % piece == 0);
  return rows;
}

// Where images are not aligned as the plan supposes, elements are moved one by one, in the same tiles and chunks: sums
// do not depend on where in a batch an image is.
inline void fit_to_memory(StemTiling& tiling, StemRows& rows, ScalarType dtype, const DirectOperand& image,
                          const DirectOperand& result) {
  rows.pieces &= is_aligned(result, dtype);
  tiling.pieces &= is_aligned(image, dtype);
  if (!tiling.pieces) tiling.items = tiling.elements;
  tiling.lanes_log2 = std::min(static_cast<int>(std::bit_width(static_cast<unsigned>(tiling.items - 1))),
                               static_cast<int>(std::bit_width(unsigned{kStemThreads})) - 1);
}

// The best tile and its chunks. fits(tiling) says whether the shared memory of a block holds what they take.
struct StemCut {
  bool fits = false;
  StemTiling tiling;
  StemRows rows;
};
template <class Fits>
StemCut cut_stem(const StemProblem& problem, Fits&& fits) {
  constexpr double instructions_of_a_tile = 2000, of_a_move = 12, of_a_step = 300;
  StemCut best;
  if (!in_reach(problem)) return best;
  best.tiling = make_tiling(problem);
  // With fewer positions, or a larger box of elements that nobody reads, an implicit matrix product is better.
  constexpr int64_t least_positions = 32;
  constexpr double least_box = 1024;
  const double most_waste = best.tiling.pieces ? 8 : 4;
  const int64_t step = 2 * kPieceBytes / element_size(problem.dtype);
  const auto& positions = problem.geometry.positions;
  double best_cost = 0;
  const auto consider = [&](int64_t z, int64_t y, int64_t x) {
    StemTiling tiling = best.tiling;
    tiling.tile[0] = static_cast<int>(z), tiling.tile[1] = static_cast<int>(y), tiling.tile[2] = static_cast<int>(x);
    if (z * y * x < std::min<int64_t>(least_positions, problem.geometry.position_numel())) return;
    if (!cut_terms(tiling, step, problem.most_terms, [&] { return fits(tiling); })) return;
    if (static_cast<double>(tiling.lines) * tiling.pitch > most_waste * z * y * x * tiling.chunk_terms + least_box)
      return;
    const StemRows rows = make_rows(problem, tiling);
    double tiles = 1, chunks = ceil_div(tiling.channels, tiling.chunk_channels);
    for (int axis = 0; axis < 3; ++axis) {
      tiles *= static_cast<double>(ceil_div(positions[axis], tiling.tile[axis]));
      chunks *= static_cast<double>(ceil_div(tiling.kernel[axis], tiling.chunk_taps[axis]));
    }
    const double moves = static_cast<double>(tiling.lines) * tiling.items / 32;
    const double of_rows = static_cast<double>(kStemPositions) * 64 / 32 * (rows.pieces ? 1. / 4 : 1);
    const double cost = tiles * (instructions_of_a_tile + of_a_move * (chunks * moves + of_rows) +
                                 chunks * of_a_step * (tiling.padded_terms / step));
    if (best.fits && cost >= best_cost) return;
    best_cost = cost;
    best = {true, tiling, rows};
  };
  const auto part = [](int64_t size, int64_t most) { return ceil_div(size, ceil_div(size, most)); };
  for (int64_t width = 8; width <= problem.most_positions; width *= 2) {
    for (const int64_t x : {std::min(positions[2], width), part(positions[2], width)}) {
      for (int64_t height = problem.most_positions / x; height > 0; height /= 2) {
        const int64_t y = part(positions[1], height);
        consider(part(positions[0], std::max<int64_t>(1, problem.most_positions / (x * y))), y, x);
      }
      if (x < width) break;
    }
    if (width >= positions[2]) break;
  }
  return best;
}

}  // namespace unfoldconv::cuda
