// Correlations by columns: output[n, g, m, p] = sum_r weight[g, f, m, r] columns[n, g, r, p] (+ bias[g, m]) for each of
// the outputs f.
#include "columns/column_chunks.h"
#include "columns/columns_engine.h"

namespace unfoldconv {
namespace {

using namespace columns;

constexpr int64_t kLongestRun = 64;  // residues of an axis that share a product (phases.h)

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

struct Buffers {
  char *columns, *product;
};

// What a task computes: some positions of some images and groups.
struct Chunk {
  PositionRange range;
  int64_t group, groups, image, images;
};

template <int Rank>
class CorrelateColumnsJob final : public TaskJob<CorrelateColumnsJob<Rank>> {
 public:
  CorrelateColumnsJob(const Correlation<Rank>& problem, const Call& call, MultiplyIntegers integers)
      : problem_(problem),
        multiply_{compute_dtype(problem.image.dtype), call.like.device(), integers},
        dtype_(multiply_.dtype),
        size_(element_size(dtype_)),
        depth_(problem.channels() * problem.geometry.tap_numel()),
        positions_(problem.geometry.position_numel()),
        variants_(problem.variants()) {
    const int64_t batch = problem.batch(), groups = problem.groups(), all_rows = variants_ * problem.rows();
    const int64_t column_bytes = (depth_ + all_rows) * size_;
    const int64_t limit = limit_of(call.place), parts = parts_of(call.place);
    chunk_ = chunk_of(positions_, limit, column_bytes,
                      std::min(ceil_div(parts, batch * groups), ceil_div(positions_, kMinPositions)));
    position_chunks_ = ceil_div(positions_, chunk_);
    if (chunk_ == positions_ && variants_ == 1)
      chunk_groups_ = chunk_of(groups, limit, chunk_ * column_bytes, ceil_div(parts, batch));
    group_chunks_ = ceil_div(groups, chunk_groups_);
    if (chunk_ == positions_ && variants_ == 1 && chunk_groups_ == groups)
      chunk_batch_ = chunk_of(batch, limit, groups * chunk_ * column_bytes, parts);

    Plan& plan = this->plan_;
    plan.why = kWhy;
    plan.tasks = ceil_div(batch, chunk_batch_) * group_chunks_ * position_chunks_;
    plan.serial = 2. * batch * groups * all_rows * depth_ * positions_ < kSerialFlops;
    this->measure();
  }

  Buffers buffers(Carver& carver) const {
    const int64_t columns = chunk_groups_ * chunk_batch_ * chunk_;
    return {carver.take<char>(columns * depth_ * size_),
            carver.take<char>(columns * variants_ * problem_.rows() * size_)};
  }

  void share(Carver& carver) {
    weight_ = carver.take<char>(problem_.groups() * variants_ * problem_.rows() * depth_ * size_);
  }

  // The weight as [groups, variants, rows, depth].
  void fill(const Call& call) {
    const int64_t rows = problem_.rows(), groups_at_once = variants_ == 1 ? problem_.groups() : 1;
    for (int64_t group = 0; group < problem_.groups(); group += groups_at_once)
      for (int64_t variant = 0; variant < variants_; ++variant)
        pack<Rank>(call.place,
                   problem_.weight_of(variant).at(group, 0).counted(groups_at_once, rows, problem_.channels()),
                   problem_.geometry.kernel, weight_ + (group * variants_ + variant) * rows * depth_ * size_);
  }

  void run_task(const Call& call, int64_t task, const Buffers& own) const {
    const Chunk chunk = chunk_at(task);
    const Planes<Rank> part =
        problem_.image.at(chunk.image, chunk.group).counted(chunk.images, chunk.groups, problem_.channels());
    const Matrices columns = columns_of<Rank>(call.place, part, problem_.geometry, chunk.range, own.columns, dtype_);
    if (side_by_side(call.place, chunk.images, chunk.range.count))
      multiply_side_by_side(call, chunk, columns, own.product);
    else
      multiply_images(call, chunk, columns, own.product);
  }

