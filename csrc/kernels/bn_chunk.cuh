// Backward of batch norm, neuron and connection over one chunk of K time-steps: the loads of a chunk, and dL/dy.
#pragma once

#include "kernels/bn_forward.cuh"

SEWSNN_BEGIN

// The start of the last chunk. A chunk that is shorter than kChunk is the only one.
template <int K>
SEWSNN_HD int64_t last_chunk(int64_t T) {
  return K < kChunk ? 0 : (T - 1) / K * K;
}

// The number of time-steps from `start` on that exist, at most K.
template <int K>
SEWSNN_HD int steps_of(int64_t T, int64_t start) {
  return T - start < K ? int(T - start) : K;
}

// What backward reads of N neurons in the K time-steps from `start` on. If Two, there may be a second gradient.
template <class Storage, int K, int N, bool Shortcut, bool Two, bool Optional>
struct ChunkInputs {
  Words<Storage, N> z[K], shortcut[Shortcut ? K : 1], grad_out[K], grad_skip[Two ? K : 1];

  // Loads the time-steps that exist. All loads are issued before the first number is used. The gradient of a pooled
  // output is left out (bn_pooled.cuh).
  template <class P>
  __device__ __forceinline__ void load(const P& p, int64_t start, int64_t i) {
    const int steps = steps_of<K>(p.T, start);
    Cursor<Storage, N> z_at(p.z, start, i), shortcut_at(p.shortcut, start, i), grad_at(p.grad_out, start, i);
    SEWSNN_UNROLL
    for (int k = 0; k < K; ++k) {
      if (k < steps) {
        z[k].load(z_at);
        if (Shortcut && (!Optional || p.shortcut.data)) shortcut[k].load(shortcut_at);
        if constexpr (!P::kPooled) grad_out[k].load(grad_at);
      }
      z_at.move(1), shortcut_at.move(1), grad_at.move(1);
    }
    if constexpr (Two) {
      if (!p.grad_skip.data) return;
      Cursor<Storage, N> skip_at(p.grad_skip, start, i);
      SEWSNN_UNROLL
      for (int k = 0; k < K; ++k) {
        if (k < steps) grad_skip[k].load(skip_at);
        skip_at.move(1);
      }
    }
  }

  // Adds the second gradient, if there is one, and stores the sum for apply. Both passes use the rounded sum.
  template <class P>
  __device__ __forceinline__ void add_gradients(const P& p, int64_t start, int64_t i) {
    if constexpr (Two) {
      if (!p.grad_skip.data || (Shortcut && p.connect == Connect::Sum)) return;
      const int steps = steps_of<K>(p.T, start);
      Cursor<Storage, N> sum_at(p.grad_sum, p.M, start, i);
      SEWSNN_UNROLL
      for (int k = 0; k < K; ++k) {
        if (k >= steps) continue;
        Pack<State<Storage>, N> both;
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) both.at[j] = grad_out[k].number(j) + grad_skip[k].number(j);
        grad_out[k] = Words<Storage, N>::of(both);  // rounded
        grad_out[k].store(sum_at);
        sum_at.move(1);
      }
    }
  }

  // Connect::Sum: adds the other gradient of u, if there is one, to dL/dy of time-step k, rounds the sum, and stores
  // it.
  template <class P>
  __device__ __forceinline__ void store_sum(const P& p, int64_t start, int k, int64_t i,
                                            Pack<State<Storage>, N>& grad_y) {
    if constexpr (Two) {
      if (p.grad_skip.data) {
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) grad_y.at[j] += grad_skip[k].number(j);
      }
      const auto rounded = Words<Storage, N>::of(grad_y);
      rounded.store(Cursor<Storage, N>(p.grad_sum, p.M, start + k, i));
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) grad_y.at[j] = rounded.number(j);
    }
  }
};

// The values of a time-step when its dL/dy has been computed.
template <class Storage, int N, int States>
struct Step {
  int64_t t;
  Pack<State<Storage>, N> grad_y;
  Packs<State<Storage>, N, States> h;  // of the neuron; without a neuron: its input
  Words<Storage, N> z, grad_out;
};

// The gradients of learnt parameters over all chunks. A number that is shared by all neurons is summed per chunk in the
// state's type.
template <class Shape, class S, int N>
struct LearntGrads {
  bool wanted;
  double shared = 0;
  OwnSums<S, N, kOwnLearnt<Shape>> own;
};

