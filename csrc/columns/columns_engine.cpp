// The columns engine: bounded chunks of im2col and a matrix product, once for all devices.
//
//   conv              y_g  = W_g U_g           U = im2col(input), [C * taps, positions] per group
//   conv_input_grad   the same over grad_output, phase by phase (phases.h), with the taps reversed
//   conv_weight_grad  dW_g = sum_n dy_g U_g^T
//
// 16-bit floats are widened as they are gathered, so every sum runs in float and is rounded once. A chunk is a range of
// positions of one image and group, or several groups or several images where whole ones fit. On the CPU chunks are the
// tasks of a parallel loop; their sizes follow from the problem, batch size included, and from the workspace limit,
// never from the number of threads, so neither do the results.
#include "columns/columns_engine.h"

#include "columns/matmul.h"
#include "runtime/allocation.h"
#include "runtime/legacy_report.h"
#include "runtime/rows.h"
#include "runtime/tasks.h"
#include "runtime/workspace.h"

namespace unfoldconv {
namespace {

constexpr int64_t kTasksPerProblem = 8;   // a CPU problem is cut into at least about this many tasks
constexpr int64_t kMinPositions = 128;    // fewer columns than this make a poor matrix product
constexpr int64_t kWidePositions = 1024;  // from here on the columns of one image make a good one
constexpr int64_t kLongestRun = 64;       // residues of an axis that share a product (phases.h)

constexpr const char* kWhyColumns = "the device, the dtype or the size has no engine of its own";

int64_t aligned(int64_t bytes) { return round_up(bytes, kAlignment); }

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

// Runs body(task, workspace) for every task, each thread with a workspace of its own. On CUDA they follow each other in
// the stream.
template <class Body>
void run_tasks(const Place& place, int64_t tasks, bool serial, int64_t workspace_bytes, const Tensor& like,
               const Body& body) {
  const auto carve = [&](Carver& carver) { return carver.take<char>(workspace_bytes); };
  cpu::run_tasks(tasks, place.cuda || serial, like, carve, body);
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

}  // namespace

// The correlation by columns: output[n, g, m, p] = sum_r weight[g, f, m, r] columns[n, g, r, p] (+ bias[g, m]) for each
// of the outputs f.
template <int Rank>
void correlate_by_columns(const Place& place, const Correlation<Rank>& problem) {
  const Planes<Rank>& image = problem.image;
  const Geometry<Rank>& geometry = problem.geometry;
  const int64_t batch = problem.batch(), groups = problem.groups(), rows = problem.rows();
  const int64_t channels = problem.channels(), variants = problem.variants();
  const int64_t depth = channels * geometry.tap_numel(), positions = geometry.position_numel();
  const char* const bias = problem.bias;
  const Tensor& like = *problem.like;

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

  if (LegacyReport* const report = LegacyReport::wanted()) {
    report->engine("", tasks, column_buffer + product_buffer, groups * variants * rows * depth * size, kWhyColumns);
    return;
  }
  // The weight as [groups, variants, rows, depth].
  const Tensor packed = empty_bytes(groups * variants * rows * depth * size, like);
  char* const weight = static_cast<char*>(packed.data_ptr());
  for (int64_t group = 0; group < (variants == 1 ? 1 : groups); ++group)
    for (int64_t variant = 0; variant < variants; ++variant)
      pack<Rank>(place, problem.weight_of(variant).at(group, 0).counted(variants == 1 ? groups : 1, rows, channels),
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
      const Planes<Rank> target = problem.output_of(variant).at(from, group).counted(images, g, rows);
      store<Rank>(place, values, dtype, bias ? bias + group * rows * element_size(target.dtype) : nullptr, range,
                  geometry.positions, target.layout, target.data, target.dtype, /*accumulate=*/false, stride);
    };

    const Planes<Rank> part = image.at(first, group).counted(n, g, channels);
    const Matrices columns = columns_of<Rank>(place, part, geometry, range, workspace, dtype);
    // product [variants * rows, range.count] = weight [variants * rows, depth] @ columns [depth, range.count]
    Matrices left = row_major(weight + group * variants * rows * depth * size, variants * rows, depth);
    if (side_by_side(place, n, range.count)) {
      multiply(place, g, left, columns, product, dtype, device);
      for (int64_t i = 0; i < n; ++i) write(product + i * range.count * size, first + i, 1, n * range.count);
      return;
    }
    if (g == 1) {
      left.batch_stride = 0;  // one weight for every image
      multiply(place, n, left, columns, product, dtype, device);
    } else {
      Matrices of_image = columns;
      for (int64_t i = 0; i < n; ++i) {
        of_image.data = static_cast<const char*>(columns.data) + i * g * columns.batch_stride * size;
        multiply(place, g, left, of_image, product + i * g * rows * range.count * size, dtype, device);
      }
    }
    for (int64_t variant = 0; variant < variants; ++variant)
      write(product + variant * rows * range.count * size, first, n, range.count, variant);
  });
}

