// Gradients of weights by columns: grad_weight[g] = sum_n grad_output[n, g] columns[n, g]^T.
//
// A task owns grad_weight[groups g.., rows r.., channels c.., taps] of some images, and adds them and their chunks of
// positions up in order; the sums of several tasks for one block are added in order at the end. Images are split first,
// where the sums take little memory, because blocks of channels each read grad_output again. A quarter of the limit
// each goes to the operands of a product, to products, to a task's sum, and to the sums of all tasks.
#include "columns/column_chunks.h"
#include "columns/columns_engine.h"

namespace unfoldconv {
namespace {

using namespace columns;

struct Buffers {
  char *columns, *grads, *product, *sum;
};

// What a task sums: a block of the weight over some images.
struct Block {
  int64_t group, groups, row, rows, channel, channels, image, end;
};

template <int Rank>
class WeightGradColumnsJob final : public TaskJob<WeightGradColumnsJob<Rank>> {
 public:
  WeightGradColumnsJob(const WeightGrad<Rank>& problem, const Call& call, MultiplyIntegers integers)
      : problem_(problem),
        multiply_{compute_dtype(problem.image.dtype), call.like.device(), integers},
        dtype_(multiply_.dtype),
        size_(element_size(dtype_)),
        taps_(problem.geometry.tap_numel()),
        positions_(problem.geometry.position_numel()),
        pointwise_(pointwise_of(problem.geometry)) {
    const int64_t batch = problem.batch(), groups = problem.groups(), numel = problem.numel();
    const int64_t rows = problem.rows(), channels = problem.channels();
    const int64_t quarter = limit_of(call.place) / 4, parts = parts_of(call.place);
    split_ = ceil_div(batch, chunk_of(std::min(parts, batch), quarter, numel * size_, 1));
    splits_ = ceil_div(batch, split_);
    const int64_t block_parts = ceil_div(parts, splits_);
    block_rows_ = chunk_of(rows, quarter, taps_ * size_, 1);
    block_channels_ = chunk_of(channels, quarter, block_rows_ * taps_ * size_, ceil_div(block_parts, groups));
    const bool whole_groups = block_rows_ == rows && block_channels_ == channels;
    block_groups_ = whole_groups ? chunk_of(groups, quarter, rows * channels * taps_ * size_, block_parts) : 1;
    block_bytes_ = block_groups_ * block_rows_ * block_channels_ * taps_ * size_;
    const int64_t operand_bytes = block_groups_ * (block_channels_ * taps_ + block_rows_) * size_;
    chunk_ = chunk_of(positions_, quarter, operand_bytes, 1);
    if (chunk_ == positions_)
      chunk_batch_ =
          std::min(chunk_of(batch, quarter, operand_bytes * chunk_, 1), chunk_of(batch, quarter, block_bytes_, 1));
    row_blocks_ = ceil_div(rows, block_rows_), channel_blocks_ = ceil_div(channels, block_channels_);
    blocks_ = row_blocks_ * channel_blocks_ * ceil_div(groups, block_groups_);

    Plan& plan = this->plan_;
    plan.why = kWhy;
    plan.tasks = splits_ * blocks_;
    plan.serial = 2. * batch * numel * positions_ < kSerialFlops;
    this->measure();
  }

  Buffers buffers(Carver& carver) const {
    const int64_t columns = chunk_batch_ * block_groups_ * chunk_;
    return {carver.take<char>(columns * block_channels_ * taps_ * size_),
            carver.take<char>(columns * block_rows_ * size_), carver.take<char>(chunk_batch_ * block_bytes_),
            carver.take<char>(block_bytes_)};
  }

  void share(Carver& carver) { partial_ = carver.take<char>(splits_ > 1 ? splits_ * problem_.numel() * size_ : 0); }

  void fill(const Call&) {}

  void run_task(const Call& call, int64_t task, const Buffers& own) const {
    const Block block = block_at(task);
    bool first = true;
    for (int64_t image = block.image; image < block.end; image += chunk_batch_)
      for (int64_t position = 0; position < positions_; position += chunk_, first = false)
        add_product(call, block, image, {position, std::min(chunk_, positions_ - position)}, first, own);
    store_sum(call, block, task / blocks_, own.sum);
  }

  void finish(const Call& call) override {
    if (splits_ == 1) return;
    const int64_t numel = problem_.numel(), sizes[] = {numel};
    for (int64_t i = 1; i < splits_; ++i) add(call, partial_ + i * numel * size_, numel, partial_, /*first=*/false);
    store<1>(call.place, partial_, dtype_, nullptr, {0, numel}, sizes, {{1, 1, 1}, {0, 0, 0}, {1}},
             problem_.grad_weight, problem_.image.dtype);
  }