// The options of the neuron. If Usual, those that most networks use are constants of the compiler: hard reset to 0,
// detached, decay_input.
template <class Neurons, class S, bool Usual>
struct Options {
  FireReset<S> fire;
  Neurons neuron;
  bool spiking;

  __device__ __forceinline__ Options(const BnParams& p, const BnSetup<Neurons, S>& o)
      : fire(o.sn.fire), neuron(o.sn.load_neuron()), spiking(p.spiking) {
    if (Usual) fire.assume_usual(), neuron.assume_usual(), spiking = true;
  }
};

// backward_chunk with a neuron and a surrogate, which may be Chosen. Of every Together time-steps
// either all exist or none.
template <int Together, bool Learn, bool Usual, class Storage, int K, int N, bool Shortcut, bool Two, bool Optional,
          class Neurons, class P, class Neuron, class Sigma, class Take>
__device__ __forceinline__ void chunk_with(const P& p, const Options<Neurons, State<Storage>, Usual>& o,
                                           const Neuron& neuron, const Sigma& surrogate,
                                           const LearntPacks<typename Neurons::Shape, State<Storage>, N>& learnt,
                                           const Pack<State<Storage>, N>* norm, int64_t start, int64_t i,
                                           ChunkInputs<Storage, K, N, Shortcut, Two, Optional>& in,
                                           StatePacks<typename Neurons::Shape, State<Storage>, N>& grads,
                                           LearntGrads<typename Neurons::Shape, State<Storage>, N>& grad_learnt,
                                           Take&& take) {
  using S = State<Storage>;
  using Shape = typename Neurons::Shape;
  constexpr int States = Shape::kStates;
  constexpr int G = sizeof(S) == 8 ? 1 : 2;  // time-steps that have their sigma' in registers at the same time
  const FireReset<S>& fire = o.fire;
  const bool before = p.connect == Connect::AddBefore, sum = Shortcut && Two && p.connect == Connect::Sum;
  const bool gated = Shortcut && !before && !sum && (!Optional || p.shortcut.data);  // And, Iand
  const int steps = steps_of<K>(p.T, start);
  const auto exists = [&](int k) { return Together == K || k / Together * Together < steps; };
  const auto input = [&](int k, int j) {
    if (sum) return in.shortcut[Shortcut ? k : 0].number(j);  // u, which forward has stored
    const S y = Affine<S>{norm[0].at[j], norm[1].at[j], norm[2].at[j]}(in.z[k].number(j));
    return Shortcut && before ? y + in.shortcut[Shortcut ? k : 0].number(j) : y;
  };

  const auto at_start = initial_states<Shape, S, N>({}, K < kChunk ? nullptr : p.checkpoints,
                                                    at_rest<Shape, S, N>(o.neuron, fire), p.T, start, p.M, i);
  Packs<S, N, States> h[K];
  if (o.spiking) {
    const auto filled = [](int k) { return Together < G && k % G != 0; };  // its group may be worked on
    neuron.visit([&](const auto& n) { replay<K>(n, fire, learnt, at_start, h, exists, filled, input); });
  } else {
    SEWSNN_UNROLL
    for (int k = 0; k < K; ++k) {
      h[k] = zeros<S, N, States>();
      if (!exists(k)) continue;
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) h[k][0].at[j] = input(k, j);
    }
  }

  if (K > kAhead) {  // there are too few registers for both y and h
    SEWSNN_UNROLL
    for (int k = 0; k < K; ++k) {
      in.z[k].forget();
      if (Shortcut) in.shortcut[Shortcut ? k : 0].forget();
    }
  }
  SharedSum<S> shared;
  SEWSNN_UNROLL
  for (int group = K - G; group >= 0; group -= G) {
    if (!exists(group)) continue;
    Pack<S, N> grad[G];  // dL/dA, then dL/dy
    SEWSNN_UNROLL
    for (int k = 0; k < G; ++k) {
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        grad[k].at[j] = in.grad_out[group + k].number(j);
        if (gated) {
          const S s = in.shortcut[Shortcut ? group + k : 0].number(j);
          grad[k].at[j] *= p.connect == Connect::And ? s : -s;
        }
      }
    }
    if (o.spiking) {
      Pack<S, N> sigma[G];
      surrogate_values<Shape>(surrogate, o.neuron, fire, learnt, h + group, sigma);
      neuron.visit([&](const auto& n) {
        const auto run = [&](auto& sums) {
          run_backward<G, Learn>(
              n, fire, learnt, group, at_start, h, sigma, grads, sums, exists, input,
              [&](int k, int j) { return grad[k].at[j]; }, [](int) {},
              [&](int k, int j, S grad_y) { grad[k].at[j] = grad_y; }, [](int) {}, [&] { return grad_learnt.wanted; });
        };
        if constexpr (Shape::kPerChannel) run(grad_learnt.own);
        else run(shared);
      });
    }
    if constexpr (Shortcut && Two) {
      if (sum) {
        SEWSNN_UNROLL
        for (int k = 0; k < G; ++k) {
          if (exists(group + k)) in.store_sum(p, start, group + k, i, grad[k]);
        }
      }
    }
    SEWSNN_UNROLL
    for (int k = G - 1; k >= 0; --k) {
      if (exists(group + k))
        take(Step<Storage, N, States>{start + group + k, grad[k], h[group + k], in.z[group + k],
                                      in.grad_out[group + k]});
    }
  }
  if (Learn && !Shape::kPerChannel && grad_learnt.wanted) grad_learnt.shared += double(shared.sum);
}

