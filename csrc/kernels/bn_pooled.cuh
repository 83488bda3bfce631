// Batch norm + neuron + connection with a pooled output (core/bn_pooled_params.h). Forward has one window per thread;
// what is pooled is never written. Backward gathers: each number looks for its gradient in the windows that it lies in.
#pragma once

#include "core/bn_pooled_params.h"
#include "kernels/bn_chunk.cuh"
#include "kernels/max_pool.cuh"

SEWSNN_BEGIN

// A thread has a window of N neighbouring channels (channels_last) or of one channel, and T <= K. It runs the neurons
// of the window one after the other, all time-steps of each, and keeps the best of each time-step in shared memory,
// which only it reads. Windows that overlap run their common neurons again, which moves no further byte from memory:
// the caches have z.
template <class Storage, int K, int N, bool Shortcut>
__global__ void __launch_bounds__(kThreads, 4)
    bn_pooled_forward_kernel(const BnPooledForwardParams p,
                             const BnSetup<CommonNeuron<State<Storage>>, State<Storage>> o,
                             const unsigned blocks_per_image) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  using Shape = typename CommonNeuron<S>::Shape;
  __shared__ Words<Storage, N> best[K][kThreads];
  __shared__ Pack<uint8_t, N> where[K][kThreads];
  const MaxPoolParams& pool = p.pool;
  const AnyWindow w(pool.window);
  const unsigned rows = unsigned(pool.out_height), columns = unsigned(pool.out_width);
  const PoolPlace<N, kThreads> place(pool, blocks_per_image, rows, columns);
  if (!place.exists) return;
  const int me = int(threadIdx.x);
  Affine<S> norm[N];
  SEWSNN_UNROLL
  for (int j = 0; j < N; ++j) {
    const int64_t channel = place.channel + j;
    load_affine(p.norm, inverse_deviation(p.norm, o.eps, channel), channel, norm[j].mean, norm[j].scale, norm[j].bias);
  }
  const CommonNeuron<S> neuron = o.sn.load_neuron();
  const LearntPacks<Shape, S, N> learnt = {};
  const auto rest = at_rest<Shape, S, N>(neuron, o.sn.fire);
  const int top = int(place.row) * w.stride() - w.padding(), left = int(place.column) * w.stride() - w.padding();
  bool any = false;
  SEWSNN_ROLLED
  for (int q = 0; q < w.kernel() * w.kernel(); ++q) {
    const int y = top + q / w.kernel(), x = left + q % w.kernel();
    if (y < 0 || y >= pool.height || x < 0 || x >= pool.width) continue;
    const int64_t i = place.offset(pool, pool.height, pool.width, y, x);
    auto u = rest;
    SEWSNN_ROLLED
    for (int start = 0; start < p.T; start += kAhead) {
      ForwardInputs<Storage, N, Shortcut, false> in;
      in.load(p, start, i);
      Pack<S, N> a[kAhead];
      const auto input = [&](int k, int j) {
        const S number = norm[j](in.z[k].number(j));
        return Shortcut && p.connect == Connect::AddBefore ? number + in.shortcut[Shortcut ? k : 0].number(j) : number;
      };
      neuron.visit([&](const auto& n) {
        run_forward<kAhead>(
            n, o.sn.fire, learnt, u, [&](int k) { return start + k < p.T; }, input,
            [&](int k, int j, auto spikes) { a[k].at[j] = spike_as<S>(spikes, S(1), S(0)); }, [](int) {});
      });
      SEWSNN_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        if (start + k >= p.T) break;
        if (Shortcut) {
          SEWSNN_UNROLL
          for (int j = 0; j < N; ++j)
            a[k].at[j] = connected(p.connect, a[k].at[j], in.shortcut[Shortcut ? k : 0].number(j));
        }
        const auto next = Words<Storage, N>::of(a[k]);  // rounded
        if (!any) {
          best[start + k][me] = next;
          where[start + k][me] = fill_pack<uint8_t, N>(uint8_t(q));
          continue;
        }
        Pack<S, N> kept;
        Pack<uint8_t, N> position = where[start + k][me];
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) {
          kept.at[j] = best[start + k][me].number(j);
          if (!better(next.number(j), kept.at[j], S(1))) continue;
          kept.at[j] = next.number(j), position.at[j] = uint8_t(q);
        }
        best[start + k][me] = Words<Storage, N>::of(kept);
        where[start + k][me] = position;
      }
    }
    any = true;
  }
  const int64_t to = place.offset(pool, rows, columns, int(place.row), int(place.column));
  const int64_t M = pool.images * pool.channels * pool.out_height * pool.out_width;
  Cursor<Storage, N> out_at(p.out, M, 0, to);
  Cursor<uint8_t, N> positions_at(p.positions, M, 0, to);
  for (int t = 0; t < p.T; ++t) {
    best[t][me].store(out_at);
    if (p.positions) positions_at.store(where[t][me]);
    out_at.move(1), positions_at.move(1);
  }
}

