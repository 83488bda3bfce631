// The two passes of the stem's backward: reduce and apply, which both recompute dL/dy. Each thread walks down its
// columns one row of windows after the other. It writes the spikes of the next rows to shared memory, finds the winners
// of the windows there, and then processes the neurons of the two rows of z that have all their windows. Gradients stay
// in registers for two rows of windows where they need few. Elsewhere it loads a gradient again for each neuron that
// may get it, up to nine times, all but the first time from the cache.
#pragma once

#include "kernels/pool_tile.cuh"
#include "kernels/pool_window.h"

SEWSNN_BEGIN

constexpr int kPoolRows = 8;  // rows of spikes in shared memory: three are read while two of the next are written

struct PoolSpikes {
  uint32_t even[kPoolRows][kThreads], odd[kPoolRows][kThreads];
};

// Where the gradients of a row of windows go, for each row of a window: from the thread's own window to its even and
// its odd column, and from the window to the right to its odd column. A thread reads only its own entries. They are in
// shared memory because a thread can index them there.
struct PoolWins {
  uint32_t even[3][kThreads], odd[3][kThreads], odd_from_right[3][kThreads];
};

// `first_row` is a row of z.
template <int N>
__device__ __forceinline__ void set_wins(const PoolTiling& g, const PoolThread<N>& at, const PoolSpikes& spikes,
                                         int first_row, PoolWins& wins) {
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
  SEWSNN_UNROLL
  for (int r = 0; r < 3; ++r) {
    wins.even[r][thread] = own.at[r][1];
    wins.odd[r][thread] = own.at[r][2];
    wins.odd_from_right[r][thread] = right.at[r][0];
  }
}

// The gradients of one window in T <= K time-steps; zeros if there is no such window.
template <class Storage, int K, int N>
struct PoolGradients {
  // Words, because the compiler would move halves of words one by one.
  using Word = std::conditional_t<sizeof(Storage) * N % 4 == 0, uint32_t, uint16_t>;
  Word words[K][sizeof(Storage) * N / sizeof(Word)];

  __device__ __forceinline__ void load(const PoolBackwardParams& p, const PoolTiling& g, int T, int64_t window,
                                       bool exists) {
    Cursor<Storage, N> from({p.grad_out, g.out_step, 1}, 0, window);
    SEWSNN_UNROLL
    for (int t = 0; t < K; ++t) {
      const Pack<Storage, N> pack = from.load_if(exists && t < T);
      memcpy(words[t], &pack, sizeof pack);
      from.move(1);
    }
  }
  // Adds them to gs in all time-steps in which a position has won.
  __device__ __forceinline__ void add_to(Pack<State<Storage>, N> (&gs)[K], int T, uint32_t wins) const {
    SEWSNN_UNROLL
    for (int t = 0; t < K; ++t) {
      if (t > 0 && t % kAhead == 0 && t >= T) break;
      Pack<Storage, N> pack;
      memcpy(&pack, words[t], sizeof pack);
      forget(pack);  // otherwise the compiler keeps the gradients as floats, which take twice the registers
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        // Not to add is to add 0: a sum that begins with 0 is never -0.
        const State<Storage> sum = gs[t].at[j] + load_(pack.at[j]);
        gs[t].at[j] = wins >> (t * N + j) & 1 ? sum : gs[t].at[j];
      }
    }
  }
};

// Returns dL/dy of N neurons, summed over time, from the gradients of their spikes. If `leak`, adds their share of
// dL/dleak to grad_leak. G time-steps have their sigma' in registers at the same time.
template <int K, int G, class S, int N>
__device__ __forceinline__ Pack<S, N> neuron_gradients(const CommonNeuron<S>& neuron, const PoolSetup<S>& o, int T,
                                                       const Pack<S, N>& y, const Pack<S, N> (&gs)[K], bool leak,
                                                       double& grad_leak) {
  const FireReset<S>& fire = o.neuron.fire;
  const Packs<S, N, 0> none;
  const auto start = at_rest<typename CommonNeuron<S>::Shape, S, N>(neuron, fire);
  const auto exists = [&](int t) { return t < T; };
  const auto input = [&](int, int j) { return y.at[j]; };
  Packs<S, N, 1> h[K], grads = zeros<S, N, 1>();
  Pack<S, N> total = fill_pack<S, N>(S(0));
  neuron.visit(
      [&](const auto& of_kind) { replay<K>(of_kind, fire, none, start, h, exists, [](int) { return true; }, input); });
  SharedSum<S> sums;
  SEWSNN_UNROLL
  for (int group = K - G; group >= 0; group -= G) {
    if (group >= T) continue;
    Pack<S, N> sigma[G];
    surrogate_values<typename CommonNeuron<S>::Shape>(o.neuron.surrogate, neuron, fire, none, h + group, sigma);
    neuron.visit([&](const auto& of_kind) {
      run_backward<G, true>(
          of_kind, fire, none, group, start, h, sigma, grads, sums, exists, input,
          [&](int k, int j) { return gs[group + k].at[j]; }, [](int) {},
          [&](int, int j, S grad_y) { total.at[j] += grad_y; }, [](int) {}, [&] { return leak; });
    });
  }
  if (leak) grad_leak += double(sums.sum);
  return total;
}

