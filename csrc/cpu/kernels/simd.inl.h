// Vectors of one instruction set, in the compiler's own vector types: arithmetic is written with operators, and a * b +
// c becomes a fused multiplication where there is one. No function of the standard library is called from an instance
// (prelude.h).
namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

constexpr int kVectorBytes = UNFOLDCONV_VECTOR_BYTES;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

// In a struct, because an attribute of a template alias is lost.
template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

#define UNFOLDCONV_INLINE inline __attribute__((always_inline))
#define UNFOLDCONV_INLINE_LAMBDA __attribute__((always_inline))

// From and to any address that suits T.
template <class T>
UNFOLDCONV_INLINE Vector<T> load(const T* from) {
  Vector<T> result;
  __builtin_memcpy(&result, from, kVectorBytes);
  return result;
}
template <class T>
UNFOLDCONV_INLINE void store(T* to, Vector<T> value) {
  __builtin_memcpy(to, &value, kVectorBytes);
}
template <class T>
UNFOLDCONV_INLINE Vector<T> broadcast(T value) {
  return value - Vector<T>{};
}

// Lanes [begin, end) of the vector at `from`, 0 in the others, of which nothing is read; `from` need not be valid.
UNFOLDCONV_INLINE Vector<float> load_lanes(const float* from, int begin, int end) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  const auto mask = static_cast<__mmask16>((~0u << begin) & ~(~0u << end));
  return (Vector<float>)_mm512_maskz_loadu_ps(mask, from);
#elif UNFOLDCONV_VECTOR_BYTES == 32
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_and_si256(_mm256_cmpgt_epi32(lane, _mm256_set1_epi32(begin - 1)),
                                        _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane));
  return (Vector<float>)_mm256_maskload_ps(from, mask);
#else
  Vector<float> result{};
  for (int i = begin; i < end; ++i) result[i] = from[i];
  return result;
#endif
}
UNFOLDCONV_INLINE Vector<double> load_lanes(const double* from, int begin, int end) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  const auto mask = static_cast<__mmask8>((~0u << begin) & ~(~0u << end));
  return (Vector<double>)_mm512_maskz_loadu_pd(mask, from);
#elif UNFOLDCONV_VECTOR_BYTES == 32
  const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
  const __m256i mask = _mm256_and_si256(_mm256_cmpgt_epi64(lane, _mm256_set1_epi64x(begin - 1)),
                                        _mm256_cmpgt_epi64(_mm256_set1_epi64x(end), lane));
  return (Vector<double>)_mm256_maskload_pd(from, mask);
#else
  Vector<double> result{};
  for (int i = begin; i < end; ++i) result[i] = from[i];
  return result;
#endif
}

// As many 16-bit elements as a vector has floats, extended by 0 to 32 bits each and back. GCC converts such vectors by
// halves where one instruction would do.
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
UNFOLDCONV_INLINE Vector<uint32_t> extend(Halves bits) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  return (Vector<uint32_t>)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)bits);
#elif UNFOLDCONV_VECTOR_BYTES == 32
  return (Vector<uint32_t>)_mm256_cvtepu16_epi32((__m128i)bits);
#else
  return __builtin_convertvector(bits, Vector<uint32_t>);
#endif
}
UNFOLDCONV_INLINE Halves truncate(Vector<uint32_t> bits) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  return (Halves)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)bits);
#else
  return __builtin_convertvector(bits, Halves);
#endif
}

// Lanes [begin, end) as above, of 16-bit elements in 32 bits each.
UNFOLDCONV_INLINE Vector<uint32_t> load_lanes(const uint16_t* from, int begin, int end) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  const auto mask = static_cast<__mmask16>((~0u << begin) & ~(~0u << end));
  const auto bits = (Halves)_mm256_maskz_loadu_epi16(mask, from);
#else
  Halves bits{};
  if (begin == 0 && end == kLanes<float>)
    __builtin_memcpy(&bits, from, sizeof bits);
  else
    for (int i = begin; i < end; ++i) bits[i] = from[i];
#endif
  return extend(bits);
}

// A vector of the first `count` of 16-bit elements, 0 beyond, of which nothing is read.
UNFOLDCONV_INLINE Vector<uint16_t> load_halves(const uint16_t* from, int count) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  return (Vector<uint16_t>)_mm512_maskz_loadu_epi16(static_cast<__mmask32>(~(~uint64_t{0} << count)), from);
#else
  Vector<uint16_t> result{};
  __builtin_memcpy(&result, from, count * sizeof *from);
  return result;
#endif
}

// Lanes [begin, end) of every second element: lane i is from[2 * i].
UNFOLDCONV_INLINE Vector<float> load_even_lanes(const float* from, int begin, int end) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  // What lies between two elements that are read may be read as well.
  const uint64_t mask = (~uint64_t{0} << (2 * begin)) & ~(~uint64_t{0} << (2 * end - 1));
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return (Vector<float>)_mm512_permutex2var_ps(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from), even,
                                               _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), from + 16));
