#include "depthwise.h"

#include <cstring>

#include "../engine.h"
#include "depthwise_in_place.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kPieceBytes = 256;   // of a tensor, that are read or written side by side
constexpr int64_t kLeastChannels = 4;  // fewer leave most of a vector empty

// The part of the image that some results read, gathered for a block of channels.
struct Source {
  Span read[3];   // elements in the buffer: planes and rows without padding, columns with it
  Span valid[3];  // those that are no padding

  Source(const Axis (&axes)[3], const Span (&box)[3]) {
    for (int axis = 0; axis < 3; ++axis) {
      const Span all = axes[axis].read_by(box[axis]);
      valid[axis] = axes[axis].within_source(all);
      read[axis] = axis == 2 ? all : valid[axis];
    }
    if (valid[2].size() == 0) valid[2] = {read[2].begin, read[2].begin};
  }

  bool empty() const { return valid[0].size() * valid[1].size() * valid[2].size() == 0; }

  // Bytes of the buffer of a block.
  int64_t bytes(const Blocks& blocks) const {
    return read[0].size() * read[1].size() * read[2].size() * blocks.vector_bytes;
  }

  // Writes the padding of as many buffers: no gather() touches it.
  void clear_margins(const Blocks& blocks, int64_t buffers, char* to) const {
    const int64_t bytes = blocks.vector_bytes, columns = read[2].size();
    const int64_t before = valid[2].begin - read[2].begin, after = read[2].end - valid[2].end;
    if (before + after == 0) return;
    for (int64_t row = 0; row < buffers * read[0].size() * read[1].size(); ++row) {
      std::memset(to + row * columns * bytes, 0, before * bytes);
      std::memset(to + ((row + 1) * columns - after) * bytes, 0, after * bytes);
    }
  }

  // Fills the rest for some blocks of an image.
  void gather(const Blocks& blocks, const Operand& image, int64_t n, int64_t first, int64_t number, char* to) const {
    if (empty()) return;
    const int64_t shape[] = {read[0].size(), read[1].size(), read[2].size()};
    blocks.kernels.gather(blocks.copy(image, first, number, valid, shape), blocks.dtype,
                          image.at(n, first * blocks.lanes, valid),
                          to + (valid[2].begin - read[2].begin) * blocks.vector_bytes);
  }

  // The window of one part per axis over the buffer, for its results j.
  DepthwiseWindow window(const AxisPart* const (&part)[3], const Span (&j)[3]) const {
    DepthwiseWindow w;
    for (int axis = 0; axis < 3; ++axis) {
      const AxisPart& p = *part[axis];
      w.positions[axis] = j[axis].size();
      w.taps[axis] = p.taps;
      w.stride[axis] = p.stride;
      w.dilation[axis] = p.dilation;
      w.low[axis] = j[axis].begin * p.stride - p.padding_low - read[axis].begin;
      w.size[axis] = read[axis].size();
    }
    w.valid_begin = valid[2].begin - read[2].begin;
    w.valid_end = valid[2].end - read[2].begin;
    return w;
  }
};

// Boxes of results for groups of blocks of channels.
struct Work {
  Boxes boxes;
  int64_t boxes_of[3], box_count;
  int64_t group, groups;  // blocks that are gathered together, and how many times that is

  // A result takes result_bytes in cache. Channels that lie side by side are read and written in longer pieces.
  Work(const Axis (&axes)[3], const Blocks& blocks, bool side_by_side, int64_t result_bytes, int64_t parts) {
    const int64_t block_bytes = blocks.lanes * element_size(blocks.dtype);
    const int64_t most = side_by_side ? std::max<int64_t>(1, kPieceBytes / block_bytes) : 1;
    groups = std::max(ceil_div(blocks.count, most), std::min(blocks.count, parts));
    group = ceil_div(blocks.count, std::max<int64_t>(1, groups));
    groups = ceil_div(blocks.count, std::max<int64_t>(1, group));
    boxes = cut(axes, group * blocks.vector_bytes, group * result_bytes, room());
    box_count = 1;
    for (int axis = 0; axis < 3; ++axis) box_count *= boxes_of[axis] = axes[axis].boxes(boxes.size[axis]);
  }

