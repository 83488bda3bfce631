// Common code of the stem's CUDA kernels: the division of images into blocks and threads, the numbers of the norm, and
// spike trains.
//
// A thread has one column of windows (two columns of z) and N channels, and walks down the rows. The spikes of its
// neurons over all time-steps are one word. Windows need words of the column to the left, gradients need words of the
// column to the right. Threads exchange them through shared memory.
#pragma once

#include "core/bn_params.h"
#include "kernels/multistep.cuh"

SEWSNN_BEGIN

constexpr int kPoolColumns = 64;  // windows of a tile
constexpr int kPoolPacks = 32;    // packs of N channels of a tile

// How [images, C, H, W] is divided into blocks: a block has a tile of columns and packs of channels, and a strip of
// rows of windows. The host computes it. If a row has more windows than a tile, tiles overlap by `halo` columns on
// either side, which a block only reads.
struct PoolTiling {
  int steps, height, width, channels, out_height, out_width;  // PoolParams, in the device's integers
  int columns, halo, packs;                                   // sizes of a tile; columns * packs <= kThreads
  int rows;                                                   // rows of windows of a strip
  int tiles, slices, strips;                                  // numbers along columns, channels, rows
  bool channels_last;
  int64_t image, row, column, channel;                // distances in z
  int64_t out_step, out_image, out_row, out_channel;  // distances in out; columns have the same distance as in z

  int64_t blocks_per_slice(int64_t images) const { return images * strips * tiles; }
};

// The position of a thread.
template <int N>
struct PoolThread {
  int pack, column;   // position in the tile
  int neighbour;      // distance to the thread of the next column
  int slice, place;   // of the block: its channels; its number among blocks_per_slice
  int j;              // the thread's column of windows
  int first, last;    // rows of windows
  bool inside, owns;  // the thread has a window; this block is responsible for it
  bool has_odd;       // both of its columns are inside z
  int64_t z, out;     // offsets of row 0 (and time-step 0) of its columns

  static __device__ __forceinline__ PoolThread at(const PoolTiling& g) {
    PoolThread a;
    const int thread = int(threadIdx.x), block = int(blockIdx.x);
    a.pack = g.channels_last ? thread % g.packs : thread / g.columns;
    a.column = g.channels_last ? thread / g.packs : thread % g.columns;
    a.neighbour = g.channels_last ? g.packs : 1;
    a.slice = block % g.slices;
    a.place = block / g.slices;
    const int strip = a.place / g.tiles % g.strips, image = a.place / g.tiles / g.strips;
    const int channel = (a.slice * g.packs + a.pack) * N;
    a.j = a.place % g.tiles * (g.columns - 2 * g.halo) - g.halo + a.column;
    a.first = strip * g.rows;
    a.last = a.first + g.rows < g.out_height ? a.first + g.rows : g.out_height;
    a.inside = a.column < g.columns && a.pack < g.packs && channel < g.channels && a.j >= 0 && a.j < g.out_width;
    a.owns = a.inside && a.column >= g.halo && a.column < g.columns - g.halo;
    a.has_odd = a.inside && 2 * a.j + 1 < g.width;
    a.z = image * g.image + channel * g.channel + 2 * a.j * g.column;
    a.out = image * g.out_image + channel * g.out_channel + a.j * g.column;
    return a;
  }
};

// The numbers of the norm for a tile's channels, in shared memory: one pack of each number per pack of channels.
enum PoolNumber { kMean, kScale, kBias, kForwardNumbers, kInvstd = kForwardNumbers, kGradMean, kGradXhat, kNumbers };

template <class S, int N>
using PoolNumbers = Pack<S, N>[kPoolPacks];

template <class S>
struct PoolSetup {
  Setup<CommonNeuron<S>, S> neuron;
  S eps, count;
};