// ---- backward

// The gradient of N neighbours in the time-steps from `start` on: the sum over the windows whose maximum they are, in
// the order of the windows, rounded once.
template <class Storage, int K, int N, class P>
__device__ __forceinline__ void gather_gradient(const P& p, const Walk& walk, const Walker<N>& at, int64_t start,
                                                Words<Storage, N> (&grad)[K]) {
  using S = State<Storage>;
  const MaxPoolParams& pool = p.pool;
  const AnyWindow w(pool.window);
  const int steps = steps_of<K>(p.T, start), height = int(pool.out_height), width = int(pool.out_width);
  const unsigned columns = unsigned(pool.width), packs = unsigned(walk.packs);
  const unsigned column =
      blockIdx.x % unsigned(walk.groups) * unsigned(walk.width) + threadIdx.x % unsigned(walk.width);
  const int64_t row_bytes = pool.images * pool.channels * height * width;
  Pack<S, N> sum[K];
  SEWSNN_UNROLL
  for (int k = 0; k < K; ++k) sum[k] = fill_pack<S, N>(S(0));
  // Calls f(code, number of the window in its image's plane) for each window around the pixel.
  const auto each_window = [&](unsigned pixel, auto&& f) {
    const int y = int(pixel / columns), x = int(pixel % columns);
    const Covering down = covering(w, y, height), across = covering(w, x, width);
    SEWSNN_ROLLED
    for (int a = down.first; a <= down.last; ++a) {
      SEWSNN_ROLLED
      for (int b = across.first; b <= across.last; ++b)
        f((y + w.padding() - w.stride() * a) * w.kernel() + x + w.padding() - w.stride() * b, int64_t(a) * width + b);
    }
  };
  if (pool.channels_last) {
    const unsigned pixels = unsigned(pool.height) * columns, row = unsigned(at.row), image = row / pixels;
    each_window(row % pixels, [&](int code, int64_t window) {
      const int64_t from = (int64_t(image) * height * width + window) * pool.channels + int64_t(column) * N;
      Cursor<Storage, N> grad_at(p.grad_out, start, from);
      Cursor<uint8_t, N> position_at({p.positions, row_bytes, 1}, start, from);
      SEWSNN_UNROLL
      for (int k = 0; k < K; ++k) {
        if (k < steps) {
          Words<Storage, N> number;
          number.load(grad_at);
          const auto position = position_at.load();
          SEWSNN_UNROLL
          for (int j = 0; j < N; ++j) sum[k].at[j] += position.at[j] == code ? number.number(j) : S(0);
        }
        grad_at.move(1), position_at.move(1);
      }
    });
  } else {
    const int64_t plane = (int64_t(unsigned(at.row) / packs) * pool.channels + column) * height * width;
    SEWSNN_UNROLL
    for (int j = 0; j < N; ++j) {
      each_window(unsigned(at.pack) * N + j, [&](int code, int64_t window) {
        SEWSNN_UNROLL
        for (int k = 0; k < K; ++k) {
          const int64_t from = (start + k) * row_bytes + plane + window;
          if (k < steps && load_global(p.positions + from) == code)
            sum[k].at[j] += load_(load_global(static_cast<const Storage*>(p.grad_out.data) + from));
        }
      });
    }
  }
  SEWSNN_UNROLL
  for (int k = 0; k < K; ++k) grad[k] = Words<Storage, N>::of(sum[k]);
}

// Loads what backward reads of a chunk.
template <class Storage, int K, int N, bool Shortcut, bool Two, bool Optional, class P>
__device__ __forceinline__ void load_chunk(const P& p, const Walk& walk, const Walker<N>& at, int64_t start,
                                           ChunkInputs<Storage, K, N, Shortcut, Two, Optional>& in) {
  in.load(p, start, at.i);
  if constexpr (P::kPooled) gather_gradient(p, walk, at, start, in.grad_out);
}

SEWSNN_END
