// The recurrence of every neuron on a GPU: forward over some time-steps, the replay that backward begins with, and
// backward. The kernels of the neuron, of batch norm and of the stem call it; where x comes from and where dL/dx goes
// are arguments. A thread has N neurons, with their states in registers. Time-steps that do not exist are branched
// over; the branches are the same for all threads.
#pragma once

#include "core/access.h"
#include "core/dtype.h"
#include "neurons/choice.h"

SEWSNN_BEGIN

constexpr int kThreads = 128;
constexpr int kAhead = 4;  // time-steps loaded before they are used

// One number of each kind for each of the N neurons of a thread.
template <class S, int N, int Count>
using Packs = Numbers<Pack<S, N>, Count>;

// Shape is a neuron, or one with the sizes of several (neurons/choice.h).
template <class Shape>
constexpr int kOwnLearnt = Shape::kPerChannel ? Shape::kLearnt : 0;  // learnt numbers that differ between neurons
template <class Shape, class S, int N>
using StatePacks = Packs<S, N, Shape::kStates>;
template <class Shape, class S, int N>
using LearntPacks = Packs<S, N, kOwnLearnt<Shape>>;

template <class S, int N, int Count>
__device__ __forceinline__ Numbers<S, Count> of_neuron(const Packs<S, N, Count>& packs, int j) {
  Numbers<S, Count> numbers;
  if constexpr (Count > 0) {
    SEWSNN_UNROLL
    for (int n = 0; n < Count; ++n) numbers[n] = packs[n].at[j];
  }
  return numbers;
}
template <class S, int N, int Count>
__device__ __forceinline__ void set_neuron(Packs<S, N, Count>& packs, int j, const Numbers<S, Count>& numbers) {
  SEWSNN_UNROLL
  for (int n = 0; n < Count; ++n) packs[n].at[j] = numbers[n];
}
template <class S, int N, int Count>
__device__ __forceinline__ Packs<S, N, Count> zeros() {
  Packs<S, N, Count> packs;
  if constexpr (Count > 0) {
    SEWSNN_UNROLL
    for (int n = 0; n < Count; ++n) packs[n] = fill_pack<S, N>(S(0));
  }
  return packs;
}

// The settings in the state's type. The host converts them, so that kernels compute no constants.
template <class Neuron, class S>
struct Setup {
  Neuron neuron;
  FireReset<S> fire;
  Surrogate<S> surrogate;
  LearntParams learnt;

  static Setup from(const NeuronParams& p) {
    return {Neuron::from(p), FireReset<S>::from(p), Surrogate<S>::from(p), p.learnt};
  }
  // Whether these are the settings of most networks: hard reset, detached, decay_input, ATan.
  __device__ bool usual() const {
    return neuron.decays_input() && fire.hard && fire.detach && surrogate.kind == Surrogate<S>::kATan;
  }
  // The same settings. If Usual, the compiler knows these four.
  template <bool Usual>
  __device__ Setup known() const {
    Setup setup = *this;
    if constexpr (Usual) {
      setup.neuron.set_decays_input();
      setup.fire.hard = setup.fire.detach = true;
      setup.surrogate.kind = Surrogate<S>::kATan;
    }
    return setup;
  }
  // With its learnt number, if it has one that is the same for all neurons.
  __device__ Neuron load_neuron() const {
    Neuron loaded = neuron;
    using Shape = typename Neuron::Shape;
    if constexpr (Shape::kLearnt > 0 && !Shape::kPerChannel)
      if (learnt.data) loaded.set_learnt(load_global(static_cast<const S*>(learnt.data)));
    return loaded;
  }
};

// The learnt numbers of the N neurons from i on, if they differ between neurons.
template <class Shape, class S, int N>
__device__ __forceinline__ LearntPacks<Shape, S, N> load_learnt(const LearntParams& p, int64_t i) {
  LearntPacks<Shape, S, N> learnt;
  if constexpr (kOwnLearnt<Shape> > 0) {
    SEWSNN_UNROLL
    for (int j = 0; j < N; ++j) {
      const int64_t channel = p.channels.count == 1 ? 0 : (i + j) / p.channels.inner % p.channels.count;
      SEWSNN_UNROLL
      for (int q = 0; q < kOwnLearnt<Shape>; ++q)
        learnt[q].at[j] = load_global(static_cast<const S*>(p.data) + q * p.channels.count + channel);
    }
  }
  return learnt;
}

