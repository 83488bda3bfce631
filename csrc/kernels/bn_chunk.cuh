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
template <class Storage, int K, int N, bool Shortcut, bool Two>
struct ChunkInputs {
  Words<Storage, N> z[K], shortcut[Shortcut ? K : 1], grad_out[K], grad_skip[Two ? K : 1];

  // Loads the time-steps that exist. All loads are issued before the first number is used.
  template <class P>
  __device__ __forceinline__ void load(const P& p, int64_t start, int64_t i) {
    const int steps = steps_of<K>(p.T, start);
    Cursor<Storage, N> z_at(p.z, start, i), shortcut_at(p.shortcut, start, i), grad_at(p.grad_out, start, i);
    SEWSNN_UNROLL
    for (int k = 0; k < K; ++k) {
      if (k < steps) {
        z[k].load(z_at);
        if (Shortcut) shortcut[k].load(shortcut_at);
        grad_out[k].load(grad_at);
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
      if (!p.grad_skip.data) return;
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
};

// The values of a time-step when its dL/dy has been computed.
template <class Storage, int N>
struct Step {
  int64_t t;
  Pack<State<Storage>, N> grad_y;
  Pack<State<Storage>, N> h;  // of the neuron; without a neuron: its input
  Words<Storage, N> z, grad_out;
};

// The sum of dL/dleak over all chunks. A chunk is summed in the state's type.
struct LeakSum {
  bool wanted;
  double all;
};

// The options of the neuron. If Usual, those that most networks use are constants of the compiler: hard reset to 0,
// detached, decay_input.
template <class S, bool Usual>
struct Options {
  FireReset<S> fire;
  AnyNeuron<S> neuron;
  bool spiking;

  __device__ __forceinline__ Options(const BnParams& p, const BnSetup<S>& o)
      : fire(o.sn.fire), neuron(o.sn.load_neuron()), spiking(p.spiking) {
    if (Usual) fire.assume_usual(), neuron.assume_usual(), spiking = true;
  }
};

template <int I>
using Int = std::integral_constant<int, I>;

// A neuron or a surrogate that has been chosen before, with the interface of AnyNeuron and Surrogate.
template <class T>
struct Chosen {
  const T& value;

  template <class F>
  __device__ __forceinline__ void visit(F&& f) const {
    f(value);
  }
};

// backward_chunk with a neuron and a surrogate, which may be Chosen. Of every Together time-steps
// either all exist or none.
template <int Together, bool Leak, bool Usual, class Storage, int K, int N, bool Shortcut, bool Two, class P,
          class Neuron, class Sigma, class Take>
__device__ __forceinline__ void chunk_with(const P& p, const Options<State<Storage>, Usual>& o, const Neuron& neuron,
                                           const Sigma& surrogate, const Pack<State<Storage>, N>* norm, int64_t start,
                                           int64_t i, ChunkInputs<Storage, K, N, Shortcut, Two>& in,
                                           Pack<State<Storage>, N>& grad_v, LeakSum& leak, Take&& take) {
  using S = State<Storage>;
  constexpr int G = 2;  // time-steps that have their sigma' in registers at the same time
  const FireReset<S>& fire = o.fire;
  const bool before = p.connect == Connect::AddBefore;
  const int steps = steps_of<K>(p.T, start);
  // Time-steps that do not exist are branched over; the branches are the same for all threads.
  const auto exists = [&](int k) { return Together == K || k / Together * Together < steps; };
  const auto input = [&](int k, int j) {
    const S y = Affine<S>{norm[0].at[j], norm[1].at[j], norm[2].at[j]}(in.z[k].number(j));
    return Shortcut && before ? y + in.shortcut[Shortcut ? k : 0].number(j) : y;
  };

  const Pack<S, N> v_start =
      initial_v<S, N>(nullptr, K < kChunk ? nullptr : p.checkpoints, fire.v_reset, start, p.M, i);
  Pack<S, N> v = v_start, h[K];
  const auto replay = [&](auto&& potential) {
    SEWSNN_UNROLL
    for (int k = 0; k < K; ++k) {
      if (!exists(k)) {
        if (Together < G && k % G != 0) h[k] = fill_pack<S, N>(S(0));  // its group may be worked on
        continue;
      }
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) h[k].at[j] = potential(v.at[j], input(k, j));
    }
  };
  if (o.spiking) {
    neuron.visit([&](const auto& n) {
      replay([&](S& v_j, S x) {
        const S h_j = n.charge(v_j, x);
        v_j = fire.reset(h_j);
        return h_j;
      });
    });
  } else {
    replay([](S&, S x) { return x; });
  }

  if (K > kAhead) {  // there are too few registers for both y and h
    SEWSNN_UNROLL
    for (int k = 0; k < K; ++k) {
      in.z[k].forget();
      if (Shortcut) in.shortcut[Shortcut ? k : 0].forget();
    }
  }
  S leak_sum = S(0);
  SEWSNN_UNROLL
  for (int group = K - G; group >= 0; group -= G) {
    if (!exists(group)) continue;
    Pack<S, N> grad[G];  // dL/dA, then dL/dy
    SEWSNN_UNROLL
    for (int k = 0; k < G; ++k) {
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        grad[k].at[j] = in.grad_out[group + k].number(j);
        if (Shortcut && !before) {  // And, Iand
          const S s = in.shortcut[Shortcut ? group + k : 0].number(j);
          grad[k].at[j] *= p.connect == Connect::And ? s : -s;
        }
      }
    }
    if (o.spiking) {
      Pack<S, N> sg[G];  // sigma'(h - v_threshold): one uniform branch for the whole group
      surrogate.visit([&](auto sigma) {
        SEWSNN_UNROLL
        for (int k = 0; k < G; ++k) {
          SEWSNN_UNROLL
          for (int j = 0; j < N; ++j) sg[k].at[j] = sigma(h[group + k].at[j] - fire.v_threshold);
        }
      });
      neuron.visit([&](const auto& n) {
        SEWSNN_UNROLL
        for (int k = G - 1; k >= 0; --k) {
          if (!exists(group + k)) continue;
          SEWSNN_UNROLL
          for (int j = 0; j < N; ++j) {
            const S grad_h = fire.grad_h(grad[k].at[j], grad_v.at[j], h[group + k].at[j], sg[k].at[j]);
            grad_v.at[j] = n.grad_v(grad_h);  // contains the division that grad_x may need
            grad[k].at[j] = n.grad_x(grad_h);
            if (Leak && leak.wanted) {
              const S v_k = group + k == 0 ? v_start.at[j] : fire.reset(h[group + k == 0 ? 0 : group + k - 1].at[j]);
              leak_sum += grad_h * n.d_leak(v_k, input(group + k, j));
            }
          }
        }
      });
    }
    SEWSNN_UNROLL
    for (int k = G - 1; k >= 0; --k) {
      if (exists(group + k))
        take(Step<Storage, N>{start + group + k, grad[k], h[group + k], in.z[group + k], in.grad_out[group + k]});
    }
  }
  if (Leak && leak.wanted) leak.all += double(leak_sum);
}

// Computes dL/dy of the time-steps of a chunk, the latest first, and calls take(step) for each. grad_v is the gradient
// of the potential after the chunk, then of that before it. If Usual, and the surrogate is ATan or UnitATan, the neuron
// is chosen once per chunk where registers suffice.
template <bool Usual, bool Leak, class Storage, int K, int N, bool Shortcut, bool Two, class P, class Take>
__device__ __forceinline__ void backward_chunk(const P& p, const Options<State<Storage>, Usual>& o,
                                               const Surrogate<State<Storage>>& surrogate,
                                               const Pack<State<Storage>, N>* norm, int64_t start, int64_t i,
                                               ChunkInputs<Storage, K, N, Shortcut, Two>& in,
                                               Pack<State<Storage>, N>& grad_v, LeakSum& leak, Take&& take) {
  in.add_gradients(p, start, i);
  if constexpr (Usual) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000  // ptxas would keep so many values that it runs out of registers
    chunk_with<1, Leak, Usual>(p, o, o.neuron, surrogate, norm, start, i, in, grad_v, leak, take);
#else
    using S = State<Storage>;
    if (!Surrogate<S>::has_atan_form(surrogate.kind))
      return chunk_with<1, Leak, Usual>(p, o, o.neuron, surrogate, norm, start, i, in, grad_v, leak, take);
    const ATan<S> form = surrogate.atan_form();
    const Chosen<ATan<S>> atan = {form};
    o.neuron.visit([&](const auto& n) {
      using Neuron = std::remove_cv_t<std::remove_reference_t<decltype(n)>>;
      const auto run = [&](auto together, auto with_leak) {
        chunk_with<together, decltype(with_leak)::value, Usual>(p, o, Chosen<Neuron>{n}, atan, norm, start, i, in,
                                                                grad_v, leak, take);
      };
      // A whole chunk has no branches, so that time-steps share what they compute and overlap. The divisions of
      // LeakyDivide would cost more than the branches.
      constexpr bool kWhole = !std::is_same_v<Neuron, LeakyDivide<S>>;
      const bool whole = steps_of<K>(p.T, start) == K;
      if constexpr (Leak && std::is_same_v<Neuron, LeakyMultiply<S>>) {       // PLIF
        constexpr int kTogether = K == kAhead ? K : K == 2 * kAhead ? 2 : 1;  // more time-steps, fewer registers
        if (kTogether > 1 && leak.wanted && whole) return run(Int<kTogether>(), Bool<true>());
        if (leak.wanted) return run(Int<1>(), Bool<true>());
      }
      if constexpr (kWhole) {
        if (whole) return run(Int<K>(), Bool<false>());
      }
      return run(Int<1>(), Bool<false>());
    });
#endif
  } else {
    chunk_with<1, Leak, Usual>(p, o, o.neuron, surrogate, norm, start, i, in, grad_v, leak, take);
  }
}

SEWSNN_END
