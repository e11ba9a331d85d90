#include "cpu/depthwise/depthwise_in_place.h"

#include <cstring>

#include "runtime/legacy_report.h"

namespace unfoldconv::cpu {
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

}  // namespace

bool in_place(const Axis (&axes)[3], const Operand& image, const Operand& output) {
  if (!kernels().depthwise.correlate_in_place) return false;
  if (!image.channels_innermost() || !output.channels_innermost()) return false;
  for (const Axis& axis : axes)
    if (axis.parts.size() != 1 || axis.results == 0 || axis.parts[0].taps == 0) return false;
  const AxisPart& columns = axes[2].parts[0];
  if (columns.dilation != 1) return false;
  if (columns.stride == 2) return columns.taps == 3;
  return columns.stride == 1 && (columns.taps == 3 || columns.taps == 7);
}

void correlate_in_place(const Axis (&axes)[3], const int64_t (&kernel)[3], const Operand& image, int64_t batch,
                        const Blocks& blocks, const Tensor& weight, const Bias& bias, const Operand& output) {
  const int64_t taps = kernel[0] * kernel[1] * kernel[2], bytes = blocks.vector_bytes;
  if (blocks.channels * batch * axes[0].results * axes[1].results * axes[2].results == 0) return;
  const Bands bands(axes, blocks, taps, kBandBytes, true);
  const int64_t tasks = batch * axes[0].results * bands.count * bands.groups;
  if (LegacyReport* const report = LegacyReport::wanted()) {
    report->engine("", tasks, 0, blocks.count * (taps + (bias ? 1 : 0)) * bytes, kWhy);
    return;
  }
  const Tensor packed = pack(blocks, weight, taps);
  const Bias packed_bias = bias ? Bias(pack(blocks, *bias, 1)) : Bias();
  const char* biases = packed_bias ? static_cast<const char*>(packed_bias->data_ptr()) : nullptr;
  const int64_t tap_stride[] = {kernel[1] * kernel[2] * bytes, kernel[2] * bytes, bytes};
  const char* weights = static_cast<const char*>(packed.data_ptr());
  for (int axis = 0; axis < 3; ++axis) weights += axes[axis].parts[0].first_tap * tap_stride[axis];
  const Span whole_image[3] = {};

  const double products = 1. * bands.rows * axes[2].results * bands.group * blocks.lanes * taps;
  run_tasks(tasks, products, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % bands.groups * bands.group, band = task / bands.groups % bands.count;
      const int64_t z = task / bands.groups / bands.count % axes[0].results;
      const int64_t n = task / bands.groups / bands.count / axes[0].results;
      const Span rows = axes[1].box(band, bands.rows);
      const Span box[] = {{z, z + 1}, rows, {0, axes[2].results}};
      const int64_t channel = first * blocks.lanes;
      const DepthwiseInPlace p = problem_of(axes, kernel, image, output, blocks, z, rows,
                                            blocks.channels_of(first, std::min(bands.group, blocks.count - first)));
      blocks.kernels.correlate_in_place(p, image.at(n, channel, whole_image), weights + first * taps * bytes,
                                        biases ? biases + first * bytes : nullptr, output.at(n, channel, box));
    }
  });
}

void weight_grad_in_place(const Axis (&axes)[3], const int64_t (&kernel)[3], const Operand& image, const Operand& grad,
                          int64_t batch, const Blocks& blocks, Tensor& grad_weight) {
  const int64_t taps = kernel[0] * kernel[1] * kernel[2], bytes = blocks.vector_bytes;
  const Bands bands(axes, blocks, taps, kSumBandBytes, false);
  // A task sums some images for a group of blocks; the sums of several tasks for one group are added in order.
  const int64_t part_bytes = blocks.count * taps * bytes;
  const int64_t most_splits =
      std::max<int64_t>(1, std::min(batch, workspace_limit().cpu / std::max<int64_t>(1, part_bytes)));
  const int64_t wanted = ceil_div(kTasksPerProblem, std::max<int64_t>(1, bands.groups));
  const int64_t split = ceil_div(batch, std::clamp<int64_t>(wanted, 1, most_splits));
  const int64_t splits = std::max<int64_t>(1, ceil_div(batch, std::max<int64_t>(1, split)));
  if (LegacyReport* const report = LegacyReport::wanted()) {
    report->engine("", splits * bands.groups, 0, splits * part_bytes, kWhy);
    return;
  }
  const Tensor sums = empty_bytes(splits * part_bytes, grad_weight);
  char* const sum_data = static_cast<char*>(sums.data_ptr());
  const Span whole_image[3] = {};
  const double products =
      1. * split * axes[0].results * axes[1].results * axes[2].results * bands.group * blocks.lanes * taps;
  run_tasks(splits * bands.groups, products, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % bands.groups * bands.group, number = std::min(bands.group, blocks.count - first);
      const int64_t channel = first * blocks.lanes, first_image = task / bands.groups * split;
      char* const own = sum_data + task / bands.groups * part_bytes + first * taps * bytes;
      std::memset(own, 0, number * taps * bytes);
      for (int64_t n = first_image; n < std::min(batch, first_image + split); ++n)
        for (int64_t z = 0; z < axes[0].results; ++z)
          for (int64_t band = 0; band < bands.count; ++band) {
            const Span rows = axes[1].box(band, bands.rows);
            const Span box[] = {{z, z + 1}, rows, {0, axes[2].results}};
            blocks.kernels.weight_sums_in_place(
                problem_of(axes, kernel, image, grad, blocks, z, rows, blocks.channels_of(first, number)),
                image.at(n, channel, whole_image), grad.at(n, channel, box), own);
          }
    }
  });
  finish_sums(blocks, sum_data, splits, taps, grad_weight);
}

}  // namespace unfoldconv::cpu
