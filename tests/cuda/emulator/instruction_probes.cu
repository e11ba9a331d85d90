// Small kernels, right and wrong, for the functions of csrc/cuda/shared/intrinsics.cuh. One warp each, unless they say
// more.
#include "cuda/implicit_gemm/depth_major.cuh"
#include "probes.h"

namespace unfoldconv::cuda {
namespace {

// Numbers from global into shared memory, where ldmatrix reads them.
template <class T, int Count>
struct Operand {
  alignas(16) T value[Count];

  void load(const T* from) {
    for (int i = threadIdx.x; i < Count; i += 32) value[i] = from[i];
    __syncwarp();
  }
};

// The sum [16, 8] of a warp, to memory.
void store(const float (&upper)[2], const float (&lower)[2], int* out) {
  const int group = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
  auto* sum = reinterpret_cast<float*>(out);
  for (int i = 0; i < 2; ++i) {
    sum[8 * group + pair + i] = upper[i];
    sum[8 * (group + 8) + pair + i] = lower[i];
  }
}

// out [16, 8] = left [16, depth] @ right [8, depth]^T + 1, the operands behind each other in memory.

// Which operands lie transposed, and of the left one whether it is read as if it did.
template <class T, bool TransposedRight, bool TransposedLeft = false, bool TurnLeft = TransposedLeft>
__global__ void multiply_16bit(const int* in, int* out) {
  __shared__ Operand<T, 16 * 16> left;  // [row, k], or [k, row] if transposed
  __shared__ Operand<T, 8 * 16> right;  // [8, 16], or [16, 8] if transposed
  left.load(reinterpret_cast<const T*>(in));
  right.load(reinterpret_cast<const T*>(in) + 16 * 16);
  const int lane = threadIdx.x;
  uint32_t a[4], b[2];
  if constexpr (TransposedLeft)
    ldmatrix<4, TurnLeft>(a, &left.value[16 * (lane % 8 + lane / 16 * 8) + lane / 8 % 2 * 8]);
  else
    ldmatrix(a, &left.value[16 * (lane % 16) + 8 * (lane / 16)]);
  if constexpr (TransposedRight)
    ldmatrix<2, true>(b, &right.value[8 * (lane % 16)]);
  else
    ldmatrix(b, &right.value[16 * (lane % 8) + 8 * (lane / 8 % 2)]);
  float upper[2] = {1, 1}, lower[2] = {1, 1};
  mma_m16n8k16<T>(upper, lower, a, b);
  store(upper, lower, out);
}

__global__ void multiply_f16_k8(const int* in, int* out) {
  __shared__ Operand<Half, 16 * 8> left;
  __shared__ Operand<Half, 8 * 8> right;
  left.load(reinterpret_cast<const Half*>(in));
  right.load(reinterpret_cast<const Half*>(in) + 16 * 8);
  uint32_t a[2], b[1];
  ldmatrix(a, &left.value[8 * (threadIdx.x % 16)]);
  ldmatrix(b, &right.value[8 * (threadIdx.x % 8)]);
  float upper[2] = {1, 1}, lower[2] = {1, 1};
  mma_m16n8k8_f16(upper, lower, a[0], a[1], b[0]);
  store(upper, lower, out);
}

__global__ void multiply_tf32(const int* in, int* out) {
  __shared__ Operand<float, 16 * 8> left;
  __shared__ Operand<float, 8 * 8> right;
  left.load(reinterpret_cast<const float*>(in));
  right.load(reinterpret_cast<const float*>(in) + 16 * 8);
  const int lane = threadIdx.x;
  uint32_t a[4], b[2];
  ldmatrix(a, &left.value[8 * (lane % 16) + 4 * (lane / 16)]);
  ldmatrix(b, &right.value[8 * (lane % 8) + 4 * (lane / 8 % 2)]);
  float upper[2] = {1, 1}, lower[2] = {1, 1};
  mma_m16n8k8_tf32(upper, lower, a, b);
  store(upper, lower, out);
}

// out [8, 8] = left [8, 4] @ right [8, 4]^T + 1
__global__ void multiply_f64(const int* in, int* out) {
  const auto* left = reinterpret_cast<const double*>(in);
  double sum[2] = {1, 1};
  mma_m8n8k4(sum, left[threadIdx.x], left[32 + threadIdx.x]);
  for (int i = 0; i < 2; ++i) reinterpret_cast<double*>(out)[2 * threadIdx.x + i] = sum[i];
}

__global__ void round_to_tf32(const int* in, int* out) { out[threadIdx.x] = to_tf32(in[threadIdx.x]); }

// Rows of Count matrices one behind the other; out [Count, 32] has the registers.
template <int Count, bool Transposed>
__global__ void load_matrices(const int* in, int* out) {
  __shared__ Operand<int, 4 * 32> matrices;
  matrices.load(in);
  uint32_t registers[Count];
  ldmatrix<Count, Transposed>(registers, &matrices.value[4 * threadIdx.x]);
  for (int i = 0; i < Count; ++i) out[32 * i + threadIdx.x] = registers[i];
}

__global__ void load_half_a_warp(const int* in, int* out) {
  __shared__ Operand<int, 4 * 32> matrices;
  matrices.load(in);
  uint32_t registers[1];
  if (threadIdx.x < 16) ldmatrix(registers, &matrices.value[4 * threadIdx.x]);
  out[threadIdx.x] = 0;
}

__global__ void load_from_global(const int* in, int*) {
  uint32_t registers[1];
  ldmatrix(registers, in);
}

// Each thread of a block copies Words words and writes those of its neighbour, whole threads at a time.
template <int Words>
__global__ void copy(const int* in, int* out) {
  alignas(16) __shared__ int shared[128 * Words];
  const int own = threadIdx.x * Words, other = (threadIdx.x + 1) % blockDim.x * Words;
  // The last thread copies one word, and zeros.
  cp_async<4 * Words>(&shared[own], &in[own], threadIdx.x + 1 == blockDim.x ? 4 : 4 * Words);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < Words; ++i) out[own + i] = shared[other + i];
}

// Two groups, of which `Pending` may be under way when the thread reads what it has copied in group `Read`.
template <int Pending, int Read>
__global__ void copy_two_groups(const int* in, int* out) {
  __shared__ int shared[2][128];
  for (int group = 0; group < 2; ++group) {
    cp_async<4>(&shared[group][threadIdx.x], &in[threadIdx.x], 4);
    cp_async_commit();
  }
  cp_async_wait<Pending>();
  out[threadIdx.x] = shared[Read][threadIdx.x];
}

__global__ void copy_without_commit(const int* in, int* out) {
  __shared__ int shared[128];
  cp_async<4>(&shared[threadIdx.x], &in[threadIdx.x], 4);
  cp_async_wait<0>();
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void copy_without_barrier(const int* in, int* out) {
  __shared__ int shared[128];
  cp_async<4>(&shared[threadIdx.x], &in[threadIdx.x], 4);
  cp_async_commit();
  cp_async_wait<0>();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// The copy of something else begins while others still read what it replaces.
__global__ void copy_too_early(const int* in, int* out) {
  __shared__ int shared[128];
  shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  cp_async<4>(&shared[threadIdx.x], &in[(threadIdx.x + 1) % blockDim.x], 4);
  cp_async_commit();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
  cp_async_wait<0>();
}

__global__ void copy_to_global(const int* in, int* out) { cp_async<4>(&out[threadIdx.x], &in[threadIdx.x], 4); }

__global__ void copy_unaligned(const int* in, int*) {
  alignas(16) __shared__ int shared[128];
  cp_async<8>(&shared[threadIdx.x], &in[2 * threadIdx.x], 8);
}

// Where each piece of each k lies: out [depth, pieces].
template <class T, int Rows>
__global__ void offsets(const int*, int* out) {
  using Layout = DepthMajor<T, Rows>;
  constexpr int pieces = Layout::kPiecesAcross;
  for (int i = threadIdx.x; i < Layout::kDepth * pieces; i += 32) out[i] = Layout::offset(i / pieces, i % pieces);
}

}  // namespace

const std::map<std::string, Kernel>& instruction_kernels() {
  static const std::map<std::string, Kernel> kernels = {
      {"multiply_float16", multiply_16bit<Half, false>},
      {"multiply_float16_transposed", multiply_16bit<Half, true>},
      {"multiply_float16_both_transposed", multiply_16bit<Half, true, true>},
      {"multiply_float16_left_not_transposed", multiply_16bit<Half, true, true, false>},
      {"multiply_bfloat16", multiply_16bit<BFloat16, false>},
      {"multiply_bfloat16_both_transposed", multiply_16bit<BFloat16, true, true>},
      {"multiply_bfloat16_left_not_transposed", multiply_16bit<BFloat16, true, true, false>},
      {"multiply_bfloat16_transposed", multiply_16bit<BFloat16, true>},
      {"multiply_f16_k8", multiply_f16_k8},
      {"multiply_tf32", multiply_tf32},
      {"multiply_f64", multiply_f64},
      {"round_to_tf32", round_to_tf32},
      {"load_1", load_matrices<1, false>},
      {"load_2", load_matrices<2, false>},
      {"load_4", load_matrices<4, false>},
      {"load_1_transposed", load_matrices<1, true>},
      {"load_2_transposed", load_matrices<2, true>},
      {"load_4_transposed", load_matrices<4, true>},
      {"load_half_a_warp", load_half_a_warp},
      {"load_from_global", load_from_global},
      {"offsets_float16_64", offsets<Half, 64>},
      {"offsets_float16_128", offsets<Half, 128>},
      {"offsets_float32_64", offsets<float, 64>},
      {"offsets_float32_128", offsets<float, 128>},
      {"offsets_float64_64", offsets<double, 64>},
      {"offsets_float64_128", offsets<double, 128>},
      {"copy_1", copy<1>},
      {"copy_2", copy<2>},
      {"copy_4", copy<4>},
      {"copy_wait_for_all", copy_two_groups<0, 1>},
      {"copy_wait_for_first", copy_two_groups<1, 0>},
      {"copy_wait_for_too_few", copy_two_groups<1, 1>},
      {"copy_without_wait", copy_two_groups<2, 0>},
      {"copy_without_commit", copy_without_commit},
      {"copy_without_barrier", copy_without_barrier},
      {"copy_too_early", copy_too_early},
      {"copy_to_global", copy_to_global},
      {"copy_unaligned", copy_unaligned},
  };
  return kernels;
}

}  // namespace unfoldconv::cuda
