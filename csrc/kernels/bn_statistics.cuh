// Mean and variance of each channel, and the running statistics.
#pragma once

#include "kernels/bn_finish.cuh"
#include "kernels/bn_words.cuh"

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

// ---- the running statistics; one block updates them, so that it sees whether all channels are finite

template <class S>
struct Momentum {
  S keep, take, unbias;  // 1 - momentum, momentum, count / (count - 1)
  S *mean, *var;         // [C]; mean null: they are not updated
  int64_t* tracked;      // the number of calls; null: not counted
};

// Called by all threads of one block. `statistics` may be those that other blocks of the kernel have written.
template <int Threads, class S>
__device__ __forceinline__ void update_running(const S* statistics, int64_t channels, const Momentum<S>& o) {
  __shared__ int warps[Threads / kWarp];
  if (o.tracked && threadIdx.x == 0) store_global(o.tracked, load_own(o.tracked) + 1);
  bool finite = true;
  for (int64_t i = threadIdx.x; i < 2 * channels; i += Threads) {
    const S x = load_others(statistics + i);
    finite = finite && x - x == S(0);
  }
  const int all = __all_sync(kAllLanes, finite);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = all;
  __syncthreads();
  for (int warp = 0; warp < Threads / kWarp; ++warp)
    if (!warps[warp]) return;
  for (int64_t c = threadIdx.x; c < channels; c += Threads) {
    const S new_mean = load_others(statistics + c), new_var = load_others(statistics + channels + c) * o.unbias;
    store_global(o.mean + c, load_own(o.mean + c) * o.keep + new_mean * o.take);
    store_global(o.var + c, load_own(o.var + c) * o.keep + new_var * o.take);
  }
}

// For statistics that come from elsewhere: several processes, or the graph of a compiler.
template <class S>
__global__ void __launch_bounds__(kSumThreads, 1)
    bn_update_kernel(const S* statistics, int64_t channels, const Momentum<S> o) {
  wait_for_earlier_kernels();
  update_running<kSumThreads>(statistics, channels, o);
}

// The end of a kernel that takes statistics: adds the sums of all blocks. sums: of the differences from the origin, and
// of their squares.
template <class Storage, int N>
__device__ __forceinline__ void finish_statistics(const BnStatisticsParams& p, const Walk& walk,
                                                  const SecondStage& second, double elements,
                                                  const Momentum<State<Storage>>& running,
                                                  Pack<State<Storage>, N> (&sums)[2]) {
  using S = State<Storage>;
  store_partials<kLine<Storage>>(walk, sums, p.partials);

  double sum, square;
  if (!finish_group<S>(walk, second, p.partials, sum)) return;
  const Entry mine(walk);
  if (both_sums<kLine<Storage>>(mine, sum, square)) {
    const double mean = sum / elements;
    double var = square / elements - mean * mean;
    if (var < 0) var = 0;  // rounding can make it negative; NaN stays NaN
    S* const out = static_cast<S*>(p.statistics) + mine.channel;
    store_global(out, S(double(origin<Storage>(p, mine.channel)) + mean));
    store_global(out + p.channels.count, S(var));
  }
  if (running.mean && finish_all(walk, second))
    update_running<kThreads>(static_cast<const S*>(p.statistics), p.channels.count, running);
}

// Eight blocks per multiprocessor: then all blocks of kReducingBlocks (bn_launch.cuh) run at once on 132 of them.
template <class Storage, int N>
__global__ void __launch_bounds__(kThreads, sizeof(Storage) == 8 ? 4 : 8)
    bn_statistics_kernel(const BnStatisticsParams p, const Walk walk, const SecondStage second, const double elements,
                         const Momentum<State<Storage>> running) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  Walker<N> at(walk);
  const int T = int(p.T);
  int t = 0, count;  // the next time-step of the row; loads in z
  Words<Storage, N> z[kAhead];
  const auto load = [&] {
    count = 0;
    SEWSNN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (at.inside(walk)) count = k + 1, z[k].load(Cursor<Storage, N>({p.z.data, p.z.row_stride, 1}, t, at.i));
      if (++t == T) {
        t = 0;
        at.advance(walk);
      }
    }
  };
  load();  // before the loads of share_by_channel, which take as long
  Pack<S, N> shift[1];
  share_by_channel<kLine<Storage>>(walk, shift,
                                   [&](int64_t channel, S(&out)[1]) { out[0] = origin<Storage>(p, channel); });
  Pack<S, N> sums[2] = {fill_pack<S, N>(S(0)), fill_pack<S, N>(S(0))};
  while (count > 0) {
    SEWSNN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (k >= count) break;
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        const S u = z[k].number(j) - shift[0].at[j];
        sums[0].at[j] += u;
        sums[1].at[j] += u * u;
      }
    }
    load();
  }
  finish_statistics<Storage>(p, walk, second, elements, running, sums);
}

// Sums one or two rows of [rows, M] numbers over each channel: [rows, C].
template <class S>
__global__ void __launch_bounds__(kThreads, 8)
    channel_sums_kernel(const S* elements, int64_t rows, int64_t M, const Walk walk, const SecondStage second,
                        void* partials, S* out) {
  wait_for_earlier_kernels();
  Pack<S, 1> sums[2] = {fill_pack<S, 1>(S(0)), fill_pack<S, 1>(S(0))};
  for (Walker<1> at(walk); at.inside(walk); at.advance(walk)) {
    sums[0].at[0] += load_global(elements + at.i);
    if (rows > 1) sums[1].at[0] += load_global(elements + M + at.i);
  }
  store_partials<kLine<S>>(walk, sums, partials);
  double sum;
  if (!finish_group<S>(walk, second, partials, sum)) return;
  const Entry mine(walk);
  if (mine.inside && mine.q < rows) store_global(out + mine.q * walk.channels + mine.channel, S(sum));
}

SEWSNN_END
