#include "cuda/implicit_gemm/implicit_gemm_engine.h"

#ifdef UNFOLDCONV_WITH_CUDA

#include <cmath>
#include <string>

#include "cuda/implicit_gemm/implicit_gemm_launch.h"
#include "problem/integer_math.h"
#include "problem/phases.h"
#include "runtime/allocation.h"
#include "runtime/current_place.h"
#include "runtime/legacy_report.h"
#include "runtime/workspace.h"

namespace unfoldconv {
namespace {

constexpr const char* kWhy = "patches are gathered in shared memory, a tile at a time";
constexpr const char* kWhyPieces = "pieces of channels are copied to shared memory as they lie, a tile at a time";
constexpr const char* kWhyPacked = "patches are gathered in shared memory, a tile at a time, and weights packed once";

int64_t piece_elements(ScalarType dtype) { return cuda::kGemmPieceBytes / element_size(dtype); }

bool has_kernels(ScalarType dtype) {
  return is_16bit_float(dtype) || dtype == ScalarType::Float || dtype == ScalarType::Double;
}

// Whether planes whose neighbours along `inner` adjoin lie in memory as whole pieces, at addresses that allow it.
// `stride[outer]` are the other strides, each with the size of its axis.
struct Step {
  int64_t size, stride;
};
bool in_pieces(const void* data, ScalarType dtype, Step inner, std::initializer_list<Step> outer) {
  const int64_t piece = piece_elements(dtype);
  bool result = reinterpret_cast<uintptr_t>(data) % cuda::kGemmPieceBytes == 0 && inner.size % piece == 0 &&
                (inner.stride == 1 || inner.size == 1);
  for (const Step& step : outer) result &= step.size == 1 || step.stride % piece == 0;
  return result;
}

bool channels_in_pieces(const Planes<3>& image, const int64_t (&size)[3]) {
  const auto& [count, stride, axis] = image.layout;
  return in_pieces(
      image.data, image.dtype, {count[2], stride[2]},
      {{count[0], stride[0]}, {count[1], stride[1]}, {size[0], axis[0]}, {size[1], axis[1]}, {size[2], axis[2]}});
}

// Whether axes of these sizes and strides lie in memory as one, whose elements are `step` apart.
bool adjoin(const int64_t (&size)[3], const int64_t (&stride)[3], int64_t step) {
  for (int axis = 2; axis >= 0; step *= size[axis], --axis)
    if (size[axis] != 1 && stride[axis] != step) return false;
  return true;
}

// Whether a window is one element of the image, and every element its turn.
bool is_pointwise(const Geometry<3>& geometry) {
  bool result = geometry.tap_numel() == 1;
  for (int axis = 0; axis < 3; ++axis)
    result &= geometry.positions[axis] == geometry.image[axis] && geometry.padding_low[axis] == 0 &&
              (geometry.stride[axis] == 1 || geometry.positions[axis] == 1);
  return result;
}

// Whether neighbouring planes are nearer in memory than neighbouring positions.
bool planes_adjoin(const Planes<3>& planes) {
  return std::abs(planes.layout.stride[2]) < std::abs(planes.layout.axis_stride[2]);
}

// Whether planes can be read or written in pieces along their positions.
bool positions_in_pieces(const Planes<3>& planes, const int64_t (&size)[3]) {
  const auto& [count, stride, axis] = planes.layout;
  return adjoin(size, axis, 1) && in_pieces(planes.data, planes.dtype, {Geometry<3>::product(size), 1},
                                            {{count[0], stride[0]}, {count[1], stride[1]}, {count[2], stride[2]}});
}

// Along what planes of positions are gathered, of which `whole` ones are read as they lie.
cuda::Gather gather_of(const Planes<3>& planes, const int64_t (&size)[3], bool whole) {
  if (whole && positions_in_pieces(planes, size)) return cuda::Gather::pieces;
  return planes_adjoin(planes) ? cuda::Gather::rows : cuda::Gather::positions;
}

// Whether index arithmetic of 32 bits reaches every element of an image from every position, with room for what lies
// beyond: terms that do not count.
bool fits_32_bits(const Planes<3>& image, const Geometry<3>& geometry, double rows) {
  const auto& [count, stride, axis_stride] = image.layout;
  const double piece = piece_elements(image.dtype), limit = cuda::gemm_index_limit();
  double offset = (count[2] + piece) * std::fabs(static_cast<double>(stride[2]));
  double largest = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const double reach = std::fabs(static_cast<double>(geometry.padding_low[axis])) +
                         static_cast<double>(geometry.positions[axis]) * geometry.stride[axis] +
                         static_cast<double>(geometry.kernel[axis]) * geometry.dilation[axis] + geometry.image[axis];
    largest = std::max(largest, reach);
    offset += reach * std::fabs(static_cast<double>(axis_stride[axis]));
  }
  const double terms = static_cast<double>(geometry.tap_numel()) * (count[2] + piece);
  constexpr double far = 1 << 28;  // half of what the kernels take for outside of every image
  return largest < far &&
         std::max({offset, largest, terms, rows, static_cast<double>(geometry.position_numel())}) + 1024 <= limit;
}

// The weight as the kernels read it, if it lies in memory like that.
bool in_order(const Planes<3>& weight, const int64_t (&kernel)[3]) {
  const auto& [count, stride, axis_stride] = weight.layout;
  return adjoin(kernel, axis_stride, count[2]) &&
         in_pieces(weight.data, weight.dtype, {count[2], stride[2]}, {{count[0], stride[0]}, {count[1], stride[1]}});
}

// Correlations over one image.
struct Problem {
  const Planes<3>& image;
  Planes<3> weight, output;  // with the strides of the taps and positions of a phase
  const int64_t *size, *stride, *dilation;
  int64_t weight_variant_stride[3], output_variant_stride[3];
  bool output_pieces;
  std::vector<cuda::GemmPhase> phases;
  const char* bias;
  const Tensor& like;