#else
  Vector<float> result{};
  for (int i = begin; i < end; ++i) result[i] = from[2 * i];
  return result;
#endif
}

UNFOLDCONV_INLINE Vector<uint32_t> load_even_lanes(const uint16_t* from, int begin, int end) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  const uint64_t mask = (~uint64_t{0} << (2 * begin)) & ~(~uint64_t{0} << (2 * end - 1));
  return (Vector<uint32_t>)_mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask), from) & 0xffff;
#else
  Vector<uint32_t> result{};
  for (int i = begin; i < end; ++i) result[i] = from[2 * i];
  return result;
#endif
}

// Lanes [begin, end) of every step-th element, for steps from 1 up to kMostStep: lane i is from[step * i].
#if UNFOLDCONV_VECTOR_BYTES == 64
constexpr int64_t kMostStep = 4;

// Which of the 64 elements at `from` may be read.
UNFOLDCONV_INLINE uint64_t stepped_mask(int64_t step, int begin, int end) {
  return (~uint64_t{0} << (begin * step)) & (~uint64_t{0} >> (63 - (end - 1) * step));
}
UNFOLDCONV_INLINE Vector<float> load_stepped_lanes(const float* from, int64_t step, int begin, int end) {
  const uint64_t mask = stepped_mask(step, begin, end);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(step)));
  const auto part = [&](int i) UNFOLDCONV_INLINE_LAMBDA {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> (16 * i)), from + 16 * i);
  };
  const __m512 low = _mm512_permutex2var_ps(part(0), index, part(1));
  const __m512 high = _mm512_permutex2var_ps(part(2), index, part(3));
  return (Vector<float>)_mm512_mask_blend_ps(_mm512_cmpgt_epi32_mask(index, _mm512_set1_epi32(31)), low, high);
}
UNFOLDCONV_INLINE Vector<uint32_t> load_stepped_lanes(const uint16_t* from, int64_t step, int begin, int end) {
  const uint64_t mask = stepped_mask(step, begin, end);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(step)));
  const __m512i both =
      _mm512_permutex2var_epi16(_mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask), from), index,
                                _mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask >> 32), from + 32));
  return (Vector<uint32_t>)both & 0xffff;
}
#else
constexpr int64_t kMostStep = 0;
#endif

// Writes lanes [0, count) alone.
UNFOLDCONV_INLINE void store_lanes(float* to, Vector<float> value, int count) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>(~(~0u << count)), (__m512)value);
#elif UNFOLDCONV_VECTOR_BYTES == 32
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  _mm256_maskstore_ps(to, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane), (__m256)value);
#else
  for (int i = 0; i < count; ++i) to[i] = value[i];
#endif
}
UNFOLDCONV_INLINE void store_lanes(double* to, Vector<double> value, int count) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>(~(~0u << count)), (__m512d)value);
#elif UNFOLDCONV_VECTOR_BYTES == 32
  const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
  _mm256_maskstore_pd(to, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lane), (__m256d)value);
#else
  for (int i = 0; i < count; ++i) to[i] = value[i];
#endif
}

// The first `count` of a vector of 16-bit elements.
UNFOLDCONV_INLINE void store_halves(uint16_t* to, Vector<uint16_t> value, int count) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  _mm512_mask_storeu_epi16(to, static_cast<__mmask32>(~(~uint64_t{0} << count)), (__m512i)value);
#else
  __builtin_memcpy(to, &value, count * sizeof *to);
#endif
}

// One vector of floats from 16-bit floats, and back, rounded to nearest even.
UNFOLDCONV_INLINE Vector<float> widen(const BFloat16* from) {
  Halves bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return (Vector<float>)(extend(bits) << 16);
}
UNFOLDCONV_INLINE void narrow(Vector<float> value, BFloat16* to) {
#ifdef UNFOLDCONV_BF16_PRODUCTS
  // Like the products, this takes denormals for 0.
  const __m256bh result = _mm512_cvtneps_pbh((__m512)value);
#else
  const auto bits = (Vector<uint32_t>)value;
  const Vector<uint32_t> rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  // A NaN stays one: its payload may be rounded away.
  const auto is_nan = (Vector<uint32_t>)(value != value);
  const Halves result = truncate((rounded & ~is_nan) | (is_nan & 0x7fc0));
#endif
  __builtin_memcpy(to, &result, sizeof result);
}
UNFOLDCONV_INLINE Vector<float> widen(const Half* from) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif UNFOLDCONV_VECTOR_BYTES == 32
  return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  Vector<float> result;
  for (int i = 0; i < kLanes<float>; ++i) result[i] = static_cast<float>(from[i]);
  return result;
#endif
}
UNFOLDCONV_INLINE void narrow(Vector<float> value, Half* to) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  const __m256i result = _mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT);
  __builtin_memcpy(to, &result, sizeof result);
