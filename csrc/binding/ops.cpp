// Every op of the library: its schema, its checks in order, its result, and the call of the code that fills it.
#include "binding/ops.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <optional>

#include "binding/checks.h"
#include "columns/columns.h"
#include "dispatch/autotune.h"
#include "dispatch/convolution.h"
#include "generated/registration.h"
#include "problem/planes.h"
#include "runtime/allocation.h"
#include "runtime/engine.h"
#include "runtime/place.h"
#include "runtime/workspace.h"

namespace unfoldconv {
namespace {

using torch::stable::accelerator::DeviceGuard;

// Calls f(std::integral_constant<int, rank>{}).
template <class F>
auto with_rank(int rank, F&& f) {
  if (rank == 1) return f(std::integral_constant<int, 1>{});
  if (rank == 2) return f(std::integral_constant<int, 2>{});
  return f(std::integral_constant<int, 3>{});
}

std::optional<DeviceGuard> guard(const Tensor& tensor) {
  if (!tensor.is_cuda()) return std::nullopt;
  return std::optional<DeviceGuard>(std::in_place, tensor.get_device_index());
}

// Whether torch would call the strides channels_last (`suggest_memory_format`): channels innermost, the batch
// outermost, and not contiguous as well.
bool is_channels_last(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const int64_t dim = static_cast<int64_t>(sizes.size());
  if (dim < 4 || strides[1] == 0) return false;
  int64_t least = 0;
  const auto fits = [&](int64_t d) {
    if (sizes[d] == 0 || strides[d] < least || (d == 0 && least == strides[1])) return false;
    least = strides[d] * std::max<int64_t>(1, sizes[d]);
    return true;
  };
  if (!fits(1)) return false;
  for (int64_t d = dim - 1; d >= 2; --d)
    if (!fits(d)) return false;
  return fits(0);
}

// A convolution's result has the memory format that torch's own op returns: channels_last if one of the operands is,
// except where torch has no such path (3-D in float64 and the integers; float64 on CUDA).
Tensor empty_result(Numbers sizes, const Tensor& first, const Tensor& second) {
  const ScalarType dtype = first.scalar_type();
  bool channels_last = is_channels_last(first) || is_channels_last(second);
  const bool has_3d = is_16bit_float(dtype) || dtype == ScalarType::Float || dtype == ScalarType::ComplexFloat ||
                      dtype == ScalarType::ComplexDouble;
  if (sizes.size() == 5 && !has_3d) channels_last = false;
  if (first.is_cuda() && dtype == ScalarType::Double) channels_last = false;
  return empty_tensor(first, channels_last ? channels_last_extents(sizes) : contiguous_extents(sizes), dtype);
}

template <int Rank>
std::array<int64_t, Rank + 2> with_axes(int64_t batch, int64_t channels, const int64_t (&axes)[Rank]) {
  std::array<int64_t, Rank + 2> sizes{batch, channels};
  std::copy_n(axes, Rank, sizes.begin() + 2);
  return sizes;
}

// Tells a report, if one is wanted, of an op that moves every element of both tensors once; then it is not to run.
bool report_patches(const char* name, double flops, const Tensor& from, const Tensor& to) {
  Report* const report = Report::wanted();
  if (report == nullptr) return false;
  const double elements = static_cast<double>(from.numel()) + static_cast<double>(to.numel());
  report->op(name, flops, elements * element_size(from.scalar_type()));
  return true;
}

Tensor im2col_op(const Tensor& input, const Sizes& kernel_size, const Sizes& stride, const Sizes& padding_low,
                 const Sizes& padding_high, const Sizes& dilation) {
  const Window window{kernel_size, stride, padding_low, padding_high, dilation};
  return with_rank(window_rank(window), [&](auto rank_constant) {
    constexpr int Rank = decltype(rank_constant)::value;
    check_dim("input", input, Rank + 2, "(batch, channels, *size)");
    check_plain_dtype(input);
    const auto geometry = make_geometry<Rank>(input.sizes().data() + 2, window);
    const int64_t batch = input.size(0), channels = input.size(1);
    const int64_t taps = geometry.tap_numel(), positions = geometry.position_numel();
    check_bytes("columns", input, std::array{batch, channels, taps, positions});
    const auto device = guard(input);
    Tensor columns =
        empty_tensor(input, contiguous_extents(std::array{batch, channels * taps, positions}), input.scalar_type());
    const Planes<Rank> planes = planes_of<Rank>(input, 1);
    if (!report_patches("im2col", 0, input, columns) && columns.numel() > 0)
      im2col<Rank>(place_of(input), planes.data, planes.dtype, planes.layout, geometry, {0, positions},
                   columns.data_ptr(), planes.dtype);
    return columns;
  });
}

Tensor col2im_op(const Tensor& columns, const Sizes& input_size, const Sizes& kernel_size, const Sizes& stride,
                 const Sizes& padding_low, const Sizes& padding_high, const Sizes& dilation) {
  const Window window{kernel_size, stride, padding_low, padding_high, dilation};
  return with_rank(window_rank(window), [&](auto rank_constant) {
    constexpr int Rank = decltype(rank_constant)::value;
    check(input_size.size() == Rank, "output_size must have one number per spatial axis (", Rank, "), but got ",
          shown(input_size));
    check_dim("columns", columns, 3, "(batch, channels * prod(kernel_size), positions)");
    check_plain_dtype(columns);
    const auto geometry = make_geometry<Rank>(input_size.data(), window);
    const int64_t batch = columns.size(0), taps = geometry.tap_numel();
    check(columns.size(1) % taps == 0,
          "columns must have a number of rows divisible by the product of kernel_size (expected size of input's "
          "dimension 1 to be divisible by the product of kernel_size), but got ",
          columns.size(1), " rows and kernel_size ", shown(kernel_size));
    check(columns.size(2) == geometry.position_numel(), "columns must have ", geometry.position_numel(),
          " positions for output_size ", shown(input_size), ", kernel_size ", shown(kernel_size), ", dilation ",
          shown(dilation), ", padding ", shown(padding_low), " and ", shown(padding_high), ", stride ", shown(stride),
          " (expected size of input's dimension 2 to match the calculated number of sliding blocks ",
          geometry.position_numel(), "), but got ", columns.size(2));
    const int64_t channels = columns.size(1) / taps;
    const auto sizes = with_axes<Rank>(batch, channels, geometry.image);
    check_bytes("output", columns, sizes);
    dispatch_sum(columns.scalar_type(), [](auto) {});
    const auto device = guard(columns);
    Tensor image = empty_tensor(columns, contiguous_extents(sizes), columns.scalar_type());
    const int64_t strides[] = {columns.stride(0), columns.stride(1), columns.stride(2)};
    const double additions = columns.numel();
    if (!report_patches("col2im", additions, columns, image) && image.numel() > 0)
      col2im<Rank>(place_of(columns), columns.data_ptr(), columns.scalar_type(), batch, channels, strides, geometry,
                   image.data_ptr());
    return image;
  });
}

// What the three convolutions demand of a pair of operands, the first an input or a gradient of the output.
void check_operands(const char* name, const Tensor& first, const char* second_name, const Tensor& second, int rank) {
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

// Calls compute(), which fills the result of a convolution, by the engine that suits it. `numbers` tells the op and
// what else of the call is neither in the operands nor in the window.
template <class F>
void run_op(std::initializer_list<const Tensor*> operands, std::vector<int64_t> numbers, const Window& window,
            F&& compute) {
  if (!tuning()) return compute();
  for (const Numbers part : {window.stride, window.padding_low, window.padding_high, window.dilation})
    numbers.insert(numbers.end(), part.begin(), part.end());
  run_tuned(place_of(**operands.begin()), {operands, std::move(numbers)}, compute);
}

}  // namespace

Tensor conv_op(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, Numbers stride,
               Numbers padding_low, Numbers padding_high, Numbers dilation, int64_t groups) {
  check(weight.dim() == static_cast<int64_t>(stride.size()) + 2, "weight must have ", stride.size() + 2,
        " dimensions (out_channels, in_channels / groups, *kernel_size), but got shape ", shown(weight));
  const Window window{axes_of(weight), stride, padding_low, padding_high, dilation};
  return with_rank(window_rank(window), [&](auto rank_constant) {
    constexpr int Rank = decltype(rank_constant)::value;
    check_operands("input", input, "weight", weight, Rank);
    check_groups("out_channels (weight's dimension 0)", weight.size(0), groups);
    const int64_t channels = weight.size(1) * groups;
    check(input.size(1) == channels, "input must have ", channels, " channels (given groups=", groups,
          ", weight of size ", shown(weight), ", expected input", shown(input), " to have ", channels,
          " channels), but got ", input.size(1), " channels instead");
    check_bias(bias, input, weight.size(0));
    const auto geometry = make_geometry<Rank>(input.sizes().data() + 2, window);
    const auto sizes = with_axes<Rank>(input.size(0), weight.size(0), geometry.positions);
    check_bytes("output", input, sizes);
    const auto device = guard(input);
    Tensor output = empty_result(sizes, input, weight);
    run_op({&input, &weight}, {0, groups, bias.has_value()}, window, [&, bias = contiguous(bias)] {
      conv<Rank>(place_of(input), input, weight, bias, geometry, groups, output);
    });
    return output;
  });
}

Tensor conv_input_grad_op(const Tensor& grad_output, const Tensor& weight, const std::optional<Tensor>& bias,
                          Numbers input_size, Numbers stride, Numbers padding_low, Numbers padding_high,
                          Numbers dilation, int64_t groups) {
  check(weight.dim() == static_cast<int64_t>(stride.size()) + 2, "weight must have ", stride.size() + 2,
        " dimensions (in_channels, out_channels / groups, *kernel_size), but got shape ", shown(weight));
  const Window window{axes_of(weight), stride, padding_low, padding_high, dilation};
  return with_rank(window_rank(window), [&](auto rank_constant) {
    constexpr int Rank = decltype(rank_constant)::value;
    check_operands("input", grad_output, "weight", weight, Rank);
    check(input_size.size() == Rank, "input_size must have one number per spatial axis (", Rank, "), but got ",
          shown(input_size));
    check_groups("in_channels (weight's dimension 0)", weight.size(0), groups);
    check(grad_output.size(1) == weight.size(0), "input must have ", weight.size(0),
          " channels (given transposed=1, weight of size ", shown(weight), ", expected input", shown(grad_output),
          " to have ", weight.size(0), " channels), but got ", grad_output.size(1), " channels instead");
    int64_t channels;
    check(!__builtin_mul_overflow(weight.size(1), groups, &channels), "channels must fit 63 bits, but got ",
          weight.size(1), " * ", groups);
    check_bias(bias, grad_output, channels);
    const auto geometry = make_geometry<Rank>(input_size.data(), window);
    check(std::equal(geometry.positions, geometry.positions + Rank, grad_output.sizes().data() + 2),
          "grad_output must have the size of the convolution's output, ", shown(geometry.positions), ", but got ",
          shown(grad_output));
    const auto sizes = with_axes<Rank>(grad_output.size(0), channels, geometry.image);
    check_bytes("output", grad_output, sizes);
    const auto device = guard(grad_output);
    Tensor grad_input = empty_result(sizes, grad_output, weight);
    if (grad_input.numel() > 0)
      run_op({&grad_output, &weight, &grad_input}, {1, groups, bias.has_value()}, window, [&, bias = contiguous(bias)] {
        conv_input_grad<Rank>(place_of(grad_output), grad_output, weight, bias, geometry, groups, grad_input);
      });
    return grad_input;
  });
}

Tensor conv_weight_grad_op(const Tensor& grad_output, const Tensor& input, Numbers kernel_size, Numbers stride,
                           Numbers padding_low, Numbers padding_high, Numbers dilation, int64_t groups) {
  const Window window{kernel_size, stride, padding_low, padding_high, dilation};
  return with_rank(window_rank(window), [&](auto rank_constant) {
    constexpr int Rank = decltype(rank_constant)::value;
    check_operands("grad_output", grad_output, "input", input, Rank);
    check(grad_output.size(0) == input.size(0), "grad_output must have the input's batch size ", input.size(0),
          ", but got ", grad_output.size(0));
    check_groups("out_channels (grad_output's dimension 1)", grad_output.size(1), groups);
    check_groups("in_channels (input's dimension 1)", input.size(1), groups);
    const auto geometry = make_geometry<Rank>(input.sizes().data() + 2, window);
    check(std::equal(geometry.positions, geometry.positions + Rank, grad_output.sizes().data() + 2),
          "grad_output must have the size of the convolution's output, ", shown(geometry.positions), ", but got ",
          shown(grad_output));
    const auto sizes = with_axes<Rank>(grad_output.size(1), input.size(1) / groups, geometry.kernel);
    check_bytes("grad_weight", input, sizes);
    const auto device = guard(input);
    if (input.size(0) == 0) return torch::stable::new_zeros(input, sizes);
    // Contiguous always: every engine sums the taps of a channel side by side, and whether the weight is channels_last
    // the op is not told. Torch gives what it leaves in `.grad` the weight's own strides.
    Tensor grad_weight = empty_tensor(input, contiguous_extents(sizes), input.scalar_type());
    if (grad_weight.numel() > 0)
      run_op({&grad_output, &input, &grad_weight}, {2, groups}, window,
             [&] { conv_weight_grad<Rank>(place_of(input), grad_output, input, geometry, groups, grad_weight); });
    return grad_weight;
  });
}

namespace {

void set_workspace_limit_op(int64_t cpu, int64_t cuda) {
  check(cpu > 0 && cuda > 0, "workspace limit must be positive, but got ", cpu, " and ", cuda);
  workspace_limit().cpu = cpu;
  workspace_limit().cuda = cuda;
}

Sizes get_workspace_limit_op() { return {workspace_limit().cpu, workspace_limit().cuda}; }

// WithLists<&op>::call is the op as the dispatcher calls it, which has lists for Numbers.
template <class T>
struct AsList {
  using type = T;
};
template <>
struct AsList<Numbers> {
  using type = const Sizes&;
};
template <auto op>
struct WithLists;
template <class... Arguments, Tensor (*op)(Arguments...)>
struct WithLists<op> {
  static Tensor call(typename AsList<Arguments>::type... arguments) { return op(arguments...); }
};

}  // namespace
}  // namespace unfoldconv

#define UNFOLDCONV_WINDOW "SymInt[] stride, SymInt[] padding_low, SymInt[] padding_high, SymInt[] dilation"

STABLE_TORCH_LIBRARY(UNFOLDCONV_NAMESPACE, library) {
  library.def("im2col(Tensor input, SymInt[] kernel_size, " UNFOLDCONV_WINDOW ") -> Tensor");
  library.def("col2im(Tensor columns, SymInt[] input_size, SymInt[] kernel_size, " UNFOLDCONV_WINDOW ") -> Tensor");
  library.def("conv(Tensor input, Tensor weight, Tensor? bias, " UNFOLDCONV_WINDOW ", SymInt groups) -> Tensor");
  library.def("conv_input_grad(Tensor grad_output, Tensor weight, Tensor? bias, SymInt[] input_size, " UNFOLDCONV_WINDOW
              ", SymInt groups) -> Tensor");
  library.def("conv_weight_grad(Tensor grad_output, Tensor input, SymInt[] kernel_size, " UNFOLDCONV_WINDOW
              ", SymInt groups) -> Tensor");
  library.def("set_workspace_limit(int cpu, int cuda) -> ()");
  library.def("get_workspace_limit() -> int[]");
}

#define UNFOLDCONV_IMPLEMENT(KEY)                                                                                \
  STABLE_TORCH_LIBRARY_IMPL(UNFOLDCONV_NAMESPACE, KEY, library) {                                                \
    library.impl("im2col", TORCH_BOX(&unfoldconv::im2col_op));                                                   \
    library.impl("col2im", TORCH_BOX(&unfoldconv::col2im_op));                                                   \
    library.impl("conv", TORCH_BOX(&unfoldconv::WithLists<&unfoldconv::conv_op>::call));                         \
    library.impl("conv_input_grad", TORCH_BOX(&unfoldconv::WithLists<&unfoldconv::conv_input_grad_op>::call));   \
    library.impl("conv_weight_grad", TORCH_BOX(&unfoldconv::WithLists<&unfoldconv::conv_weight_grad_op>::call)); \
  }

UNFOLDCONV_IMPLEMENT(CPU)
#ifdef UNFOLDCONV_WITH_CUDA
UNFOLDCONV_IMPLEMENT(CUDA)
#endif

STABLE_TORCH_LIBRARY_IMPL(UNFOLDCONV_NAMESPACE, CompositeExplicitAutograd, library) {
  library.impl("set_workspace_limit", TORCH_BOX(&unfoldconv::set_workspace_limit_op));
  library.impl("get_workspace_limit", TORCH_BOX(&unfoldconv::get_workspace_limit_op));
}
