// Mean and variance of each channel, the second stage of all sums over channels, and the running statistics.
#pragma once

#include "kernels/bn_walk.cuh"

SEWSNN_BEGIN

// Numbers in 128 bytes of storage: the largest number of channels of a block.
template <class Storage>
constexpr int kLine = kLineBytes / int(sizeof(Storage));

// The first value of a channel. The sums are over the differences from it. For a channel with a mean far from 0, the
// squares of the values themselves would leave no digits for the variance.
template <class Storage>
__device__ __forceinline__ State<Storage> origin(const BnStatisticsParams& p, int64_t channel) {
  return load_(load_global(static_cast<const Storage*>(p.z.data) + channel * p.channels.inner));
}

template <class Storage, int N>
__global__ void __launch_bounds__(kThreads) bn_statistics_kernel(const BnStatisticsParams p, const Walk walk) {
  using S = State<Storage>;
  Pack<S, N> shift[1];
  share_by_channel<kLine<Storage>>(walk, shift,
                                   [&](int64_t channel, S(&out)[1]) { out[0] = origin<Storage>(p, channel); });
  Pack<S, N> sums[2] = {fill_pack<S, N>(S(0)), fill_pack<S, N>(S(0))};
  for (int64_t t = 0; t < p.T; ++t) {
    for (Walker<N> at(walk); at.inside(walk);) {
      Pack<Storage, N> z[kAhead];
      bool there[kAhead];
      SEWSNN_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        there[k] = at.inside(walk);
        if (there[k]) z[k] = Cursor<Storage, N>(p.z, t, at.i).load();
        at.advance(walk);
      }
      SEWSNN_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        if (!there[k]) break;
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) {
          const S u = load_(z[k].at[j]) - shift[0].at[j];
          sums[0].at[j] += u;
          sums[1].at[j] += u * u;
        }
      }
    }
  }
  store_partials<kLine<Storage>>(walk, sums, p.partials);
}

// ---- the second stage: a block sums the slabs of eight channels (a sector of memory) in double

constexpr int kSumChannels = 8;

// Lane 0 of warp c < kSumChannels gets the sums of a channel and returns this channel. All other threads return
// `channels`, which is no channel.
template <class S>
__device__ __forceinline__ int64_t add_slabs(const S* partials, int64_t slabs, int64_t channels, double (&sums)[2]) {
  static_assert(kSumThreads == kWarp * kWarp, "each lane adds what one of the warps has");
  __shared__ double all[2][kSumChannels][kWarp];
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp, column = lane % kSumChannels;
  const int64_t first = int64_t(blockIdx.x) * kSumChannels;
  sums[0] = sums[1] = 0;
  if (first + column < channels) {
    const S* from = partials + first + column;
    for (int64_t slab = int(threadIdx.x) / kSumChannels; slab < slabs; slab += kSumThreads / kSumChannels) {
      sums[0] += double(load_global(from + 2 * slab * channels));
      sums[1] += double(load_global(from + (2 * slab + 1) * channels));
    }
  }
  SEWSNN_UNROLL
  for (int q = 0; q < 2; ++q) {
    SEWSNN_UNROLL
    for (int offset = kWarp / 2; offset >= kSumChannels; offset /= 2)
      sums[q] += __shfl_down_sync(kAllLanes, sums[q], offset);
    if (lane < kSumChannels) all[q][column][warp] = sums[q];
  }
  __syncthreads();
  if (warp >= kSumChannels) return channels;
  SEWSNN_UNROLL
  for (int q = 0; q < 2; ++q) {
    sums[q] = all[q][warp][lane];
    SEWSNN_UNROLL
    for (int offset = kWarp / 2; offset > 0; offset /= 2) sums[q] += __shfl_down_sync(kAllLanes, sums[q], offset);
  }
  return lane == 0 && first + warp < channels ? first + warp : channels;
}

// count is the number of elements of a channel.
template <class Storage>
__global__ void __launch_bounds__(kSumThreads, 1)
    bn_moments_kernel(const BnStatisticsParams p, int64_t slabs, double count) {
  using S = State<Storage>;
  const int64_t channels = p.channels.count;
  double sums[2];
  const int64_t channel = add_slabs(static_cast<const S*>(p.partials), slabs, channels, sums);
  if (channel >= channels) return;
  const double mean = sums[0] / count;
  double var = sums[1] / count - mean * mean;
  if (var < 0) var = 0;  // rounding can make it negative; NaN stays NaN
  S* const out = static_cast<S*>(p.statistics) + channel;
  store_global(out, S(double(origin<Storage>(p, channel)) + mean));
  store_global(out + channels, S(var));
}

// ---- the running statistics; one block updates them, so that it sees whether all channels are finite

template <class S>
struct Momentum {
  S keep, take, unbias;  // 1 - momentum, momentum, count / (count - 1)
};

template <class S>
__global__ void __launch_bounds__(kSumThreads, 1)
    bn_update_kernel(const S* statistics, int64_t channels, const Momentum<S> o, S* mean, S* var) {
  __shared__ int warps[kSumThreads / kWarp];
  bool finite = true;
  for (int64_t i = threadIdx.x; i < 2 * channels; i += kSumThreads) {
    const S x = load_global(statistics + i);
    finite = finite && x - x == S(0);
  }
  const int all = __all_sync(kAllLanes, finite);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = all;
  __syncthreads();
  for (int warp = 0; warp < kSumThreads / kWarp; ++warp)
    if (!warps[warp]) return;
  for (int64_t c = threadIdx.x; c < channels; c += kSumThreads) {
    const S new_mean = load_global(statistics + c), new_var = load_global(statistics + channels + c) * o.unbias;
    store_global(mean + c, load_own(mean + c) * o.keep + new_mean * o.take);
    store_global(var + c, load_own(var + c) * o.keep + new_var * o.take);
  }
}

SEWSNN_END
