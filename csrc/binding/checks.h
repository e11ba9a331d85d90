// The checks of a call: the only place where an op of this folder refuses one. Every message says the rule, then "but
// got" and the value. For tensors without data unfoldconv/_checks.py refuses the same, in the same order and words.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "problem/geometry.h"
#include "problem/scalar.h"

namespace unfoldconv {

using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;
using Numbers = std::span<const int64_t>;  // Sizes that somebody else keeps

// Parts of a message; they refer to what they show, so that nothing is asked for or put into words where all is well.
struct Shown {
  Numbers sizes;  // as (a, b)
};
struct ShownShape {
  const Tensor& tensor;
};
struct ShownDtype {
  const Tensor& tensor;
};
struct ShownDevice {
  const Tensor& tensor;
};
inline Shown shown(Numbers sizes) { return {sizes}; }
inline ShownShape shown(const Tensor& tensor) { return {tensor}; }
inline ShownDtype name_of(const Tensor& tensor) { return {tensor}; }

inline std::ostream& operator<<(std::ostream& stream, const Shown& shown) {
  stream << "(";
  for (size_t i = 0; i < shown.sizes.size(); ++i) stream << (i ? ", " : "") << shown.sizes[i];
  return stream << (shown.sizes.size() == 1 ? ",)" : ")");
}
inline std::ostream& operator<<(std::ostream& stream, const ShownShape& shown) {
  const auto sizes = shown.tensor.sizes();
  return stream << Shown{{sizes.data(), sizes.size()}};
}
inline std::ostream& operator<<(std::ostream& stream, const ShownDtype& shown) {
  return stream << torch::headeronly::toString(shown.tensor.scalar_type());
}
inline std::ostream& operator<<(std::ostream& stream, const ShownDevice& shown) {
  return stream << (shown.tensor.is_cuda() ? "cuda" : "cpu");
}

template <class... Parts>
void check(bool rule_holds, const Parts&... parts) {
  if (!rule_holds) [[unlikely]] {
    std::ostringstream message;
    (message << ... << parts);
    refuse(message.str());
  }
}

// The sizes behind the batch and the channels, or behind the two kinds of channels of a weight.
inline Numbers axes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return sizes.size() < 2 ? Numbers{} : Numbers(sizes.data() + 2, sizes.size() - 2);
}

// The product of sizes, times the bytes of an element, must fit 63 bits. A size of zero counts as one, so that the
// product of some of the sizes fits as well.
inline void check_bytes(const char* what, const Tensor& like, Numbers sizes) {
  int64_t bytes = element_size(like.scalar_type());
  bool overflow = false;
  for (const int64_t size : sizes) overflow |= __builtin_mul_overflow(bytes, std::max<int64_t>(1, size), &bytes);
  check(!overflow, what, " must take fewer than 2^63 bytes, but got size ", shown(sizes));
}

// The arguments of a sliding window, as every op takes them: one number per spatial axis.
struct Window {
  Numbers kernel_size;
  Numbers stride;
  Numbers padding_low;
  Numbers padding_high;
  Numbers dilation;
};

inline void check_rank(const char* name, Numbers numbers, size_t rank) {
  check(numbers.size() == rank, name, " must have one number per spatial axis (", rank, "), but got ", shown(numbers));
}

inline int window_rank(const Window& window) {
  const size_t rank = window.kernel_size.size();
  check(rank >= 1 && rank <= 3, "kernel_size must have 1, 2 or 3 axes, but got ", rank);
  check_rank("stride", window.stride, rank);
  check_rank("padding_low", window.padding_low, rank);
  check_rank("padding_high", window.padding_high, rank);
  check_rank("dilation", window.dilation, rank);
  return static_cast<int>(rank);
}