template <class Shape, class S, int N, class Neuron>
__device__ __forceinline__ StatePacks<Shape, S, N> at_rest(const Neuron& neuron, const FireReset<S>& fire) {
  StatePacks<Shape, S, N> rest;
  SEWSNN_UNROLL
  for (int n = 0; n < Shape::kStates; ++n) rest[n] = fill_pack<S, N>(neuron.at_rest(fire, n));
  return rest;
}

// The row of state n before time-step t, a multiple of kChunk and not 0, in [states, checkpoint_count(T), M].
__device__ __forceinline__ int64_t checkpoint_row(int n, int64_t T, int64_t t) {
  return n * ((T - 1) / kChunk) + t / kChunk - 1;
}

// The states before time-step t, a multiple of kChunk: v0 or checkpoints; `rest` without them.
template <class Shape, class S, int N>
__device__ __forceinline__ StatePacks<Shape, S, N> initial_states(const Rows& v0, const void* checkpoints,
                                                                  const StatePacks<Shape, S, N>& rest, int64_t T,
                                                                  int64_t t, int64_t M, int64_t i) {
  const void* const from = t == 0 ? v0.data : checkpoints;
  if (!from) return rest;
  StatePacks<Shape, S, N> u;
  SEWSNN_UNROLL
  for (int n = 0; n < Shape::kStates; ++n) {
    const int64_t row = t == 0 ? n : checkpoint_row(n, T, t);
    u[n] = Cursor<S, N>({from, n > 0 && t == 0 ? v0.row_stride : M, 1}, row, i).load();
  }
  return u;
}

template <class Shape, class S, int N>
__device__ __forceinline__ void store_checkpoints(void* checkpoints, const StatePacks<Shape, S, N>& u, int64_t T,
                                                  int64_t t, int64_t M, int64_t i) {
  SEWSNN_UNROLL
  for (int n = 0; n < Shape::kStates; ++n) Cursor<S, N>(checkpoints, M, checkpoint_row(n, T, t), i).store(u[n]);
}

// A spike as a number: `one` or `zero`, or the number of spikes of a neuron that is not binary.
template <class Storage>
__device__ __forceinline__ Storage spike_as(bool fires, Storage one, Storage zero) {
  return fires ? one : zero;
}
template <class Storage, class S, class = std::enable_if_t<!std::is_same_v<S, bool>>>
__device__ __forceinline__ Storage spike_as(S count, Storage, Storage) {
  return store_<Storage>(State<Storage>(count));
}

// Runs the neurons over the time-steps 0 .. K - 1, up to the first that does not exist. input(k, j) is x. spike(k, j,
// s) gets the spikes, end(k) ends a time-step.
template <int K, class Neuron, class S, int N, int States, class W, class Exists, class Input, class Spike, class End>
__device__ __forceinline__ void run_forward(const Neuron& neuron, const FireReset<S>& fire, const W& learnt,
                                            Packs<S, N, States>& u, Exists&& exists, Input&& input, Spike&& spike,
                                            End&& end) {
  SEWSNN_UNROLL
  for (int k = 0; k < K; ++k) {
    if (!exists(k)) break;
    SEWSNN_UNROLL
    for (int j = 0; j < N; ++j) {
      Numbers<S, States> v = of_neuron(u, j);
      const auto w = of_neuron(learnt, j);
      neuron.charge(v, input(k, j), w);
      spike(k, j, neuron.spikes(fire, v, w));
      neuron.reset(fire, v, w);
      set_neuron(u, j, v);
    }
    end(k);
  }
}

// Recomputes h, the states before each reset. Those of a time-step that does not exist become 0 if filled(k).
template <int K, class Neuron, class S, int N, int States, class W, class Exists, class Filled, class Input>
__device__ __forceinline__ void replay(const Neuron& neuron, const FireReset<S>& fire, const W& learnt,
                                       Packs<S, N, States> u, Packs<S, N, States> (&h)[K], Exists&& exists,
                                       Filled&& filled, Input&& input) {
  SEWSNN_UNROLL
  for (int k = 0; k < K; ++k) {
    if (!exists(k)) {
      if (filled(k)) h[k] = zeros<S, N, States>();
      continue;
    }
    SEWSNN_UNROLL
    for (int j = 0; j < N; ++j) {
      Numbers<S, States> v = of_neuron(u, j);
      const auto w = of_neuron(learnt, j);
      neuron.charge(v, input(k, j), w);
      set_neuron(h[k], j, v);
      neuron.reset(fire, v, w);
      set_neuron(u, j, v);
    }
  }
}

