// The convolutions on the columns engine: bounded chunks of im2col and torch's GEMM, once for all devices.
//
//   conv              y_g  = W_g U_g           U = im2col(input), [C * taps, positions] per group
//   conv_input_grad   the same over grad_output, phase by phase (phases.h), with the taps reversed
//   conv_weight_grad  dW_g = sum_n dy_g U_g^T
//
// 16-bit floats are widened as they are gathered, so every sum runs in float and is rounded once. A chunk is a range of
// positions of one image and group, or several groups or several images where whole ones fit. On the CPU chunks are the
// tasks of a parallel loop; their sizes follow from the problem, batch size included, and from the workspace limit,
// never from the number of threads, so neither do the results.
#include "convolution.h"

#include "allocation.h"
#include "columns.h"
#include "correlation.h"
#include "cpu/correlation.h"
#include "cpu/depthwise.h"
#include "cpu/weight_sums.h"
#include "engine.h"
#include "matmul.h"
#include "phases.h"
#include "planes.h"
#include "workspace.h"

namespace unfoldconv {
namespace {

constexpr int64_t kAlignment = 64;        // bytes; where each buffer of a workspace starts
constexpr int64_t kTasksPerProblem = 8;   // a CPU problem is cut into at least about this many tasks
constexpr int64_t kMinPositions = 128;    // fewer columns than this make a poor matrix product
constexpr int64_t kWidePositions = 1024;  // from here on the columns of one image make a good one
constexpr int64_t kLongestRun = 64;       // residues of an axis that share a product (phases.h)
constexpr int64_t kSerialFlops = 500000;  // below this a second thread costs more than it brings

constexpr const char* kWhyColumns = "the device, the dtype or the size has no engine of its own";

ScalarType compute_dtype(ScalarType dtype) { return is_16bit_float(dtype) ? ScalarType::Float : dtype; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t aligned(int64_t bytes) { return ceil_div(bytes, kAlignment) * kAlignment; }

// Writes planes to `packed` [planes, prod(sizes)], row-major and in the compute dtype: im2col at a single position.
template <int Rank>
void pack(const Place& place, const Planes<Rank>& planes, const int64_t (&sizes)[Rank], void* packed) {
  Geometry<Rank> geometry{};
  for (int axis = 0; axis < Rank; ++axis) {
    geometry.image[axis] = geometry.kernel[axis] = sizes[axis];
    geometry.positions[axis] = geometry.stride[axis] = geometry.dilation[axis] = 1;
  }
  im2col<Rank>(place, planes.data, planes.dtype, planes.layout, geometry, {0, 1}, packed, compute_dtype(planes.dtype));
}

// Whether the columns of several images are set side by side, as one wider matrix for each group: a few columns make a
// poor matrix product.
bool side_by_side(const Place& place, int64_t images, int64_t positions) {
  return !place.cuda && images > 1 && positions < kWidePositions;
}

// The columns of `part` as matrices [channels * taps, range.count], one for each image and group: gathered into
// `buffer`, or where they lie, if the window is a single tap that reads every element in order. Side by side there is
// one for each group, [channels * taps, images * range.count].
template <int Rank>
Matrices columns_of(const Place& place, const Planes<Rank>& part, const Geometry<Rank>& geometry, PositionRange range,
                    void* buffer, ScalarType dtype) {
  const auto& [count, stride, axis_stride] = part.layout;
  const int64_t rows = count[2] * geometry.tap_numel();
  if (side_by_side(place, count[0], range.count)) {
    const int64_t width = count[0] * range.count;
    for (int64_t image = 0; image < count[0]; ++image) {
      const Planes<Rank> one = part.at(image, 0).counted(1, count[1], count[2]);
      im2col<Rank>(place, one.data, one.dtype, one.layout, geometry, range,
                   static_cast<char*>(buffer) + image * range.count * element_size(dtype), dtype, width);
    }
    return row_major(buffer, rows, width);
  }
  int64_t numel = 1;
  bool in_place = part.dtype == dtype;
  for (int axis = Rank - 1; axis >= 0; --axis) {
    in_place &= geometry.kernel[axis] == 1 && geometry.stride[axis] == 1 && geometry.padding_low[axis] == 0 &&
                geometry.positions[axis] == geometry.image[axis] && axis_stride[axis] == numel;
    numel *= geometry.image[axis];
  }
  const bool evenly_spaced = count[0] == 1 || count[1] == 1 || stride[0] == count[1] * stride[1];
  if (in_place && evenly_spaced && stride[2] >= numel)
    return {part.data + range.first * element_size(dtype), count[2],  range.count,
            count[1] > 1 ? stride[1] : stride[0],          stride[2], 1};
  im2col<Rank>(place, part.data, part.dtype, part.layout, geometry, range, buffer, dtype);
  return row_major(buffer, rows, range.count);
}

// Runs body(task, workspace) for every task, each thread with a workspace of its own.
template <class Body>
void run_tasks(const Place& place, int64_t tasks, bool serial, int64_t workspace_bytes, const Tensor& like,
               const Body& body) {
  const auto run = [&](int64_t begin, int64_t end) {
    const Tensor workspace = empty_bytes(workspace_bytes, like);
    for (int64_t task = begin; task < end; ++task) body(task, static_cast<char*>(workspace.data_ptr()));
  };
  if (place.cuda || serial || tasks == 1)
    run(0, tasks);
  else
    torch::stable::parallel_for(0, tasks, 1, run);
}

int64_t limit_of(const Place& place) { return place.cuda ? workspace_limit().cuda : workspace_limit().cpu; }

// How many of `total` items form a chunk: as many as `room` holds at `bytes` each, at least one, and at most what
// leaves `parts` chunks.
int64_t chunk_of(int64_t total, int64_t room, int64_t bytes, int64_t parts) {
  const int64_t most = std::min(room / std::max<int64_t>(1, bytes), ceil_div(total, std::max<int64_t>(1, parts)));
  return std::clamp<int64_t>(most, 1, std::max<int64_t>(1, total));
}

// Chunks that a problem should have for the sake of threads.
int64_t parts_of(const Place& place) { return place.cuda ? 1 : kTasksPerProblem; }

// The correlation by columns: output[n, g, m, p] = sum_r weight[g, f, m, r] columns[n, g, r, p] (+ bias[g, m]) for each
// of the outputs f.
template <int Rank>
void correlate_columns(const Place& place, const Correlation<Rank>& problem) {
  const Planes<Rank>& image = problem.image;
  const Geometry<Rank>& geometry = problem.geometry;
  const std::vector<Planes<Rank>>& outputs = problem.outputs;
  const int64_t batch = problem.batch(), groups = problem.groups(), rows = problem.rows();
  const int64_t channels = problem.channels(), variants = problem.variants();
  const int64_t depth = channels * geometry.tap_numel(), positions = geometry.position_numel();
  const char* const bias = problem.bias;
  const Tensor& like = problem.like;

  const ScalarType dtype = compute_dtype(image.dtype);
  const int64_t size = element_size(dtype);
  const int64_t column_bytes = (depth + variants * rows) * size;
  const int64_t limit = limit_of(place), parts = parts_of(place);
  const int64_t chunk = chunk_of(positions, limit, column_bytes,
                                 std::min(ceil_div(parts, batch * groups), ceil_div(positions, kMinPositions)));
  const int64_t position_chunks = ceil_div(positions, chunk);
  int64_t chunk_groups = 1, chunk_batch = 1;
  if (chunk == positions && variants == 1)
    chunk_groups = chunk_of(groups, limit, chunk * column_bytes, ceil_div(parts, batch));
  const int64_t group_chunks = ceil_div(groups, chunk_groups);
  if (chunk == positions && variants == 1 && chunk_groups == groups)
    chunk_batch = chunk_of(batch, limit, groups * chunk * column_bytes, parts);
  const int64_t chunk_planes = chunk_groups * chunk_batch;
  const int64_t column_buffer = aligned(chunk_planes * depth * chunk * size);
  const int64_t product_buffer = aligned(chunk_planes * variants * rows * chunk * size);
  const int64_t tasks = ceil_div(batch, chunk_batch) * group_chunks * position_chunks;
  const bool serial = 2. * batch * groups * variants * rows * depth * positions < kSerialFlops;
  const torch::stable::Device device = like.device();

  if (Report* const report = Report::wanted()) {
    report->engine(Engine::columns, "", tasks, column_buffer + product_buffer, groups * variants * rows * depth * size,
                   kWhyColumns);
    return;
  }
  // The weight as [groups, variants, rows, depth].
  const Tensor packed = empty_bytes(groups * variants * rows * depth * size, like);
  char* const weight = static_cast<char*>(packed.data_ptr());
  for (int64_t group = 0; group < (variants == 1 ? 1 : groups); ++group)
    for (int64_t variant = 0; variant < variants; ++variant)
      pack<Rank>(place, problem.weights[variant].at(group, 0).counted(variants == 1 ? groups : 1, rows, channels),
                 geometry.kernel, weight + (group * variants + variant) * rows * depth * size);

  run_tasks(place, tasks, serial, column_buffer + product_buffer, like, [&](int64_t task, char* workspace) {
    const PositionRange range{task % position_chunks * chunk,
                              std::min(chunk, positions - task % position_chunks * chunk)};
    const int64_t group = task / position_chunks % group_chunks * chunk_groups;
    const int64_t first = task / position_chunks / group_chunks * chunk_batch;
    const int64_t n = std::min(chunk_batch, batch - first), g = std::min(chunk_groups, groups - group);
    char* product = workspace + column_buffer;

    // Writes the products of some images, planes `stride` apart, to an output.
    const auto write = [&](const char* values, int64_t from, int64_t images, int64_t stride, int64_t variant = 0) {
      const Planes<Rank> target = outputs[variant].at(from, group).counted(images, g, rows);
      store<Rank>(place, values, dtype, bias ? bias + group * rows * element_size(target.dtype) : nullptr, range,
                  geometry.positions, target.layout, target.data, target.dtype, /*accumulate=*/false, stride);
    };

    const Planes<Rank> part = image.at(first, group).counted(n, g, channels);
    const Matrices columns = columns_of<Rank>(place, part, geometry, range, workspace, dtype);
    // product [variants * rows, range.count] = weight [variants * rows, depth] @ columns [depth, range.count]
    Matrices left = row_major(weight + group * variants * rows * depth * size, variants * rows, depth);
    if (side_by_side(place, n, range.count)) {
      multiply(g, left, columns, product, dtype, device);
      for (int64_t i = 0; i < n; ++i) write(product + i * range.count * size, first + i, 1, n * range.count);
      return;
    }
    if (g == 1) {
      left.batch_stride = 0;  // one weight for every image
      multiply(n, left, columns, product, dtype, device);
    } else {
      Matrices of_image = columns;
      for (int64_t i = 0; i < n; ++i) {
        of_image.data = static_cast<const char*>(columns.data) + i * g * columns.batch_stride * size;
        multiply(g, left, of_image, product + i * g * rows * range.count * size, dtype, device);
      }
    }
    for (int64_t variant = 0; variant < variants; ++variant)
      write(product + variant * rows * range.count * size, first, n, range.count, variant);
  });
}

template <int Rank>
void correlate(const Place& place, const Correlation<Rank>& problem) {
  if (problem.batch() * problem.groups() * problem.rows() * problem.geometry.position_numel() == 0) return;
  if (!place.cuda && cpu::correlate<Rank>(problem)) return;
  correlate_columns<Rank>(place, problem);
}

// Tells a report, if one is wanted, what the op amounts to: a multiplication and an addition for every output element,
// channel of its group and tap, and every operand and the result moved once.
template <int Rank>
void report_op(const char* name, const Geometry<Rank>& geometry, int64_t batch, const Tensor& weight,
               std::initializer_list<const Tensor*> tensors) {
  Report* const report = Report::wanted();
  if (report == nullptr) return;
  double bytes = 0;
  for (const Tensor* tensor : tensors)
    bytes += static_cast<double>(tensor->numel()) * element_size(tensor->scalar_type());
  report->op(name, 2. * batch * geometry.position_numel() * static_cast<double>(weight.numel()), bytes);
}

// Whether the numbers of a weight [out, in, *kernel] lie in order, wherever an axis has more than one.
bool contiguous_taps(const Tensor& weight) {
  int64_t numel = 1;
  for (int64_t axis = weight.dim() - 1; axis >= 0; --axis) {
    if (weight.size(axis) != 1 && weight.stride(axis) != numel) return false;
    numel *= weight.size(axis);
  }
  return true;
}

// Whether the depthwise engine is to compute a convolution or a gradient of it; with one channel per group it reads the
// weight, if it does, as it lies.
template <int Rank>
bool use_depthwise(const Place& place, const Planes<Rank>& image, const Planes<Rank>& output, const Tensor* weight,
                   const Geometry<Rank>& geometry) {
  const bool one = image.layout.count[2] == 1;
  return !place.cuda && may_use(one ? Engine::depthwise : Engine::grouped) &&
         (!one || weight == nullptr || contiguous_taps(*weight)) && cpu::depthwise_takes(image, output, geometry);
}

const char* bias_data(const Bias& bias) { return bias ? static_cast<const char*>(bias->data_ptr()) : nullptr; }

}  // namespace

template <int Rank>
void conv(const Place& place, const Tensor& input, const Tensor& weight, const Bias& bias,
          const Geometry<Rank>& geometry, int64_t groups, Tensor& output) {
  report_op<Rank>("conv", geometry, input.size(0), weight, {&input, &weight, &output});
  if (use_depthwise<Rank>(place, planes_of<Rank>(input, groups), planes_of<Rank>(output, groups), &weight, geometry))
    return cpu::depthwise_conv(input, weight, bias, geometry, groups, output);
  correlate<Rank>(place, {planes_of<Rank>(input, groups),
                          geometry,
                          {weight_planes<Rank>(weight, groups, /*swap=*/false)},
                          {planes_of<Rank>(output, groups)},
                          bias_data(bias),
                          input});
}

template <int Rank>
void conv_input_grad(const Place& place, const Tensor& grad_output, const Tensor& weight, const Bias& bias,
                     const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_input) {
  report_op<Rank>("conv_input_grad", geometry, grad_output.size(0), weight, {&grad_output, &weight, &grad_input});
  const Planes<Rank> output = planes_of<Rank>(grad_output, groups), input = planes_of<Rank>(grad_input, groups);
  if (use_depthwise<Rank>(place, input, output, &weight, geometry))
    return cpu::depthwise_input_grad(grad_output, weight, bias, geometry, groups, grad_input);
  const Planes<Rank> weights = weight_planes<Rank>(weight, groups, /*swap=*/true);
  const int64_t rows = input.layout.count[2];
  const int64_t size = element_size(compute_dtype(weights.dtype));

  // Residues share a product as long as it leaves a chunk room for enough positions.
  int64_t longest_run = 1;
  const auto fits = [&](int64_t run) {
    int64_t bytes = rows * size * kMinPositions;
    for (int axis = 0; axis < Rank; ++axis) bytes *= run;
    return bytes <= limit_of(place);
  };
  while (longest_run < kLongestRun && fits(longest_run + 1)) ++longest_run;

  std::vector<AxisPhase> axes[Rank];
  int64_t combinations[Rank];
  for (int axis = 0; axis < Rank; ++axis) {
    axes[axis] = axis_phases(geometry.image[axis], geometry.kernel[axis], geometry.stride[axis],
                             geometry.dilation[axis], geometry.padding_low[axis], longest_run);
    combinations[axis] = static_cast<int64_t>(axes[axis].size());
  }
  for (int64_t flat = 0; flat < Geometry<Rank>::product(combinations); ++flat) {
    int64_t chosen[Rank], runs[Rank];
    unravel<Rank>(flat, combinations, chosen);
    // The correlation over grad_output that gives the phase, and the phase's part of the weight and of the result.
    Geometry<Rank> phase{};
    Planes<Rank> taps = weights, target = input;
    for (int axis = 0; axis < Rank; ++axis) {
      const AxisPhase& a = axes[axis][chosen[axis]];
      runs[axis] = a.run;
      phase.image[axis] = geometry.positions[axis];
      phase.positions[axis] = a.count;
      phase.kernel[axis] = a.taps;
      phase.stride[axis] = 1;
      phase.dilation[axis] = a.dilation;
      phase.padding_low[axis] = a.padding_low;
      taps = taps.shifted(a.tap * weights.layout.axis_stride[axis]);
      taps.layout.axis_stride[axis] *= -a.tap_step;
      target = target.shifted(a.first * input.layout.axis_stride[axis]);
      target.layout.axis_stride[axis] *= geometry.stride[axis];
    }
    const int64_t variants = Geometry<Rank>::product(runs);
    Correlation<Rank> problem{output, phase, {}, {}, bias_data(bias), grad_output};
    for (int64_t variant = 0; variant < variants; ++variant) {
      int64_t shift[Rank], weight_shift = 0, target_shift = 0;
      unravel<Rank>(variant, runs, shift);
      for (int axis = 0; axis < Rank; ++axis) {
        weight_shift += shift[axis] * weights.layout.axis_stride[axis];
        target_shift += shift[axis] * input.layout.axis_stride[axis];
      }
      problem.outputs.push_back(target.shifted(target_shift));
      problem.weights.push_back(taps.shifted(weight_shift));
    }
    correlate<Rank>(place, problem);
  }
}

template <int Rank>
void conv_weight_grad(const Place& place, const Tensor& grad_output, const Tensor& input,
                      const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_weight) {
  report_op<Rank>("conv_weight_grad", geometry, input.size(0), grad_weight, {&grad_output, &input, &grad_weight});
  const Planes<Rank> output = planes_of<Rank>(grad_output, groups), image = planes_of<Rank>(input, groups);
  if (use_depthwise<Rank>(place, image, output, nullptr, geometry))
    return cpu::depthwise_weight_grad(grad_output, input, geometry, groups, grad_weight);
  if (!place.cuda && cpu::weight_sums<Rank>({output, image, geometry, grad_weight})) return;
  const int64_t batch = image.layout.count[0], rows = output.layout.count[2], channels = image.layout.count[2];
  const int64_t taps = geometry.tap_numel(), positions = geometry.position_numel();
  const ScalarType dtype = compute_dtype(image.dtype);
  const int64_t size = element_size(dtype);
  const int64_t row_stride = channels * taps;  // of grad_weight, contiguous

  // A task owns grad_weight[groups g.., rows r.., channels c.., taps] of some images, and adds them and their chunks of
  // positions up in order; the sums of several tasks for one block are added in order at the end. Images are split
  // first, where the sums take little memory, because blocks of channels each read grad_output again. A quarter of the
  // limit each goes to the operands of a product, to products, to a task's sum, and to the sums of all tasks.
  const int64_t limit = limit_of(place), parts = parts_of(place);
  const int64_t numel = groups * rows * row_stride;
  const int64_t split =
      ceil_div(batch, chunk_of(std::min(parts, batch), limit / 4, numel * size, 1));  // images per sum
  const int64_t splits = ceil_div(batch, split), block_parts = ceil_div(parts, splits);
  const int64_t block_rows = chunk_of(rows, limit / 4, taps * size, 1);
  const int64_t block_channels = chunk_of(channels, limit / 4, block_rows * taps * size, ceil_div(block_parts, groups));
  const bool whole_groups = block_rows == rows && block_channels == channels;
  const int64_t block_groups = whole_groups ? chunk_of(groups, limit / 4, rows * row_stride * size, block_parts) : 1;
  const int64_t block_bytes = block_groups * block_rows * block_channels * taps * size;
  const int64_t depth = block_channels * taps, operand_bytes = block_groups * (depth + block_rows) * size;
  const int64_t chunk = chunk_of(positions, limit / 4, operand_bytes, 1);
  const int64_t chunk_batch = chunk < positions ? 1
                                                : std::min(chunk_of(batch, limit / 4, operand_bytes * chunk, 1),
                                                           chunk_of(batch, limit / 4, block_bytes, 1));

  const int64_t row_blocks = ceil_div(rows, block_rows), channel_blocks = ceil_div(channels, block_channels);
  const int64_t blocks = row_blocks * channel_blocks * ceil_div(groups, block_groups);

  const int64_t column_buffer = aligned(chunk_batch * block_groups * depth * chunk * size);
  const int64_t grad_buffer = aligned(chunk_batch * block_groups * block_rows * chunk * size);
  const int64_t product_buffer = aligned(chunk_batch * block_bytes);
  const bool serial = 2. * batch * numel * positions < kSerialFlops;
  const int64_t task_bytes = column_buffer + grad_buffer + product_buffer + aligned(block_bytes);
  const int64_t partial_bytes = splits > 1 ? splits * numel * size : 0;
  if (Report* const report = Report::wanted()) {
    report->engine(Engine::columns, "", splits * blocks, task_bytes, partial_bytes, kWhyColumns);
    return;
  }
  const Tensor partial = empty_bytes(partial_bytes, input);
  const torch::stable::Device device = input.device();
  Geometry<Rank> pointwise{};  // im2col by it reads grad_output itself
  for (int axis = 0; axis < Rank; ++axis) {
    pointwise.image[axis] = pointwise.positions[axis] = geometry.positions[axis];
    pointwise.kernel[axis] = pointwise.stride[axis] = pointwise.dilation[axis] = 1;
  }
  // Adds `count` numbers to a sum, or with `first` begins it.
  const auto add = [&](const char* values, int64_t count, char* sum, bool first) {
    const int64_t sizes[] = {count};
    store<1>(place, values, dtype, nullptr, {0, count}, sizes, {{1, 1, 1}, {0, 0, 0}, {1}}, sum, dtype, !first);
  };

  run_tasks(place, splits * blocks, serial, task_bytes, input, [&](int64_t task, char* columns) {
    char* grads = columns + column_buffer;
    char* product = grads + grad_buffer;
    char* sum = product + product_buffer;
    const int64_t block = task % blocks, first_image = task / blocks * split;
    const int64_t row = block % row_blocks * block_rows;
    const int64_t channel = block / row_blocks % channel_blocks * block_channels;
    const int64_t group = block / row_blocks / channel_blocks * block_groups;
    const int64_t r = std::min(block_rows, rows - row), c = std::min(block_channels, channels - channel);
    const int64_t g = std::min(block_groups, groups - group), end = std::min(batch, first_image + split);
    const int64_t block_numel = g * r * c * taps;
    bool first = true;
    for (int64_t image_index = first_image; image_index < end; image_index += chunk_batch) {
      const int64_t n = std::min(chunk_batch, end - image_index);
      const Planes<Rank> image_part = image.at(image_index, group, channel).counted(n, g, c);
      const Planes<Rank> grad_part = output.at(image_index, group, row).counted(n, g, r);
      for (int64_t position = 0; position < positions; position += chunk) {
        const PositionRange range{position, std::min(chunk, positions - position)};
        // product [r, c * taps] = grad_output [r, range.count] @ columns^T [range.count, c * taps] of each
        // image, group
        const Matrices left = columns_of<Rank>(place, grad_part, pointwise, range, grads, dtype);
        const Matrices right = columns_of<Rank>(place, image_part, geometry, range, columns, dtype);
        const int64_t products = side_by_side(place, n, range.count) ? 1 : n;  // for each group
        multiply(products * g, left, transposed(right), product, dtype, device);
        for (int64_t i = 0; i < products; ++i, first = false)
          add(product + i * block_numel * size, block_numel, sum, first);
      }
    }
    const int64_t offset = (group * rows + row) * row_stride + channel * taps;
    Planes<1> target{static_cast<char*>(grad_weight.data_ptr()), grad_weight.scalar_type(), {}};
    if (splits > 1) target = {static_cast<char*>(partial.data_ptr()) + task / blocks * numel * size, dtype, {}};
    target.layout = {{1, g, r}, {0, rows * row_stride, row_stride}, {1}};
    const int64_t sizes[] = {c * taps};
    store<1>(place, sum, dtype, nullptr, {0, c * taps}, sizes, target.layout, target.shifted(offset).data,
             target.dtype);
  });
  if (splits > 1) {
    char* sums = static_cast<char*>(partial.data_ptr());
    for (int64_t i = 1; i < splits; ++i) add(sums + i * numel * size, numel, sums, /*first=*/false);
    const int64_t sizes[] = {numel};
    store<1>(place, sums, dtype, nullptr, {0, numel}, sizes, {{1, 1, 1}, {0, 0, 0}, {1}}, grad_weight.data_ptr(),
             grad_weight.scalar_type());
  }
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                                  \
  template void conv<RANK>(const Place&, const Tensor&, const Tensor&, const Bias&, const Geometry<RANK>&, int64_t,   \
                           Tensor&);                                                                                  \
  template void conv_input_grad<RANK>(const Place&, const Tensor&, const Tensor&, const Bias&, const Geometry<RANK>&, \
                                      int64_t, Tensor&);                                                              \
  template void conv_weight_grad<RANK>(const Place&, const Tensor&, const Tensor&, const Geometry<RANK>&, int64_t,    \
                                       Tensor&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv
