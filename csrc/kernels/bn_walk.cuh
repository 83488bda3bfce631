// How the kernels of batch norm walk over the [M] neurons of a time-step and sum over channels.
//
// A thread owns N neighbours of one column and goes down the rows. It therefore stays with its channels, loads their
// parameters once and keeps its sums in registers.
//   channels_last   a column is N channels, a row is a pixel
//   contiguous      a column is one channel, its rows are the packs of N in the planes of that channel
// One formula serves both, if a pixel counts as an image whose planes have one pack. A block is `width` columns (a line
// of 128 bytes of channels; contiguous: 1) times kThreads / width rows. The blocks of one group of columns are its
// slabs. The number of slabs depends only on the shape, so a device with more multiprocessors gives the same bits.
#pragma once

#include <algorithm>

#include "core/bn_params.h"
#include "kernels/multistep.cuh"

SEWSNN_BEGIN

constexpr int kLineBytes = 128;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Walk {
  int64_t rows, stride;     // rows of a column; rows from a thread's row to its next row
  int64_t channels;         // number of channels
  int64_t image, column;    // neurons from image to image, from column to column
  int64_t step, turn;       // neurons from a thread's row to its next row, and additional ones at the end of a plane
  int packs, step_packs;    // packs of a plane; packs of a step within a plane
  int columns, width;       // columns in total; columns of a block
  int groups, slabs;        // groups of columns; slabs of rows per group; a block per group and slab
  int channels_per_column;  // N, or 1

  unsigned blocks() const { return unsigned(groups) * unsigned(slabs); }
  SEWSNN_HD int channels_per_block() const { return width * channels_per_column; }
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// N divides C (channels_last) or the plane (contiguous). `blocks` is the number of blocks to aim at.
inline Walk walk_over(int64_t M, const Channels& c, int N, int storage_bytes, int64_t blocks) {
  const bool last = c.inner == 1;
  Walk w;
  w.channels = c.count;
  w.image = c.count * c.inner;
  w.column = last ? N : c.inner;
  w.columns = int(last ? c.count / N : c.count);
  w.packs = int(last ? 1 : c.inner / N);
  w.channels_per_column = last ? N : 1;
  w.rows = M / w.image * w.packs;
  w.width = 1;
  while (last && w.width < w.columns && w.width < kWarp && 2 * w.width * N * storage_bytes <= kLineBytes) w.width *= 2;
  w.groups = int(divide_up(w.columns, w.width));
  const int64_t depth = kThreads / w.width, steps = std::max<int64_t>(1, divide_up(w.rows, depth));
  const int64_t each = divide_up(steps, std::max<int64_t>(1, blocks / w.groups));  // a thread's rows
  w.slabs = int(divide_up(steps, each));
  w.stride = w.slabs * depth;
  w.step = w.stride / w.packs * w.image + w.stride % w.packs * N;
  w.step_packs = int(w.stride % w.packs);
  w.turn = w.image - c.inner;
  return w;
}

// The position of a thread: `i` is the first of its N neurons.
template <int N>
struct Walker {
  int64_t i, row;
  int pack;

  __device__ __forceinline__ explicit Walker(const Walk& w) {
    const unsigned width = unsigned(w.width), groups = unsigned(w.groups);
    const unsigned column = blockIdx.x % groups * width + threadIdx.x % width;
    const unsigned first = blockIdx.x / groups * (kThreads / width) + threadIdx.x / width;
    const unsigned image = first / unsigned(w.packs);
    pack = int(first % unsigned(w.packs));
    i = image * w.image + column * w.column + pack * N;
    row = column < unsigned(w.columns) ? int64_t(first) : w.rows;  // no work beside the last column
  }
  __device__ __forceinline__ bool inside(const Walk& w) const { return row < w.rows; }
  __device__ __forceinline__ void advance(const Walk& w) {
    row += w.stride;
    i += w.step;
    pack += w.step_packs;
    if (pack >= w.packs) pack -= w.packs, i += w.turn;
  }
};

__device__ __forceinline__ int64_t first_channel(const Walk& w) {
  return int64_t(blockIdx.x % unsigned(w.groups)) * w.channels_per_block();
}

// Computes Q numbers of each channel with of(channel, numbers), once per block; then every thread gets the numbers of
// its N neurons. Line is the largest number of neurons in a row of the block.
template <int Line, class S, int N, int Q, class F>
__device__ __forceinline__ void share_by_channel(const Walk& w, Pack<S, N> (&mine)[Q], F&& of) {
  __shared__ Pack<S, N> all[Q][Line / N];
  const int entry = int(threadIdx.x);
  const int64_t channel = first_channel(w) + (w.channels_per_column == 1 ? entry / N : entry);
  if (entry < w.width * N && channel < w.channels) {
    S numbers[Q];
    of(channel, numbers);
    SEWSNN_UNROLL
    for (int q = 0; q < Q; ++q) all[q][entry / N].at[entry % N] = numbers[q];
  }
  __syncthreads();
  SEWSNN_UNROLL
  for (int q = 0; q < Q; ++q) mine[q] = all[q][threadIdx.x % unsigned(w.width)];
}

// The learnt numbers of a thread's neurons, if they differ between neurons.
template <class Shape, int Line, class S, int N>
__device__ __forceinline__ LearntPacks<Shape, S, N> share_learnt(const Walk& w, const LearntParams& p) {
  LearntPacks<Shape, S, N> learnt;
  if constexpr (kOwnLearnt<Shape> > 0) {
    share_by_channel<Line>(w, learnt.at, [&](int64_t channel, S(&out)[kOwnLearnt<Shape>]) {
      const S* const data = static_cast<const S*>(p.data) + (p.channels.count == 1 ? 0 : channel);
      SEWSNN_UNROLL
      for (int q = 0; q < kOwnLearnt<Shape>; ++q) out[q] = load_global(data + q * p.channels.count);
    });
  }
  return learnt;
}

// Writes two sums per channel over the rows of the block to partials [slabs, 2, C]. Their order depends only on the
// thread number.
template <int Line, class S, int N>
__device__ __forceinline__ void store_partials(const Walk& w, Pack<S, N> (&sums)[2], void* partials) {
  __shared__ Pack<S, N> warps[kThreads / kWarp][2][Line / N];
  for (int offset = kWarp / 2; offset >= w.width; offset /= 2) {
    SEWSNN_UNROLL
    for (int q = 0; q < 2; ++q) {
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) sums[q].at[j] += __shfl_down_sync(kAllLanes, sums[q].at[j], offset);
    }
  }
  const int lane = int(threadIdx.x) % kWarp;
  if (lane < w.width) {
    SEWSNN_UNROLL
    for (int q = 0; q < 2; ++q) warps[threadIdx.x / kWarp][q][lane] = sums[q];
  }
  __syncthreads();
  const int own = w.channels_per_block(), q = int(threadIdx.x) / own, entry = int(threadIdx.x) % own;
  const int64_t channel = first_channel(w) + entry;
  if (q >= 2 || channel >= w.channels) return;
  const int neurons = N / w.channels_per_column;  // neurons of the row that belong to this channel
  S sum = S(0);
  SEWSNN_UNROLL
  for (int warp = 0; warp < kThreads / kWarp; ++warp)
    for (int n = entry * neurons; n < (entry + 1) * neurons; ++n) sum += warps[warp][q][n / N].at[n % N];
  const int64_t slab = blockIdx.x / unsigned(w.groups);
  store_global(static_cast<S*>(partials) + (2 * slab + q) * w.channels + channel, sum);
}

SEWSNN_END
