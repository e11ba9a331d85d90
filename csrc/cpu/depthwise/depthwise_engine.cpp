#include "cpu/depthwise/depthwise_engine.h"

#include "cpu/depthwise/depthwise_blocks.h"
#include "cpu/depthwise/depthwise_in_place.h"
#include "runtime/legacy_report.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kLeastChannels = 4;  // fewer leave most of a vector empty

constexpr const char* kWhy = "few channels per group: neighbouring channels fill the vectors";

// output = bias + the correlation that the axes describe. `rows` is the weight as (group, channel of the result,
// channel of the source).
template <int Rank>
void correlate(const Axis (&axes)[3], const int64_t (&kernel)[3], const Operand& source, int64_t batch,
               const Blocks& blocks, const Tensor& weight, const Planes<Rank>& rows, const Bias& bias,
               const Operand& output) {
  if (blocks.group_size == 1 && in_place(axes, source, output))
    return correlate_in_place(axes, kernel, source, batch, blocks, weight, bias, output);
  const int64_t size = blocks.group_size, bytes = blocks.vector_bytes;
  const int64_t terms = kernel[0] * kernel[1] * kernel[2] * size;
  const bool direct = output.channels_innermost();
  if (blocks.channels * batch * axes[0].results * axes[1].results * axes[2].results == 0) return;
  const Work work(axes, blocks, direct, bytes, ceil_div(kTasksPerProblem, batch));
  const int64_t image_bytes = work.group * work.boxes.read_numel() * bytes;
  const int64_t thread_bytes = image_bytes + (direct ? 0 : work.boxes.numel() * bytes);
  const int64_t tasks = batch * work.box_count * work.groups;
  if (LegacyReport* const report = LegacyReport::wanted()) {
    report->engine("", tasks, thread_bytes, blocks.count * (terms + (bias ? 1 : 0)) * bytes, kWhy);
    return;
  }
  const Tensor packed =
      size == 1 ? pack(blocks, weight, terms)
                : pack_groups(blocks, {rows.data, rows.dtype, with_leading_axes<3>(rows.layout)}, kernel, weight);
  const Bias packed_bias = bias ? Bias(pack(blocks, *bias, 1)) : Bias();
  const char* weights = static_cast<const char*>(packed.data_ptr());
  const char* biases = packed_bias ? static_cast<const char*>(packed_bias->data_ptr()) : nullptr;
  const int64_t tap = size * blocks.lanes, tap_stride[] = {kernel[1] * kernel[2] * tap, kernel[2] * tap, tap};

  const auto correlate_block = blocks.kernels.correlate[kernels_for(size)];
  const double products = 1. * work.boxes.numel() * work.group * blocks.lanes * terms;
  run_tasks(tasks, products, [&](int64_t begin, int64_t end) {
    const Tensor buffers = empty_bytes(thread_bytes, weight);
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
              correlate_block(from.window(part, j), target, image,
                              weights + block * terms * bytes + first_tap * element_size(blocks.type),
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
  const int64_t size = image.layout.count[2], vector_bytes = kernels().depthwise.vector_bytes;
  if (output.layout.count[2] != size || image.layout.count[1] * size < kLeastChannels ||
      kernels_for(size) == kGroupSizes || !kernels().depthwise.correlate[kernels_for(size)] ||
      vector_bytes / element_size(sum_dtype(dtype)) % size != 0)
    return false;
  if (!unit_stride(Operand(image), geometry.image[Rank - 1]) ||
      !unit_stride(Operand(output), geometry.positions[Rank - 1]))
    return false;
  double read = vector_bytes;  // by a box of one result
  for (int axis = 0; axis < Rank; ++axis) {
    const int64_t span = (geometry.kernel[axis] - 1) * geometry.dilation[axis] + 1;
    read *= axis == Rank - 1 ? span : std::min(span, geometry.image[axis]);
  }
  const double sums = static_cast<double>(geometry.tap_numel()) * size * vector_bytes;
  return read <= room() / 4 && sums <= room() / 4;
}

template <int Rank>
void depthwise_conv(const Tensor& input, const Tensor& weight, const Bias& bias, const Geometry<Rank>& geometry,
                    int64_t groups, Tensor& output) {
  const Geometry<3> g = with_leading_axes<3>(geometry);
  Axis axes[3];
  make_axes(axes, [&](int axis) { return forward_axis(g, axis); });
  const int64_t channels = input.size(1);
  correlate(axes, g.kernel, Operand(planes_of<Rank>(input, channels)), input.size(0),
            Blocks(channels, channels / groups, input.scalar_type()), weight,
            weight_planes<Rank>(weight, groups, /*swap=*/false), bias, Operand(planes_of<Rank>(output, channels)));
}

template <int Rank>
void depthwise_input_grad(const Tensor& grad_output, const Tensor& weight, const Bias& bias,
                          const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_input) {
  const Geometry<3> g = with_leading_axes<3>(geometry);
  Axis axes[3];
  make_axes(axes, [&](int axis) { return backward_axis(g, axis); });
  const int64_t channels = grad_input.size(1);
  correlate(axes, g.kernel, Operand(planes_of<Rank>(grad_output, channels)), grad_output.size(0),
            Blocks(channels, channels / groups, grad_output.scalar_type()), weight,
            weight_planes<Rank>(weight, groups, /*swap=*/true), bias, Operand(planes_of<Rank>(grad_input, channels)));
}

template <int Rank>
void depthwise_weight_grad(const Tensor& grad_output, const Tensor& input, const Geometry<Rank>& geometry,
                           int64_t groups, Tensor& grad_weight) {
  const Geometry<3> g = with_leading_axes<3>(geometry);
  Axis axes[3];
  make_axes(axes, [&](int axis) { return forward_axis(g, axis); });
  const int64_t channels = input.size(1), batch = input.size(0);
  const Blocks blocks(channels, channels / groups, input.scalar_type());
  const Operand image(planes_of<Rank>(input, channels)), grad(planes_of<Rank>(grad_output, channels));
  if (blocks.group_size == 1 && in_place(axes, image, grad) && axes[2].parts[0].taps == 3)
    return weight_grad_in_place(axes, g.kernel, image, grad, batch, blocks, grad_weight);
  const int64_t terms = g.tap_numel() * blocks.group_size, bytes = blocks.vector_bytes;
  const Work work(axes, blocks, image.channels_innermost() || grad.channels_innermost(), bytes, 1);

  // A task sums some images for some groups of blocks; the sums of several tasks for one group are added in order.
  const int64_t own_groups = std::clamp<int64_t>(room() / 2 / (work.group * terms * bytes), 1, work.groups);
  const int64_t ranges = ceil_div(work.groups, own_groups);
  const int64_t numel = blocks.count * terms * blocks.lanes;
  const int64_t most_splits = workspace_limit().cpu / (numel * element_size(blocks.type));
  const int64_t split =
      ceil_div(batch, std::clamp<int64_t>(std::min(ceil_div(kTasksPerProblem, ranges), most_splits), 1, batch));
  const int64_t splits = ceil_div(batch, split);
  const int64_t image_bytes = work.group * work.boxes.read_numel() * bytes;
  const int64_t grad_bytes = work.group * work.boxes.numel() * bytes;
  const int64_t sum_bytes = splits * numel * element_size(blocks.type);
  if (LegacyReport* const report = LegacyReport::wanted()) {
    report->engine("", splits * ranges, image_bytes + grad_bytes, sum_bytes, kWhy);
    return;
  }
  const Tensor sums = empty_bytes(sum_bytes, input);
  char* const sum_data = static_cast<char*>(sums.data_ptr());
  const double products = 1. * split * g.position_numel() * own_groups * work.group * blocks.lanes * terms;
  const auto add_sums = blocks.kernels.weight_sums[kernels_for(blocks.group_size)];
  run_tasks(splits * ranges, products, [&](int64_t begin, int64_t end) {
    const Tensor buffers = empty_bytes(image_bytes + grad_bytes, input);
    char* const images = static_cast<char*>(buffers.data_ptr());
    char* const grads = images + image_bytes;
    int64_t margins_of = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % ranges * own_groups * work.group;
      const int64_t last = std::min(blocks.count, first + own_groups * work.group);
      const int64_t first_image = task / ranges * split;
      char* const own = sum_data + task / ranges * numel * element_size(blocks.type);
      std::memset(own + first * terms * bytes, 0, (last - first) * terms * bytes);
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
              add_sums(window, blocks.type, images + i * from.bytes(blocks),
                       grads + i * shape[0] * shape[1] * shape[2] * bytes, own + (group + i) * terms * bytes);
          }
        }
    }
  });

  finish_sums(blocks, sum_data, splits, terms, grad_weight);
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                                  \
  template bool depthwise_takes<RANK>(const Planes<RANK>&, const Planes<RANK>&, const Geometry<RANK>&);               \
  template void depthwise_conv<RANK>(const Tensor&, const Tensor&, const Bias&, const Geometry<RANK>&, int64_t,       \
                                     Tensor&);                                                                        \
  template void depthwise_input_grad<RANK>(const Tensor&, const Tensor&, const Bias&, const Geometry<RANK>&, int64_t, \
                                           Tensor&);                                                                  \
  template void depthwise_weight_grad<RANK>(const Tensor&, const Tensor&, const Geometry<RANK>&, int64_t, Tensor&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