// sigma'(h - v_threshold) of the G time-steps from `group` on: one uniform branch for all of them.
template <class Shape, int G, class Sigma, class Neuron, class S, int N, int States, class W>
__device__ __forceinline__ void surrogate_values(const Sigma& surrogate, const Neuron& neuron, const FireReset<S>& fire,
                                                 const W& learnt, const Packs<S, N, States>* h,
                                                 Pack<S, N> (&values)[G]) {
  if constexpr (Shape::kSurrogate) {
    surrogate.visit([&](auto sigma) {
      SEWSNN_UNROLL
      for (int k = 0; k < G; ++k) {
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j)
          values[k].at[j] = sigma(neuron.above_threshold(fire, of_neuron(h[k], j), of_neuron(learnt, j)));
      }
    });
  } else {
    SEWSNN_UNROLL
    for (int k = 0; k < G; ++k) values[k] = fill_pack<S, N>(S(0));
  }
}

// The gradients of learnt parameters, summed over time-steps: one number for all neurons of the thread, or one for
// each.
template <class S>
struct SharedSum {
  S sum = S(0);
  __device__ __forceinline__ void add(int, const Numbers<S, 1>& grads) { sum += grads[0]; }
  __device__ __forceinline__ void add(int, const Numbers<S, 0>&) {}
};
template <class S, int N, int Count>
struct OwnSums {
  Packs<S, N, Count> sums = zeros<S, N, Count>();
  __device__ __forceinline__ void add(int j, const Numbers<S, Count>& grads) {
    if constexpr (Count > 0) {
      SEWSNN_UNROLL
      for (int q = 0; q < Count; ++q) sums[q].at[j] += grads[q];
    }
  }
};
template <class Shape, class S, int N>
using LearntSums = std::conditional_t<Shape::kPerChannel, OwnSums<S, N, Shape::kLearnt>, SharedSum<S>>;

// Backward over the G time-steps from `group` on, the latest first. h: the states before each reset; start: those
// before time-step 0. grads: the gradient of the states after the group, then of those before it. begin(k), k = 0 .. G
// - 1, begins a time-step, grad_s(k, j) is dL/ds, put(k, j, dL/dx) takes the result, end(k) ends the time-step. If
// learn() the gradients of learnt parameters are added to `sums`.
template <int G, bool Learn, class Neuron, class S, int N, int States, class W, class Sums, class Exists, class Input,
          class GradS, class Begin, class Put, class End, class Wanted>
__device__ __forceinline__ void run_backward(const Neuron& neuron, const FireReset<S>& fire, const W& learnt, int group,
                                             const Packs<S, N, States>& start, const Packs<S, N, States>* h,
                                             const Pack<S, N> (&sigma)[G], Packs<S, N, States>& grads, Sums& sums,
                                             Exists&& exists, Input&& input, GradS&& grad_s, Begin&& begin, Put&& put,
                                             End&& end, Wanted&& learn) {
  SEWSNN_UNROLL
  for (int k = G - 1; k >= 0; --k) {
    const int t = group + k;
    if (!exists(t)) continue;
    begin(k);
    SEWSNN_UNROLL
    for (int j = 0; j < N; ++j) {
      const auto w = of_neuron(learnt, j);
      Numbers<S, States> g = of_neuron(grads, j), before = {};
      if constexpr (Learn || Neuron::kNonlinear) {
        before = of_neuron(t == 0 ? start : h[t == 0 ? 0 : t - 1], j);
        if (t != 0) neuron.reset(fire, before, w);
      }
      Numbers<S, Neuron::kLearnt> grad_learnt;
      neuron.grad_reset(fire, grad_s(k, j), sigma[k].at[j], of_neuron(h[t], j), w, g, grad_learnt);
      put(k, j, neuron.grad_charge(g, before, input(t, j), w, grad_learnt));
      set_neuron(grads, j, g);
      if constexpr (Learn)
        if (learn()) sums.add(j, grad_learnt);
    }
    end(k);
  }
}

SEWSNN_END