// The shared memory of a block of backward.
template <class S, int N>
struct PoolShared {
  PoolNumbers<S, N> numbers[kNumbers];
  PoolSpikes spikes;
  PoolWins wins[2];  // for even rows of windows, and for odd ones
};

// Calls use(z, dL/dy summed over time, offset in z) for every neuron that a thread owns: the neurons of rows
// 2 first - 1 to 2 last - 2, and of the last row below them. Returns their share of dL/dleak.
template <class Storage, int K, int N, bool Usual, class Use>
__device__ __forceinline__ double pool_backward(const PoolBackwardParams& p, const PoolTiling& g,
                                                const PoolSetup<State<Storage>>& setup, const PoolThread<N>& at,
                                                PoolShared<State<Storage>, N>& shared, bool leak, const Use& use) {
  using S = State<Storage>;
  const PoolSetup<S> o = {setup.neuron.template known<Usual>(), setup.eps, setup.count};
  const int T = Usual ? K : g.steps;
  const int thread = int(threadIdx.x);
  const CommonNeuron<S> neuron = o.neuron.load_neuron();
  const int begin = at.first > 0 ? at.first - 1 : 0;  // includes the row of windows above, which shares a row of z
  const int end = at.last < g.out_height || g.height % 2 ? at.last : at.last + 1;
  double grad_leak = 0;
  const Rows z_rows = {p.z, g.row, 1};
  // 16-bit gradients of few time-steps stay in registers from one row of windows to the next: of the windows above and
  // here, and of those to their right.
  constexpr bool kKeep = Usual && sizeof(Storage) == 2;
  using Gradients = PoolGradients<Storage, K, N>;
  Gradients above_own = {}, above_right = {}, here_own = {}, here_right = {};
  const auto load_own = [&](Gradients& own, int i) {
    own.load(p, g, T, at.out + i * g.out_row, at.owns && i < g.out_height);
  };
  const auto load_right = [&](Gradients& right, int i) {
    right.load(p, g, T, at.out + i * g.out_row + g.column, at.owns && i < g.out_height && at.j != g.out_width - 1);
  };

  int row = 2 * begin - 1;
  SEWSNN_ROLLED
  for (int i = begin; i < end; ++i) {
    if constexpr (kKeep) {
      above_own = here_own, above_right = here_right;
      load_own(here_own, i);
      load_right(here_right, i);
    }
    SEWSNN_ROLLED
    for (; row <= 2 * i + 1; ++row) {
      const bool valid = row >= 0 && row < g.height;
      const Cursor<Storage, N> even_at(z_rows, row, at.z), odd_at(z_rows, row, at.z + g.column);
      const auto z = PoolColumns<Storage, N>::load(even_at, odd_at, at, valid);
      const PoolTrains trains = fired<K>(z, at, valid, neuron, o.neuron.fire, T, shared.numbers);
      shared.spikes.even[row & (kPoolRows - 1)][thread] = trains.even;
      shared.spikes.odd[row & (kPoolRows - 1)][thread] = trains.odd;
    }
    __syncthreads();
    if (!at.owns) continue;
    const PoolWins &above = shared.wins[(i + 1) % 2], &here = shared.wins[i % 2];
    if (i < g.out_height) set_wins(g, at, shared.spikes, 2 * i - 1, shared.wins[i % 2]);
    // Rows 2 i - 1 and 2 i, even and odd column.
    SEWSNN_ROLLED
    for (int q = i < at.first ? 4 : 0; q < 4; ++q) {
      const int odd_column = q % 2, odd_row = q < 2, y_row = 2 * i - odd_row;
      if (y_row < 0 || y_row >= g.height || (odd_column && !at.has_odd)) continue;
      const int64_t offset = at.z + odd_column * g.column;
      Pack<Storage, N> z = Cursor<Storage, N>(z_rows, y_row, offset).load();
      Pack<S, N> gs[K];
      SEWSNN_UNROLL
      for (int t = 0; t < K; ++t) gs[t] = fill_pack<S, N>(S(0));
      // Add the windows above, here, and to the right of both, in the order of rows, then columns.
      const auto add = [&](const PoolWins& wins, Gradients& own, Gradients& right, int window_row, int r) {
        if constexpr (!kKeep) load_own(own, window_row);
        own.add_to(gs, T, odd_column ? wins.odd[r][thread] : wins.even[r][thread]);
        if (!odd_column) return;
        if constexpr (!kKeep) load_right(right, window_row);
        right.add_to(gs, T, wins.odd_from_right[r][thread]);
      };
      if (odd_row) add(above, above_own, above_right, i - 1, 2);
      if (i < g.out_height) add(here, here_own, here_right, i, odd_row ? 0 : 1);
      const Pack<S, N> y = normalised(z, shared.numbers, at.pack);
      forget(z);  // otherwise the compiler keeps z - mean
      use(z, neuron_gradients<K, Usual ? 1 : kAhead>(neuron, o, T, y, gs, leak, grad_leak), offset + y_row * g.row);
    }
  }
  return grad_leak;
}

