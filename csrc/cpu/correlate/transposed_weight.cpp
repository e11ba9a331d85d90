#include "cpu/correlate/transposed_weight.h"

#include "cpu/correlate/transposed_rows.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kBlockLines = 64;  // of a task

// lines[group][line][channel] = from[group][channel][line], with rows and taps as lines.
template <class Terms, int Rank>
void turn(const Terms& terms, const Planes<Rank>& weight, int64_t lines, int64_t pitch, typename Terms::Element* to) {
  using From = typename Terms::From;
  const int64_t channels = weight.layout.count[2];
  const int64_t bytes = pitch * static_cast<int64_t>(sizeof(*to));
  const int64_t blocks = ceil_div(lines, kBlockLines);
  parallel_over(weight.layout.count[0] * blocks, kBlockLines * bytes, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t group = block / blocks, first = block % blocks * kBlockLines;
      const From* const from = reinterpret_cast<const From*>(weight.at(group, 0).data) + first;
      terms.pack.turn(from, weight.layout.stride[2], std::min(kBlockLines, lines - first), channels,
                      reinterpret_cast<typename Terms::T*>(to + (group * lines + first) * pitch), pitch);
    }
  });
}

}  // namespace

template <int Rank>
std::optional<TurnedWeight<Rank>> turned_weight(const Planes<Rank>& weight, const Geometry<Rank>& geometry,
                                                const Planes<Rank>& image, const Tensor& like) {
  if (image.layout.stride[2] == 1 || weight.layout.stride[2] == 1 ||
      !rows_and_taps_adjoin(weight.layout, geometry.kernel))
    return std::nullopt;
  const bool one_phase = std::all_of(geometry.stride, geometry.stride + Rank, [](int64_t s) { return s == 1; });
  if (one_phase && turned_by_rows(weight.layout, geometry.kernel, Geometry<Rank>::product(geometry.image)))
    return std::nullopt;
  double sums[Rank];
  for (int axis = 0; axis < Rank; ++axis)
    sums[axis] = static_cast<double>(geometry.image[axis]) / geometry.stride[axis];
  const double padding = padding_share(geometry, sums);
  std::optional<TurnedWeight<Rank>> result;
  with_terms(weight.dtype, [&](const auto& terms) {
    using Terms = std::decay_t<decltype(terms)>;
    using Element = typename Terms::Element;
    const auto& layout = weight.layout;
    if (!worth_turning<Terms>(layout.count[2], padding)) return;
    const int64_t lines = layout.count[1] * geometry.tap_numel();
    const int64_t pitch =
        line_pitch(layout.count[2] * static_cast<int64_t>(sizeof(Element))) / static_cast<int64_t>(sizeof(Element));
    Planes<Rank> planes = weight;
    planes.layout.stride[0] = lines * pitch;
    planes.layout.stride[1] *= pitch;
    planes.layout.stride[2] = 1;
    for (int64_t& stride : planes.layout.axis_stride) stride *= pitch;
    if (!taps_are_lines<Terms, Rank>(planes)) return;
    Carver count;
    const auto carve = [&](Carver& carver) { return carver.take<Element>(layout.count[0] * lines * pitch); };
    carve(count);
    const bool reported = LegacyReport::wanted() != nullptr;
    const Tensor memory = allocate_bytes(reported ? 0 : count.bytes(), like);
    if (!reported) {
      Carver carver(static_cast<char*>(memory.data_ptr()));
      Element* const to = carve(carver);
      turn(terms, weight, lines, pitch, to);
      planes.data = reinterpret_cast<char*>(to);
    }
    result = TurnedWeight<Rank>{memory, planes, count.bytes()};
  });
  return result;
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                         \
  template std::optional<TurnedWeight<RANK>> turned_weight<RANK>(const Planes<RANK>&, const Geometry<RANK>&, \
                                                                 const Planes<RANK>&, const Tensor&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