 private:
  // Columns of grad_output by it are grad_output itself.
  static Geometry<Rank> pointwise_of(const Geometry<Rank>& geometry) {
    Geometry<Rank> result{};
    for (int axis = 0; axis < Rank; ++axis) {
      result.image[axis] = result.positions[axis] = geometry.positions[axis];
      result.kernel[axis] = result.stride[axis] = result.dilation[axis] = 1;
    }
    return result;
  }

  Block block_at(int64_t task) const {
    const int64_t block = task % blocks_, image = task / blocks_ * split_;
    const int64_t row = block % row_blocks_ * block_rows_;
    const int64_t channel = block / row_blocks_ % channel_blocks_ * block_channels_;
    const int64_t group = block / row_blocks_ / channel_blocks_ * block_groups_;
    return {group,   std::min(block_groups_, problem_.groups() - group),
            row,     std::min(block_rows_, problem_.rows() - row),
            channel, std::min(block_channels_, problem_.channels() - channel),
            image,   std::min(problem_.batch(), image + split_)};
  }

  // Adds `count` numbers to a sum, or with `first` begins it.
  void add(const Call& call, const char* values, int64_t count, char* sum, bool first) const {
    const int64_t sizes[] = {count};
    store<1>(call.place, values, dtype_, nullptr, {0, count}, sizes, {{1, 1, 1}, {0, 0, 0}, {1}}, sum, dtype_, !first);
  }

  // Adds up the products of a chunk:
  // product [rows, channels * taps] = grad_output [rows, range.count] @ columns^T [range.count, channels * taps] of
  // each image and group, or of all images that are side by side.
  void add_product(const Call& call, const Block& block, int64_t image, PositionRange range, bool first,
                   const Buffers& own) const {
    const int64_t images = std::min(chunk_batch_, block.end - image), groups = block.groups;
    const Planes<Rank> columns = problem_.image.at(image, block.group, block.channel);
    const Planes<Rank> grads = problem_.grad_output.at(image, block.group, block.row);
    const Matrices left =
        columns_of<Rank>(call.place, grads.counted(images, groups, block.rows), pointwise_, range, own.grads, dtype_);
    const Matrices right = columns_of<Rank>(call.place, columns.counted(images, groups, block.channels),
                                            problem_.geometry, range, own.columns, dtype_);
    const int64_t products = side_by_side(call.place, images, range.count) ? 1 : images;  // for each group
    multiply_(call.place, products * groups, left, transposed(right), own.product);
    const int64_t numel = groups * block.rows * block.channels * taps_;
    for (int64_t i = 0; i < products; ++i) add(call, own.product + i * numel * size_, numel, own.sum, first && i == 0);
  }

  // Writes the sum of a block to the gradient, or to its part of the sums that are yet to be added.
  void store_sum(const Call& call, const Block& block, int64_t split, const char* sum) const {
    const int64_t row_stride = problem_.channels() * taps_, count = block.channels * taps_, sizes[] = {count};
    Planes<1> to{problem_.grad_weight, problem_.image.dtype, {}};
    if (splits_ > 1) to = {partial_ + split * problem_.numel() * size_, dtype_, {}};
    to.layout = {{1, block.groups, block.rows}, {0, problem_.rows() * row_stride, row_stride}, {1}};
    const int64_t offset = (block.group * problem_.rows() + block.row) * row_stride + block.channel * taps_;
    store<1>(call.place, sum, dtype_, nullptr, {0, count}, sizes, to.layout, to.shifted(offset).data, to.dtype);
  }

  const WeightGrad<Rank> problem_;
  const MatrixMultiplier multiply_;
  const ScalarType dtype_;
  const int64_t size_;  // bytes of a number of that dtype
  const int64_t taps_, positions_;
  const Geometry<Rank> pointwise_;
  int64_t split_, splits_;                              // images of a sum, and sums that are added at the end
  int64_t block_rows_, block_channels_, block_groups_;  // of a task
  int64_t row_blocks_, channel_blocks_, blocks_, block_bytes_;
  int64_t chunk_, chunk_batch_ = 1;  // positions and images of a product
  char* partial_ = nullptr;
};

}  // namespace

const char* plan_weight_grad_columns(const WeightGrad<3>& problem, const Call& call, JobSlot& slot,
                                     MultiplyIntegers integers) {
  switch (problem.rank) {
    case 1: slot.emplace<WeightGradColumnsJob<1>>(trailing_axes<1>(problem), call, integers); break;
    case 2: slot.emplace<WeightGradColumnsJob<2>>(trailing_axes<2>(problem), call, integers); break;
    default: slot.emplace<WeightGradColumnsJob<3>>(problem, call, integers);
  }
  return nullptr;
}

const char* plan_weight_grad_columns(const WeightGrad<3>& problem, const Call& call, JobSlot& slot) {
  return plan_weight_grad_columns(problem, call, slot, nullptr);
}

}  // namespace unfoldconv
