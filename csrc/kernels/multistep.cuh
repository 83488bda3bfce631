// Multi-step IF/LIF/PLIF on the GPU. A thread owns N neighbouring neurons (one access of 16 bytes where the storage
// type allows it) and runs all T time-steps with the state in registers. It issues loads several time-steps ahead,
// because the recurrence is short and the latency of memory is long. Backward replays K <= kChunk time-steps at a time
// from x and keeps their h in registers.
#pragma once

#include "core/access.h"
#include "core/dtype.h"
#include "neurons/fire.h"
#include "neurons/surrogate.h"

SEWSNN_BEGIN

constexpr int kThreads = 128;
constexpr int kSumThreads = 1024;  // threads of the one block that adds partial sums
constexpr int kAhead = 4;          // time-steps loaded before they are used

// Whether the neuron decays its input; IF has no leak, so it does not matter there.
template <class Neuron>
__device__ __forceinline__ bool decays_input(const Neuron& neuron) {
  if constexpr (Neuron::has_leak) return neuron.decay_input;
  else return true;
}
template <class Neuron>
__device__ __forceinline__ void set_decays_input(Neuron& neuron) {
  if constexpr (Neuron::has_leak) neuron.decay_input = true;
}

// The neuron in the state's type. The host converts it, so that kernels compute no constants.
template <class Neuron, class S>
struct Setup {
  Neuron neuron;
  FireReset<S> fire;
  Surrogate<S> surrogate;
  const S* leak;  // PLIF: 1 / tau in memory

  static Setup from(const NeuronParams& p) {
    return {Neuron::from(p, S(p.inverse_tau)), FireReset<S>::from(p), Surrogate<S>::from(p),
            static_cast<const S*>(p.leak)};
  }
  // Whether these are the settings of most networks: hard reset, detached, decay_input, ATan.
  __device__ bool usual() const {
    return decays_input(neuron) && fire.hard && fire.detach && surrogate.kind == SurrogateKind::ATan;
  }
  // The same settings. If Usual, the compiler knows these four.
  template <bool Usual>
  __device__ Setup known() const {
    Setup setup = *this;
    if constexpr (Usual) {
      set_decays_input(setup.neuron);
      setup.fire.hard = setup.fire.detach = true;
      setup.surrogate.kind = SurrogateKind::ATan;
    }
    return setup;
  }
  __device__ Neuron load_neuron() const {
    Neuron loaded = neuron;
    if (leak) loaded.set_leak(load_global(leak));
    return loaded;
  }
};

// v before time-step t, a multiple of kChunk.
template <class S, int N>
__device__ __forceinline__ Pack<S, N> initial_v(const void* v0, const void* checkpoints, S rest, int64_t t, int64_t M,
                                                int64_t i) {
  const void* const from = t == 0 ? v0 : checkpoints;
  if (!from) return fill_pack<S, N>(rest);
  return Cursor<S, N>({from, M, 1}, t == 0 ? 0 : t / kChunk - 1, i).load();
}

template <class Neuron, class Storage, int N>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const ForwardParams p, const Setup<Neuron, State<Storage>> o) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (i >= p.M) return;
  const Neuron neuron = o.load_neuron();
  const Storage one = store_<Storage>(S(1)), zero = store_<Storage>(S(0));
  Cursor<Storage, N> x_at(p.x, 0, i), s_at(p.s, p.M, 0, i);
  Cursor<S, N> v_at(p.v, p.M, 0, i), checkpoint_at(p.checkpoints, p.M, 0, i);
  Pack<S, N> v = initial_v<S, N>(p.v0, nullptr, o.fire.v_reset, 0, p.M, i);

  for (int64_t start = 0; start < p.T; start += kAhead) {
    Pack<Storage, N> x[kAhead];
    SEWSNN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (start + k < p.T) x[k] = x_at.load();
      x_at.move(1);
    }
    if (p.checkpoints && start > 0 && start % kChunk == 0) {
      checkpoint_at.store(v);
      checkpoint_at.move(1);
    }
    SEWSNN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (start + k >= p.T) break;
      Pack<Storage, N> s;
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        const S h = neuron.charge(v.at[j], load_(x[k].at[j]));
        s.at[j] = o.fire.fires(h) ? one : zero;
        v.at[j] = o.fire.reset(h);
      }
      s_at.store(s);
      s_at.move(1);
      if (p.v_seq) {
        v_at.store(v);
        v_at.move(1);
      }
    }
  }
  if (p.v && !p.v_seq) v_at.store(v);
}

// Returns the sum over the block in thread 0. The order depends only on the thread number.
template <int Threads>
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double warps[Threads / 32];
  SEWSNN_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(0xffffffffu, x, offset);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0)
    for (int w = 0; w < Threads / 32; ++w) sum += warps[w];
  return sum;
}

