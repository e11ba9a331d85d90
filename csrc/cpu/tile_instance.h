namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

TileKernels tile_kernels() { return {}; }

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