template <int Rank>
void weight_sums_by_columns(const Place& place, const WeightGrad<Rank>& problem) {
  const Planes<Rank>&output = problem.grad_output, &image = problem.image;
  const Geometry<Rank>& geometry = problem.geometry;
  const ScalarType result_dtype = image.dtype;
  const int64_t batch = problem.batch(), groups = problem.groups();
  const int64_t rows = problem.rows(), channels = problem.channels();
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
  if (LegacyReport* const report = LegacyReport::wanted()) {
    report->engine("", splits * blocks, task_bytes, partial_bytes, kWhyColumns);
    return;
  }
  const Tensor partial = empty_bytes(partial_bytes, *problem.like);
  const torch::stable::Device device = problem.like->device();
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

  run_tasks(place, splits * blocks, serial, task_bytes, *problem.like, [&](int64_t task, char* columns) {
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
        multiply(place, products * g, left, transposed(right), product, dtype, device);
        for (int64_t i = 0; i < products; ++i, first = false)
          add(product + i * block_numel * size, block_numel, sum, first);
      }
    }
    const int64_t offset = (group * rows + row) * row_stride + channel * taps;
    Planes<1> target{problem.grad_weight, result_dtype, {}};
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
    store<1>(place, sums, dtype, nullptr, {0, numel}, sizes, {{1, 1, 1}, {0, 0, 0}, {1}}, problem.grad_weight,
             result_dtype);
  }
}

int64_t longest_shared_run(const Place& place, int rank, int64_t rows, ScalarType dtype) {
  const int64_t size = element_size(compute_dtype(dtype));
  int64_t longest_run = 1;
  const auto fits = [&](int64_t run) {
    int64_t bytes = rows * size * kMinPositions;
    for (int axis = 0; axis < rank; ++axis) bytes *= run;
    return bytes <= limit_of(place);
  };
  while (longest_run < kLongestRun && fits(longest_run + 1)) ++longest_run;
  return longest_run;
}

void correlate_by_columns_of_rank(const Place& place, const Correlation<3>& problem) {
  switch (problem.rank) {
    case 1: return correlate_by_columns<1>(place, trailing_axes<1>(problem));
    case 2: return correlate_by_columns<2>(place, trailing_axes<2>(problem));
    default: return correlate_by_columns<3>(place, problem);
  }
}

void weight_sums_by_columns_of_rank(const Place& place, const WeightGrad<3>& problem) {
  switch (problem.rank) {
    case 1: return weight_sums_by_columns<1>(place, trailing_axes<1>(problem));
    case 2: return weight_sums_by_columns<2>(place, trailing_axes<2>(problem));
    default: return weight_sums_by_columns<3>(place, problem);
  }
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                \
  template void correlate_by_columns<RANK>(const Place&, const Correlation<RANK>&); \
  template void weight_sums_by_columns<RANK>(const Place&, const WeightGrad<RANK>&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv
