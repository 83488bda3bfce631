// Multi-step IF/LIF/PLIF on the GPU. A thread owns N neighbouring neurons (one 16-byte access where the storage allows
// it) and runs all T time-steps with the state in registers. Loads are issued several time-steps ahead: the recurrence
// is short, the memory far. Backward replays K time-steps at a time from x, K <= kChunk, and keeps their h in
// registers.
#pragma once

#include "core/access.h"
#include "core/dtype.h"
#include "neurons/fire.h"
#include "neurons/surrogate.h"

SEWSNN_BEGIN

constexpr int kThreads = 256;
constexpr int kAhead = 4;  // time-steps loaded before they are used

// v before time-step t, a multiple of kChunk.
template <class S, int N>
__device__ __forceinline__ Pack<S, N> initial_v(const NeuronParams& p, const void* v0, const void* checkpoints,
                                                int64_t t, int64_t M, int64_t i) {
  const void* const from = t == 0 ? v0 : checkpoints;
  if (from) return load_pack<S, N>({from, M, 1}, t == 0 ? 0 : t / kChunk - 1, i);
  return fill_pack<S, N>(S(p.v_reset));
}

template <class Neuron, class Storage, int N>
__global__ void __launch_bounds__(kThreads) forward_kernel(const ForwardParams p) {
  using S = State<Storage>;
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (i >= p.M) return;
  const Neuron neuron = Neuron::from(p.neuron, leak_of<S>(p.neuron));
  const FireReset<S> fire = FireReset<S>::from(p.neuron);
  Pack<S, N> v = initial_v<S, N>(p.neuron, p.v0, nullptr, 0, p.M, i);

  for (int64_t start = 0; start < p.T; start += kAhead) {
    Pack<Storage, N> x[kAhead];
    SEWSNN_UNROLL
    for (int k = 0; k < kAhead; ++k)
      if (start + k < p.T) x[k] = load_pack<Storage, N>(p.x, start + k, i);
    if (p.checkpoints && start > 0 && start % kChunk == 0)
      store_pack<S, N>(p.checkpoints, (start / kChunk - 1) * p.M + i, v);
    SEWSNN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (start + k >= p.T) break;
      Pack<Storage, N> s;
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        const S h = neuron.charge(v.at[j], load_(x[k].at[j]));
        s.at[j] = store_<Storage>(fire.fires(h) ? S(1) : S(0));
        v.at[j] = fire.reset(h);
      }
      store_pack<Storage, N>(p.s, (start + k) * p.M + i, s);
      if (p.v_seq) store_pack<S, N>(p.v, (start + k) * p.M + i, v);
    }
  }
  if (p.v && !p.v_seq) store_pack<S, N>(p.v, i, v);
}

// Sum over the block, in an order that depends on nothing but the thread number; thread 0 has it.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double warps[kThreads / 32];
  SEWSNN_UNROLL
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(0xffffffffu, x, offset);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0)
    for (int w = 0; w < kThreads / 32; ++w) sum += warps[w];
  return sum;
}

// The N neurons from i: writes grad_x and grad_v0, returns their share of dL/dleak (0 unless Leak).
template <class Neuron, class Storage, int K, int N, bool Leak>
__device__ __forceinline__ double backward_neurons(const BackwardParams& p, int64_t i) {
  using S = State<Storage>;
  const Neuron neuron = Neuron::from(p.neuron, leak_of<S>(p.neuron));
  const FireReset<S> fire = FireReset<S>::from(p.neuron);
  double grad_leak = 0;
  Pack<S, N> gv = fill_pack<S, N>(S(0));
  if (p.grad_v.data && !p.v_seq) gv = load_pack<S, N>(p.grad_v, 0, i);

  for (int64_t start = (p.T - 1) / K * K; start >= 0; start -= K) {
    Pack<S, N> h[K] = {};  // those beyond T stay 0
    Pack<Storage, N> x[K];
    const Pack<S, N> v_start = initial_v<S, N>(p.neuron, p.v0, p.checkpoints, start, p.M, i);
    Pack<S, N> v = v_start;
    SEWSNN_UNROLL
    for (int k = 0; k < K; ++k)
      if (start + k < p.T) x[k] = load_pack<Storage, N>(p.x, start + k, i);
    SEWSNN_UNROLL
    for (int k = 0; k < K; ++k) {
      if (start + k >= p.T) break;
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        h[k].at[j] = neuron.charge(v.at[j], load_(x[k].at[j]));
        v.at[j] = fire.reset(h[k].at[j]);
      }
    }
    S leak_sum = S(0);  // of one chunk: K N terms at most
    SEWSNN_UNROLL
    for (int group = K - kAhead; group >= 0; group -= kAhead) {
      Pack<Storage, N> gs[kAhead];
      SEWSNN_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        gs[k] = start + group + k < p.T && p.grad_s.data ? load_pack<Storage, N>(p.grad_s, start + group + k, i)
                                                         : fill_pack<Storage, N>(store_<Storage>(S(0)));
      }
      Pack<S, N> sg[kAhead];  // sigma'(h - v_threshold): one uniform branch for the whole group
      with_surrogate<S>(p.neuron.surrogate, p.neuron.alpha, [&](auto surrogate) {
        SEWSNN_UNROLL
        for (int k = 0; k < kAhead; ++k) SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) sg[k].at[j] = surrogate(h[group + k].at[j] - fire.v_threshold);
      });
      SEWSNN_UNROLL
      for (int k = kAhead - 1; k >= 0; --k) {
        const int64_t t = start + group + k;
        if (t >= p.T) continue;
        if (p.grad_v.data && p.v_seq) {
          const Pack<S, N> grad = load_pack<S, N>(p.grad_v, t, i);
          SEWSNN_UNROLL
          for (int j = 0; j < N; ++j) gv.at[j] += grad.at[j];
        }
        Pack<Storage, N> gx;
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) {
          const S h_t = h[group + k].at[j];
          const S gh = fire.grad_h(load_(gs[k].at[j]), gv.at[j], h_t, sg[k].at[j]);
          gx.at[j] = store_<Storage>(neuron.grad_x(gh));
          gv.at[j] = neuron.grad_v(gh);
          if (Leak) {
            const S before = group + k == 0 ? v_start.at[j] : fire.reset(h[group + k == 0 ? 0 : group + k - 1].at[j]);
            leak_sum += gh * neuron.d_leak(before, load_(x[group + k].at[j]));
          }
        }
        store_pack<Storage, N>(p.grad_x, t * p.M + i, gx);
      }
    }
    if (Leak) grad_leak += double(leak_sum);
  }
  if (p.grad_v0) store_pack<S, N>(p.grad_v0, i, gv);
  return grad_leak;
}

template <class Neuron, class Storage, int K, int N, bool Leak>
__global__ void __launch_bounds__(kThreads) backward_kernel(const BackwardParams p) {
  static_assert(K % kAhead == 0 && kChunk % K == 0, "chunks begin where checkpoints lie");
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N;
  double grad_leak = 0;
  if (i < p.M) grad_leak = backward_neurons<Neuron, Storage, K, N, Leak>(p, i);
  if (Leak) {
    const double sum = block_sum(grad_leak);
    if (threadIdx.x == 0) store_global(p.grad_leak_partials + blockIdx.x, sum);
  }
}

// One block: the partial sums in a fixed order, rounded once to the state's type.
template <class S>
__global__ void __launch_bounds__(kThreads) sum_partials_kernel(const double* partials, int64_t count, S* out) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += load_global(partials + i);
  sum = block_sum(sum);
  if (threadIdx.x == 0) store_global(out, S(sum));
}

SEWSNN_END
