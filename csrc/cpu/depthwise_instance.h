namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

DepthwiseKernels depthwise_kernels() { return {}; }

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
