// Every op of the library: its checks in order, its result, the call of the code that fills it, and in the table at the
// end its schema. The other half of an op is its record in Python, see unfoldconv/_ops.py.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>

#include "binding/checks.h"
#include "binding/memory_format.h"
#include "binding/packed.h"
#include "columns/columns.h"
#include "dispatch/autotune.h"
#include "dispatch/convolution.h"
#include "generated/registration.h"
#include "problem/planes.h"
#include "runtime/allocation.h"
#include "runtime/current_place.h"
#include "runtime/report.h"
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
    check_rank("output_size", input_size, Rank);
    check_dim("columns", columns, 3, "(batch, channels * prod(kernel_size), positions)");
    check_summed(columns);
    const auto geometry = make_geometry<Rank>(input_size.data(), window);
    check_rows(columns, geometry.tap_numel(), window);
    check_column_positions(columns, geometry.position_numel(), input_size, window);
    const int64_t batch = columns.size(0), channels = columns.size(1) / geometry.tap_numel();
    const auto sizes = with_axes<Rank>(batch, channels, geometry.image);
    check_bytes("output", columns, sizes);
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

Tensor conv_op(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, Numbers stride,
               Numbers padding_low, Numbers padding_high, Numbers dilation, int64_t groups) {
  check_dim("weight", weight, stride.size() + 2, "(out_channels, in_channels / groups, *kernel_size)");
  const Window window{axes_of(weight), stride, padding_low, padding_high, dilation};
  return with_rank(window_rank(window), [&](auto rank_constant) {
    constexpr int Rank = decltype(rank_constant)::value;
    check_operands("input", input, "weight", weight, Rank);
    check_groups("out_channels (weight's dimension 0)", weight.size(0), groups);
    check_channels(input, weight, channels_of_groups(weight.size(1), groups), "groups", groups);
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
  check_dim("weight", weight, stride.size() + 2, "(in_channels, out_channels / groups, *kernel_size)");
  const Window window{axes_of(weight), stride, padding_low, padding_high, dilation};
  return with_rank(window_rank(window), [&](auto rank_constant) {
    constexpr int Rank = decltype(rank_constant)::value;
    check_operands("input", grad_output, "weight", weight, Rank);
    check_rank("input_size", input_size, Rank);
    check_groups("in_channels (weight's dimension 0)", weight.size(0), groups);
    check_channels(grad_output, weight, weight.size(0), "transposed", 1);
    const int64_t channels = channels_of_groups(weight.size(1), groups);
    check_bias(bias, grad_output, channels);
    const auto geometry = make_geometry<Rank>(input_size.data(), window);
    check_positions(grad_output, geometry.positions);
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
    check_batch(grad_output, input);
    check_groups("out_channels (grad_output's dimension 1)", grad_output.size(1), groups);
    check_groups("in_channels (input's dimension 1)", input.size(1), groups);
    const auto geometry = make_geometry<Rank>(input.sizes().data() + 2, window);
    check_positions(grad_output, geometry.positions);
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

// --- packed twins ----------------------------------------------------------------------------------------------------
// `window` is stride, padding_low, padding_high and dilation. A gradient is recorded above these ops, not by them.

Tensor conv_packed(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t window,
                   int64_t groups) {
  check_grad_mode(aoti_torch_grad_mode_is_enabled());
  const UnpackedWindow w(window, packed_rank(weight));
  return conv_op(input, weight, bias, w[0], w[1], w[2], w[3], groups);
}

Tensor conv_input_grad_packed(const Tensor& grad_output, const Tensor& weight, const std::optional<Tensor>& bias,
                              int64_t input_size, int64_t window, int64_t groups) {
  check_grad_mode(aoti_torch_grad_mode_is_enabled());
  const int64_t rank = packed_rank(weight);
  const UnpackedWindow w(window, rank);
  return conv_input_grad_op(grad_output, weight, bias, Unpacked<1>(input_size, rank)[0], w[0], w[1], w[2], w[3],
                            groups);
}

Tensor conv_weight_grad_packed(const Tensor& grad_output, const Tensor& input, int64_t kernel_size, int64_t window,
                               int64_t groups) {
  check_grad_mode(aoti_torch_grad_mode_is_enabled());
  const int64_t rank = packed_rank(input);
  const UnpackedWindow w(window, rank);
  return conv_weight_grad_op(grad_output, input, Unpacked<1>(kernel_size, rank)[0], w[0], w[1], w[2], w[3], groups);
}

// Both gradients of a convolution without a bias.
std::tuple<Tensor, Tensor> conv_backward_packed(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                int64_t window, int64_t groups) {
  check_grad_mode(aoti_torch_grad_mode_is_enabled());
  const UnpackedWindow w(window, packed_rank(weight));
  return {conv_input_grad_op(grad_output, weight, std::nullopt, axes_of(input), w[0], w[1], w[2], w[3], groups),
          conv_weight_grad_op(grad_output, input, axes_of(weight), w[0], w[1], w[2], w[3], groups)};
}

// --- settings
// ---------------------------------------------------------------------------------------------------------

void set_workspace_limit_op(int64_t cpu, int64_t cuda) {
  check_workspace_limit(cpu, cuda);
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

// --- what torch is told
// -----------------------------------------------------------------------------------------------

struct Registration {
  const char* schema;
  void (*kernel)(StableIValue*, uint64_t, uint64_t);
};

#define WINDOW "SymInt[] stride, SymInt[] padding_low, SymInt[] padding_high, SymInt[] dilation"

constexpr Registration kOps[] = {
    {"im2col(Tensor input, SymInt[] kernel_size, " WINDOW ") -> Tensor", TORCH_BOX(&im2col_op)},
    {"col2im(Tensor columns, SymInt[] input_size, SymInt[] kernel_size, " WINDOW ") -> Tensor", TORCH_BOX(&col2im_op)},
    {"conv(Tensor input, Tensor weight, Tensor? bias, " WINDOW ", SymInt groups) -> Tensor",
     TORCH_BOX(&WithLists<&conv_op>::call)},
    {"_conv_packed(Tensor input, Tensor weight, Tensor? bias, int window, int groups) -> Tensor",
     TORCH_BOX(&conv_packed)},
    {"_conv_backward_packed(Tensor grad_output, Tensor input, Tensor weight, int window, int groups) -> "
     "(Tensor, Tensor)",
     TORCH_BOX(&conv_backward_packed)},
    {"conv_input_grad(Tensor grad_output, Tensor weight, Tensor? bias, SymInt[] input_size, " WINDOW
     ", SymInt groups) -> Tensor",
     TORCH_BOX(&WithLists<&conv_input_grad_op>::call)},
    {"_conv_input_grad_packed(Tensor grad_output, Tensor weight, Tensor? bias, int input_size, int window, "
     "int groups) -> Tensor",
     TORCH_BOX(&conv_input_grad_packed)},
    {"conv_weight_grad(Tensor grad_output, Tensor input, SymInt[] kernel_size, " WINDOW ", SymInt groups) -> Tensor",
     TORCH_BOX(&WithLists<&conv_weight_grad_op>::call)},
    {"_conv_weight_grad_packed(Tensor grad_output, Tensor input, int kernel_size, int window, int groups) -> Tensor",
     TORCH_BOX(&conv_weight_grad_packed)},
};

#undef WINDOW

constexpr Registration kSettings[] = {
    {"set_workspace_limit(int cpu, int cuda) -> ()", TORCH_BOX(&set_workspace_limit_op)},
    {"get_workspace_limit() -> int[]", TORCH_BOX(&get_workspace_limit_op)},
};

template <class Library>
void implement(Library& library, std::span<const Registration> registrations) {
  for (const auto& [schema, kernel] : registrations) {
    const std::string_view whole = schema;
    library.impl(std::string(whole.substr(0, whole.find('('))).c_str(), kernel);
  }
}

}  // namespace
}  // namespace unfoldconv

STABLE_TORCH_LIBRARY(UNFOLDCONV_NAMESPACE, library) {
  for (const auto& op : unfoldconv::kOps) library.def(op.schema);
  for (const auto& op : unfoldconv::kSettings) library.def(op.schema);
}

STABLE_TORCH_LIBRARY_IMPL(UNFOLDCONV_NAMESPACE, CPU, library) { unfoldconv::implement(library, unfoldconv::kOps); }
#ifdef UNFOLDCONV_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(UNFOLDCONV_NAMESPACE, CUDA, library) { unfoldconv::implement(library, unfoldconv::kOps); }
#endif
STABLE_TORCH_LIBRARY_IMPL(UNFOLDCONV_NAMESPACE, CompositeExplicitAutograd, library) {
  unfoldconv::implement(library, unfoldconv::kSettings);
}
