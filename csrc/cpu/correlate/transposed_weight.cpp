#include "cpu/correlate/transposed_weight.h"

#include "cpu/correlate/transposed_rows.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kBlockLines = 64;  // of a task

// lines[group][line][channel] = from[group][channel][line], with rows and taps as lines.
template <class Terms>
void transpose_lines(const Terms& terms, const Planes<3>& weight, int64_t lines, int64_t pitch,
                     typename Terms::Element* to) {
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

std::optional<TransposedWeight> plan_transposed_weight(const InputGrad<3>& problem) {
  const PlaneLayout<3>& layout = problem.weight.layout;
  const Geometry<3>& geometry = problem.geometry;
  if (problem.grad_output.layout.stride[2] == 1 || layout.stride[2] == 1 ||
      !rows_and_taps_are_dense(layout, geometry.kernel))
    return std::nullopt;
  const bool one_phase = std::all_of(geometry.stride, geometry.stride + 3, [](int64_t s) { return s == 1; });
  if (one_phase && transposed_by_rows(layout, geometry.kernel, geometry.image_numel())) return std::nullopt;
  double sums[3];
  for (int axis = 0; axis < 3; ++axis) sums[axis] = static_cast<double>(geometry.image[axis]) / geometry.stride[axis];
  const double padding = padding_share(geometry, sums);
  std::optional<TransposedWeight> result;
  with_terms(problem.weight.dtype, [&](const auto& terms) {
    using Terms = std::decay_t<decltype(terms)>;
    if (!worth_transposing<Terms>(layout.count[2], padding)) return;
    constexpr int64_t size = sizeof(typename Terms::Element);
    const int64_t lines = layout.count[1] * geometry.tap_numel(), pitch = line_pitch(layout.count[2] * size) / size;
    Planes<3> planes = problem.weight;
    planes.layout.stride[0] = lines * pitch;
    planes.layout.stride[1] *= pitch;
    planes.layout.stride[2] = 1;
    for (int64_t& stride : planes.layout.axis_stride) stride *= pitch;
    if (taps_are_lines<Terms, 3>(planes))
      result = {planes, round_up(layout.count[0] * lines * pitch * size, kAlignment)};
  });
  return result;
}

Planes<3> transpose_weight(const InputGrad<3>& problem, const TransposedWeight& plan, char* memory) {
  Planes<3> planes = plan.planes;
  with_terms(planes.dtype, [&](const auto& terms) {
    using Element = typename std::decay_t<decltype(terms)>::Element;
    planes.data = Carver(memory).take<char>(plan.bytes);
    const int64_t lines = problem.weight.layout.count[1] * problem.geometry.tap_numel();
    transpose_lines(terms, problem.weight, lines, planes.layout.stride[0] / lines,
                    reinterpret_cast<Element*>(planes.data));
  });
  return planes;
}

}  // namespace unfoldconv::cpu