// Backward of the N neurons from i on: writes grad_x and grad_v0, returns their share of dL/dleak (0 without Leak).
// All loads of a chunk are issued before the first of them is used. Time-steps that do not exist are branched over; the
// branches are the same for all threads.
template <class Neuron, class Storage, int K, int N, bool Leak, bool Usual>
__device__ __forceinline__ double backward_neurons(const BackwardParams& p, const Setup<Neuron, State<Storage>>& setup,
                                                   int64_t i) {
  using S = State<Storage>;
  const auto o = setup.template known<Usual>();
  constexpr int G = Usual || N == 8 ? 2 : kAhead;  // time-steps that have their sigma' in registers at the same time
  const Neuron neuron = o.load_neuron();
  const FireReset<S>& fire = o.fire;
  const int64_t first = (p.T - 1) / K * K;  // start of the last chunk
  Cursor<Storage, N> x_at(p.x, first, i), gs_at(p.grad_s, first, i), gx_at(p.grad_x, p.M, p.T - 1, i);
  Cursor<S, N> gv_at(p.grad_v, p.v_seq ? p.T - 1 : 0, i);
  double grad_leak = 0;
  Pack<S, N> gv = p.grad_v.data && !p.v_seq ? gv_at.load() : fill_pack<S, N>(S(0));

  for (int64_t start = first; start >= 0; start -= K) {
    const int steps = int(p.T - start < K ? p.T - start : K);
    Pack<Storage, N> x[K], gs[K];
    SEWSNN_UNROLL
    for (int k = 0; k < K; ++k) {
      x[k] = x_at.load_if(k < steps);
      x_at.move(1);
    }
    SEWSNN_UNROLL
    for (int k = 0; k < K; ++k) {
      gs[k] = gs_at.load_if(k < steps);
      gs_at.move(1);
    }
    x_at.move(-2 * K), gs_at.move(-2 * K);
    const Pack<S, N> v_start = initial_v<S, N>(p.v0, p.checkpoints, fire.v_reset, start, p.M, i);
    Pack<S, N> v = v_start, h[K];
    SEWSNN_UNROLL
    for (int k = 0; k < K; ++k) {
      h[k] = fill_pack<S, N>(S(0));
      if (k >= steps) continue;
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        h[k].at[j] = neuron.charge(v.at[j], load_(x[k].at[j]));
        v.at[j] = fire.reset(h[k].at[j]);
      }
    }
    S leak_sum = S(0);  // sum of one chunk: at most K N terms
    SEWSNN_UNROLL
    for (int group = K - G; group >= 0; group -= G) {
      if (group >= steps) continue;
      Pack<S, N> sg[G];  // sigma'(h - v_threshold): one uniform branch for the whole group
      o.surrogate.visit([&](auto surrogate) {
        SEWSNN_UNROLL
        for (int k = 0; k < G; ++k) {
          SEWSNN_UNROLL
          for (int j = 0; j < N; ++j) sg[k].at[j] = surrogate(h[group + k].at[j] - fire.v_threshold);
        }
      });
      SEWSNN_UNROLL
      for (int k = G - 1; k >= 0; --k) {
        const int t = group + k;
        if (t >= steps) continue;
        if (p.grad_v.data && p.v_seq) {
          const Pack<S, N> grad = gv_at.load();
          SEWSNN_UNROLL
          for (int j = 0; j < N; ++j) gv.at[j] += grad.at[j];
          gv_at.move(-1);
        }
        Pack<S, N> gx;
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) {
          const S gh = fire.grad_h(load_(gs[t].at[j]), gv.at[j], h[t].at[j], sg[k].at[j]);
          gx.at[j] = neuron.grad_x(gh);
          gv.at[j] = neuron.grad_v(gh);
          if (Leak) {
            const S before = t == 0 ? v_start.at[j] : fire.reset(h[t == 0 ? 0 : t - 1].at[j]);
            leak_sum += gh * neuron.d_leak(before, load_(x[t].at[j]));
          }
        }
        gx_at.store(store_<Storage>(gx));
        gx_at.move(-1);
      }
    }
    if (Leak) grad_leak += double(leak_sum);
  }
  if (p.grad_v0) Cursor<S, N>(p.grad_v0, p.M, 0, i).store(gv);
  return grad_leak;
}

// The number of blocks per multiprocessor for which the registers must suffice: four with 128 registers per thread,
// three with 168, two with 255. Long chunks of 16-bit numbers need 168, and with PLIF's gradient, for which x stays
// until the end, 255.
template <class Storage, int K, int N, bool Leak>
constexpr int blocks_per_multiprocessor() {
  if (K > kAhead) return sizeof(Storage) == 2 && !Leak ? 3 : 2;
  return Leak && N >= 8 ? 3 : 4;
}

template <class Neuron, class Storage, int K, int N, bool Leak>
__global__ void __launch_bounds__(kThreads, blocks_per_multiprocessor<Storage, K, N, Leak>())
    backward_kernel(const BackwardParams p, const Setup<Neuron, State<Storage>> o) {
  wait_for_earlier_kernels();
  static_assert(K % kAhead == 0 && kChunk % K == 0, "chunks begin where checkpoints lie");
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N;
  double grad_leak = 0;
  if (i < p.M)
    grad_leak = o.usual() ? backward_neurons<Neuron, Storage, K, N, Leak, true>(p, o, i)
                          : backward_neurons<Neuron, Storage, K, N, Leak, false>(p, o, i);
  if (Leak) {
    const double sum = block_sum<kThreads>(grad_leak);
    if (threadIdx.x == 0) store_global(p.grad_leak_partials + blockIdx.x, sum);
  }
}

// One block sums the partial sums in a fixed order and rounds once, to the state's type.
template <class S>
__global__ void __launch_bounds__(kSumThreads) sum_partials_kernel(const double* partials, int64_t count, S* out) {
  wait_for_earlier_kernels();
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) sum += load_global(partials + i);
  sum = block_sum<kSumThreads>(sum);
  if (threadIdx.x == 0) store_global(out, S(sum));
}

SEWSNN_END
