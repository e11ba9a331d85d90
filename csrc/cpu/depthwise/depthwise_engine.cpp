#include "cpu/depthwise/depthwise_engine.h"

#include "cpu/depthwise/depthwise_problem.h"

namespace unfoldconv::cpu::depthwise {
namespace {

constexpr int64_t kLeastChannels = 4;  // fewer leave most of a vector empty

constexpr const char* kWhy = "few channels per group: neighbouring channels fill the vectors";

bool unit_stride(const Planes<3>& planes, int64_t columns) {
  return planes.layout.stride[2] == 1 || planes.layout.axis_stride[2] == 1 || columns == 1;
}

// Whether the numbers of a weight with one channel per group lie in order, wherever an axis has more than one.
bool contiguous_taps(const PlaneLayout<3>& weight, const int64_t (&kernel)[3]) {
  int64_t numel = 1;
  for (int axis = 2; axis >= 0; --axis) {
    if (kernel[axis] != 1 && weight.axis_stride[axis] != numel) return false;
    numel *= kernel[axis];
  }
  return weight.count[0] == 1 || weight.stride[0] == numel;
}

// A box of the source, gathered, and of results that are not where they belong.
struct Buffers {
  char *images, *results;
  mutable int64_t margins_of = -1;  // the box whose padding the images have
};

class BoxesJob final : public PartsJob<BoxesJob> {
 public:
  explicit BoxesJob(const Sums& sums)
      : p_(sums),
        terms_(p_.kernel[0] * p_.kernel[1] * p_.kernel[2] * p_.blocks.group_size),
        direct_(p_.output.channels_innermost()),
        work_(p_.axes, p_.blocks, direct_, p_.blocks.vector_bytes, ceil_div(kTasksPerProblem, p_.batch)) {
    plan_parts(p_.batch * work_.box_count * work_.groups,
               1. * work_.boxes.numel() * work_.group * p_.blocks.lanes * terms_, kWhy);
  }

  Buffers buffers(Carver& carver) const {
    const int64_t bytes = p_.blocks.vector_bytes;
    return {carver.take<char>(work_.group * work_.boxes.read_numel() * bytes),
            carver.take<char>(direct_ ? 0 : work_.boxes.numel() * bytes)};
  }

  void share(Carver& carver) {
    weights_ = carver.take<char>(p_.blocks.count * terms_ * p_.blocks.vector_bytes);
    biases_ = carver.take<char>(p_.bias ? p_.blocks.count * p_.blocks.vector_bytes : 0);
  }

  void fill(const Call&) {
    if (p_.blocks.group_size == 1)
      pack(p_.blocks, p_.weight.data, terms_, weights_);
    else
      pack_groups(p_.blocks, p_.weight, p_.kernel, weights_);
    if (p_.bias) pack(p_.blocks, p_.bias, 1, biases_);
  }

  void run_part(int64_t part, const Buffers& own) const {
    const Blocks& blocks = p_.blocks;
    const int64_t group = part % work_.groups * work_.group, n = part / work_.groups / work_.box_count;
    const int64_t number = std::min(work_.group, blocks.count - group);
    const int64_t flat_box = part / work_.groups % work_.box_count;
    Span box[3];
    work_.box(p_.axes, flat_box, box);
    const Source from(p_.axes, box);
    if (own.margins_of != flat_box) from.clear_margins(blocks, work_.group, own.images);
    own.margins_of = flat_box;
    from.gather(blocks, p_.source, n, group, number, own.images);
    const int64_t shape[] = {box[0].size(), box[1].size(), box[2].size()};
    for (int64_t block = group; block < group + number; ++block) {
      char* const to = p_.output.at(n, block * blocks.lanes, box);
      correlate(from, box, shape, block, own.images + (block - group) * from.bytes(blocks), direct_ ? to : own.results);
      if (!direct_) blocks.kernels.scatter(blocks.copy(p_.output, block, 1, box, shape), blocks.dtype, own.results, to);
    }
  }

