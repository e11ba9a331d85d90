// Forward and input gradient as implicit matrix products: correlations over one image, those of all phases in as few
// launches as the workspace allows.
#ifdef UNFOLDCONV_WITH_CUDA

#include <vector>

#include "cuda/implicit_gemm/implicit_gemm_engine.h"
#include "cuda/implicit_gemm/implicit_gemm_layouts.h"
#include "cuda/shared/float_kernels.h"
#include "cuda/shared/launch_job.h"
#include "problem/phases.h"
#include "runtime/current_place.h"
#include "runtime/workspace.h"

namespace unfoldconv {
namespace {

using namespace gemm;

constexpr const char* kWhyInPlace = "patches are gathered in shared memory, a tile at a time";
constexpr const char* kWhyPacked = "patches are gathered in shared memory, a tile at a time, and weights packed once";

// Correlations over one image.
struct GemmProblem {
  Planes<3> image;
  Planes<3> weight, output;  // with the strides of the taps and positions of a phase
  int64_t size[3], stride[3], dilation[3];
  int64_t weight_variant_stride[3], output_variant_stride[3];
  bool output_pieces;
  std::vector<cuda::GemmPhase> phases;
  const char* bias;

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

// One launch: some phases of some groups.
struct Launch {
  cuda::GemmCorrelation gemm;
  int64_t group, packed_bytes;
};

// Cuts problems into launches. Weights are read where they lie, or packed: as many phases at a time as the workspace
// holds and a launch takes, and where it does not even hold one, as many of its groups, or of its rows.
class LaunchCutter {
 public:
  // `common`: what launches have in common.
  LaunchCutter(const GemmProblem& problem, const cuda::GemmCorrelation& common, bool in_place, int64_t room)
      : problem_(problem), common_(common), in_place_(in_place), room_(room) {}

  std::vector<Launch> launches() {
    for (const cuda::GemmPhase& phase : problem_.phases) add_phase(phase);
    return std::move(launches_);
  }

 private:
  void add_phase(const cuda::GemmPhase& phase) {
    const int64_t groups = problem_.groups(), bytes = groups * phase.rows * row_bytes(phase);
    if (bytes <= room_) {
      if (launches_.empty() || launches_.back().gemm.groups < groups ||
          launches_.back().gemm.phase_count == cuda::kMaxPhases || launches_.back().packed_bytes + bytes > room_)
        begin_launch(0, groups);
      add_rows(phase, 0, phase.rows);
      return;
    }
    const int64_t most_rows = std::max<int64_t>(1, room_ / row_bytes(phase));
    const int64_t groups_at_once = std::clamp<int64_t>(most_rows / phase.rows, 1, groups);
    int64_t rows_at_once = std::min(most_rows, phase.rows);
    // Parts of rows begin where pieces of the output do, unless there is not even room for so many.
    if (rows_at_once < phase.rows && rows_at_once > piece_) rows_at_once = rows_at_once / piece_ * piece_;
    for (int64_t group = 0; group < groups; group += groups_at_once) {
      for (int64_t row = 0; row < phase.rows; row += rows_at_once) {
        begin_launch(group, std::min(groups_at_once, groups - group));
        add_rows(phase, row, std::min(rows_at_once, phase.rows - row));
      }
    }
  }

  void begin_launch(int64_t group, int64_t groups) {
    launches_.push_back({common_, group, 0});
    cuda::GemmCorrelation& gemm = launches_.back().gemm;
    gemm.groups = groups;
    gemm.image = problem_.image.at(0, group).data;
    gemm.output = problem_.output.at(0, group).data;
    gemm.bias = problem_.bias == nullptr ? nullptr : problem_.bias + group * problem_.rows() * size_;
  }

  void add_rows(const cuda::GemmPhase& phase, int64_t first_row, int64_t rows) {
    auto& [gemm, group, packed_bytes] = launches_.back();
    cuda::GemmPhase& added = gemm.phases[gemm.phase_count++] = phase;
    added.first_row = first_row;
    added.rows = rows;
    if (!in_place_) added.weight = {packed_bytes / size_, rows * row_elements(phase), row_elements(phase)};
    packed_bytes += gemm.groups * rows * row_bytes(phase);
    if (gemm.rows_innermost) gemm.output_pieces &= first_row % piece_ == 0 && rows % piece_ == 0;
  }

