// The stem's backward, twice: reduce and apply recompute dL/dy. Each thread walks down its columns one row of windows
// after the other: spikes of the rows to come into shared memory, winners of the windows from there, then the neurons
// of the two rows of z whose windows are all known. Gradients are loaded for each neuron that may get them, up to four
// times, from the cache: kept in registers they would be as many as the potentials.
#pragma once

#include "kernels/pool_tile.cuh"
#include "kernels/pool_window.h"

SEWSNN_BEGIN

constexpr int kPoolRows = 8;  // of spikes in shared memory: three are read while two of the next windows are written

struct PoolSpikes {
  uint32_t even[kPoolRows][kThreads], odd[kPoolRows][kThreads];
};

// Where gradients of one window row go, of those a thread's two columns are in.
struct PoolWins {
  // By row: of the thread's own windows to its even and its odd column, and of those to the right to its odd column.
  uint32_t even[3], odd[3], odd_from_right[3];
};

// `first_row`: of z.
template <int N>
__device__ __forceinline__ PoolWins pool_wins(const PoolTiling& g, const PoolThread<N>& at, const PoolSpikes& spikes,
                                              int first_row) {
  const int thread = int(threadIdx.x);
  const bool has_left = at.column > 0, has_right = at.column + 1 < g.columns && at.j + 1 < g.out_width;
  Window<uint32_t> own, right;
  SEWSNN_UNROLL
  for (int r = 0; r < 3; ++r) {
    const int row = (first_row + r) & (kPoolRows - 1);
    own.at[r][0] = has_left ? spikes.odd[row][thread - at.neighbour] : 0;
    own.at[r][1] = spikes.even[row][thread];
    own.at[r][2] = right.at[r][0] = spikes.odd[row][thread];
    right.at[r][1] = has_right ? spikes.even[row][thread + at.neighbour] : 0;
    right.at[r][2] = has_right ? spikes.odd[row][thread + at.neighbour] : 0;
  }
  own = winners(own, first_row < 0, at.j == 0 ? ~0u : 0u);
  right = winners(right, first_row < 0, 0u);
  PoolWins wins;
  SEWSNN_UNROLL
  for (int r = 0; r < 3; ++r) {
    wins.even[r] = own.at[r][1];
    wins.odd[r] = own.at[r][2];
    wins.odd_from_right[r] = has_right ? right.at[r][0] : 0;
  }
  return wins;
}

// Adds the gradients of one window in all time-steps, where it has won.
template <int K, class Storage, int N>
__device__ __forceinline__ void add_gradients(Cursor<Storage, N> grads, int T, uint32_t wins,
                                              Pack<State<Storage>, N> (&gs)[K]) {
  Pack<Storage, N> grad[K];
  SEWSNN_UNROLL
  for (int t = 0; t < K; ++t) {
    if (t < T) grad[t] = grads.load();
    grads.move(1);
  }
  SEWSNN_UNROLL
  for (int t = 0; t < K; ++t) {
    if (t >= T) break;
    SEWSNN_UNROLL
    for (int j = 0; j < N; ++j) gs[t].at[j] += wins >> (t * N + j) & 1 ? load_(grad[t].at[j]) : State<Storage>(0);
  }
}

// dL/dy of N neurons, summed over time, from the gradients of their spikes; their share of dL/dleak is added, if
// wanted.
template <int K, class S, int N>
__device__ __forceinline__ Pack<S, N> neuron_gradients(const AnyNeuron<S>& neuron, const PoolSetup<S>& o, int T,
                                                       const Pack<S, N>& y, const Pack<S, N> (&gs)[K], bool leak,
                                                       double& grad_leak) {
  const FireReset<S>& fire = o.neuron.fire;
  Pack<S, N> h[K], sigma[K], total = fill_pack<S, N>(S(0));
  neuron.visit([&](const auto& of_kind) {
    Pack<S, N> v = fill_pack<S, N>(fire.v_reset);
    SEWSNN_UNROLL
    for (int t = 0; t < K; ++t) {
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        h[t].at[j] = t < T ? of_kind.charge(v.at[j], y.at[j]) : S(0);
        v.at[j] = fire.reset(h[t].at[j]);
      }
    }
  });
  o.neuron.surrogate.visit([&](const auto& surrogate) {
    SEWSNN_UNROLL
    for (int t = 0; t < K; ++t) {
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) sigma[t].at[j] = surrogate(h[t].at[j] - fire.v_threshold);
    }
  });
  neuron.visit([&](const auto& of_kind) {
    Pack<S, N> gv = fill_pack<S, N>(S(0));
    S leak_sum = S(0);
    SEWSNN_UNROLL
    for (int t = K - 1; t >= 0; --t) {
      if (t >= T) continue;
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        const S gh = fire.grad_h(gs[t].at[j], gv.at[j], h[t].at[j], sigma[t].at[j]);
        total.at[j] += of_kind.grad_x(gh);
        gv.at[j] = of_kind.grad_v(gh);
        if (leak) leak_sum += gh * of_kind.d_leak(t ? fire.reset(h[t ? t - 1 : 0].at[j]) : fire.v_reset, y.at[j]);
      }
    }
    grad_leak += double(leak_sum);
  });
  return total;
}