 private:
  // The results of a block of channels in a box, part by part.
  void correlate(const Source& from, const Span (&box)[3], const int64_t (&shape)[3], int64_t block, const char* image,
                 char* to) const {
    const Blocks& blocks = p_.blocks;
    const int64_t tap = blocks.group_size * blocks.lanes;
    const int64_t tap_stride[] = {p_.kernel[1] * p_.kernel[2] * tap, p_.kernel[2] * tap, tap};
    const int64_t pitch[] = {shape[1] * shape[2] * blocks.lanes, shape[2] * blocks.lanes, blocks.lanes};
    const ScalarType dtype = direct_ ? blocks.dtype : blocks.type;
    const int64_t lanes = direct_ ? blocks.channels_of(block, 1) : blocks.lanes, bytes = blocks.vector_bytes;
    const auto correlate_block = blocks.kernels.correlate[kernels_for(blocks.group_size)];
    for (const AxisPart& plane : p_.axes[0].parts)
      for (const AxisPart& row : p_.axes[1].parts)
        for (const AxisPart& column : p_.axes[2].parts) {
          const AxisPart* const part[] = {&plane, &row, &column};
          Span j[3];
          DepthwiseOutput target{{}, {}, lanes, dtype, element_size(dtype)};
          int64_t first_tap = 0, first = 0;
          for (int axis = 0; axis < 3; ++axis) {
            const AxisPart& a = *part[axis];
            const int64_t stride = direct_ ? p_.output.axis_stride[axis] : pitch[axis];
            j[axis] = Axis::of_part(a, box[axis]);
            target.weight_stride[axis] = a.tap_step * tap_stride[axis];
            target.stride[axis] = a.step * stride;
            first_tap += a.first_tap * tap_stride[axis];
            first += (a.first + j[axis].begin * a.step - box[axis].begin) * stride;
          }
          if (j[0].size() * j[1].size() * j[2].size() == 0) continue;
          correlate_block(from.window(part, j), target, image,
                          weights_ + block * terms_ * bytes + first_tap * element_size(blocks.type),
                          p_.bias ? biases_ + block * bytes : nullptr, to + first * target.bytes);
        }
  }

  const Sums p_;
  const int64_t terms_;  // of a sum
  const bool direct_;    // results are written where they belong
  const Work work_;
  // What all tasks read, packed.
  char *weights_ = nullptr, *biases_ = nullptr;
};

// A task sums some images for some groups of blocks; the sums of several tasks for one group are added in order.
class WeightBoxesJob final : public PartsJob<WeightBoxesJob> {
 public:
  explicit WeightBoxesJob(const WeightSums& sums)
      : p_(sums),
        terms_(p_.kernel[0] * p_.kernel[1] * p_.kernel[2] * p_.blocks.group_size),
        work_(p_.axes, p_.blocks, p_.image.channels_innermost() || p_.grad.channels_innermost(), p_.blocks.vector_bytes,
              1),
        part_bytes_(p_.blocks.count * terms_ * p_.blocks.vector_bytes) {
    const int64_t group_bytes = work_.group * terms_ * p_.blocks.vector_bytes;
    own_groups_ = std::clamp<int64_t>(room() / 2 / group_bytes, 1, work_.groups);
    ranges_ = ceil_div(work_.groups, own_groups_);
    const int64_t most_splits = std::min(ceil_div(kTasksPerProblem, ranges_), workspace_limit().cpu / part_bytes_);
    split_ = ceil_div(p_.batch, std::clamp<int64_t>(most_splits, 1, p_.batch));
    splits_ = ceil_div(p_.batch, split_);
    const int64_t positions = p_.axes[0].results * p_.axes[1].results * p_.axes[2].results;
    plan_parts(splits_ * ranges_, 1. * split_ * positions * own_groups_ * work_.group * p_.blocks.lanes * terms_, kWhy);
  }

  // The gathered boxes of the image and of grad_output.
  Buffers buffers(Carver& carver) const {
    const int64_t bytes = work_.group * p_.blocks.vector_bytes;
    return {carver.take<char>(work_.boxes.read_numel() * bytes), carver.take<char>(work_.boxes.numel() * bytes)};
  }

  void share(Carver& carver) { sums_ = carver.take<char>(splits_ * part_bytes_); }
  void fill(const Call&) {}

  void run_part(int64_t part, const Buffers& own) const {
    const int64_t bytes = p_.blocks.vector_bytes;
    const int64_t first = part % ranges_ * own_groups_ * work_.group;
    const int64_t last = std::min(p_.blocks.count, first + own_groups_ * work_.group);
    const int64_t first_image = part / ranges_ * split_;
    char* const sums = sums_ + part / ranges_ * part_bytes_;
    std::memset(sums + first * terms_ * bytes, 0, (last - first) * terms_ * bytes);
    for (int64_t n = first_image; n < std::min(p_.batch, first_image + split_); ++n)
      for (int64_t flat_box = 0; flat_box < work_.box_count; ++flat_box) add(n, flat_box, first, last, sums, own);
  }

  void finish(const Call&) override { finish_sums(p_.blocks, sums_, splits_, terms_, p_.grad_weight); }