  // Of a packed row of weights.
  int64_t row_elements(const cuda::GemmPhase& phase) const {
    return phase.tap_numel() * round_up(problem_.channels(), piece_);
  }
  int64_t row_bytes(const cuda::GemmPhase& phase) const { return in_place_ ? 0 : row_elements(phase) * size_; }

  const GemmProblem& problem_;
  const cuda::GemmCorrelation& common_;
  const bool in_place_;
  const int64_t room_;
  const int64_t size_ = element_size(problem_.image.dtype), piece_ = piece_elements(problem_.image.dtype);
  std::vector<Launch> launches_;
};

// What all launches of a problem have in common.
cuda::GemmCorrelation common_of(const GemmProblem& problem) {
  const Planes<3>& image = problem.image;
  cuda::GemmCorrelation gemm{};
  gemm.dtype = image.dtype;
  gemm.tf32 = image.dtype == ScalarType::Float && float32_as_tf32();
  gemm.image_layout = image.layout;
  gemm.output_layout = problem.output.layout;
  std::copy(problem.size, problem.size + 3, gemm.size);
  std::copy(problem.stride, problem.stride + 3, gemm.stride);
  std::copy(problem.dilation, problem.dilation + 3, gemm.dilation);
  std::copy(problem.output_variant_stride, problem.output_variant_stride + 3, gemm.variant_stride);
  gemm.image_pieces = channels_in_pieces(image, gemm.size);
  gemm.rows_innermost = planes_innermost(problem.output);
  gemm.output_pieces = problem.output_pieces;
  return gemm;
}

// Cuts long sums where there is room for what their segments sum, and returns whether any is cut.
bool cut_sums(GemmProblem& problem, int64_t room) {
  if (room < cuda::kGemmSumBytes) return false;
  cuda::cut_sums(problem.image.dtype, problem.channels(), problem.groups(), problem.phases);
  return std::any_of(problem.phases.begin(), problem.phases.end(),
                     [](const auto& phase) { return phase.segments > 1; });
}

class GemmCorrelateJob final : public LaunchJob {
 public:
  explicit GemmCorrelateJob(GemmProblem& problem)
      : weight_(problem.weight), in_place_(is_in_order(problem)), taps_{nullptr, problem.weight.layout, {}} {
    std::copy(problem.weight_variant_stride, problem.weight_variant_stride + 3, taps_.variant_stride);
    const int64_t limit = workspace_limit().cuda;
    const int64_t room = cut_sums(problem, limit / 2) ? limit / 2 : limit;  // for packed weights
    launches_ = LaunchCutter(problem, common_of(problem), in_place_, room).launches();

    plan_.why = in_place_ ? kWhyInPlace : kWhyPacked;
    plan_.phases = static_cast<int64_t>(problem.phases.size());
    for (const Launch& launch : launches_) plan_.thread_bytes = std::max(plan_.thread_bytes, launch.packed_bytes);
    for (Launch& launch : launches_) plan_sums(launch.gemm, limit - plan_.thread_bytes);
  }

 private:
  // Whether the weight is read where it lies.
  static bool is_in_order(const GemmProblem& problem) {
    const cuda::GemmPhase& first = problem.phases.front();
    return problem.phases.size() == 1 && first.variants() == 1 &&
           in_order(problem.weight.shifted(first.tap_offset), first.kernel);
  }

  // How a launch sums segments, whose memory the next one gets too.
  void plan_sums(cuda::GemmCorrelation& gemm, int64_t room) {
    const cuda::GemmTiles tiles = cuda::gemm_tiles(gemm);
    const cuda::GemmPlan sums = cuda::gemm_plan(gemm, room);
    gemm.split = sums.split;
    gemm.sum_bytes = sums.sum_bytes;
    plan_.tile_rows = tiles.rows, plan_.tile_lanes = tiles.positions;
    plan_.tasks += sums.blocks;
    plan_.shared_bytes = std::max(plan_.shared_bytes, sums.sum_bytes);
    if (sums.split)
      for (int i = 0; i < gemm.phase_count; ++i) plan_.splits = std::max(plan_.splits, gemm.phases[i].segments);
  }

  void enqueue(void* stream, char* packed, char* sums) const override {
    for (const Launch& launch : launches_) {
      cuda::GemmCorrelation gemm = launch.gemm;
      gemm.weight = in_place_ ? weight_.data : packed;
      gemm.sums = gemm.sum_bytes > 0 ? sums : nullptr;
      if (!in_place_) {
        cuda::WeightTaps taps = taps_;
        taps.data = weight_.at(launch.group, 0).data;
        cuda::pack_weights(stream, taps, gemm, packed);
      }
      cuda::correlate(stream, gemm);
    }
  }

