// Multi-step neurons on the GPU. A thread owns N neighbouring neurons (one access of 16 bytes where the storage type
// allows it) and runs all T time-steps with the states in registers. It issues loads several time-steps ahead, because
// the recurrence is short and the latency of memory is long. Backward replays K <= kChunk time-steps at a time from x
// and keeps their states in registers.
#pragma once

#include "kernels/recurrence.cuh"

SEWSNN_BEGIN

constexpr int kSumThreads = 1024;  // threads of the one block that adds partial sums

template <class Neuron, class Storage, int N>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const ForwardParams p, const Setup<OneNeuron<Neuron>, State<Storage>> o) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (i >= p.M) return;
  const Neuron neuron = o.load_neuron().value;
  const auto learnt = load_learnt<Neuron, S, N>(o.learnt, i);
  const Storage one = store_<Storage>(S(1)), zero = store_<Storage>(S(0));
  Cursor<Storage, N> x_at(p.x, 0, i), s_at(p.s, p.M, 0, i);
  Cursor<S, N> v_at(p.v, p.M, 0, i);
  auto u = initial_states<Neuron, S, N>(p.v0, nullptr, at_rest<Neuron, S, N>(neuron, o.fire), p.T, 0, p.M, i);

  for (int64_t start = 0; start < p.T; start += kAhead) {
    Pack<Storage, N> x[kAhead], s;
    SEWSNN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (start + k < p.T) x[k] = x_at.load();
      x_at.move(1);
    }
    if (p.checkpoints && start > 0 && start % kChunk == 0)
      store_checkpoints<Neuron, S, N>(p.checkpoints, u, p.T, start, p.M, i);
    run_forward<kAhead>(
        neuron, o.fire, learnt, u, [&](int k) { return start + k < p.T; },
        [&](int k, int j) { return load_(x[k].at[j]); },
        [&](int, int j, auto spikes) { s.at[j] = spike_as<Storage>(spikes, one, zero); },
        [&](int) {
          s_at.store(s);
          s_at.move(1);
          if (p.v_seq) {
            v_at.store(u[0]);
            SEWSNN_UNROLL
            for (int n = 1; n < Neuron::kStates; ++n) Cursor<S, N>(v_at).moved(n * p.T).store(u[n]);
            v_at.move(1);
          }
        });
  }
  if (p.v && !p.v_seq) {
    SEWSNN_UNROLL
    for (int n = 0; n < Neuron::kStates; ++n) Cursor<S, N>(v_at).moved(n).store(u[n]);
  }
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

