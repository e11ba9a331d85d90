// The depthwise engine's work: tensors, their channels in blocks of one vector each, and boxes of results as tasks.
#pragma once

#include <cstring>

#include "cpu/depthwise/depthwise_boxes.h"
#include "cpu/kernels/kernels.h"
#include "problem/planes.h"
#include "runtime/allocation.h"
#include "runtime/parallel.h"
#include "runtime/tasks.h"
#include "runtime/workspace.h"

namespace unfoldconv::cpu::depthwise {

constexpr int64_t kCacheBytes = 512 * 1024;           // of a thread, that a task's buffers may fill
constexpr int64_t kPieceBytes = 256;                  // of a tensor, that are read or written side by side
constexpr double kSerialProducts = kSerialFlops / 2;  // below this a second thread costs more than it brings

inline int64_t room() { return std::min<int64_t>(kCacheBytes, workspace_limit().cpu); }

// A tensor [batch, channels, *sizes] for the three axes of the kernels.
struct Operand {
  char* data;
  ScalarType dtype;
  int64_t batch_stride, channel_stride, axis_stride[3];

  explicit Operand(const Planes<3>& planes)
      : data(planes.data),
        dtype(planes.dtype),
        batch_stride(planes.layout.stride[0]),
        channel_stride(planes.layout.stride[2]) {
    std::copy_n(planes.layout.axis_stride, 3, axis_stride);
  }
  char* at(int64_t image, int64_t channel, const Span (&box)[3]) const {
    int64_t offset = image * batch_stride + channel * channel_stride;
    for (int axis = 0; axis < 3; ++axis) offset += box[axis].begin * axis_stride[axis];
    return data + offset * element_size(dtype);
  }
  bool channels_innermost() const { return channel_stride == 1; }
};

// Which of the kernels are for groups of so many channels: kGroupSizes or more if none are.
inline int kernels_for(int64_t group_size) {
  int index = 0;
  while (index < kGroupSizes && int64_t{1} << index != group_size) ++index;
  return index;
}

// What all tasks of a problem share: its channels in blocks of one vector each.
struct Blocks {
  const DepthwiseKernels& kernels;
  ScalarType dtype, type;  // of the operands, of the sums
  int64_t channels, group_size, lanes, count, vector_bytes;

  Blocks(int64_t channels, int64_t group_size, ScalarType dtype)
      : kernels(cpu::kernels().depthwise),
        dtype(dtype),
        type(compute_dtype(dtype)),
        channels(channels),
        group_size(group_size),
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

// A weight of groups, packed as [blocks, taps, group_size, lanes] in the type of the sums: a lane has the row of its
// channel.
template <class E>
void pack_group_block(const Blocks& blocks, const PlaneLayout<3>& weight, const int64_t (&kernel)[3], const E* from,
                      int64_t block, Accumulator<E>* to) {
  const auto& [count, stride, axis_stride] = weight;
  for (int64_t z = 0; z < kernel[0]; ++z)
    for (int64_t y = 0; y < kernel[1]; ++y)
      for (int64_t x = 0; x < kernel[2]; ++x) {
        const E* const tap = from + z * axis_stride[0] + y * axis_stride[1] + x * axis_stride[2];
        for (int64_t channel = 0; channel < blocks.group_size; ++channel, to += blocks.lanes)
          for (int64_t lane = 0; lane < blocks.lanes; ++lane) {
            const int64_t row = block * blocks.lanes + lane;
            to[lane] =
                row >= blocks.channels
                    ? Accumulator<E>{}
                    : static_cast<Accumulator<E>>(tap[row / blocks.group_size * stride[0] +
                                                      row % blocks.group_size * stride[1] + channel * stride[2]]);
          }
      }
}

inline void pack_groups(const Blocks& blocks, const Planes<3>& weight, const int64_t (&kernel)[3], char* to) {
  const int64_t bytes = kernel[0] * kernel[1] * kernel[2] * blocks.group_size * blocks.vector_bytes;
  const auto as = [&](auto type) {
    using E = typename decltype(type)::type;
    parallel_over(blocks.count, bytes, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        pack_group_block(blocks, weight.layout, kernel, reinterpret_cast<const E*>(weight.data), block,
                         reinterpret_cast<Accumulator<E>*>(to + block * bytes));
    });
  };
  switch (blocks.dtype) {
    case ScalarType::Float: as(Type<float>{}); break;
    case ScalarType::Double: as(Type<double>{}); break;
    case ScalarType::BFloat16: as(Type<BFloat16>{}); break;
    default: as(Type<Half>{});
  }
}

// rows [channels, count], packed as [blocks, count, lanes] in the type of the sums.
inline void pack(const Blocks& blocks, const char* rows, int64_t count, char* to) {
  const int64_t bytes = count * blocks.vector_bytes;
  parallel_over(blocks.count, 2 * bytes, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      blocks.kernels.gather(blocks.rows(block, count), blocks.dtype,
                            rows + block * blocks.lanes * count * element_size(blocks.dtype), to + block * bytes);
  });
}

// grad_weight = the sum of `splits` parts [blocks, taps, lanes], in their order.
inline void finish_sums(const Blocks& blocks, char* sums, int64_t splits, int64_t terms, char* grad_weight) {
  const int64_t bytes = blocks.vector_bytes, part = blocks.count * terms * bytes;
  parallel_over(blocks.count, splits * terms * bytes, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      char* const sum = sums + block * terms * bytes;
      for (int64_t i = 1; i < splits; ++i) blocks.kernels.add(blocks.type, terms, sum + i * part, sum);
      blocks.kernels.scatter(blocks.rows(block, terms), blocks.dtype, sum,
                             grad_weight + block * blocks.lanes * terms * element_size(blocks.dtype));
    }
  });
}

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

}  // namespace unfoldconv::cpu::depthwise
