// A model of csrc/cpu/isa/amx/amx_intrinsics.h in plain C++, included in its place.
//
// What the processor answers with a fault ends the process, and so does a use of the registers that this library
// promises not to make: a configuration that another has not been released before. Registers hold NaN until they are
// written, where those of the processor hold 0.
namespace unfoldconv::cpu::amx {
namespace {

constexpr int kModelRows = 16, kModelBytes = 64, kModelTiles = 8;

struct TileRegister {
  int rows, row_bytes;
  alignas(64) uint8_t bytes[kModelRows][kModelBytes];
};
struct TileRegisters {
  bool configured;
  TileRegister tile[kModelTiles];
};
thread_local TileRegisters model;

inline void require(bool condition) {
  if (!condition) __builtin_trap();
}

inline TileRegister& tile_register(int tile) {
  require(model.configured && tile >= 0 && tile < kModelTiles && model.tile[tile].rows > 0);
  return model.tile[tile];
}

inline void tile_config(const void* shapes) {
  const auto* const bytes = static_cast<const uint8_t*>(shapes);
  require(!model.configured && bytes[0] == 1);  // the palette of eight registers
  for (int reserved = 1; reserved < 16; ++reserved) require(bytes[reserved] == 0);
  for (int tile = 0; tile < 16; ++tile) {
    const int rows = bytes[48 + tile], row_bytes = bytes[16 + 2 * tile] + 256 * bytes[17 + 2 * tile];
    require(tile < kModelTiles ? rows <= kModelRows && row_bytes <= kModelBytes && (rows == 0) == (row_bytes == 0)
                               : rows == 0 && row_bytes == 0);
    if (tile >= kModelTiles) continue;
    model.tile[tile].rows = rows;
    model.tile[tile].row_bytes = row_bytes;
    __builtin_memset(model.tile[tile].bytes, 0xff, sizeof model.tile[tile].bytes);
  }
  model.configured = true;
}

inline void tile_release() {
  require(model.configured);
  model.configured = false;
}

template <int Tile>
void tile_zero() {
  TileRegister& tile = tile_register(Tile);
  __builtin_memset(tile.bytes, 0, sizeof tile.bytes);
}

template <int Tile>
void tile_load(const void* from, int64_t stride) {
  TileRegister& tile = tile_register(Tile);
  __builtin_memset(tile.bytes, 0, sizeof tile.bytes);
  for (int row = 0; row < tile.rows; ++row)
    __builtin_memcpy(tile.bytes[row], static_cast<const char*>(from) + row * stride, tile.row_bytes);
}

template <int Tile>
void tile_store(void* to, int64_t stride) {
  const TileRegister& tile = tile_register(Tile);
  for (int row = 0; row < tile.rows; ++row)
    __builtin_memcpy(static_cast<char*>(to) + row * stride, tile.bytes[row], tile.row_bytes);
}

// Numbers that are too small to be normal are 0, of either sign.
inline float flushed(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  return __builtin_bit_cast(float, bits & 0x7f800000 ? bits : bits & 0x80000000);
}

// The operation of TDPBF16PS in Intel's manual: products are summed one after the other in fused multiplications, low
// and high halves apart.
template <int Sums, int A, int B>
void tile_dot_bf16() {
  TileRegister& c = tile_register(Sums);
  const TileRegister &a = tile_register(A), &b = tile_register(B);
  require(Sums != A && Sums != B && A != B);
  require(c.rows == a.rows && c.row_bytes == b.row_bytes && a.row_bytes == 4 * b.rows && c.row_bytes % 4 == 0);
  constexpr int most_lanes = kModelBytes / 4;
  const auto widened = [](uint16_t half) { return flushed(__builtin_bit_cast(float, uint32_t{half} << 16)); };
  const int lanes = c.row_bytes / 4;
  for (int row = 0; row < c.rows; ++row) {
    float low[most_lanes] = {}, high[most_lanes] = {};
    for (int k = 0; k < b.rows; ++k) {
      uint16_t pair[2], pairs[most_lanes][2];
      __builtin_memcpy(pair, a.bytes[row] + 4 * k, sizeof pair);
      __builtin_memcpy(pairs, b.bytes[k], sizeof pairs);
      for (int lane = 0; lane < lanes; ++lane) {
        low[lane] = flushed(__builtin_fmaf(widened(pair[0]), widened(pairs[lane][0]), low[lane]));
        high[lane] = flushed(__builtin_fmaf(widened(pair[1]), widened(pairs[lane][1]), high[lane]));
      }
    }
    float sums[most_lanes];
    __builtin_memcpy(sums, c.bytes[row], sizeof sums);
    for (int lane = 0; lane < lanes; ++lane)
      sums[lane] = flushed(flushed(sums[lane]) + flushed(low[lane] + high[lane]));
    __builtin_memcpy(c.bytes[row], sums, sizeof sums);
  }
}

}  // namespace
}  // namespace unfoldconv::cpu::amx