// use(z, dL/dy summed over time, offset in z) for every neuron a thread owns: those of rows 2 first - 1 to 2 last - 2,
// and of the last row below them. Returns the share of dL/dleak.
template <class Storage, int K, int N, class Use>
__device__ __forceinline__ double pool_backward(const PoolBackwardParams& p, const PoolTiling& g,
                                                const PoolSetup<State<Storage>>& o, const PoolThread<N>& at,
                                                const PoolNumbers<State<Storage>, N> (&numbers)[kNumbers],
                                                PoolSpikes& spikes, bool leak, const Use& use) {
  using S = State<Storage>;
  const AnyNeuron<S> neuron = o.neuron.load_neuron();
  const int begin = at.first > 0 ? at.first - 1 : 0;  // one row of windows before, for what it leaves to ours
  const int end = at.last < g.out_height || g.height % 2 ? at.last : at.last + 1;
  double grad_leak = 0;
  uint32_t above_even = 0, above_odd = 0, above_from_right = 0;  // wins of the third row of the windows above
  const Rows z_rows = {p.z, g.row, 1};

  int row = 2 * begin - 1;
  SEWSNN_ROLLED
  for (int i = begin; i < end; ++i) {
    SEWSNN_ROLLED
    for (; row <= 2 * i + 1; ++row) {
      uint32_t even = 0, odd = 0;
      if (at.inside && row >= 0 && row < g.height) {
        Cursor<Storage, N> z(z_rows, row, at.z);
        even = spike_trains<K>(neuron, o.neuron.fire, g.steps, normalised(z.load(), numbers, at.pack));
      }
      if (at.has_odd && row >= 0 && row < g.height) {
        Cursor<Storage, N> z(z_rows, row, at.z + g.column);
        odd = spike_trains<K>(neuron, o.neuron.fire, g.steps, normalised(z.load(), numbers, at.pack));
      }
      spikes.even[row & (kPoolRows - 1)][threadIdx.x] = even;
      spikes.odd[row & (kPoolRows - 1)][threadIdx.x] = odd;
    }
    __syncthreads();
    if (!at.owns) continue;
    const bool has_window = i < g.out_height;
    PoolWins wins = {};
    if (has_window) wins = pool_wins(g, at, spikes, 2 * i - 1);
    // Rows 2 i - 1 and 2 i, even column and odd.
    SEWSNN_ROLLED
    for (int q = i < at.first ? 4 : 0; q < 4; ++q) {
      const bool odd_row = q < 2, odd_column = q % 2;
      const int y_row = odd_row ? 2 * i - 1 : 2 * i;
      if (y_row < 0 || y_row >= g.height || (odd_column && !at.has_odd)) continue;
      const int64_t offset = at.z + (odd_column ? g.column : 0);
      const Pack<Storage, N> z = Cursor<Storage, N>(z_rows, y_row, offset).load();
      // In the order of the windows: rows, then columns.
      Pack<S, N> gs[K];
      SEWSNN_UNROLL
      for (int t = 0; t < K; ++t) gs[t] = fill_pack<S, N>(S(0));
      const auto add = [&](int window_row, bool right, uint32_t won) {
        const int64_t here = at.out + window_row * g.out_row + (right ? g.column : 0);
        add_gradients<K>(Cursor<Storage, N>({p.grad_out, g.out_step, 1}, 0, here), g.steps, won, gs);
      };
      const bool has_right = odd_column && at.j + 1 < g.out_width;
      if (odd_row) {
        add(i - 1, false, odd_column ? above_odd : above_even);
        if (has_right) add(i - 1, true, above_from_right);
      }
      if (has_window) {
        add(i, false, odd_column ? odd_row ? wins.odd[0] : wins.odd[1] : odd_row ? wins.even[0] : wins.even[1]);
        if (has_right) add(i, true, odd_row ? wins.odd_from_right[0] : wins.odd_from_right[1]);
      }
      const Pack<S, N> y = normalised(z, numbers, at.pack);
      use(z, neuron_gradients<K>(neuron, o, g.steps, y, gs, leak, grad_leak), offset + y_row * g.row);
    }
    above_even = wins.even[2], above_odd = wins.odd[2], above_from_right = wins.odd_from_right[2];
  }
  return grad_leak;
}