// Backward of the N neurons from i on: writes grad_x and the gradient of v0, adds the gradients of learnt parameters if
// Learn. All loads of a chunk are issued before the first of them is used.
template <class Neuron, class Storage, int K, int N, bool Learn, bool Usual>
__device__ __forceinline__ void backward_neurons(const BackwardParams& p,
                                                 const Setup<OneNeuron<Neuron>, State<Storage>>& setup, int64_t i,
                                                 Numbers<double, Neuron::kLearnt + 1>& grad_learnt) {
  using S = State<Storage>;
  const auto o = setup.template known<Usual>();
  constexpr int G = Usual || N == 8 ? 2 : kAhead;  // time-steps that have their sigma' in registers at the same time
  const Neuron neuron = o.load_neuron().value;
  const auto learnt = load_learnt<Neuron, S, N>(o.learnt, i);
  const FireReset<S>& fire = o.fire;
  const int64_t first = (p.T - 1) / K * K;  // start of the last chunk
  Cursor<Storage, N> x_at(p.x, first, i), gs_at(p.grad_s, first, i), gx_at(p.grad_x, p.M, p.T - 1, i);
  auto grads = zeros<S, N, Neuron::kStates>();
  Cursor<S, N> gv_at[Neuron::kStates];
  SEWSNN_UNROLL
  for (int n = 0; n < Neuron::kStates; ++n) {
    gv_at[n] = Cursor<S, N>(p.grad_v[n], p.v_seq ? p.T - 1 : 0, i);
    if (p.grad_v[n].data && !p.v_seq) grads[n] = gv_at[n].load();
  }
  OwnSums<S, N, Neuron::kPerChannel ? Neuron::kLearnt : 0> own;

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
    const auto at_start =
        initial_states<Neuron, S, N>(p.v0, p.checkpoints, at_rest<Neuron, S, N>(neuron, fire), p.T, start, p.M, i);
    const auto exists = [&](int k) { return k < steps; };
    const auto input = [&](int k, int j) { return load_(x[k].at[j]); };
    Packs<S, N, Neuron::kStates> h[K];
    replay<K>(neuron, fire, learnt, at_start, h, exists, [](int) { return true; }, input);
    SharedSum<S> shared;  // of one chunk: at most K N terms
    SEWSNN_UNROLL
    for (int group = K - G; group >= 0; group -= G) {
      if (group >= steps) continue;
      Pack<S, N> sigma[G], gx;
      surrogate_values<Neuron>(o.surrogate, neuron, fire, learnt, h + group, sigma);
      const auto begin = [&](int) {
        SEWSNN_UNROLL
        for (int n = 0; n < Neuron::kStates; ++n) {
          if (!p.grad_v[n].data || !p.v_seq) continue;
          const Pack<S, N> grad = gv_at[n].load();
          SEWSNN_UNROLL
          for (int j = 0; j < N; ++j) grads[n].at[j] += grad.at[j];
          gv_at[n].move(-1);
        }
      };
      const auto run = [&](auto& sums) {
        run_backward<G, Learn>(
            neuron, fire, learnt, group, at_start, h, sigma, grads, sums, exists, input,
            [&](int k, int j) { return load_(gs[group + k].at[j]); }, begin,
            [&](int, int j, S grad) { gx.at[j] = grad; },
            [&](int) {
              gx_at.store(store_<Storage>(gx));
              gx_at.move(-1);
            },
            [] { return true; });
      };
      if constexpr (Neuron::kPerChannel) run(own);
      else run(shared);
    }
    if constexpr (Learn && !Neuron::kPerChannel) grad_learnt[0] += double(shared.sum);
  }
  if (p.grad_v0) {
    SEWSNN_UNROLL
    for (int n = 0; n < Neuron::kStates; ++n) Cursor<S, N>(p.grad_v0, p.M, n, i).store(grads[n]);
  }
  if constexpr (Learn && Neuron::kPerChannel) {
    SEWSNN_UNROLL
    for (int q = 0; q < Neuron::kLearnt; ++q) {
      if (p.learnt_elements) {
        Cursor<S, N>(p.learnt_elements, p.M, q, i).store(own.sums[q]);
      } else {
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) grad_learnt[q] += double(own.sums[q].at[j]);
      }
    }
  }
}

// The number of blocks per multiprocessor for which the registers must suffice: four with 128 registers per thread,
// three with 168, two with 255. Long chunks of 16-bit numbers need 168, and with PLIF's gradient, for which x stays
// until the end, 255.
template <class Storage, int K, int N, bool Learn>
constexpr int blocks_per_multiprocessor() {
  if (K > kAhead) return sizeof(Storage) == 2 && !Learn ? 3 : 2;
  return Learn && N >= 8 ? 3 : 4;
}

template <class Neuron, class Storage, int K, int N, bool Learn>
__global__ void __launch_bounds__(kThreads, blocks_per_multiprocessor<Storage, K, N, Learn>())
    backward_kernel(const BackwardParams p, const Setup<OneNeuron<Neuron>, State<Storage>> o) {
  wait_for_earlier_kernels();
  static_assert(K % kAhead == 0 && kChunk % K == 0, "chunks begin where checkpoints lie");
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N;
  Numbers<double, Neuron::kLearnt + 1> grad_learnt;
  if constexpr (Learn)
    for (int q = 0; q < Neuron::kLearnt; ++q) grad_learnt[q] = 0;
  if (i < p.M) {
    if (o.usual()) backward_neurons<Neuron, Storage, K, N, Learn, true>(p, o, i, grad_learnt);
    else backward_neurons<Neuron, Storage, K, N, Learn, false>(p, o, i, grad_learnt);
  }
  if constexpr (Learn) {
    if (!p.learnt_partials) return;
    SEWSNN_UNROLL
    for (int q = 0; q < Neuron::kLearnt; ++q) {
      const double sum = block_sum<kThreads>(grad_learnt[q]);
      if (threadIdx.x == 0) store_global(p.learnt_partials + q * gridDim.x + blockIdx.x, sum);
      if (Neuron::kLearnt > 1) __syncthreads();
    }
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

// Sums each row of [rows, n] numbers in a fixed order, one block per row.
template <class S>
__global__ void __launch_bounds__(kSumThreads) sum_rows_kernel(const S* numbers, int64_t n, S* out) {
  wait_for_earlier_kernels();
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kSumThreads) sum += double(load_global(numbers + blockIdx.x * n + i));
  sum = block_sum<kSumThreads>(sum);
  if (threadIdx.x == 0) store_global(out + blockIdx.x, S(sum));
}

SEWSNN_END