  int64_t groups() const { return image.layout.count[1]; }
  int64_t channels() const { return image.layout.count[2]; }
  int64_t rows() const { return output.layout.count[2]; }  // of a variant

  Geometry<3> geometry_of(const cuda::GemmPhase& phase) const {
    Geometry<3> result;
    for (int axis = 0; axis < 3; ++axis) {
      result.image[axis] = size[axis];
      result.positions[axis] = phase.positions[axis];
      result.kernel[axis] = phase.kernel[axis];
      result.stride[axis] = stride[axis];
      result.dilation[axis] = dilation[axis];
      result.padding_low[axis] = phase.padding_low[axis];
    }
    return result;
  }
};

// What one launch computes: all phases of it for some groups.
struct Part {
  int64_t group, groups, packed_bytes;
  std::vector<cuda::GemmPhase> phases;
};

// Weights are read where they lie, or packed: as many phases at a time as the workspace holds and a launch takes, and
// where it does not even hold one, as many of its groups, or of its rows.
std::vector<Part> parts_of(const Problem& problem, bool direct, int64_t room) {
  const int64_t groups = problem.groups(), size = element_size(problem.image.dtype);
  const int64_t piece = piece_elements(problem.image.dtype);
  std::vector<Part> parts;
  for (const cuda::GemmPhase& phase : problem.phases) {
    const int64_t row_elements = phase.tap_numel() * ceil_div(problem.channels(), piece) * piece;
    const int64_t row_bytes = direct ? 0 : row_elements * size, bytes = groups * phase.rows * row_bytes;
    const auto add = [&](Part& part, int64_t first_row, int64_t rows) {
      part.phases.push_back(phase);
      cuda::GemmPhase& added = part.phases.back();
      added.first_row = first_row;
      added.rows = rows;
      if (!direct) added.weight = {part.packed_bytes / size, rows * row_elements, row_elements};
      part.packed_bytes += part.groups * rows * row_bytes;
    };
    if (bytes <= room) {
      if (parts.empty() || parts.back().groups < groups || parts.back().phases.size() == cuda::kMaxPhases ||
          parts.back().packed_bytes + bytes > room)
        parts.push_back({0, groups, 0, {}});
      add(parts.back(), 0, phase.rows);
      continue;
    }
    const int64_t most_rows = std::max<int64_t>(1, room / row_bytes);
    const int64_t part_groups = std::clamp<int64_t>(most_rows / phase.rows, 1, groups);
    int64_t part_rows = std::min(most_rows, phase.rows);
    // Parts of rows begin where pieces of the output do, unless there is not even room for so many.
    if (part_rows < phase.rows && part_rows > piece) part_rows = part_rows / piece * piece;
    for (int64_t group = 0; group < groups; group += part_groups) {
      for (int64_t row = 0; row < phase.rows; row += part_rows) {
        parts.push_back({group, std::min(part_groups, groups - group), 0, {}});
        add(parts.back(), row, std::min(part_rows, phase.rows - row));
      }
    }
  }
  return parts;
}

bool run(const Place& place, Problem problem) {
  const Planes<3>&image = problem.image, &output = problem.output, &weight = problem.weight;
  const ScalarType dtype = image.dtype;
  if (!has_kernels(dtype)) return false;
  double blocks_of_all = 0;
  for (const cuda::GemmPhase& phase : problem.phases) {
    const double rows = static_cast<double>(phase.rows) * problem.groups();
    if (!fits_32_bits(image, problem.geometry_of(phase), rows)) return false;
    const double positions = static_cast<double>(image.layout.count[0]) * phase.position_numel();
    blocks_of_all += (positions / cuda::kLeastTile + 1) * (rows / cuda::kLeastTile + problem.groups());
  }
  if (blocks_of_all * cuda::kMostSegments > cuda::gemm_index_limit()) return false;

  const int64_t size = element_size(dtype), piece = piece_elements(dtype);
  cuda::GemmCorrelation gemm{};
  gemm.dtype = dtype;
  gemm.tf32 = dtype == ScalarType::Float && float32_as_tf32();
  gemm.image_layout = image.layout;
  gemm.output_layout = output.layout;
  std::copy(problem.size, problem.size + 3, gemm.size);
  std::copy(problem.stride, problem.stride + 3, gemm.stride);
  std::copy(problem.dilation, problem.dilation + 3, gemm.dilation);
  std::copy(problem.output_variant_stride, problem.output_variant_stride + 3, gemm.variant_stride);
  gemm.image_pieces = channels_in_pieces(image, gemm.size);
  gemm.rows_adjoin = planes_adjoin(output);
  cuda::WeightTaps taps{nullptr, weight.layout, {}};
  std::copy(problem.weight_variant_stride, problem.weight_variant_stride + 3, taps.variant_stride);

  const cuda::GemmPhase& first = problem.phases.front();
  const bool direct =
      problem.phases.size() == 1 && first.variants() == 1 && in_order(weight.shifted(first.tap_offset), first.kernel);
  const int64_t limit = workspace_limit().cuda;
  int64_t room = limit;  // for packed weights
  if (limit / 2 >= cuda::kGemmSumBytes) {
    cuda::cut_sums(dtype, problem.channels(), problem.groups(), problem.phases);
    const bool is_cut =
        std::any_of(problem.phases.begin(), problem.phases.end(), [](const auto& phase) { return phase.segments > 1; });
    if (is_cut) room = limit / 2;
  }
  const std::vector<Part> parts = parts_of(problem, direct, room);
  int64_t packed_bytes = 0, sum_bytes = 0, splits = 1;
  for (const Part& part : parts) packed_bytes = std::max(packed_bytes, part.packed_bytes);
  LegacyReport* const report = LegacyReport::wanted();
  const Tensor packed = report != nullptr || direct ? problem.like : empty_bytes(packed_bytes, problem.like);
  std::string tile;
  int64_t blocks = 0;
  for (const Part& part : parts) {
    gemm.groups = part.groups;
    gemm.phase_count = static_cast<int>(part.phases.size());
    std::copy(part.phases.begin(), part.phases.end(), gemm.phases);
    gemm.output_pieces = problem.output_pieces;
    if (gemm.rows_adjoin)
      for (const cuda::GemmPhase& phase : part.phases)
        gemm.output_pieces &= phase.first_row % piece == 0 && phase.rows % piece == 0;
    const cuda::GemmTiles tiles = cuda::gemm_tiles(gemm);
    const cuda::GemmPlan plan = cuda::gemm_plan(gemm, limit - packed_bytes);
    blocks += plan.blocks;
    sum_bytes = std::max(sum_bytes, plan.sum_bytes);
    if (plan.split)
      for (const cuda::GemmPhase& phase : part.phases) splits = std::max(splits, phase.segments);
    if (report != nullptr) {
      tile = std::to_string(tiles.rows) + "x" + std::to_string(tiles.positions);
      continue;
    }
    gemm.image = image.at(0, part.group).data;
    gemm.output = output.at(0, part.group).data;
    gemm.bias = problem.bias == nullptr ? nullptr : problem.bias + part.group * problem.rows() * size;
    gemm.weight = direct ? weight.data : packed.data_ptr();
    taps.data = weight.at(part.group, 0).data;
    if (!direct) cuda::pack_weights(place.stream, taps, gemm, packed.data_ptr());
    // Torch's allocator keeps it for the stream, and gives it to the next part.
    const Tensor sums = plan.sum_bytes > 0 ? empty_bytes(plan.sum_bytes, problem.like) : problem.like;
    gemm.split = plan.split;
    gemm.sums = plan.sum_bytes > 0 ? sums.data_ptr() : nullptr;
    gemm.sum_bytes = plan.sum_bytes;
    cuda::correlate(place.stream, gemm);
  }
  if (report != nullptr)
    report->engine(tile, blocks, packed_bytes, sum_bytes, direct ? kWhy : kWhyPacked,
                   static_cast<int64_t>(problem.phases.size()), splits);
  return true;
}

}  // namespace