template <class Storage, int K, int N>
__global__ void __launch_bounds__(kThreads, K* N > 16 ? 3 : 4)
    pool_reduce_kernel(const PoolReduceParams p, const PoolTiling g, const PoolSetup<State<Storage>> o) {
  using S = State<Storage>;
  __shared__ PoolNumbers<S, N> numbers[kNumbers];
  __shared__ PoolSpikes spikes;
  __shared__ S sums[2][N][kThreads];
  const auto at = PoolThread<N>::at(g);
  load_numbers<S, N>(p, g, o, at.slice, nullptr, numbers);
  __syncthreads();
  Pack<S, N> sum = fill_pack<S, N>(S(0)), sum_xhat = fill_pack<S, N>(S(0));
  const double grad_leak = pool_backward<Storage, K, N>(
      p, g, o, at, numbers, spikes, p.grad_leak_partials != nullptr,
      [&](const Pack<Storage, N>& z, const Pack<S, N>& grad, int64_t) {
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) {
          const S xhat = (load_(z.at[j]) - numbers[kMean][at.pack].at[j]) * numbers[kInvstd][at.pack].at[j];
          sum.at[j] += grad.at[j];
          sum_xhat.at[j] += grad.at[j] * xhat;
        }
      });
  if (p.grad_leak_partials) {
    const double total = block_sum<kThreads>(grad_leak);
    if (threadIdx.x == 0) store_global(p.grad_leak_partials + blockIdx.x, total);
  }

  SEWSNN_UNROLL
  for (int j = 0; j < N; ++j) sums[0][j][threadIdx.x] = sum.at[j], sums[1][j][threadIdx.x] = sum_xhat.at[j];
  __syncthreads();
  // One thread per channel and sum adds the columns, left to right.
  for (int i = int(threadIdx.x); i < 2 * g.packs * N; i += kThreads) {
    const int which = i / (g.packs * N), channel = i % (g.packs * N), of_pack = channel / N;
    const int c = at.slice * g.packs * N + channel;
    if (c >= g.channels) continue;
    double total = 0;
    for (int column = 0; column < g.columns; ++column)
      total +=
          double(sums[which][channel % N][g.channels_last ? column * g.packs + of_pack : of_pack * g.columns + column]);
    store_global(static_cast<double*>(p.partials) + int64_t(at.place * 2 + which) * g.channels + c, total);
  }
}

// [rows, n] partial sums to [n], a block for each.
template <class S>
__global__ void __launch_bounds__(kThreads) pool_sums_kernel(const double* partials, int64_t rows, int64_t n, S* out) {
  double sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) sum += load_global(partials + r * n + blockIdx.x);
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) store_global(out + blockIdx.x, S(sum));
}

template <class Storage, int K, int N>
__global__ void __launch_bounds__(kThreads, K* N > 16 ? 3 : 4)
    pool_apply_kernel(const PoolApplyParams p, const PoolTiling g, const PoolSetup<State<Storage>> o) {
  using S = State<Storage>;
  __shared__ PoolNumbers<S, N> numbers[kNumbers];
  __shared__ PoolSpikes spikes;
  const auto at = PoolThread<N>::at(g);
  load_numbers<S, N>(p, g, o, at.slice, p.sums, numbers);
  __syncthreads();
  pool_backward<Storage, K, N>(
      p, g, o, at, numbers, spikes, false, [&](const Pack<Storage, N>& z, const Pack<S, N>& grad, int64_t offset) {
        Pack<S, N> grad_z;
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) {
          const S xhat = (load_(z.at[j]) - numbers[kMean][at.pack].at[j]) * numbers[kInvstd][at.pack].at[j];
          grad_z.at[j] = numbers[kScale][at.pack].at[j] *
                         (grad.at[j] - numbers[kGradMean][at.pack].at[j] - xhat * numbers[kGradXhat][at.pack].at[j]);
        }
        Cursor<Storage, N>({p.grad_z, g.row, 1}, 0, offset).store(store_<Storage>(grad_z));
      });
}

SEWSNN_END