// The geometry of a window over an image of the given spatial sizes.
template <int Rank>
Geometry<Rank> make_geometry(const int64_t* image, const Window& window) {
  Geometry<Rank> geometry;
  for (int axis = 0; axis < Rank; ++axis) {
    const int64_t size = image[axis], kernel = window.kernel_size[axis], stride = window.stride[axis],
                  low = window.padding_low[axis], high = window.padding_high[axis], dilation = window.dilation[axis];
    check(size >= 0, "size must be non-negative, but got ", size, " along axis ", axis);
    check(kernel > 0, "kernel_size must be positive (greater than zero), but got ", shown(window.kernel_size));
    check(stride > 0, "stride must be positive (greater than zero; non-positive stride is not supported), but got ",
          shown(window.stride));
    check(dilation > 0, "dilation must be positive (greater than zero), but got ", shown(window.dilation));
    // A negative high padding leaves the end of the image unread; transposed convolution needs it for output_padding.
    check(low >= 0, "padding must be non-negative (negative padding is not supported), but got ",
          shown(window.padding_low));
    int64_t span, padded;
    check(!__builtin_mul_overflow(kernel - 1, dilation, &span) && !__builtin_add_overflow(span, 1, &span),
          "the kernel's span must fit 63 bits, but got kernel_size=", kernel, " with dilation=", dilation);
    check(!__builtin_add_overflow(size, low, &padded) && !__builtin_add_overflow(padded, high, &padded),
          "the padded size must fit 63 bits, but got ", size, " + ", low, " + ", high);
    check(span <= padded, "kernel must fit into the padded input (the output would be empty), but got span ", span,
          " (kernel_size=", kernel, ", dilation=", dilation, ") for ", size, " + ", low, " + ", high, " = ", padded,
          " elements along axis ", axis, ". Kernel size can't be greater than actual input size");
    check(padded <= INT64_MAX - stride, "stride must leave positions that fit 63 bits, but got ", stride);
    geometry.image[axis] = size;
    geometry.positions[axis] = (padded - span) / stride + 1;
    geometry.kernel[axis] = kernel;
    // With one position or one tap, what lies between two may be any number: no larger one than others have.
    geometry.stride[axis] = geometry.positions[axis] > 1 ? stride : std::min(stride, std::max(span, size + low));
    geometry.dilation[axis] = kernel > 1 ? dilation : 1;
    geometry.padding_low[axis] = low;
  }
  int64_t taps = 1, positions = 1;
  for (int axis = 0; axis < Rank; ++axis)
    check(!__builtin_mul_overflow(taps, geometry.kernel[axis], &taps) &&
              !__builtin_mul_overflow(positions, geometry.positions[axis], &positions),
          "taps and positions must fit 63 bits, but got kernel_size ", shown(window.kernel_size));
  return geometry;
}

// What refuses a dtype begins with "dtype must be": Python raises its own exception type for it.
inline void check_plain_dtype(const Tensor& tensor) {
  check(element_size(tensor.scalar_type()) > 0, "dtype must be a plain number type, but got ", name_of(tensor));
}

inline void check_dim(const char* name, const Tensor& tensor, int64_t dim, const char* shape) {
  check(tensor.dim() == dim, name, " must have ", dim, " dimensions ", shape, ", but got shape ", shown(tensor));
}

// torch's own words for the mistakes that its users know.
inline void check_same_kind(const char* first_name, const Tensor& first, const char* second_name,
                            const Tensor& second) {
  check(first.device() == second.device(), first_name, " and ", second_name,
        " must be on the same device (expected all tensors to be on the same device), but got ", ShownDevice{first},
        " and ", ShownDevice{second});
  check(first.scalar_type() == second.scalar_type(), first_name, " type (", name_of(first), ") and ", second_name,
        " type (", name_of(second), ") should be the same, but got two dtypes");
}

inline bool can_convolve(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
    case ScalarType::BFloat16:
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::ComplexFloat:
    case ScalarType::ComplexDouble: return true;
    default: return is_integer(dtype);
  }
}

inline void check_summed(const Tensor& columns) {
  const ScalarType dtype = columns.scalar_type();
  const bool can_be_added = can_convolve(dtype) || dtype == ScalarType::Bool || dtype == ScalarType::UInt16 ||
                            dtype == ScalarType::UInt32 || dtype == ScalarType::UInt64;
  check(can_be_added, "dtype must be one that can be added, but got ", name_of(columns));
}