bool correlate_by_implicit_gemm(const Place& place, const Correlation<3>& problem) {
  const Planes<3>&output = problem.output, &weight = problem.weight;
  const Geometry<3>& geometry = problem.geometry;
  cuda::GemmPhase phase{};
  std::copy(geometry.positions, geometry.positions + 3, phase.positions);
  std::copy(geometry.kernel, geometry.kernel + 3, phase.kernel);
  std::copy(geometry.padding_low, geometry.padding_low + 3, phase.padding_low);
  std::fill(phase.run, phase.run + 3, 1);
  phase.weight = {0, weight.layout.stride[0], weight.layout.stride[1]};
  phase.rows = problem.rows();
  phase.segments = 1;
  const bool pieces = planes_adjoin(output) ? channels_in_pieces(output, geometry.positions)
                                            : positions_in_pieces(output, geometry.positions);
  return run(place, {problem.image,
                     weight,
                     output,
                     geometry.image,
                     geometry.stride,
                     geometry.dilation,
                     {},
                     {},
                     pieces,
                     {phase},
                     problem.bias,
                     *problem.like});
}

bool input_grad_by_implicit_gemm(const Place& place, const InputGrad<3>& problem) {
  const Geometry<3>& geometry = problem.geometry;
  std::vector<AxisPhase> axes[3];
  int64_t combinations[3], stride[3], dilation[3];
  Planes<3> weight = problem.weight, output = problem.grad_input;
  for (int axis = 0; axis < 3; ++axis) {
    axes[axis] = axis_phases(geometry.image[axis], geometry.kernel[axis], geometry.stride[axis],
                             geometry.dilation[axis], geometry.padding_low[axis], geometry.stride[axis]);
    combinations[axis] = static_cast<int64_t>(axes[axis].size());
    stride[axis] = 1;
    dilation[axis] = axes[axis][0].dilation;
    weight.layout.axis_stride[axis] *= -axes[axis][0].tap_step;
    output.layout.axis_stride[axis] *= geometry.stride[axis];
  }
  std::vector<cuda::GemmPhase> phases;
  for (int64_t flat = 0; flat < Geometry<3>::product(combinations); ++flat) {
    int64_t chosen[3];
    unravel<3>(flat, combinations, chosen);
    cuda::GemmPhase& phase = phases.emplace_back();
    for (int axis = 0; axis < 3; ++axis) {
      const AxisPhase& a = axes[axis][chosen[axis]];
      phase.positions[axis] = a.count;
      phase.kernel[axis] = a.taps;
      phase.padding_low[axis] = a.padding_low;
      phase.run[axis] = a.run;
      phase.output_offset += a.first * problem.grad_input.layout.axis_stride[axis];
      phase.tap_offset += a.tap * problem.weight.layout.axis_stride[axis];
    }
    phase.weight = {phase.tap_offset, weight.layout.stride[0], weight.layout.stride[1]};
    phase.rows = phase.variants() * problem.grad_input.layout.count[2];
    phase.segments = 1;
  }
  // The longest sums first: a GPU that is done with them has short ones to even out the end with.
  std::stable_sort(phases.begin(), phases.end(),
                   [](const auto& a, const auto& b) { return a.tap_numel() > b.tap_numel(); });
  const bool whole = phases.size() == 1 && phases[0].variants() == 1;
  const bool pieces = planes_adjoin(output) ? channels_in_pieces(problem.grad_input, geometry.image)
                                            : whole && positions_in_pieces(output, phases[0].positions);
  Problem result{
      problem.grad_output, weight,       output, geometry.positions, stride, dilation, {}, {}, pieces, phases,
      problem.bias,        *problem.like};
  for (int axis = 0; axis < 3; ++axis) {
    result.weight_variant_stride[axis] = problem.weight.layout.axis_stride[axis];
    result.output_variant_stride[axis] = problem.grad_input.layout.axis_stride[axis];
  }
  return run(place, result);
}

