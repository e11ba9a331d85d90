// Index maths of the kernels: geometry.h in the index type of a launch, without the division instruction, which costs
// tens of cycles in 32 bits and about a hundred in 64.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "problem/geometry.h"
#include "problem/integer_math.h"

namespace unfoldconv::cuda {

// Divides by a number known on the host: a multiplication and a shift (Granlund and Montgomery, "Division by invariant
// integers using multiplication", 1994). Dividend and divisor are in [0, largest Index].
template <class Index>
class Divider {
  using Unsigned = std::make_unsigned_t<Index>;

 public:
  Divider() = default;

  // A divisor of 0, the size of an empty axis, counts as 1: nothing is ever divided by it.
  explicit Divider(int64_t divisor) {
    using Wide = unsigned __int128;
    const auto d = static_cast<uint64_t>(std::max<int64_t>(divisor, 1));
    divisor_ = static_cast<Index>(d);
    shift_ = std::bit_width(d - 1);
    const Wide fraction = ((Wide{1} << shift_) - d) << std::numeric_limits<Unsigned>::digits;
    magic_ = static_cast<Unsigned>(fraction / d + 1);
  }

  __device__ __forceinline__ Index quotient(Index dividend) const {
    const auto n = static_cast<Unsigned>(dividend);
    Unsigned high;
    if constexpr (sizeof(Index) == 4) {
      high = __umulhi(n, magic_);
    } else {
      high = __umul64hi(n, magic_);
    }
    return static_cast<Index>((high + n) >> shift_);  // high <= n < half the range, so the sum does not wrap
  }

  // Replaces the dividend by its quotient and returns the remainder.
  __device__ __forceinline__ Index divide(Index& dividend) const {
    const Index n = dividend;
    dividend = quotient(n);
    return n - dividend * divisor_;
  }

  __device__ __forceinline__ Index divisor() const { return divisor_; }

 private:
  Unsigned magic_;
  Index divisor_;
  int shift_;
};

// Splits a flat row-major index into one index per axis, as unravel() of geometry.h.
template <int Rank, class Index>
struct Unraveler {
  Divider<Index> size[Rank];

  Unraveler() = default;
  explicit Unraveler(const int64_t (&sizes)[Rank]) {
    for (int axis = 0; axis < Rank; ++axis) size[axis] = Divider<Index>(sizes[axis]);
  }

  __device__ __forceinline__ void operator()(Index flat, Index (&index)[Rank]) const {
#pragma unroll
    for (int axis = Rank - 1; axis > 0; --axis) index[axis] = size[axis].divide(flat);
    index[0] = flat;
  }
};

// The three nested indices of a plane and where it starts, as PlaneLayout of geometry.h.
template <class Index>
struct Planes {
  Divider<Index> middle_count, inner_count;
  Index stride[3];

  struct Plane {
    Index outer, middle, inner;
  };

  Planes() = default;
  template <int Rank>
  explicit Planes(const PlaneLayout<Rank>& layout) : middle_count(layout.count[1]), inner_count(layout.count[2]) {
    std::copy(layout.stride, layout.stride + 3, stride);
  }

  __device__ __forceinline__ Plane locate(Index plane) const {
    Plane result;
    result.inner = inner_count.divide(plane);
    result.middle = middle_count.divide(plane);
    result.outer = plane;
    return result;
  }

  __device__ __forceinline__ Index offset(Plane plane) const {
    return plane.outer * stride[0] + plane.middle * stride[1] + plane.inner * stride[2];
  }
};

// The largest offset, up or down, at which an element of the planes can lie.
template <int Rank>
double largest_offset(const PlaneLayout<Rank>& layout, const int64_t (&sizes)[Rank]) {
  const auto reach = [](int64_t size, int64_t stride) {
    return std::max(static_cast<double>(size) - 1, 0.0) * std::fabs(static_cast<double>(stride));
  };
  double result = 0;
  for (int i = 0; i < 3; ++i) result += reach(layout.count[i], layout.stride[i]);
  for (int axis = 0; axis < Rank; ++axis) result += reach(sizes[axis], layout.axis_stride[axis]);
  return result;
}

// The rank of the kernel that serves a call. 16- and 32-bit floats on 32-bit indices, nearly all that is ever called,
// have kernels of their own for every rank; for the others one of rank 3 does, or the wheel would be twice as large.
template <int Rank, class Index, bool Common>
constexpr int kKernelRank = sizeof(Index) == 4 && Common ? Rank : 3;

template <class To, class From>
__device__ __forceinline__ To convert(From value) {
  return static_cast<To>(value);
}

}  // namespace unfoldconv::cuda
