// The tile instructions of AMX that the micro-kernel uses, one function each.
//
// Own assembly, because GCC's intrinsics take register numbers as text, which a template has none of, and do not say
// that a load reads memory: what was written there just before could be left out. The compiler has no other use for
// these registers, and volatile keeps the instructions in order.
namespace unfoldconv::cpu::amx {
namespace {

// The shapes of the registers, in the 64 bytes that the instruction reads.
UNFOLDCONV_INLINE void tile_config(const void* shapes) {
  asm volatile("ldtilecfg %0" : : "m"(*static_cast<const char (*)[64]>(shapes)));
}

// Gives the registers back: a thread that holds none costs less to switch.
UNFOLDCONV_INLINE void tile_release() { asm volatile("tilerelease"); }

template <int Tile>
UNFOLDCONV_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}

// Rows of the tile lie `stride` bytes apart.
template <int Tile>
UNFOLDCONV_INLINE void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
UNFOLDCONV_INLINE void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
}

// sums[i][j] += sum over k of a[i][k] * b[k][j], where elements of a and b are Pairs: low and high halves are summed
// apart, each from 0.
template <int Sums, int A, int B>
UNFOLDCONV_INLINE void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(A), "i"(B));
}

}  // namespace
}  // namespace unfoldconv::cpu::amx
