// What the two kernels of stem_launch.h share: tiles of positions, chunks of terms, and the box of the image that the
// terms of a chunk read for the positions of a tile, in shared memory.
//
//   element of a position and a term = box[place(position) + offset(term)]
//
// Both are tables, so nothing is divided where products are made. Terms are ordered as a contiguous weight has them:
// channel, then taps along z, y and x. A chunk is a run of them: one channel and tap along each of the first axes, some
// along the next one, and all along the others; the last chunk along an axis may have fewer, and then uses the
// beginning of the tables.
//
// The box is made of lines, which run along x, or along x and the channels where these are interleaved (channels_last).
// Lines come as they lie in memory, in pieces of 16 bytes where the image consists of such.
#pragma once

#include "cuda/implicit_gemm/gemm_tile.cuh"
#include "cuda/shared/shared.cuh"

namespace unfoldconv::cuda {

constexpr int kStemThreads = 128;
constexpr int kStemWarps = kStemThreads / 32;
constexpr int kStemPositions = 128;  // of a tile, at most

// Rows that a block multiplies at a time: as many as leave a thread registers for the operands.
template <class T>
constexpr int kStemRows = sizeof(T) == 8 ? 32 : 64;

// Terms, or positions, that are multiplied at once: two pieces.
template <class T>
constexpr int kStemStep = 2 * Piece<T>::kCount;

// One index per channel and axis.
struct StemIndex {
  int channel, tap[3];
};

struct StemChunk {
  StemIndex first;
  int terms;
};

struct StemTile {
  int64_t image;
  int first[3];  // position
};

struct StemTiling {
  int positions[3], stride[3], dilation[3], padding_low[3], channels, kernel[3];

  int tile[3];                  // positions of a tile
  Divider<int> width, height;   // of a tile
  Unraveler<4, int64_t> tiles;  // batch, z, y, x
  int64_t tile_count;

  int chunk_channels, chunk_taps[3];
  int chunk_terms, padded_terms;    // of a whole chunk, and rounded up to whole steps
  Unraveler<4, int> chunks, terms;  // of the weight, and of a chunk: channel, z, y, x
  int chunk_count;

  int64_t image_batch;                              // strides
  int image_channel, image_z, image_y, image_step;  // the last from element to element of a line
  int size_z, size_y, line_size;                    // of the image
  bool interleaved, pieces;
  int box_z, box_y, pitch, elements, items, lines;  // lines along each axis; elements and moves of a line; all lines
  int step_z, step_y;  // lines from position to position: where windows leave gaps, these are not in the box
  Divider<int> line_z, line_y, position_z, position_y;
  int lanes_log2;  // threads that move a line together

  UNFOLDCONV_HOST_DEVICE int tile_positions() const { return tile[0] * tile[1] * tile[2]; }

  __device__ __forceinline__ StemTile tile_at(int64_t index) const {
    int64_t at[4];
    tiles(index, at);
    StemTile result;
    result.image = at[0];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) result.first[axis] = static_cast<int>(at[1 + axis]) * tile[axis];
    return result;
  }