  const Planes<3> weight_;
  const bool in_place_;
  cuda::WeightTaps taps_;  // but where a launch begins
  std::vector<Launch> launches_;
};

// Plans all phases of a problem that the kernels can index.
const char* plan(GemmProblem& problem, JobSlot& slot) {
  double blocks = 0;
  for (const cuda::GemmPhase& phase : problem.phases) {
    const double rows = static_cast<double>(phase.rows) * problem.groups();
    if (!fits_32_bits(problem.image, problem.geometry_of(phase), rows)) return kTooLarge;
    const double positions = static_cast<double>(problem.image.layout.count[0]) * phase.position_numel();
    blocks += (positions / cuda::kLeastTile + 1) * (rows / cuda::kLeastTile + problem.groups());
  }
  if (blocks * cuda::kMostSegments > cuda::gemm_index_limit()) return "the blocks cannot be counted in 32 bits";
  slot.emplace<GemmCorrelateJob>(problem);
  return nullptr;
}

bool is_empty(const Planes<3>& planes, int64_t elements) { return planes.layout.plane_numel() * elements == 0; }

}  // namespace

const char* decline_implicit_gemm(const OneImage<Correlation<3>>& problem) {
  if (!cuda::has_float_kernels(problem->image.dtype)) return cuda::kNoFloatKernels;
  if (problem->variants() > 1) return "outputs that share their columns are computed by a launch for all phases";
  return nullptr;
}

const char* decline_implicit_gemm(const OneImage<InputGrad<3>>& problem) {
  if (!cuda::has_float_kernels(problem->grad_output.dtype)) return cuda::kNoFloatKernels;
  if (is_empty(problem->grad_output, problem->geometry.position_numel()) ||
      is_empty(problem->grad_input, problem->geometry.image_numel()))
    return "empty operands fall through to the columns engine";
  return nullptr;
}

const char* plan_implicit_gemm(const Correlation<3>& problem, const Call&, JobSlot& slot) {
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
  const bool pieces = planes_innermost(output) ? channels_in_pieces(output, geometry.positions)
                                               : positions_in_pieces(output, geometry.positions);
  GemmProblem result{problem.image, weight, output, {}, {}, {}, {}, {}, pieces, {phase}, problem.bias};
  std::copy(geometry.image, geometry.image + 3, result.size);
  std::copy(geometry.stride, geometry.stride + 3, result.stride);
  std::copy(geometry.dilation, geometry.dilation + 3, result.dilation);
  return plan(result, slot);
}

const char* plan_implicit_gemm(const InputGrad<3>& problem, const Call&, JobSlot& slot) {
  const Geometry<3>& geometry = problem.geometry;
  GemmProblem result{problem.grad_output, problem.weight, problem.grad_input, {}, {}, {}, {}, {}, false, {},
                     problem.bias};
  Planes<3>&weight = result.weight, &output = result.output;
  std::vector<AxisPhase> axes[3];
  int64_t combinations[3];
  for (int axis = 0; axis < 3; ++axis) {
    axes[axis] = axis_phases(geometry.image[axis], geometry.kernel[axis], geometry.stride[axis],
                             geometry.dilation[axis], geometry.padding_low[axis], geometry.stride[axis]);
    combinations[axis] = static_cast<int64_t>(axes[axis].size());
    result.size[axis] = geometry.positions[axis];
    result.stride[axis] = 1;
    result.dilation[axis] = axes[axis][0].dilation;
    result.weight_variant_stride[axis] = problem.weight.layout.axis_stride[axis];
    result.output_variant_stride[axis] = problem.grad_input.layout.axis_stride[axis];
    weight.layout.axis_stride[axis] *= -axes[axis][0].tap_step;
    output.layout.axis_stride[axis] *= geometry.stride[axis];
  }
  std::vector<cuda::GemmPhase>& phases = result.phases;
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
  result.output_pieces = planes_innermost(output) ? channels_in_pieces(problem.grad_input, geometry.image)
                                                  : whole && positions_in_pieces(output, phases[0].positions);
  return plan(result, slot);
}

}  // namespace unfoldconv

#endif