  void box(const Axis (&axes)[3], int64_t flat, Span (&result)[3]) const {
    int64_t index[3];
    unravel<3>(flat, boxes_of, index);
    for (int axis = 0; axis < 3; ++axis) result[axis] = axes[axis].box(index[axis], boxes.size[axis]);
  }
};

// output = bias + the correlation that the axes describe.
void correlate(const Axis (&axes)[3], const int64_t (&kernel)[3], const Operand& source, int64_t batch,
               const Blocks& blocks, const Tensor& weight, const Bias& bias, const Operand& output) {
  if (in_place(axes, source, output))
    return correlate_in_place(axes, kernel, source, batch, blocks, weight, bias, output);
  const int64_t taps = kernel[0] * kernel[1] * kernel[2], bytes = blocks.vector_bytes;
  const bool direct = output.channels_innermost();
  if (blocks.channels * batch * axes[0].results * axes[1].results * axes[2].results == 0) return;
  const Work work(axes, blocks, direct, bytes, ceil_div(kTasksPerProblem, batch));
  const int64_t image_bytes = work.group * work.boxes.read_numel() * bytes;
  const int64_t thread_bytes = image_bytes + (direct ? 0 : work.boxes.numel() * bytes);
  const int64_t tasks = batch * work.box_count * work.groups;
  if (Report* const report = Report::wanted()) {
    report->engine(Engine::depthwise, "", tasks, thread_bytes, blocks.count * (taps + (bias ? 1 : 0)) * bytes,
                   kDepthwiseReason);
    return;
  }
  const Tensor packed = pack(blocks, weight, taps);
  const Bias packed_bias = bias ? Bias(pack(blocks, *bias, 1)) : Bias();
  const char* weights = static_cast<const char*>(packed.data_ptr());
  const char* biases = packed_bias ? static_cast<const char*>(packed_bias->data_ptr()) : nullptr;
  const int64_t tap_stride[] = {kernel[1] * kernel[2] * blocks.lanes, kernel[2] * blocks.lanes, blocks.lanes};

  const double products = 1. * work.boxes.numel() * work.group * blocks.lanes * taps;
  run_tasks(tasks, products, [&](int64_t begin, int64_t end) {
    const Tensor buffers = allocate(thread_bytes, weight);
    char* const images = static_cast<char*>(buffers.data_ptr());
    char* const results = images + image_bytes;
    int64_t margins_of = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task % work.groups * work.group, n = task / work.groups / work.box_count;
      const int64_t number = std::min(work.group, blocks.count - group);
      const int64_t flat_box = task / work.groups % work.box_count;
      Span box[3];
      work.box(axes, flat_box, box);
      const Source from(axes, box);
      if (margins_of != flat_box) from.clear_margins(blocks, work.group, images);
      margins_of = flat_box;
      from.gather(blocks, source, n, group, number, images);
      const int64_t shape[] = {box[0].size(), box[1].size(), box[2].size()};
      for (int64_t block = group; block < group + number; ++block) {
        const char* const image = images + (block - group) * from.bytes(blocks);
        char* const to = direct ? output.at(n, block * blocks.lanes, box) : results;
        for (const AxisPart& plane : axes[0].parts)
          for (const AxisPart& row : axes[1].parts)
            for (const AxisPart& column : axes[2].parts) {
              const AxisPart* const part[] = {&plane, &row, &column};
              const int64_t pitch[] = {shape[1] * shape[2] * blocks.lanes, shape[2] * blocks.lanes, blocks.lanes};
              Span j[3];
              const ScalarType dtype = direct ? blocks.dtype : blocks.type;
              DepthwiseOutput target{
                  {}, {}, direct ? blocks.channels_of(block, 1) : blocks.lanes, dtype, element_size(dtype)};
              int64_t first_tap = 0, first = 0;
              for (int axis = 0; axis < 3; ++axis) {
                const AxisPart& p = *part[axis];
                const int64_t stride = direct ? output.axis_stride[axis] : pitch[axis];
                j[axis] = Axis::of_part(p, box[axis]);
                target.weight_stride[axis] = p.tap_step * tap_stride[axis];
                target.stride[axis] = p.step * stride;
                first_tap += p.first_tap * tap_stride[axis];
                first += (p.first + j[axis].begin * p.step - box[axis].begin) * stride;
              }
              if (j[0].size() * j[1].size() * j[2].size() == 0) continue;
              blocks.kernels.correlate(from.window(part, j), target, image,
                                       weights + block * taps * bytes + first_tap * element_size(blocks.type),
                                       biases ? biases + block * bytes : nullptr, to + first * target.bytes);
            }
        if (!direct)
          blocks.kernels.scatter(blocks.copy(output, block, 1, box, shape), blocks.dtype, results,
                                 output.at(n, block * blocks.lanes, box));
      }
    }
  });
}