// Computes dL/dy of the time-steps of a chunk, the latest first, and calls take(step) for each. grads are the gradients
// of the states after the chunk, then of those before it. If Usual, and the surrogate is ATan or UnitATan, the neuron
// is chosen once per chunk where registers suffice.
template <bool Usual, bool Learn, class Storage, int K, int N, bool Shortcut, bool Two, bool Optional, class Neurons,
          class P, class Take>
__device__ __forceinline__ void backward_chunk(const P& p, const Options<Neurons, State<Storage>, Usual>& o,
                                               const Surrogate<State<Storage>>& surrogate,
                                               const LearntPacks<typename Neurons::Shape, State<Storage>, N>& learnt,
                                               const Pack<State<Storage>, N>* norm, int64_t start, int64_t i,
                                               ChunkInputs<Storage, K, N, Shortcut, Two, Optional>& in,
                                               StatePacks<typename Neurons::Shape, State<Storage>, N>& grads,
                                               LearntGrads<typename Neurons::Shape, State<Storage>, N>& grad_learnt,
                                               Take&& take) {
  in.add_gradients(p, start, i);
  const auto with = [&](auto together, auto learn, const auto& neuron, const auto& sigma) {
    chunk_with<decltype(together)::value, decltype(learn)::value, Usual>(p, o, neuron, sigma, learnt, norm, start, i,
                                                                         in, grads, grad_learnt, take);
  };
  if constexpr (Usual) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000  // ptxas would keep so many values that it runs out of registers
    with(Int<1>(), Bool<Learn>(), o.neuron, surrogate);
#else
    using S = State<Storage>;
    if (!Surrogate<S>::has_atan_form(surrogate.kind)) return with(Int<1>(), Bool<Learn>(), o.neuron, surrogate);
    const ATan<S> form = surrogate.atan_form();
    const Chosen<ATan<S>> atan = {form};
    o.neuron.visit([&](const auto& n) {
      using Neuron = std::remove_cv_t<std::remove_reference_t<decltype(n)>>;
      const Chosen<Neuron> chosen = {n};
      // A whole chunk has no branches, so that time-steps share what they compute and overlap. The divisions of
      // LeakyDivide would cost more than the branches.
      constexpr bool kWhole = !std::is_same_v<Neuron, LeakyDivide<S>>;
      const bool whole = steps_of<K>(p.T, start) == K;
      if constexpr (Learn && Neuron::kLearnt > 0) {                           // PLIF
        constexpr int kTogether = K == kAhead ? K : K == 2 * kAhead ? 2 : 1;  // more time-steps, fewer registers
        if (kTogether > 1 && grad_learnt.wanted && whole) return with(Int<kTogether>(), Bool<true>(), chosen, atan);
        if (grad_learnt.wanted) return with(Int<1>(), Bool<true>(), chosen, atan);
      }
      if constexpr (kWhole) {
        if (whole) return with(Int<K>(), Bool<false>(), chosen, atan);
      }
      return with(Int<1>(), Bool<false>(), chosen, atan);
    });
#endif
  } else {
    with(Int<1>(), Bool<Learn>(), o.neuron, surrogate);
  }
}

SEWSNN_END
