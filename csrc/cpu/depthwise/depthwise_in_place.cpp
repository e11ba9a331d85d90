// The depthwise engine for small kernels over tensors with the channels innermost: nothing is gathered.
#include <cstring>

#include "cpu/depthwise/depthwise_problem.h"

namespace unfoldconv::cpu::depthwise {
namespace {

constexpr const char* kWhy = "one channel per group, channels innermost and a small kernel: read where they lie";
constexpr int64_t kWeightBytes = 16 * 1024;   // of packed weights that one pass over some rows uses: they stay in L1
constexpr int64_t kBandBytes = 256 * 1024;    // of results that a task writes
constexpr int64_t kSumBandBytes = 24 * 1024;  // of a block's gradient, read once for each row of the kernel

// Rows of results in bands of about so many bytes, of all channels of a group or of one block; channels in groups of
// blocks.
struct Bands {
  int64_t rows, count;
  int64_t group, groups;

  Bands(const Axis (&axes)[3], const Blocks& blocks, int64_t taps, int64_t bytes, bool whole_group) {
    const int64_t most = std::clamp<int64_t>(kWeightBytes / (taps * blocks.vector_bytes), 1, blocks.count);
    groups = ceil_div(blocks.count, most);
    group = ceil_div(blocks.count, groups);
    groups = ceil_div(blocks.count, group);
    const int64_t row_bytes = axes[2].results * blocks.lanes * element_size(blocks.dtype) * (whole_group ? group : 1);
    rows = std::clamp<int64_t>(bytes / row_bytes, 1, axes[1].results);
    count = ceil_div(axes[1].results, rows);
    rows = ceil_div(axes[1].results, count);
    count = ceil_div(axes[1].results, rows);
  }
};

// The problem for plane z and a band of rows of the output, with `channels` channels.
DepthwiseInPlace problem_of(const Axis (&axes)[3], const int64_t (&kernel)[3], const Operand& image,
                            const Operand& output, const Blocks& blocks, int64_t z, Span rows, int64_t channels) {
  const int64_t tap_stride[] = {kernel[1] * kernel[2] * blocks.lanes, kernel[2] * blocks.lanes, blocks.lanes};
  const Span box[] = {{z, z + 1}, rows, {0, axes[2].results}};
  DepthwiseInPlace p{};
  for (int axis = 0; axis < 3; ++axis) {
    const AxisPart& part = axes[axis].parts[0];
    p.window.positions[axis] = box[axis].size();
    p.window.taps[axis] = part.taps;
    p.window.stride[axis] = part.stride;
    p.window.dilation[axis] = part.dilation;
    p.window.low[axis] = box[axis].begin * part.stride - part.padding_low;
    p.window.size[axis] = axes[axis].source;
    p.to.weight_stride[axis] = part.tap_step * tap_stride[axis];
    p.to.stride[axis] = output.axis_stride[axis];
    p.image_stride[axis] = image.axis_stride[axis];
  }
  p.window.valid_end = axes[2].source;
  p.to.lanes = channels;
  p.to.dtype = blocks.dtype;
  p.to.bytes = element_size(blocks.dtype);
  p.block_pitch = kernel[0] * tap_stride[0];
  return p;
}

// Why an image is not read where it lies, or null.
const char* decline_axes(const Axis (&axes)[3], const Operand& image, const Operand& output) {
  if (!kernels().depthwise.correlate_in_place) return "the instruction set in use has no kernels for it";
  if (!image.channels_innermost() || !output.channels_innermost()) return "channels are not contiguous";
  for (const Axis& axis : axes)
    if (axis.parts.size() != 1 || axis.results == 0 || axis.parts[0].taps == 0)
      return "gradients of strided inputs are computed phase by phase";
  const AxisPart& columns = axes[2].parts[0];
  if (columns.dilation != 1) return "taps of a dilated window are not neighbours";
  if (columns.stride == 2) return columns.taps == 3 ? nullptr : "there are kernels with stride 2 for 3 taps only";
  if (columns.stride != 1) return "there are kernels for strides of 1 and 2 only";
  return columns.taps == 3 || columns.taps == 7 ? nullptr : "there are kernels for 3 or 7 taps only";
}

const char* decline_sums(const Sums& sums) { return decline_axes(sums.axes, sums.source, sums.output); }

const char* decline_sums(const WeightSums& sums) {
  if (const char* reason = decline_axes(sums.axes, sums.image, sums.grad)) return reason;
  return sums.axes[2].parts[0].taps == 3 ? nullptr : "there are kernels of the weight gradient for 3 taps only";
}

struct NoBuffers {};

class InPlaceJob final : public PartsJob<InPlaceJob> {
 public:
  explicit InPlaceJob(const Sums& sums)
      : p_(sums),
        taps_(p_.kernel[0] * p_.kernel[1] * p_.kernel[2]),
        bands_(p_.axes, p_.blocks, taps_, kBandBytes, true) {
    plan_parts(p_.batch * p_.axes[0].results * bands_.count * bands_.groups,
               1. * bands_.rows * p_.axes[2].results * bands_.group * p_.blocks.lanes * taps_, kWhy);
  }

  NoBuffers buffers(Carver&) const { return {}; }

  void share(Carver& carver) {
    weights_ = carver.take<char>(p_.blocks.count * taps_ * p_.blocks.vector_bytes);
    biases_ = carver.take<char>(p_.bias ? p_.blocks.count * p_.blocks.vector_bytes : 0);
  }

  void fill(const Call&) {
    pack(p_.blocks, p_.weight.data, taps_, weights_);
    if (p_.bias) pack(p_.blocks, p_.bias, 1, biases_);
  }