// The number of blocks per multiprocessor for which the registers must suffice.
template <class S, int K, int N>
constexpr int pool_blocks_per_multiprocessor() {
  return sizeof(S) == 8 ? 2 : K * N > 16 ? 3 : 4;
}

template <class Storage, int K, int N>
__global__ void __launch_bounds__(kThreads, pool_blocks_per_multiprocessor<State<Storage>, K, N>())
    pool_reduce_kernel(const PoolReduceParams p, const PoolTiling g, const PoolSetup<State<Storage>> o) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  __shared__ PoolShared<S, N> shared;
  __shared__ S sums[2][N][kThreads];  // each thread uses its own; there are too few registers for them
  load_numbers<S, N>(p, g, o, nullptr, shared.numbers);
  const auto at = PoolThread<N>::at(g);
  SEWSNN_UNROLL
  for (int j = 0; j < N; ++j) sums[0][j][threadIdx.x] = sums[1][j][threadIdx.x] = S(0);
  const auto use = [&](const Pack<Storage, N>& z, const Pack<S, N>& grad, int64_t) {
    SEWSNN_UNROLL
    for (int j = 0; j < N; ++j) {
      const S u = load_(z.at[j]) - shared.numbers[kMean][at.pack].at[j];
      sums[0][j][threadIdx.x] += grad.at[j];
      sums[1][j][threadIdx.x] += grad.at[j] * (u * shared.numbers[kInvstd][at.pack].at[j]);
    }
  };
  const bool leak = p.learnt_partials != nullptr;
  const double grad_leak = K == kAhead && N > 1 && g.steps == K && o.neuron.usual() ? pool_backward < Storage, K, N,
               K == kAhead && (N > 1) > (p, g, o, at, shared, leak, use)
      : pool_backward<Storage, K, N, false>(p, g, o, at, shared, leak, use);
  if (leak) {
    const double total = block_sum<kThreads>(grad_leak);
    if (threadIdx.x == 0) store_global(p.learnt_partials + blockIdx.x, total);
  }
  __syncthreads();
  // One thread per channel and sum adds the columns from left to right.
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

// Adds [rows, n] partial sums to n sums, one block per sum.
template <class S>
__global__ void __launch_bounds__(kThreads) pool_sums_kernel(const double* partials, int64_t rows, int64_t n, S* out) {
  wait_for_earlier_kernels();
  double sum = 0;
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) sum += load_global(partials + r * n + blockIdx.x);
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) store_global(out + blockIdx.x, S(sum));
}

// Apply in bfloat16 does not fit into the registers of four blocks.
template <class Storage, int K, int N>
constexpr int pool_apply_blocks() {
  const int blocks = pool_blocks_per_multiprocessor<State<Storage>, K, N>();
  return std::is_same_v<Storage, BFloat16> && N > 1 && blocks > 3 ? 3 : blocks;
}

template <class Storage, int K, int N>
__global__ void __launch_bounds__(kThreads, pool_apply_blocks<Storage, K, N>())
    pool_apply_kernel(const PoolApplyParams p, const PoolTiling g, const PoolSetup<State<Storage>> o) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  __shared__ PoolShared<S, N> shared;
  load_numbers<S, N>(p, g, o, p.sums, shared.numbers);
  const auto at = PoolThread<N>::at(g);
  const auto use = [&](const Pack<Storage, N>& z, const Pack<S, N>& grad, int64_t offset) {
    const auto number = [&](PoolNumber which, int j) { return shared.numbers[which][at.pack].at[j]; };
    Pack<S, N> grad_z;
    SEWSNN_UNROLL
    for (int j = 0; j < N; ++j) {
      const S xhat = (load_(z.at[j]) - number(kMean, j)) * number(kInvstd, j);
      grad_z.at[j] = number(kScale, j) * (grad.at[j] - number(kGradMean, j) - xhat * number(kGradXhat, j));
    }
    Cursor<Storage, N>({p.grad_z, g.row, 1}, 0, offset).store(store_<Storage>(grad_z));
  };
  if (K == kAhead && N > 1 && g.steps == K && o.neuron.usual())
    pool_backward<Storage, K, N, K == kAhead && (N > 1)>(p, g, o, at, shared, false, use);
  else pool_backward<Storage, K, N, false>(p, g, o, at, shared, false, use);
}

SEWSNN_END
