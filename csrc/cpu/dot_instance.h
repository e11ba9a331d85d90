// The dot products of tile_kernels.h.
namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// Rows of `a` at a time: as many accumulators as registers allow.
constexpr int kDotPositions = kVectorBytes == 64 ? 6 : 3;

// A vector of terms: pairs are moved as 32 bits.
template <class T>
UNFOLDCONV_INLINE Vector<T> load_row(const T* from) {
  return load(from);
}
UNFOLDCONV_INLINE Vector<uint32_t> load_row(const Pair* from) { return load(reinterpret_cast<const uint32_t*>(from)); }

template <class V>
UNFOLDCONV_INLINE V multiply_add_lanes(V a, V b, V sum) {
  return sum + a * b;
}
template <class T>
UNFOLDCONV_INLINE Vector<T> load_first(const T* from, int count) {
  return load_lanes(from, 0, count);
}
#ifdef UNFOLDCONV_BF16_PRODUCTS
UNFOLDCONV_INLINE Vector<float> multiply_add_lanes(Vector<uint32_t> a, Vector<uint32_t> b, Vector<float> sum) {
  return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
UNFOLDCONV_INLINE Vector<uint32_t> load_first(const Pair* from, int count) {
  return (Vector<uint32_t>)_mm512_maskz_loadu_epi32(static_cast<__mmask16>(~(~0u << count)), from);
}
#endif

// The sum of all lanes, halves first.
template <class Sum>
UNFOLDCONV_INLINE Sum add_lanes(Vector<Sum> value) {
  constexpr int lanes = kLanes<Sum>;
  using Index = std::conditional_t<sizeof(Sum) == 4, int32_t, int64_t>;
  typedef Index Mask __attribute__((vector_size(kVectorBytes)));
#pragma GCC unroll 4
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    Mask other;
#pragma GCC unroll 16
    for (int lane = 0; lane < lanes; ++lane) other[lane] = lane ^ distance;
    value += __builtin_shuffle(value, other);
  }
  return value[0];
}

template <class T, int Columns>
void dots(const TileArguments<T>& arguments, int rows) {
  using Sum = typename SumOf<T>::type;
  constexpr int lanes = kLanes<Sum>;
  const int64_t b_step = arguments.b_step;
  for (int first = 0; first < rows; first += kDotPositions) {
    Vector<Sum> sum[kDotPositions][Columns] = {};
    for (const Run<T>*run = arguments.runs, *end = run + arguments.run_count; run != end; ++run) {
      const T* a[kDotPositions];  // beyond the last row, that one again
#pragma GCC unroll 8
      for (int i = 0; i < kDotPositions; ++i) a[i] = run->a[first + i < rows ? first + i : rows - 1];
      const T* const b = arguments.b + run->b;
      const int64_t length = run->length, whole = length / lanes * lanes;
      const auto add = [&](int64_t k, auto load_terms) UNFOLDCONV_INLINE_LAMBDA {
        decltype(load_row(b)) column[Columns];
#pragma GCC unroll 8
        for (int j = 0; j < Columns; ++j) column[j] = load_terms(b + j * b_step + k);
#pragma GCC unroll 8
        for (int i = 0; i < kDotPositions; ++i) {
          const auto row = load_terms(a[i] + k);
#pragma GCC unroll 8
          for (int j = 0; j < Columns; ++j) sum[i][j] = multiply_add_lanes(row, column[j], sum[i][j]);
        }
      };
      for (int64_t k = 0; k < whole; k += lanes)
        add(k, [](const T* from) UNFOLDCONV_INLINE_LAMBDA { return load_row(from); });
      if (whole < length) {
        const int tail = static_cast<int>(length - whole);
        add(whole, [tail](const T* from) UNFOLDCONV_INLINE_LAMBDA { return load_first(from, tail); });
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kDotPositions; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < Columns; ++j) {
        if (first + i >= rows) continue;
        const Sum start = arguments.start == Start::lane_bias ? arguments.bias[j] : Sum{};
        arguments.c[(first + i) * arguments.c_step + j] = start + add_lanes<Sum>(sum[i][j]);
      }
  }
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