  void run_part(int64_t part, const NoBuffers&) const {
    const Blocks& blocks = p_.blocks;
    const int64_t bytes = blocks.vector_bytes;
    const int64_t first = part % bands_.groups * bands_.group, band = part / bands_.groups % bands_.count;
    const int64_t z = part / bands_.groups / bands_.count % p_.axes[0].results;
    const int64_t n = part / bands_.groups / bands_.count / p_.axes[0].results;
    const Span rows = p_.axes[1].box(band, bands_.rows);
    const Span whole_image[3] = {}, box[] = {{z, z + 1}, rows, {0, p_.axes[2].results}};
    const int64_t channel = first * blocks.lanes;
    const int64_t tap_stride[] = {p_.kernel[1] * p_.kernel[2] * bytes, p_.kernel[2] * bytes, bytes};
    const char* weights = weights_ + first * taps_ * bytes;
    for (int axis = 0; axis < 3; ++axis) weights += p_.axes[axis].parts[0].first_tap * tap_stride[axis];
    blocks.kernels.correlate_in_place(
        problem_of(p_.axes, p_.kernel, p_.source, p_.output, blocks, z, rows,
                   blocks.channels_of(first, std::min(bands_.group, blocks.count - first))),
        p_.source.at(n, channel, whole_image), weights, p_.bias ? biases_ + first * bytes : nullptr,
        p_.output.at(n, channel, box));
  }

 private:
  const Sums p_;
  const int64_t taps_;
  const Bands bands_;
  // What all tasks read, packed.
  char *weights_ = nullptr, *biases_ = nullptr;
};

// A task sums some images for a group of blocks; the sums of several tasks for one group are added in order.
class WeightInPlaceJob final : public PartsJob<WeightInPlaceJob> {
 public:
  explicit WeightInPlaceJob(const WeightSums& sums)
      : p_(sums),
        taps_(p_.kernel[0] * p_.kernel[1] * p_.kernel[2]),
        bands_(p_.axes, p_.blocks, taps_, kSumBandBytes, false),
        part_bytes_(p_.blocks.count * taps_ * p_.blocks.vector_bytes) {
    const int64_t most_splits =
        std::max<int64_t>(1, std::min(p_.batch, workspace_limit().cpu / std::max<int64_t>(1, part_bytes_)));
    const int64_t wanted = ceil_div(kTasksPerProblem, std::max<int64_t>(1, bands_.groups));
    split_ = ceil_div(p_.batch, std::clamp<int64_t>(wanted, 1, most_splits));
    splits_ = std::max<int64_t>(1, ceil_div(p_.batch, std::max<int64_t>(1, split_)));
    const int64_t positions = p_.axes[0].results * p_.axes[1].results * p_.axes[2].results;
    plan_parts(splits_ * bands_.groups, 1. * split_ * positions * bands_.group * p_.blocks.lanes * taps_, kWhy);
  }

  NoBuffers buffers(Carver&) const { return {}; }
  void share(Carver& carver) { sums_ = carver.take<char>(splits_ * part_bytes_); }
  void fill(const Call&) {}

  void run_part(int64_t part, const NoBuffers&) const {
    const Blocks& blocks = p_.blocks;
    const int64_t first = part % bands_.groups * bands_.group, number = std::min(bands_.group, blocks.count - first);
    const int64_t channel = first * blocks.lanes, first_image = part / bands_.groups * split_;
    char* const own = sums_ + part / bands_.groups * part_bytes_ + first * taps_ * blocks.vector_bytes;
    std::memset(own, 0, number * taps_ * blocks.vector_bytes);
    const Span whole_image[3] = {};
    for (int64_t n = first_image; n < std::min(p_.batch, first_image + split_); ++n)
      for (int64_t z = 0; z < p_.axes[0].results; ++z)
        for (int64_t band = 0; band < bands_.count; ++band) {
          const Span rows = p_.axes[1].box(band, bands_.rows);
          const Span box[] = {{z, z + 1}, rows, {0, p_.axes[2].results}};
          blocks.kernels.weight_sums_in_place(
              problem_of(p_.axes, p_.kernel, p_.image, p_.grad, blocks, z, rows, blocks.channels_of(first, number)),
              p_.image.at(n, channel, whole_image), p_.grad.at(n, channel, box), own);
        }
  }

  void finish(const Call&) override { finish_sums(p_.blocks, sums_, splits_, taps_, p_.grad_weight); }

 private:
  const WeightSums p_;
  const int64_t taps_;
  const Bands bands_;
  const int64_t part_bytes_;        // of the sums of all blocks
  int64_t split_ = 0, splits_ = 0;  // images of a task, and how many times that is
  char* sums_ = nullptr;
};

template <class Problem>
struct JobOf {
  using type = InPlaceJob;
};
template <>
struct JobOf<WeightGrad<3>> {
  using type = WeightInPlaceJob;
};

}  // namespace

template <class Problem>
const char* decline_in_place(const OneImage<Problem>& problem) {
  if (const char* reason = decline_problem(*problem, /*several=*/false)) return reason;
  return decline_sums(sums_of(*problem));
}

template <class Problem>
const char* plan_in_place(const Problem& problem, const Call&, JobSlot& slot) {
  slot.emplace<typename JobOf<Problem>::type>(sums_of(problem));
  return nullptr;
}

#define UNFOLDCONV_INSTANTIATE(PROBLEM)                            \
  template const char* decline_in_place(const OneImage<PROBLEM>&); \
  template const char* plan_in_place(const PROBLEM&, const Call&, JobSlot&);
UNFOLDCONV_INSTANTIATE(Correlation<3>)
UNFOLDCONV_INSTANTIATE(InputGrad<3>)
UNFOLDCONV_INSTANTIATE(WeightGrad<3>)

}  // namespace unfoldconv::cpu::depthwise