bool weight_sums_by_implicit_gemm(const Place& place, const WeightGrad<3>& problem) {
  const Planes<3>&image = problem.image, &grad_output = problem.grad_output;
  const Geometry<3>& geometry = problem.geometry;
  const double rows = static_cast<double>(problem.rows()) * problem.groups();
  if (!has_kernels(image.dtype) || !fits_32_bits(image, geometry, rows)) return false;
  cuda::GemmWeightSums gemm{};
  gemm.dtype = image.dtype;
  gemm.tf32 = image.dtype == ScalarType::Float && float32_as_tf32();
  gemm.image = image.data;
  gemm.image_layout = image.layout;
  gemm.grad_output = grad_output.data;
  gemm.grad_layout = grad_output.layout;
  gemm.geometry = geometry;
  gemm.pieces = channels_in_pieces(image, geometry.image) && channels_in_pieces(grad_output, geometry.positions);
  gemm.image_gather = gather_of(image, geometry.image, is_pointwise(geometry));
  gemm.grad_gather = gather_of(grad_output, geometry.positions, true);
  gemm.grad_weight = problem.grad_weight;
  const int64_t size = image.dtype == ScalarType::Double ? sizeof(double) : sizeof(float);
  cuda::plan_weight_sums(gemm, workspace_limit().cuda / (problem.numel() * size));
  const int64_t partial_bytes = gemm.splits > 1 ? gemm.splits * problem.numel() * size : 0;
  if (LegacyReport* const report = LegacyReport::wanted()) {
    const cuda::GemmTiles tiles = cuda::weight_tiles(gemm);
    report->engine(std::to_string(tiles.rows) + "x" + std::to_string(tiles.positions), gemm.splits * tiles.blocks, 0,
                   partial_bytes, gemm.pieces ? kWhyPieces : kWhy, 1, gemm.splits);
    return true;
  }
  const Tensor partial = partial_bytes ? empty_bytes(partial_bytes, *problem.like) : *problem.like;
  gemm.partial = partial_bytes ? partial.data_ptr() : nullptr;
  cuda::sum_weights(place.stream, gemm);
  return true;
}

}  // namespace unfoldconv

#endif