// Columns have a row for each channel and tap, and a column for each position.
inline void check_rows(const Tensor& columns, int64_t taps, const Window& window) {
  check(columns.size(1) % taps == 0,
        "columns must have a number of rows divisible by the product of kernel_size (expected size of input's "
        "dimension 1 to be divisible by the product of kernel_size), but got ",
        columns.size(1), " rows and kernel_size ", shown(window.kernel_size));
}

inline void check_column_positions(const Tensor& columns, int64_t positions, Numbers size, const Window& window) {
  check(columns.size(2) == positions, "columns must have ", positions, " positions for output_size ", shown(size),
        ", kernel_size ", shown(window.kernel_size), ", dilation ", shown(window.dilation), ", padding ",
        shown(window.padding_low), " and ", shown(window.padding_high), ", stride ", shown(window.stride),
        " (expected size of input's dimension 2 to match the calculated number of sliding blocks ", positions,
        "), but got ", columns.size(2));
}

// What the three convolutions demand of their operands, the first an input or a gradient of the output.
inline void check_operands(const char* name, const Tensor& first, const char* second_name, const Tensor& second,
                           int rank) {
  check_dim(name, first, rank + 2, "(batch, channels, *size)");
  check_dim(second_name, second, rank + 2,
            rank == 1   ? "of a 1-D convolution"
            : rank == 2 ? "of a 2-D convolution"
                        : "of a 3-D convolution");
  check(can_convolve(first.scalar_type()),
        "dtype must be a floating, complex or integer one of up to 64 bits for a convolution, but got ",
        name_of(first));
  check_same_kind("Input", first, second_name, second);
}

// Groups must divide both channel counts; `name` and `axis` say where the number of channels was read.
inline void check_groups(const char* name, int64_t channels, int64_t groups) {
  check(groups > 0, "groups must be positive (non-positive groups is not supported), but got ", groups);
  check(channels % groups == 0, name, " must be divisible by groups (", groups, "), but got ", channels);
}

// The channels of all groups, for those of one.
inline int64_t channels_of_groups(int64_t channels, int64_t groups) {
  int64_t product;
  check(!__builtin_mul_overflow(channels, groups, &product), "channels must fit 63 bits, but got ", channels, " * ",
        groups);
  return product;
}

// The input must have as many channels as the weight says; `given` and its value are what they were computed from.
inline void check_channels(const Tensor& input, const Tensor& weight, int64_t channels, const char* given,
                           int64_t value) {
  check(input.size(1) == channels, "input must have ", channels, " channels (given ", given, "=", value,
        ", weight of size ", shown(weight), ", expected input", shown(input), " to have ", channels,
        " channels), but got ", input.size(1), " channels instead");
}

inline void check_bias(const std::optional<Tensor>& bias, const Tensor& input, int64_t channels) {
  if (!bias) return;
  check(bias->dim() == 1 && bias->size(0) == channels, "bias must be 1-dimensional with ", channels,
        " elements (expected bias to be 1-dimensional with ", channels, " elements), but got shape ", shown(*bias));
  check_same_kind("Input", input, "bias", *bias);
}

inline void check_batch(const Tensor& grad_output, const Tensor& input) {
  check(grad_output.size(0) == input.size(0), "grad_output must have the input's batch size ", input.size(0),
        ", but got ", grad_output.size(0));
}

inline void check_positions(const Tensor& grad_output, Numbers positions) {
  check(std::equal(positions.begin(), positions.end(), grad_output.sizes().data() + 2),
        "grad_output must have the size of the convolution's output, ", shown(positions), ", but got ",
        shown(grad_output));
}

// The rank that numbers were packed for.
inline int64_t packed_rank(const Tensor& operand) {
  const int64_t rank = operand.dim() - 2;
  check(rank >= 1 && rank <= 3, "operands must have 1, 2 or 3 spatial axes, but got shape ", shown(operand));
  return rank;
}

// A packed op records no gradient, and so must not run where one might be wanted.
inline void check_grad_mode(bool enabled) {
  check(!enabled, "a packed convolution must be called without grad mode, but got grad mode");
}

inline void check_workspace_limit(int64_t cpu, int64_t cuda) {
  check(cpu > 0 && cuda > 0, "workspace limit must be positive, but got ", cpu, " and ", cuda);
}

}  // namespace unfoldconv
