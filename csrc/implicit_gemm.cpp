#include "implicit_gemm.h"

#ifdef UNFOLDCONV_WITH_CUDA

#include <cmath>
#include <string>

#include "allocation.h"
#include "cuda/implicit_gemm.h"
#include "engine.h"
#include "place.h"
#include "workspace.h"

namespace unfoldconv {
namespace {

static_assert(kLongestCudaRun * kLongestCudaRun * kLongestCudaRun <= cuda::kMaxVariants);

constexpr const char* kWhy = "patches are gathered in shared memory, a tile at a time";
constexpr const char* kWhyPieces = "pieces of channels are copied to shared memory as they lie, a tile at a time";
constexpr const char* kWhyPacked = "patches are gathered in shared memory, a tile at a time, and weights packed once";

constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

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

std::string how_split(int64_t splits) {
  return splits == 1 ? "" : "; positions in " + std::to_string(splits) + " parts, whose sums are added in order";
}

// Whether a window is one element of the image, and every element its turn.
bool is_pointwise(const Geometry<3>& geometry) {
  bool result = geometry.tap_numel() == 1;
  for (int axis = 0; axis < 3; ++axis)
    result &= geometry.positions[axis] == geometry.image[axis] && geometry.padding_low[axis] == 0 &&
              (geometry.stride[axis] == 1 || geometry.positions[axis] == 1);
  return result;
}

// Along what planes of positions are gathered, of which `whole` ones are read as they lie.
cuda::Gather gather_of(const Planes<3>& planes, const int64_t (&size)[3], bool whole) {
  const auto& [count, stride, axis] = planes.layout;
  if (whole && adjoin(size, axis, 1) &&
      in_pieces(planes.data, planes.dtype, {Geometry<3>::product(size), 1},
                {{count[0], stride[0]}, {count[1], stride[1]}, {count[2], stride[2]}}))
    return cuda::Gather::pieces;
  return std::abs(stride[2]) < std::abs(axis[2]) ? cuda::Gather::rows : cuda::Gather::positions;
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

}  // namespace

bool correlate_by_implicit_gemm(const Place& place, const Correlation<3>& problem) {
  const Planes<3>&image = problem.image, &output = problem.outputs[0], &weight = problem.weights[0];
  const Geometry<3>& geometry = problem.geometry;
  const ScalarType dtype = image.dtype;
  if (!has_kernels(dtype) || problem.variants() > cuda::kMaxVariants) return false;
  if (!fits_32_bits(image, geometry, static_cast<double>(problem.rows()) * problem.variants() * problem.groups()))
    return false;

  const int64_t size = element_size(dtype), groups = problem.groups(), rows = problem.rows();
  const int64_t all_rows = problem.variants() * rows;
  cuda::GemmCorrelation gemm{};
  gemm.dtype = dtype;
  gemm.tf32 = dtype == ScalarType::Float && float32_as_tf32();
  gemm.image_layout = image.layout;
  gemm.image_pieces = channels_in_pieces(image, geometry.image);
  gemm.geometry = geometry;
  gemm.output_layout = output.layout;
  const auto& [count, stride, axis_stride] = output.layout;
  const int64_t positions = geometry.position_numel();
  gemm.rows_adjoin = std::abs(stride[2]) < std::abs(axis_stride[2]);
  cuda::WeightTaps taps{};
  for (int64_t variant = 0; variant < problem.variants(); ++variant) {
    gemm.variant_offset[variant] = (problem.outputs[variant].data - output.data) / size;
    taps.variant_offset[variant] = (problem.weights[variant].data - weight.data) / size;
  }
  if (gemm.rows_adjoin)
    gemm.output_pieces = problem.variants() == 1 && in_pieces(output.data, dtype, {rows, stride[2]},
                                                              {{count[0], stride[0]},
                                                               {count[1], stride[1]},
                                                               {geometry.positions[0], axis_stride[0]},
                                                               {geometry.positions[1], axis_stride[1]},
                                                               {geometry.positions[2], axis_stride[2]}});
  else
    gemm.output_pieces = problem.variants() == 1 && adjoin(geometry.positions, axis_stride, 1) &&
                         in_pieces(output.data, dtype, {positions, 1},
                                   {{count[0], stride[0]}, {count[1], stride[1]}, {rows, stride[2]}});

  // Weights are read where they lie, or packed, as many groups or rows at a time as the workspace holds.
  const bool direct = problem.variants() == 1 && in_order(weight, geometry.kernel);
  const int64_t piece = piece_elements(dtype);
  const int64_t row_elements = geometry.tap_numel() * ceil_div(problem.channels(), piece) * piece;
  const int64_t most_rows =
      direct ? groups * all_rows : std::max<int64_t>(1, workspace_limit().cuda / (row_elements * size));
  const int64_t part_groups = std::clamp<int64_t>(most_rows / all_rows, 1, groups);
  // Parts of rows begin where pieces of the output do.
  int64_t part_rows = std::min(most_rows, all_rows);
  if (part_rows < all_rows && gemm.rows_adjoin && gemm.output_pieces) part_rows = part_rows / piece * piece;
  if (part_rows == 0) part_rows = 1, gemm.output_pieces = false;
  const int64_t packed_bytes = direct ? 0 : part_groups * part_rows * row_elements * size;

  Report* const report = Report::wanted();
  const Tensor packed = report != nullptr || direct ? problem.like : empty_bytes(packed_bytes, problem.like);
  std::string tile;
  int64_t blocks = 0;
  for (int64_t group = 0; group < groups; group += part_groups) {
    for (int64_t row = 0; row < all_rows; row += part_rows) {
      gemm.groups = std::min(part_groups, groups - group);
      gemm.first_row = row;
      gemm.rows = std::min(part_rows, all_rows - row);
      const cuda::GemmTiles tiles = cuda::gemm_tiles(gemm);
      blocks += tiles.blocks;
      if (report != nullptr) {
        tile = std::to_string(tiles.rows) + "x" + std::to_string(tiles.positions);
        continue;
      }
      gemm.image = image.at(0, group).data;
      gemm.output = output.at(0, group).data;
      gemm.bias = problem.bias == nullptr ? nullptr : problem.bias + group * rows * size;
      if (direct) {
        gemm.weight = {weight.at(group, row).data, weight.layout.stride[0], weight.layout.stride[1]};
      } else {
        taps.data = weight.at(group, 0).data;
        taps.layout = weight.layout;
        std::copy(geometry.kernel, geometry.kernel + 3, taps.kernel);
        gemm.weight = {packed.data_ptr(), gemm.rows * row_elements, row_elements};
        cuda::pack_weights(place.stream, taps, size, gemm.groups, row, gemm.rows, packed.data_ptr());
      }
      cuda::correlate(place.stream, gemm);
    }
  }
  if (report != nullptr)
    report->engine(Engine::implicit_gemm, tile, blocks, packed_bytes, 0, direct ? kWhy : kWhyPacked);
  return true;
}

bool weight_sums_by_implicit_gemm(const Place& place, const WeightSums<3>& problem) {
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
  gemm.grad_weight = problem.grad_weight.data_ptr();
  const int64_t size = image.dtype == ScalarType::Double ? sizeof(double) : sizeof(float);
  cuda::plan_weight_sums(gemm, workspace_limit().cuda / (problem.numel() * size));
  const int64_t partial_bytes = gemm.splits > 1 ? gemm.splits * problem.numel() * size : 0;
  if (Report* const report = Report::wanted()) {
    const cuda::GemmTiles tiles = cuda::weight_tiles(gemm);
    report->engine(Engine::implicit_gemm, std::to_string(tiles.rows) + "x" + std::to_string(tiles.positions),
                   gemm.splits * tiles.blocks, 0, partial_bytes,
                   (gemm.pieces ? kWhyPieces : kWhy) + how_split(gemm.splits));
    return true;
  }
  const Tensor partial = partial_bytes ? empty_bytes(partial_bytes, problem.grad_weight) : problem.grad_weight;
  gemm.partial = partial_bytes ? partial.data_ptr() : nullptr;
  cuda::sum_weights(place.stream, gemm);
  return true;
}

}  // namespace unfoldconv

#endif