  // Whether all positions of a tile are ones of the output.
  __device__ __forceinline__ bool is_whole(const StemTile& of) const {
    bool result = true;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) result &= of.first[axis] + tile[axis] <= positions[axis];
    return result;
  }

  __device__ __forceinline__ StemChunk chunk_at(int index) const {
    int at[4];
    chunks(index, at);
    StemChunk result;
    result.first.channel = at[0] * chunk_channels;
    result.terms = min(chunk_channels, channels - result.first.channel);
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      result.first.tap[axis] = at[1 + axis] * chunk_taps[axis];
      result.terms *= min(chunk_taps[axis], kernel[axis] - result.first.tap[axis]);
    }
    return result;
  }

  __device__ __forceinline__ StemIndex term_at(int term) const {
    int at[4];
    terms(term, at);
    return {at[0], {at[1], at[2], at[3]}};
  }

  // The position with number p of a tile; those behind its last one lie beyond along z.
  __device__ __forceinline__ void position_at(int p, int (&index)[3]) const {
    index[2] = width.divide(p);
    index[1] = height.divide(p);
    index[0] = p;
  }

  // Where the elements of a term and of a position lie in the box.
  __device__ __forceinline__ int offset_of(const StemIndex& term) const {
    const int plane = interleaved ? 0 : term.channel;
    const int line = (plane * box_z + term.tap[0] * dilation[0]) * box_y + term.tap[1] * dilation[1];
    const int x = term.tap[2] * dilation[2];
    return line * pitch + (interleaved ? x * channels + term.channel : x);
  }
  __device__ __forceinline__ int place_of(int p) const {
    int index[3];
    position_at(p, index);
    if (index[0] >= tile[0]) return 0;  // any place will do
    const int x = index[2] * stride[2];
    return (index[0] * step_z * box_y + index[1] * step_y) * pitch + (interleaved ? x * channels : x);
  }

  // The offset of position p of a tile in a plane of such strides, or -1 where there is none.
  __device__ __forceinline__ int offset_in_plane(const StemTile& of, int p, const int (&axis_stride)[3]) const {
    int index[3], offset = 0;
    position_at(p, index);
    bool there = index[0] < tile[0];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      index[axis] += of.first[axis];
      there &= index[axis] < positions[axis];
    }
    if (!there) return -1;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) offset += index[axis] * axis_stride[axis];
    return offset;
  }

  // Begins to bring the box of a chunk and a tile to shared memory, with zeros for what is not in the image. Returns
  // what its places are shifted by. The copies have arrived behind arrive() and a barrier.
  template <class T>
  __device__ __forceinline__ int load(const T* __restrict__ image, const StemTile& of, const StemChunk& chunk,
                                      T* box) const {
    constexpr int piece = Piece<T>::kCount;
    int corner[3];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      corner[axis] = of.first[axis] * stride[axis] - padding_low[axis] + chunk.first.tap[axis] * dilation[axis];
    int first = interleaved ? corner[2] * channels : corner[2];  // of a line
    const int shift = pieces ? first & (piece - 1) : 0;
    first -= shift;
    const T* const begin = image + of.image * image_batch;
    const int lanes = 1 << lanes_log2, width = pieces ? piece : 1;
    for (int line = threadIdx.x >> lanes_log2; line < lines; line += kStemThreads >> lanes_log2) {
      int channel = line;
      int position_of_y = line_y.divide(channel), position_of_z = line_z.divide(channel);
      const int of_y = position_y.divide(position_of_y), of_z = position_z.divide(position_of_z);
      const int y = corner[1] + position_of_y * stride[1] + of_y, z = corner[0] + position_of_z * stride[0] + of_z;
      channel += interleaved ? 0 : chunk.first.channel;
      const bool inside = static_cast<unsigned>(z) < static_cast<unsigned>(size_z) &&
                          static_cast<unsigned>(y) < static_cast<unsigned>(size_y) && channel < channels;
      const T* const from = inside ? begin + z * image_z + y * image_y + channel * image_channel : image;
      T* const to = box + line * pitch;
      for (int item = threadIdx.x & (lanes - 1); item < items; item += lanes) {
        const int element = first + item * width;
        const bool there = inside && static_cast<unsigned>(element) < static_cast<unsigned>(line_size);
        if (pieces) {
          MovedPiece<T> moved;
          moved.fetch(reinterpret_cast<unsigned char*>(to + item * piece), from + element, there, image);
          moved.put(reinterpret_cast<unsigned char*>(to + item * piece));
        } else {
          to[item] = there ? from[element * image_step] : T{};
        }
      }
    }
    // The channel of an interleaved box that the terms begin with.
    return shift + (interleaved ? chunk.first.channel : 0);
  }
};

// Waits for all pieces that this thread has begun to copy.
__device__ __forceinline__ void arrive() {
  if constexpr (kHasAsyncCopies) {
    cp_async_commit();
    cp_async_wait<0>();
  }
}

// A tile of rows by positions in shared memory, [position][row] where neighbouring rows are nearer in memory than
// neighbouring positions, else [row][position]; and how it lies in the tensor.
struct StemRows {
  int64_t batch_stride;
  int row_stride, axis_stride[3];
  bool rows_innermost, pieces;  // whether what is innermost comes in whole pieces

  template <class T>
  __device__ __forceinline__ static constexpr int pitch(int length) {
    return length + Piece<T>::kCount;  // against bank conflicts
  }
};

// Calls move(row, position, index in shared memory) for all parts of a tile, Width elements at a time.
template <int Width, class T, int Rows, int Positions, class F>
__device__ __forceinline__ void for_each_of_rows(bool rows_innermost, F&& move) {
  static_assert(std::has_single_bit(unsigned{Rows}) && std::has_single_bit(unsigned{Positions}));
  constexpr int log2_rows = std::bit_width(unsigned{Rows / Width}) - 1;
  constexpr int log2_positions = std::bit_width(unsigned{Positions / Width}) - 1;
  const int log2 = rows_innermost ? log2_rows : log2_positions;
  const int pitch = StemRows::pitch<T>(rows_innermost ? Rows : Positions);
  for (int item = threadIdx.x; item < Rows * Positions / Width; item += kStemThreads) {
    const int along = (item & ((1 << log2) - 1)) * Width, across = item >> log2;
    move(rows_innermost ? along : across, rows_innermost ? across : along, across * pitch + along);
  }
}

}  // namespace unfoldconv::cuda