template <class Make>
void make_axes(Axis (&axes)[3], const Make& make) {
  for (int axis = 0; axis < 3; ++axis) axes[axis] = make(axis);
}

bool unit_stride(const Operand& operand, int64_t columns) {
  return operand.channel_stride == 1 || operand.axis_stride[2] == 1 || columns == 1;
}

}  // namespace

template <int Rank>
bool depthwise_takes(const Planes<Rank>& image, const Planes<Rank>& output, const Geometry<Rank>& geometry) {
  const ScalarType dtype = image.dtype;
  if (!is_16bit_float(dtype) && dtype != ScalarType::Float && dtype != ScalarType::Double) return false;
  if (image.layout.count[2] != 1 || output.layout.count[2] != 1 || image.layout.count[1] < kLeastChannels) return false;
  if (!unit_stride(Operand(image), geometry.image[Rank - 1]) ||
      !unit_stride(Operand(output), geometry.positions[Rank - 1]))
    return false;
  double read = kernels().depthwise.vector_bytes;  // by a box of one result
  for (int axis = 0; axis < Rank; ++axis) {
    const int64_t span = (geometry.kernel[axis] - 1) * geometry.dilation[axis] + 1;
    read *= axis == Rank - 1 ? span : std::min(span, geometry.image[axis]);
  }
  const double sums = static_cast<double>(geometry.tap_numel()) * kernels().depthwise.vector_bytes;
  return read <= room() / 4 && sums <= room() / 4;
}

template <int Rank>
void depthwise_conv(const Tensor& input, const Tensor& weight, const Bias& bias, const Geometry<Rank>& geometry,
                    Tensor& output) {
  const Geometry<3> g = with_leading_axes<3>(geometry);
  Axis axes[3];
  make_axes(axes, [&](int axis) { return forward_axis(g, axis); });
  const int64_t channels = input.size(1);
  correlate(axes, g.kernel, Operand(planes_of<Rank>(input, channels)), input.size(0),
            Blocks(channels, input.scalar_type()), weight, bias, Operand(planes_of<Rank>(output, channels)));
}

template <int Rank>
void depthwise_input_grad(const Tensor& grad_output, const Tensor& weight, const Bias& bias,
                          const Geometry<Rank>& geometry, Tensor& grad_input) {
  const Geometry<3> g = with_leading_axes<3>(geometry);
  Axis axes[3];
  make_axes(axes, [&](int axis) { return backward_axis(g, axis); });
  const int64_t channels = grad_input.size(1);
  correlate(axes, g.kernel, Operand(planes_of<Rank>(grad_output, channels)), grad_output.size(0),
            Blocks(channels, grad_output.scalar_type()), weight, bias, Operand(planes_of<Rank>(grad_input, channels)));
}

