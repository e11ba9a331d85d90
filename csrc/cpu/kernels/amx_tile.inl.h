// The micro-kernel of tile_kernels.h in the tile registers of AMX.
//
// A register has 16 rows of 64 bytes: the sums of 16 rows and 16 lanes, or 16 terms of 16 rows of a, or of 16 lanes of
// b. One instruction multiplies 16 terms; it sums them from 0 and adds that to the sums, so blocks are 16 terms long,
// counted from the beginning of a run. At most four registers hold sums: two rows of registers by two, or one by four.
//
// All registers have their whole size at all times. Where fewer terms or rows are left, and where rows of a are not
// evenly spaced, they are loaded from a copy, with 0 for what is not there in a and in b.
namespace unfoldconv::cpu::amx {
namespace {

constexpr int kSide = 16;  // rows, lanes or terms of a register
constexpr int64_t kRowBytes = kSide * sizeof(Pair);
constexpr int kSumTiles = 4, kAllTiles = 8;

// function(constant i) for i < Count, unrolled; a constant's value is decltype(i)::value.
template <class F, int... I>
UNFOLDCONV_INLINE void each_of(std::integer_sequence<int, I...>, const F& function) {
  (function(std::integral_constant<int, I>()), ...);
}
template <int Count, class F>
UNFOLDCONV_INLINE void each(const F& function) {
  each_of(std::make_integer_sequence<int, Count>(), function);
}

// The 16 rows of a register in memory, a distance in bytes apart.
struct Rows {
  const Pair* first;
  int64_t stride;
};

// 16 rows of a, or nothing where they do not follow each other at one distance.
UNFOLDCONV_INLINE Rows evenly_spaced(const Pair* const* rows) {
  const auto addresses = [&](int first) UNFOLDCONV_INLINE_LAMBDA {
    Vector<int64_t> result;
    __builtin_memcpy(&result, rows + first, sizeof result);
    return result;
  };
  const Vector<int64_t> low = addresses(1) - addresses(0), high = addresses(8) - addresses(7);
  const Vector<int64_t> stride = Vector<int64_t>{} + low[0];
  const bool even = _mm512_cmpneq_epi64_mask((__m512i)low, (__m512i)stride) == 0 &&
                    _mm512_cmpneq_epi64_mask((__m512i)high, (__m512i)stride) == 0;
  return {even ? rows[0] : nullptr, low[0]};
}

// The first `count` of 16 Pairs, and 0 for the rest.
UNFOLDCONV_INLINE void copy_pairs(const Pair* from, int64_t count, Pair* to) {
  const auto bits = load_lanes(reinterpret_cast<const float*>(from), 0, static_cast<int>(count));
  __builtin_memcpy(to, &bits, sizeof bits);
}

// Terms [first, first + terms) of `count` rows of a. Out of line, as below, so that the loops that need no copies keep
// their registers.
__attribute__((noinline)) Rows copy_rows(const Pair* const* rows, int count, int64_t first, int64_t terms, Pair* copy) {
  for (int i = 0; i < kSide; ++i)
    copy_pairs(i < count ? rows[i] + first : nullptr, i < count ? terms : 0, copy + i * kSide);
  return {copy, kRowBytes};
}

// `terms` rows of b, of some vectors.
__attribute__((noinline)) Rows copy_terms(const Pair* b, int64_t b_step, int64_t terms, int vectors, Pair* copy) {
  const int64_t width = vectors * kSide;
  for (int k = 0; k < kSide; ++k)
    for (int64_t lane = 0; lane < width; lane += kSide)
      copy_pairs(k < terms ? b + k * b_step + lane : nullptr, k < terms ? kSide : 0, copy + k * width + lane);
  return {copy, width * static_cast<int64_t>(sizeof(Pair))};
}

// sums += a * b for 16 terms.
template <int RowTiles, int Vectors>
UNFOLDCONV_INLINE void multiply_terms(const Rows (&a)[RowTiles], const Rows& b) {
  static_assert(RowTiles * Vectors <= kSumTiles);
  constexpr int a_tile = kSumTiles, b_tile = a_tile + RowTiles, b_tiles = kAllTiles - b_tile;
  each<RowTiles>([&](auto i) UNFOLDCONV_INLINE_LAMBDA {
    constexpr int row = decltype(i)::value;
    tile_load<a_tile + row>(a[row].first, a[row].stride);
  });
  each<Vectors>([&](auto j) UNFOLDCONV_INLINE_LAMBDA {
    constexpr int column = decltype(j)::value, tile = b_tile + column % b_tiles;
    tile_load<tile>(b.first + column * kSide, b.stride);
    each<RowTiles>([&](auto i) UNFOLDCONV_INLINE_LAMBDA {
      constexpr int row = decltype(i)::value;
      tile_dot_bf16<row * Vectors + column, a_tile + row, tile>();
    });
  });
}

// c = start + sums for `rows` rows of one register of sums, beginning at row `row` and vector `vector` of the tile.
template <int Tile>
UNFOLDCONV_INLINE void finish(const TileArguments<Pair>& arguments, int row, int rows, int vector) {
  float* c = arguments.c + row * arguments.c_step + vector * kSide;
  if (arguments.start == Start::zero && rows == kSide) {
    tile_store<Tile>(c, arguments.c_step * sizeof(float));
    return;
  }
  alignas(64) float sums[kSide * kSide];
  tile_store<Tile>(sums, kSide * sizeof(float));
  for (int i = 0; i < rows; ++i, c += arguments.c_step) {
    Vector<float> start{};
    switch (arguments.start) {
      case Start::zero: break;
      case Start::sum: start = load(c); break;
      case Start::row_bias: start = broadcast(arguments.bias[row + i]); break;
      case Start::lane_bias: start = load(arguments.bias + vector * kSide); break;
    }
    store(c, start + load(sums + i * kSide));
  }
}

// The vectors [vector, vector + Vectors) of a tile.
template <int RowTiles, int Vectors>
UNFOLDCONV_INLINE void multiply_strip(const TileArguments<Pair>& arguments, int rows, int vector) {
  alignas(64) Pair a_copy[RowTiles][kSide * kSide], b_copy[Vectors * kSide * kSide];
  const auto rows_of = [&](int tile) { return rows - tile * kSide < kSide ? rows - tile * kSide : kSide; };
  const int64_t b_step = arguments.b_step;
  each<RowTiles * Vectors>([&](auto i) UNFOLDCONV_INLINE_LAMBDA { tile_zero<decltype(i)::value>(); });
  for (const Run<Pair>*run = arguments.runs, *end = run + arguments.run_count; run != end; ++run) {
    const int64_t length = run->length;
    const Pair* const* const run_rows = run->a + arguments.first_row;
    Rows b = {arguments.b + run->b * arguments.b_unit + vector * kSide, b_step * static_cast<int64_t>(sizeof(Pair))};
    Rows even[RowTiles], a[RowTiles];
    bool all_even = true;
    for (int i = 0; i < RowTiles; ++i) {
      even[i] = rows_of(i) == kSide ? evenly_spaced(run_rows + i * kSide) : Rows{};
      all_even &= even[i].first != nullptr;
    }
    int64_t k = 0;
    if (all_even) {
      for (int i = 0; i < RowTiles; ++i) a[i] = {even[i].first + arguments.a_offset, even[i].stride};
      for (; k + kSide <= length; k += kSide, b.first += kSide * b_step) {
        multiply_terms<RowTiles, Vectors>(a, b);
        for (int i = 0; i < RowTiles; ++i) a[i].first += kSide;
      }
    }
    for (; k < length; k += kSide, b.first += kSide * b_step) {
      const int64_t first = arguments.a_offset + k, terms = length - k < kSide ? length - k : kSide;
      for (int i = 0; i < RowTiles; ++i)
        a[i] = even[i].first && terms == kSide ? Rows{even[i].first + first, even[i].stride}
                                               : copy_rows(run_rows + i * kSide, rows_of(i), first, terms, a_copy[i]);
      multiply_terms<RowTiles, Vectors>(a, terms == kSide ? b : copy_terms(b.first, b_step, terms, Vectors, b_copy));
    }
  }
  each<RowTiles * Vectors>([&](auto i) UNFOLDCONV_INLINE_LAMBDA {
    constexpr int tile = decltype(i)::value, row = tile / Vectors;
    finish<tile>(arguments, row * kSide, rows_of(row), vector + tile % Vectors);
  });
}

template <int RowTiles, int Vectors>
void tile(const TileArguments<Pair>& arguments, int rows) {
  constexpr int strip = kSumTiles / RowTiles, whole = Vectors / strip * strip;
  for (int vector = 0; vector < whole; vector += strip) multiply_strip<RowTiles, strip>(arguments, rows, vector);
  if constexpr (whole < Vectors) multiply_strip<RowTiles, Vectors - whole>(arguments, rows, whole);
}

// As the processor reads it.
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

void enter() {
  TileShapes shapes;
  for (int i = 0; i < kAllTiles; ++i) {
    shapes.rows[i] = kSide;
    shapes.row_bytes[i] = kRowBytes;
  }
  tile_config(&shapes);
}
void leave() { tile_release(); }

constexpr Tiles<Pair> tiles() {
  constexpr int most_rows = kMostTileRows<Pair>;
  Tiles<Pair> result{kSide, kTileVectors, most_rows, kSide, enter, leave, {}, {}};
  const Tile<Pair> low[] = {tile<1, 1>, tile<1, 2>, tile<1, 3>, tile<1, 4>};
  const Tile<Pair> high[] = {tile<2, 1>, tile<2, 2>, tile<2, 3>, tile<2, 4>};
  for (int vectors = 0; vectors < kTileVectors; ++vectors)
    for (int rows = 0; rows < most_rows; ++rows)
      result.tile[vectors][rows] = rows < kSide ? low[vectors] : high[vectors];
  return result;
}

}  // namespace
}  // namespace unfoldconv::cpu::amx
