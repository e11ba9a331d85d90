// The convolutions with their numbers per axis packed into one integer: of a small call from Python, most of the time
// goes into the conversion of lists. Private: unfoldconv/_below.py says when they stand in for the public ops.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "binding/ops.h"
#include "generated/registration.h"

namespace unfoldconv {
namespace {

constexpr int kPackedBits = 60;  // shared evenly by the numbers, the first the lowest; unfoldconv/_below.py packs them

// `Count` times one number per axis.
template <int Count>
class Unpacked {
 public:
  Unpacked(int64_t packed, int64_t rank) : rank_(rank) {
    const int64_t bits = kPackedBits / (Count * rank), mask = (int64_t{1} << bits) - 1;
    for (int64_t i = 0; i < Count * rank; ++i, packed >>= bits) numbers_[i] = packed & mask;
  }
  Numbers operator[](int64_t index) const { return {numbers_ + index * rank_, static_cast<size_t>(rank_)}; }

 private:
  int64_t rank_, numbers_[Count * 3];
};

int64_t rank_of(const Tensor& tensor) {
  const int64_t rank = tensor.dim() - 2;
  check(rank >= 1 && rank <= 3, "operands must have 1, 2 or 3 spatial axes, but got shape ", shown(tensor));
  return rank;
}

// These ops record no gradient, and so refuse to run where one might be wanted.
void check_grad_mode() {
  check(!aoti_torch_grad_mode_is_enabled(), "a packed convolution must be called without grad mode");
}

// window is (stride, padding_low, padding_high, dilation).
Tensor conv_packed(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t window,
                   int64_t groups) {
  check_grad_mode();
  const Unpacked<4> w(window, rank_of(weight));
  return conv_op(input, weight, bias, w[0], w[1], w[2], w[3], groups);
}

Tensor conv_input_grad_packed(const Tensor& grad_output, const Tensor& weight, const std::optional<Tensor>& bias,
                              int64_t input_size, int64_t window, int64_t groups) {
  check_grad_mode();
  const int64_t rank = rank_of(weight);
  const Unpacked<4> w(window, rank);
  return conv_input_grad_op(grad_output, weight, bias, Unpacked<1>(input_size, rank)[0], w[0], w[1], w[2], w[3],
                            groups);
}

Tensor conv_weight_grad_packed(const Tensor& grad_output, const Tensor& input, int64_t kernel_size, int64_t window,
                               int64_t groups) {
  check_grad_mode();
  const int64_t rank = rank_of(input);
  const Unpacked<4> w(window, rank);
  return conv_weight_grad_op(grad_output, input, Unpacked<1>(kernel_size, rank)[0], w[0], w[1], w[2], w[3], groups);
}

// Both gradients of a convolution without a bias.
std::tuple<Tensor, Tensor> conv_backward_packed(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                int64_t window, int64_t groups) {
  check_grad_mode();
  const Unpacked<4> w(window, rank_of(weight));
  return {conv_input_grad_op(grad_output, weight, std::nullopt, axes_of(input), w[0], w[1], w[2], w[3], groups),
          conv_weight_grad_op(grad_output, input, axes_of(weight), w[0], w[1], w[2], w[3], groups)};
}

}  // namespace
}  // namespace unfoldconv

STABLE_TORCH_LIBRARY_FRAGMENT(UNFOLDCONV_NAMESPACE, library) {
  library.def("_conv_packed(Tensor input, Tensor weight, Tensor? bias, int window, int groups) -> Tensor");
  library.def(
      "_conv_input_grad_packed(Tensor grad_output, Tensor weight, Tensor? bias, int input_size, int window, "
      "int groups) -> Tensor");
  library.def(
      "_conv_weight_grad_packed(Tensor grad_output, Tensor input, int kernel_size, int window, int groups) -> Tensor");
  library.def(
      "_conv_backward_packed(Tensor grad_output, Tensor input, Tensor weight, int window, int groups) -> "
      "(Tensor, Tensor)");
}

#define UNFOLDCONV_IMPLEMENT(KEY)                                                              \
  STABLE_TORCH_LIBRARY_IMPL(UNFOLDCONV_NAMESPACE, KEY, library) {                              \
    library.impl("_conv_packed", TORCH_BOX(&unfoldconv::conv_packed));                         \
    library.impl("_conv_input_grad_packed", TORCH_BOX(&unfoldconv::conv_input_grad_packed));   \
    library.impl("_conv_weight_grad_packed", TORCH_BOX(&unfoldconv::conv_weight_grad_packed)); \
    library.impl("_conv_backward_packed", TORCH_BOX(&unfoldconv::conv_backward_packed));       \
  }

UNFOLDCONV_IMPLEMENT(CPU)
#ifdef UNFOLDCONV_WITH_CUDA
UNFOLDCONV_IMPLEMENT(CUDA)
#endif