template <int Rank>
void depthwise_weight_grad(const Tensor& grad_output, const Tensor& input, const Geometry<Rank>& geometry,
                           Tensor& grad_weight) {
  const Geometry<3> g = with_leading_axes<3>(geometry);
  Axis axes[3];
  make_axes(axes, [&](int axis) { return forward_axis(g, axis); });
  const int64_t channels = input.size(1), batch = input.size(0);
  const Blocks blocks(channels, input.scalar_type());
  const Operand image(planes_of<Rank>(input, channels)), grad(planes_of<Rank>(grad_output, channels));
  if (in_place(axes, image, grad)) return weight_grad_in_place(axes, g.kernel, image, grad, batch, blocks, grad_weight);
  const int64_t taps = g.tap_numel(), bytes = blocks.vector_bytes;
  const Work work(axes, blocks, image.channels_innermost() || grad.channels_innermost(), bytes, 1);

  // A task sums some images for some groups of blocks; the sums of several tasks for one group are added in order.
  const int64_t own_groups = std::clamp<int64_t>(room() / 2 / (work.group * taps * bytes), 1, work.groups);
  const int64_t ranges = ceil_div(work.groups, own_groups);
  const int64_t numel = blocks.count * taps * blocks.lanes;
  const int64_t most_splits = workspace_limit().cpu / (numel * element_size(blocks.type));
  const int64_t split =
      ceil_div(batch, std::clamp<int64_t>(std::min(ceil_div(kTasksPerProblem, ranges), most_splits), 1, batch));
  const int64_t splits = ceil_div(batch, split);
  const int64_t image_bytes = work.group * work.boxes.read_numel() * bytes;
  const int64_t grad_bytes = work.group * work.boxes.numel() * bytes;
  const int64_t sum_bytes = splits * numel * element_size(blocks.type);
  if (Report* const report = Report::wanted()) {
    report->engine(Engine::depthwise, "", splits * ranges, image_bytes + grad_bytes, sum_bytes, kDepthwiseReason);
    return;
  }
  const Tensor sums = allocate(sum_bytes, input);
  char* const sum_data = static_cast<char*>(sums.data_ptr());
  const double products = 1. * split * g.position_numel() * own_groups * work.group * blocks.lanes * taps;
  run_tasks(splits * ranges, products, [&](int64_t begin, int64_t end) {
    const Tensor buffers = allocate(image_bytes + grad_bytes, input);
    char* const images = static_cast<char*>(buffers.data_ptr());
    char* const grads = images + image_bytes;
    int64_t margins_of = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % ranges * own_groups * work.group;
      const int64_t last = std::min(blocks.count, first + own_groups * work.group);
      const int64_t first_image = task / ranges * split;
      char* const own = sum_data + task / ranges * numel * element_size(blocks.type);
      std::memset(own + first * taps * bytes, 0, (last - first) * taps * bytes);
      for (int64_t n = first_image; n < std::min(batch, first_image + split); ++n)
        for (int64_t flat_box = 0; flat_box < work.box_count; ++flat_box) {
          Span box[3];
          work.box(axes, flat_box, box);
          const Source from(axes, box);
          if (margins_of != flat_box) from.clear_margins(blocks, work.group, images);
          margins_of = flat_box;
          const AxisPart* const part[] = {&axes[0].parts[0], &axes[1].parts[0], &axes[2].parts[0]};
          const DepthwiseWindow window = from.window(part, box);
          const int64_t shape[] = {box[0].size(), box[1].size(), box[2].size()};
          for (int64_t group = first; group < last; group += work.group) {
            const int64_t number = std::min(work.group, last - group);
            from.gather(blocks, image, n, group, number, images);
            blocks.kernels.gather(blocks.copy(grad, group, number, box, shape), blocks.dtype,
                                  grad.at(n, group * blocks.lanes, box), grads);
            for (int64_t i = 0; i < number; ++i)
              blocks.kernels.weight_sums(window, blocks.type, images + i * from.bytes(blocks),
                                         grads + i * shape[0] * shape[1] * shape[2] * bytes,
                                         own + (group + i) * taps * bytes);
          }
        }
    }
  });

  finish_sums(blocks, sum_data, splits, taps, grad_weight);
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                                   \
  template bool depthwise_takes<RANK>(const Planes<RANK>&, const Planes<RANK>&, const Geometry<RANK>&);                \
  template void depthwise_conv<RANK>(const Tensor&, const Tensor&, const Bias&, const Geometry<RANK>&, Tensor&);       \
  template void depthwise_input_grad<RANK>(const Tensor&, const Tensor&, const Bias&, const Geometry<RANK>&, Tensor&); \
  template void depthwise_weight_grad<RANK>(const Tensor&, const Tensor&, const Geometry<RANK>&, Tensor&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
