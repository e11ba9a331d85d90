#include "convolutions.h"

#include <pybind11/stl.h>
#include <torch/csrc/stable/ops.h>

#include "binding/checks.h"
#include "cuda/integers/integer_products.h"
#include "dispatch/convolution.h"
#include "dispatch/engine_tables.h"
#include "runtime/workspace.h"

namespace unfoldconv {

// The emulator has those of CUDA alone.
const Engines& cpu_engines() {
  static constexpr Engines none{};
  return none;
}

namespace {

using Address = uintptr_t;

// Address, sizes, strides, dtype.
using View = std::tuple<Address, Sizes, Sizes, ScalarType>;

Tensor tensor_of(const View& view) {
  const auto& [address, sizes, strides, dtype] = view;
  return torch::stable::from_blob(reinterpret_cast<void*>(address), sizes, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype);
}

// stride, padding_low, padding_high, dilation.
using Lists = std::tuple<Sizes, Sizes, Sizes, Sizes>;

// Calls f(geometry) with that of an image of the given sizes.
template <class F>
void with_geometry(const Sizes& image, const Sizes& kernel, const Lists& lists, F&& f) {
  const auto& [stride, low, high, dilation] = lists;
  const Window window{kernel, stride, low, high, dilation};
  switch (window_rank(window)) {
    case 1: return f.template operator()<1>(make_geometry<1>(image.data(), window));
    case 2: return f.template operator()<2>(make_geometry<2>(image.data(), window));
    default: return f.template operator()<3>(make_geometry<3>(image.data(), window));
  }
}

Sizes behind_channels(const View& view) {
  const Sizes& sizes = std::get<1>(view);
  return {sizes.begin() + 2, sizes.end()};
}

Bias bias_of(const std::optional<View>& bias) { return bias ? Bias(tensor_of(*bias)) : std::nullopt; }

const Place kCuda{true, nullptr};

void run_conv(const View& input, const View& weight, const std::optional<View>& bias, const Lists& lists,
              int64_t groups, const View& output) {
  Tensor result = tensor_of(output);
  with_geometry(behind_channels(input), behind_channels(weight), lists, [&]<int Rank>(const Geometry<Rank>& geometry) {
    conv<Rank>(kCuda, tensor_of(input), tensor_of(weight), bias_of(bias), geometry, groups, result);
  });
}

void run_conv_input_grad(const View& grad_output, const View& weight, const std::optional<View>& bias,
                         const Lists& lists, int64_t groups, const View& grad_input) {
  Tensor result = tensor_of(grad_input);
  with_geometry(behind_channels(grad_input), behind_channels(weight), lists,
                [&]<int Rank>(const Geometry<Rank>& geometry) {
                  conv_input_grad<Rank>(kCuda, tensor_of(grad_output), tensor_of(weight), bias_of(bias), geometry,
                                        groups, result);
                });
}

void run_conv_weight_grad(const View& grad_output, const View& input, const Lists& lists, int64_t groups,
                          const View& grad_weight) {
  Tensor result = tensor_of(grad_weight);
  with_geometry(behind_channels(input), behind_channels(grad_weight), lists,
                [&]<int Rank>(const Geometry<Rank>& geometry) {
                  conv_weight_grad<Rank>(kCuda, tensor_of(grad_output), tensor_of(input), geometry, groups, result);
                });
}

// Views of left [batch, rows, depth], right [batch, depth, cols] and the contiguous product [batch, rows, cols].
void run_multiply_integers(const View& left, const View& right, const View& product) {
  const auto matrices = [](const View& view) {
    const auto& [address, sizes, strides, dtype] = view;
    return Matrices{reinterpret_cast<void*>(address), sizes[1], sizes[2], strides[0], strides[1], strides[2]};
  };
  cuda::multiply_integers(nullptr, std::get<1>(product)[0], matrices(left), matrices(right),
                          reinterpret_cast<void*>(std::get<0>(product)), element_size(std::get<3>(product)));
}

}  // namespace

void define_convolutions(pybind11::module_& module) {
  module.def("conv", run_conv);
  module.def("conv_input_grad", run_conv_input_grad);
  module.def("conv_weight_grad", run_conv_weight_grad);
  module.def("multiply_integers", run_multiply_integers);
  module.def("set_workspace_limit", [](int64_t bytes) { workspace_limit().cuda = bytes; });
}

}  // namespace unfoldconv