 private:
  // Adds what a box of an image contributes to the sums of the blocks [first, last).
  void add(int64_t n, int64_t flat_box, int64_t first, int64_t last, char* sums, const Buffers& own) const {
    const Blocks& blocks = p_.blocks;
    const int64_t bytes = blocks.vector_bytes;
    Span box[3];
    work_.box(p_.axes, flat_box, box);
    const Source from(p_.axes, box);
    if (own.margins_of != flat_box) from.clear_margins(blocks, work_.group, own.images);
    own.margins_of = flat_box;
    const AxisPart* const part[] = {&p_.axes[0].parts[0], &p_.axes[1].parts[0], &p_.axes[2].parts[0]};
    const DepthwiseWindow window = from.window(part, box);
    const int64_t shape[] = {box[0].size(), box[1].size(), box[2].size()};
    const auto add_sums = blocks.kernels.weight_sums[kernels_for(blocks.group_size)];
    for (int64_t group = first; group < last; group += work_.group) {
      const int64_t number = std::min(work_.group, last - group);
      from.gather(blocks, p_.image, n, group, number, own.images);
      blocks.kernels.gather(blocks.copy(p_.grad, group, number, box, shape), blocks.dtype,
                            p_.grad.at(n, group * blocks.lanes, box), own.results);
      for (int64_t i = 0; i < number; ++i)
        add_sums(window, blocks.type, own.images + i * from.bytes(blocks),
                 own.results + i * shape[0] * shape[1] * shape[2] * bytes, sums + (group + i) * terms_ * bytes);
    }
  }

  const WeightSums p_;
  const int64_t terms_;
  const Work work_;
  const int64_t part_bytes_;             // of the sums of all blocks
  int64_t own_groups_ = 0, ranges_ = 0;  // groups of blocks of a task, and how many times that is
  int64_t split_ = 0, splits_ = 0;       // images of a task, and how many times that is
  char* sums_ = nullptr;
};

template <class Problem>
struct JobOf {
  using type = BoxesJob;
};
template <>
struct JobOf<WeightGrad<3>> {
  using type = WeightBoxesJob;
};

}  // namespace

const char* decline_views(const Views& views, bool several) {
  const auto& [image, output, weight, geometry] = views;
  const ScalarType dtype = image.dtype;
  const int64_t size = image.layout.count[2], vector_bytes = kernels().depthwise.vector_bytes;
  if (!several && size != 1) return "groups have more than one channel";
  if (several && size == 1) return "groups have a single channel";
  if (kernels_for(size) == kGroupSizes) return "groups have other than 1, 2, 4 or 8 channels";
  if (output.layout.count[2] != size) return "groups have other numbers of input and output channels";
  if (!is_16bit_float(dtype) && dtype != ScalarType::Float && dtype != ScalarType::Double)
    return "there are kernels for floating point only";
  if (image.layout.count[1] * size < kLeastChannels) return "fewer than 4 channels leave most of a vector empty";
  if (!kernels().depthwise.correlate[kernels_for(size)] ||
      vector_bytes / element_size(compute_dtype(dtype)) % size != 0)
    return "groups do not fill vectors of this instruction set";
  if (size == 1 && weight != nullptr && !contiguous_taps(weight->layout, geometry.kernel))
    return "the weight is not contiguous";
  if (!unit_stride(image, geometry.image[2]) || !unit_stride(output, geometry.positions[2]))
    return "neither channels nor the last axis are contiguous";
  double read = vector_bytes;  // by a box of one result
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t span = (geometry.kernel[axis] - 1) * geometry.dilation[axis] + 1;
    read *= axis == 2 ? span : std::min(span, geometry.image[axis]);
  }
  const double sums = static_cast<double>(geometry.tap_numel()) * size * vector_bytes;
  if (read > room() / 4 || sums > room() / 4) return "what a single window reads does not fit a quarter of the buffers";
  return nullptr;
}

template <class Problem>
const char* decline_boxes(const OneImage<Problem>& problem) {
  return decline_problem(*problem, /*several=*/false);
}

template <class Problem>
const char* decline_grouped(const OneImage<Problem>& problem) {
  return decline_problem(*problem, /*several=*/true);
}

template <class Problem>
const char* plan_boxes(const Problem& problem, const Call&, JobSlot& slot) {
  slot.emplace<typename JobOf<Problem>::type>(sums_of(problem));
  return nullptr;
}

#define UNFOLDCONV_INSTANTIATE(PROBLEM)                           \
  template const char* decline_boxes(const OneImage<PROBLEM>&);   \
  template const char* decline_grouped(const OneImage<PROBLEM>&); \
  template const char* plan_boxes(const PROBLEM&, const Call&, JobSlot&);
UNFOLDCONV_INSTANTIATE(Correlation<3>)
UNFOLDCONV_INSTANTIATE(InputGrad<3>)
UNFOLDCONV_INSTANTIATE(WeightGrad<3>)

}  // namespace unfoldconv::cpu::depthwise
