// What the drivers of the depthwise engine share: operands, blocks of channels, and tasks.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "../convolution.h"
#include "../planes.h"
#include "../workspace.h"
#include "depthwise_boxes.h"
#include "kernels.h"
#include "parallel.h"
#include "tasks.h"

namespace unfoldconv::cpu {

constexpr const char* kDepthwiseReason = "one channel per group: neighbouring channels fill the vectors";

constexpr int64_t kCacheBytes = 512 * 1024;      // of a thread, that a task's buffers may fill
constexpr int64_t kSerialProducts = 250 * 1000;  // below this a second thread costs more than it brings

inline ScalarType sum_dtype(ScalarType dtype) { return is_16bit_float(dtype) ? ScalarType::Float : dtype; }

inline int64_t room() { return std::min<int64_t>(kCacheBytes, workspace_limit().cpu); }

inline Tensor allocate(int64_t bytes, const Tensor& like) {
  return torch::stable::new_empty(like, {std::max<int64_t>(bytes, 1)}, ScalarType::Byte);
}

// A tensor [batch, channels, *sizes] for the three axes of the kernels.
struct Operand {
  char* data;
  ScalarType dtype;
  int64_t batch_stride, channel_stride, axis_stride[3];

  template <int Rank>
  explicit Operand(const Planes<Rank>& planes) : data(planes.data), dtype(planes.dtype) {
    const PlaneLayout<3> layout = with_leading_axes<3>(planes.layout);
    batch_stride = layout.stride[0], channel_stride = layout.stride[1];
    std::copy_n(layout.axis_stride, 3, axis_stride);
  }
  char* at(int64_t image, int64_t channel, const Span (&box)[3]) const {
    int64_t offset = image * batch_stride + channel * channel_stride;
    for (int axis = 0; axis < 3; ++axis) offset += box[axis].begin * axis_stride[axis];
    return data + offset * element_size(dtype);
  }
  bool channels_innermost() const { return channel_stride == 1; }
};

// What all tasks of a problem share: its channels in blocks of one vector each.
struct Blocks {
  const DepthwiseKernels& kernels;
  ScalarType dtype, type;  // of the operands, of the sums
  int64_t channels, lanes, count, vector_bytes;

  Blocks(int64_t channels, ScalarType dtype)
      : kernels(cpu::kernels().depthwise),
        dtype(dtype),
        type(sum_dtype(dtype)),
        channels(channels),
        lanes(kernels.vector_bytes / element_size(type)),
        count(ceil_div(channels, lanes)),
        vector_bytes(kernels.vector_bytes) {}

  int64_t channels_of(int64_t first, int64_t number) const {
    return std::min(number * lanes, channels - first * lanes);
  }

  // The copy of a box of an operand's blocks from or to buffers of `shape` [planes, rows, columns] each.
  DepthwiseCopy copy(const Operand& operand, int64_t first, int64_t number, const Span (&box)[3],
                     const int64_t (&shape)[3]) const {
    const int64_t row = shape[2] * lanes, plane = shape[1] * row;
    DepthwiseCopy copy{{}, {}, operand.channel_stride, channels_of(first, number), shape[0] * plane, plane, row};
    for (int axis = 0; axis < 3; ++axis)
      copy.count[axis] = box[axis].size(), copy.stride[axis] = operand.axis_stride[axis];
    return copy;
  }
  // The copy of a block between rows [channels, count] side by side and vectors [count, lanes].
  DepthwiseCopy rows(int64_t block, int64_t count) const {
    return {{1, 1, count}, {0, 0, 1}, count, channels_of(block, 1), 0, 0, 0};
  }
};

// rows [channels, count], packed as [blocks, count, lanes] in the type of the sums.
inline Tensor pack(const Blocks& blocks, const Tensor& rows, int64_t count) {
  const int64_t bytes = count * blocks.vector_bytes;
  Tensor packed = allocate(blocks.count * bytes, rows);
  char* to = static_cast<char*>(packed.data_ptr());
  const char* from = static_cast<const char*>(rows.data_ptr());
  parallel_over(blocks.count, 2 * bytes, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      blocks.kernels.gather(blocks.rows(block, count), blocks.dtype,
                            from + block * blocks.lanes * count * element_size(blocks.dtype), to + block * bytes);
  });
  return packed;
}

// f(begin, end) over tasks, each of `products` products, in parallel if that pays.
template <class F>
void run_tasks(int64_t tasks, double products, const F& f) {
  if (tasks <= 0) return;
  if (tasks == 1 || tasks * products < kSerialProducts) return f(int64_t{0}, tasks);
  const auto grain = static_cast<int64_t>(kSerialProducts / 8 / std::max(1., products));
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, grain), f);
}

// grad_weight = the sum of `splits` parts [blocks, taps, lanes], in their order.
inline void finish_sums(const Blocks& blocks, char* sums, int64_t splits, int64_t taps, Tensor& grad_weight) {
  const int64_t bytes = blocks.vector_bytes, part = blocks.count * taps * bytes;
  char* const result = static_cast<char*>(grad_weight.data_ptr());
  parallel_over(blocks.count, splits * taps * bytes, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      char* const sum = sums + block * taps * bytes;
      for (int64_t i = 1; i < splits; ++i) blocks.kernels.add(blocks.type, taps, sum + i * part, sum);
      blocks.kernels.scatter(blocks.rows(block, taps), blocks.dtype, sum,
                             result + block * blocks.lanes * taps * element_size(blocks.dtype));
    }
  });
}

}  // namespace unfoldconv::cpu
