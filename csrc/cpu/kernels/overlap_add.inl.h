// Overlapping windows, added up (tile_kernels.h).
namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

template <class T>
void fold(const FoldArguments<T>& arguments) {
  constexpr int lanes = kLanes<T>;
  const auto [sources, source_count, pitch, start, to, chunk, count] = arguments;
  for (int64_t p = 0; p < count; ++p)
    for (int64_t e = 0; e < chunk; e += lanes) {
      Vector<T> sum = load(start + e);
      for (const FoldSource<T>*source = sources, *end = sources + source_count; source != end; ++source) {
        const int64_t left = source->width - e;
        if (left > 0) sum += load_lanes(source->from + p * pitch + e, 0, static_cast<int>(left < lanes ? left : lanes));
      }
      store(to + p * chunk + e, sum);
    }
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