// All threads of the block call this. `sums` are those of apply, or null.
template <class S, int N, int Count>
__device__ __forceinline__ void load_numbers(const PoolParams& p, const PoolTiling& g, const PoolSetup<S>& o,
                                             const void* sums, PoolNumbers<S, N> (&numbers)[Count]) {
  const auto at = [](const void* data, int i, S otherwise) {
    return data ? load_global(static_cast<const S*>(data) + i) : otherwise;
  };
  for (int i = int(threadIdx.x); i < g.packs * N; i += kThreads) {
    const int c = int(blockIdx.x) % g.slices * g.packs * N + i;
    if (c >= g.channels) break;
    const bool norm = p.norm.mean != nullptr;
    const S invstd = norm ? S(1) / std::sqrt(at(p.norm.var, c, S(1)) + o.eps) : S(1);
    numbers[kMean][i / N].at[i % N] = at(p.norm.mean, c, S(0));
    numbers[kScale][i / N].at[i % N] = norm && p.norm.weight ? at(p.norm.weight, c, S(1)) * invstd : invstd;
    numbers[kBias][i / N].at[i % N] = norm ? at(p.norm.bias, c, S(0)) : S(0);
    if constexpr (Count == kNumbers) {
      numbers[kInvstd][i / N].at[i % N] = invstd;
      numbers[kGradMean][i / N].at[i % N] = at(sums, c, S(0)) / o.count;
      numbers[kGradXhat][i / N].at[i % N] = at(sums, g.channels + c, S(0)) / o.count;
    }
  }
  __syncthreads();
}

template <class Storage, int N, int Count>
__device__ __forceinline__ Pack<State<Storage>, N> normalised(const Pack<Storage, N>& z,
                                                              const PoolNumbers<State<Storage>, N> (&numbers)[Count],
                                                              int pack) {
  Pack<State<Storage>, N> y;
  SEWSNN_UNROLL
  for (int j = 0; j < N; ++j)
    y.at[j] = (load_(z.at[j]) - numbers[kMean][pack].at[j]) * numbers[kScale][pack].at[j] + numbers[kBias][pack].at[j];
  return y;
}

// The spikes of N neurons with inputs y in T <= K time-steps: bit t N + j is neuron j at time-step t.
template <int K, class S, int N>
__device__ __forceinline__ uint32_t spike_trains(const CommonNeuron<S>& neuron, const FireReset<S>& fire, int T,
                                                 const Pack<S, N>& y) {
  static_assert(K * N <= 32, "spike trains fill a word");
  uint32_t trains = 0;
  auto u = at_rest<typename CommonNeuron<S>::Shape, S, N>(neuron, fire);
  neuron.visit([&](const auto& of_kind) {
    run_forward<K>(
        of_kind, fire, Packs<S, N, 0>(), u, [&](int t) { return t < T; }, [&](int, int j) { return y.at[j]; },
        [&](int t, int j, bool fires) { trains |= fires ? 1u << (t * N + j) : 0u; }, [](int) {});
  });
  return trains;
}

// A row of z in the columns of a thread.
template <class Storage, int N>
struct PoolColumns {
  Pack<Storage, N> even, odd;

  // `valid`: the row is inside z.
  static __device__ __forceinline__ PoolColumns load(const Cursor<Storage, N>& even_at,
                                                     const Cursor<Storage, N>& odd_at, const PoolThread<N>& at,
                                                     bool valid) {
    return {even_at.load_if(valid && at.inside), odd_at.load_if(valid && at.has_odd)};
  }
};

struct PoolTrains {
  uint32_t even, odd;
};

// The spikes of both columns, computed one after the other: two copies of the neurons' code would be as fast and twice
// as large.
template <int K, class Storage, int N, int Count>
__device__ __forceinline__ PoolTrains fired(const PoolColumns<Storage, N>& z, const PoolThread<N>& at, bool valid,
                                            const CommonNeuron<State<Storage>>& neuron,
                                            const FireReset<State<Storage>>& fire, int T,
                                            const PoolNumbers<State<Storage>, N> (&numbers)[Count]) {
  PoolTrains trains = {0, 0};
  Pack<Storage, N> column = z.even;
  SEWSNN_ROLLED
  for (int odd = 0; odd < 2; ++odd) {
    trains.even = trains.odd;
    trains.odd = 0;
    if (valid && (odd ? at.has_odd : at.inside))
      trains.odd = spike_trains<K>(neuron, fire, T, normalised(column, numbers, at.pack));
    column = z.odd;
  }
  return trains;
}

SEWSNN_END