 private:
  Chunk chunk_at(int64_t task) const {
    const int64_t position = task % position_chunks_ * chunk_;
    const int64_t group = task / position_chunks_ % group_chunks_ * chunk_groups_;
    const int64_t image = task / position_chunks_ / group_chunks_ * chunk_batch_;
    return {{position, std::min(chunk_, positions_ - position)},
            group,
            std::min(chunk_groups_, problem_.groups() - group),
            image,
            std::min(chunk_batch_, problem_.batch() - image)};
  }

  // The weight of a group and those after it.
  Matrices weight_from(int64_t group) const {
    const int64_t rows = variants_ * problem_.rows();
    return row_major(weight_ + group * rows * depth_ * size_, rows, depth_);
  }

  // product [rows, images * range.count] = weight [rows, depth] @ columns [depth, images * range.count] of each group
  void multiply_side_by_side(const Call& call, const Chunk& chunk, const Matrices& columns, char* product) const {
    const int64_t count = chunk.range.count;
    multiply_(call.place, chunk.groups, weight_from(chunk.group), columns, product);
    for (int64_t i = 0; i < chunk.images; ++i) {
      Chunk image = chunk;
      image.image += i, image.images = 1;
      store_product(call, image, /*variant=*/0, product + i * count * size_, chunk.images * count);
    }
  }

  // product [variants * rows, range.count] = weight [variants * rows, depth] @ columns [depth, range.count] of each
  // image and group
  void multiply_images(const Call& call, const Chunk& chunk, const Matrices& columns, char* product) const {
    const int64_t rows = problem_.rows(), count = chunk.range.count;
    Matrices weight = weight_from(chunk.group);
    if (chunk.groups == 1) {
      weight.batch_stride = 0;  // one for every image
      multiply_(call.place, chunk.images, weight, columns, product);
    } else {
      Matrices of_image = columns;
      for (int64_t i = 0; i < chunk.images; ++i) {
        of_image.data = static_cast<const char*>(columns.data) + i * chunk.groups * columns.batch_stride * size_;
        multiply_(call.place, chunk.groups, weight, of_image, product + i * chunk.groups * rows * count * size_);
      }
    }
    for (int64_t variant = 0; variant < variants_; ++variant)
      store_product(call, chunk, variant, product + variant * rows * count * size_, count);
  }

  // Writes products, whose planes are `stride` apart, to an output.
  void store_product(const Call& call, const Chunk& chunk, int64_t variant, const char* product, int64_t stride) const {
    const int64_t rows = problem_.rows();
    const Planes<Rank> to =
        problem_.output_of(variant).at(chunk.image, chunk.group).counted(chunk.images, chunk.groups, rows);
    const char* const bias = problem_.bias ? problem_.bias + chunk.group * rows * element_size(to.dtype) : nullptr;
    store<Rank>(call.place, product, dtype_, bias, chunk.range, problem_.geometry.positions, to.layout, to.data,
                to.dtype, /*accumulate=*/false, stride);
  }

  const Correlation<Rank> problem_;
  const MatrixMultiplier multiply_;
  const ScalarType dtype_;
  const int64_t size_;  // bytes of a number of that dtype
  const int64_t depth_, positions_, variants_;
  int64_t chunk_, chunk_groups_ = 1, chunk_batch_ = 1;  // positions, groups and images of a chunk
  int64_t position_chunks_, group_chunks_;
  char* weight_ = nullptr;
};

}  // namespace

const char* plan_correlate_columns(const Correlation<3>& problem, const Call& call, JobSlot& slot,
                                   MultiplyIntegers integers) {
  switch (problem.rank) {
    case 1: slot.emplace<CorrelateColumnsJob<1>>(trailing_axes<1>(problem), call, integers); break;
    case 2: slot.emplace<CorrelateColumnsJob<2>>(trailing_axes<2>(problem), call, integers); break;
    default: slot.emplace<CorrelateColumnsJob<3>>(problem, call, integers);
  }
  return nullptr;
}

const char* plan_correlate_columns(const Correlation<3>& problem, const Call& call, JobSlot& slot) {
  return plan_correlate_columns(problem, call, slot, nullptr);
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

}  // namespace unfoldconv