#elif UNFOLDCONV_VECTOR_BYTES == 32
  const __m128i result = _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
  __builtin_memcpy(to, &result, sizeof result);
#else
  for (int i = 0; i < kLanes<float>; ++i) to[i] = static_cast<Half>(value[i]);
#endif
}

// An unsigned integer of so many bytes.
template <int Bytes>
using UnsignedOf =
    std::conditional_t<Bytes == 1, uint8_t,
                       std::conditional_t<Bytes == 2, uint16_t, std::conditional_t<Bytes == 4, uint32_t, uint64_t>>>;

// Count elements of T and as many indices, for shuffles of two vectors: index i is element i of both in a row.
template <class T, int Count>
struct Shuffle {
  typedef T Values __attribute__((vector_size(Count * sizeof(T))));
  typedef UnsignedOf<sizeof(T)> Indices __attribute__((vector_size(Count * sizeof(T))));

  static UNFOLDCONV_INLINE Values load(const T* from) {
    Values result;
    __builtin_memcpy(&result, from, sizeof result);
    return result;
  }
  static UNFOLDCONV_INLINE void store(T* to, const Values& values) { __builtin_memcpy(to, &values, sizeof values); }
  static UNFOLDCONV_INLINE Values shuffled(const Values& a, const Values& b, const Indices& indices) {
#ifdef __clang__
    Values result;
    for (int i = 0; i < Count; ++i) result[i] = indices[i] < Count ? a[indices[i]] : b[indices[i] - Count];
    return result;
#else
    return __builtin_shuffle(a, b, indices);
#endif
  }
  // Alternately an element of a and one of b, from `first` on.
  static UNFOLDCONV_INLINE Values zipped(const Values& a, const Values& b, int first) {
    Indices indices{};
    for (int i = 0; i < Count; ++i) indices[i] = first + i / 2 + i % 2 * Count;
    return shuffled(a, b, indices);
  }
  // Every second element of a and then of b, from `first` on.
  static UNFOLDCONV_INLINE Values unzipped(const Values& a, const Values& b, int first) {
    Indices indices{};
    for (int i = 0; i < Count; ++i) indices[i] = first + 2 * i;
    return shuffled(a, b, indices);
  }
};

// to = even[0], odd[0], even[1], odd[1], ... of Count elements each, and back.
template <int Count, class T>
UNFOLDCONV_INLINE void zip(const T* even, const T* odd, T* to) {
  using S = Shuffle<T, Count>;
  if constexpr (Count == 1) {
    const T first = *even, second = *odd;
    to[0] = first, to[1] = second;
  } else {
    const auto a = S::load(even), b = S::load(odd);
    S::store(to, S::zipped(a, b, 0));
    S::store(to + Count, S::zipped(a, b, Count / 2));
  }
}
template <int Count, class T>
UNFOLDCONV_INLINE void unzip(const T* from, T* even, T* odd) {
  using S = Shuffle<T, Count>;
  if constexpr (Count == 1) {
    *even = from[0], *odd = from[1];
  } else {
    const auto a = S::load(from), b = S::load(from + Count);
    S::store(even, S::unzipped(a, b, 0));
    S::store(odd, S::unzipped(a, b, 1));
  }
}

// to[i * to_step + j] = from[j * from_step + i] for i, j < Side, a power of 2.
template <int Side, class T>
UNFOLDCONV_INLINE void transpose_square(const T* from, int64_t from_step, T* to, int64_t to_step) {
  using S = Shuffle<T, Side>;
  typename S::Values rows[Side], zipped[Side];
  for (int i = 0; i < Side; ++i) rows[i] = S::load(from + i * from_step);
#pragma GCC unroll 8
  for (int zips = 1; zips < Side; zips *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < Side / 2; ++i) {
      zipped[2 * i] = S::zipped(rows[i], rows[i + Side / 2], 0);
      zipped[2 * i + 1] = S::zipped(rows[i], rows[i + Side / 2], Side / 2);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Side; ++i) rows[i] = zipped[i];
  }
  for (int i = 0; i < Side; ++i) S::store(to + i * to_step, rows[i]);
}

// One step of a transpose or of a sum over lanes: swaps, between row i and row i + Distance, the lanes whose index has
// the bit of Distance.
template <int Distance, class V, int Lanes>
UNFOLDCONV_INLINE void exchange(V& low, V& high) {
  using Index = std::conditional_t<sizeof(low[0]) == 4, int32_t, int64_t>;
  typedef Index Mask __attribute__((vector_size(sizeof(V))));
  Mask first, second;
#pragma GCC unroll 16
  for (int lane = 0; lane < Lanes; ++lane) {
    first[lane] = lane & Distance ? Lanes + lane - Distance : lane;
    second[lane] = lane & Distance ? Lanes + lane : lane + Distance;
  }
  const V a = __builtin_shuffle(low, high, first);
  const V b = __builtin_shuffle(low, high, second);
  low = a;
  high = b;
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
