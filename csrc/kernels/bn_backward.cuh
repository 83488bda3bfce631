// The two passes of backward: reduce recomputes dL/dy and sums it over each channel; apply recomputes dL/dy again and
// computes dL/dz from it. Reading z and the incoming gradient again moves as many bytes as writing and reading dL/dy
// would, and dL/dy needs no memory.
#pragma once

#include "kernels/bn_forward.cuh"

SEWSNN_BEGIN

// The gradient of the output for apply: kAhead time-steps at a time, the latest first.
template <class Storage, int N>
struct GradOut {
  Cursor<Storage, N> at;
  int64_t T;

  // Loads the time-steps up to t that exist.
  __device__ __forceinline__ void load(int64_t t, Pack<Storage, N> (&grad)[kAhead]) {
    SEWSNN_UNROLL
    for (int k = kAhead - 1; k >= 0; --k) {
      if (t - (kAhead - 1) + k < T) grad[k] = at.load();
      at.move(-1);
    }
  }
};

// The gradient of the output for reduce: it adds a second gradient and stores the sum for apply. Both passes use the
// rounded sum.
template <class Storage, int N>
struct GradSum {
  GradOut<Storage, N> out, skip;
  bool two;
  void* sum;
  int64_t M, i;

  __device__ __forceinline__ void load(int64_t t, Pack<Storage, N> (&grad)[kAhead]) {
    using S = State<Storage>;
    out.load(t, grad);
    if (!two) return;
    Pack<Storage, N> more[kAhead];
    skip.load(t, more);
    SEWSNN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      const int64_t t_k = t - (kAhead - 1) + k;
      if (t_k >= out.T) continue;
      Pack<S, N> both;
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) both.at[j] = load_(grad[k].at[j]) + load_(more[k].at[j]);
      const Pack<Storage, N> rounded = store_<Storage>(both);
      Cursor<Storage, N>(sum, M, t_k, i).store(rounded);
      // Assign number by number: compilers have put packs that were assigned as a whole into local memory.
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) grad[k].at[j] = rounded.at[j];
    }
  }
};

// The values of a time-step when its dL/dy has been computed.
template <class Storage, int N>
struct Step {
  int64_t t;
  Pack<State<Storage>, N> grad_y;
  Pack<State<Storage>, N> h;  // of the neuron; without a neuron: its input
  Pack<Storage, N> z;
  Pack<Storage, N> grad_out;
};

// Sums dL/dleak: over a chunk in the state's type, then over all chunks in double.
template <class S>
struct LeakSum {
  bool wanted;
  S chunk;
  double all;
};

// Computes dL/dy of all time-steps of N neurons, the latest first, and calls take(step) for each.
template <class Storage, int K, int N, bool Shortcut, bool Leak, class Incoming, class Take>
__device__ __forceinline__ void backward_row(const BnBackwardParams& p, const BnSetup<State<Storage>>& o,
                                             const AnyNeuron<State<Storage>>& neuron,
                                             const Pack<State<Storage>, N>* norm, int64_t i, Incoming& incoming,
                                             LeakSum<State<Storage>>& leak, Take&& take) {
  using S = State<Storage>;
  constexpr int G = 2;  // time-steps that have their sigma' in registers at the same time
  const FireReset<S>& fire = o.sn.fire;
  const bool before = p.connect == Connect::AddBefore;
  const int64_t first = K < kChunk ? 0 : (p.T - 1) / K * K;  // start of the last chunk; a short chunk is the only one
  Cursor<Storage, N> z_at(p.z, first, i), shortcut_at(p.shortcut, first, i);
  Pack<S, N> grad_v = fill_pack<S, N>(S(0));

  for (int64_t start = first; start >= 0; start -= K) {
    Pack<Storage, N> z[K], shortcut[Shortcut ? K : 1], grad_out[kAhead];
    SEWSNN_UNROLL
    for (int k = 0; k < K; ++k) {
      if (start + k < p.T) {
        z[k] = z_at.load();
        if (Shortcut) shortcut[k] = shortcut_at.load();
      }
      z_at.move(1), shortcut_at.move(1);
    }
    z_at.move(-2 * K), shortcut_at.move(-2 * K);
    incoming.load(start + K - 1, grad_out);
    const auto input = [&](int k, int j) {
      const S y = Affine<S>{norm[0].at[j], norm[1].at[j], norm[2].at[j]}(load_(z[k].at[j]));
      return Shortcut && before ? y + load_(shortcut[Shortcut ? k : 0].at[j]) : y;
    };

    const Pack<S, N> v_start =
        initial_v<S, N>(nullptr, K < kChunk ? nullptr : p.checkpoints, fire.v_reset, start, p.M, i);
    Pack<S, N> v = v_start, h[K];
    const auto replay = [&](auto&& potential) {
      SEWSNN_UNROLL
      for (int k = 0; k < K; ++k) {
        if (start + k >= p.T) {
          h[k] = fill_pack<S, N>(S(0));
          continue;
        }
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) h[k].at[j] = potential(v.at[j], input(k, j));
      }
    };
    if (p.spiking) {
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
        forget(z[k]);
        if (Shortcut) forget(shortcut[Shortcut ? k : 0]);
      }
    }
    leak.chunk = S(0);
    SEWSNN_UNROLL
    for (int group = K - G; group >= 0; group -= G) {
      if ((group + G) % kAhead == 0 && group + G != K) incoming.load(start + group + G - 1, grad_out);
      Pack<S, N> grad[G];  // dL/dA, then dL/dy
      SEWSNN_UNROLL
      for (int k = 0; k < G; ++k) {
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) {
          grad[k].at[j] = load_(grad_out[(group + k) % kAhead].at[j]);
          if (Shortcut && !before) {  // And, Iand
            const S s = load_(shortcut[Shortcut ? group + k : 0].at[j]);
            grad[k].at[j] *= p.connect == Connect::And ? s : -s;
          }
        }
      }
      if (p.spiking) {
        Pack<S, N> sg[G];  // sigma'(h - v_threshold): one uniform branch for the whole group
        o.sn.surrogate.visit([&](auto surrogate) {
          SEWSNN_UNROLL
          for (int k = 0; k < G; ++k) {
            SEWSNN_UNROLL
            for (int j = 0; j < N; ++j) sg[k].at[j] = surrogate(h[group + k].at[j] - fire.v_threshold);
          }
        });
        neuron.visit([&](const auto& n) {
          SEWSNN_UNROLL
          for (int k = G - 1; k >= 0; --k) {
            if (start + group + k >= p.T) continue;
            SEWSNN_UNROLL
            for (int j = 0; j < N; ++j) {
              const S grad_h = fire.grad_h(grad[k].at[j], grad_v.at[j], h[group + k].at[j], sg[k].at[j]);
              grad_v.at[j] = n.grad_v(grad_h);  // contains the division that grad_x may need
              grad[k].at[j] = n.grad_x(grad_h);
              if (Leak && leak.wanted) {
                const S v_k = group + k == 0 ? v_start.at[j] : fire.reset(h[group + k == 0 ? 0 : group + k - 1].at[j]);
                leak.chunk += grad_h * n.d_leak(v_k, input(group + k, j));
              }
            }
          }
        });
      }
      SEWSNN_UNROLL
      for (int k = G - 1; k >= 0; --k) {
        if (start + group + k < p.T)
          take(
              Step<Storage, N>{start + group + k, grad[k], h[group + k], z[group + k], grad_out[(group + k) % kAhead]});
      }
    }
    if (Leak && leak.wanted) leak.all += double(leak.chunk);
  }
}

// The time-step with which backward begins: T - 1, or a later one at the end of its chunk.
template <int K>
__device__ __forceinline__ int64_t last_step(int64_t T) {
  return K < kChunk ? K - 1 : (T - 1) / K * K + K - 1;
}

// The number of blocks per multiprocessor for which the registers must suffice: four with 128 registers per thread,
// three with 168, two with 255. Reduce needs more registers than apply, for its sums and for PLIF's gradient.
template <class Storage, int K, bool Shortcut, bool Reduce>
constexpr int blocks_wanted() {
  const int spare = (sizeof(Storage) == 2 ? 4 : 3) - (K > kAhead) - (Shortcut && (Reduce || K > kAhead));
  return sizeof(Storage) == 8 || spare < 2 || (Reduce && K > kAhead) ? 2 : spare;
}

template <class Storage, int K, int N, bool Shortcut>
__global__ void __launch_bounds__(kThreads, blocks_wanted<Storage, K, Shortcut, true>())
    bn_reduce_kernel(const BnReduceParams p, const BnSetup<State<Storage>> o, const Walk walk) {
  using S = State<Storage>;
  Pack<S, N> norm[3];
  share_by_channel<kLine<Storage>>(walk, norm, [&](int64_t channel, S(&out)[3]) {
    load_affine(p.norm, inverse_deviation(p.norm, o.eps, channel), channel, out[0], out[1], out[2]);
  });
  const AnyNeuron<S> neuron = o.sn.load_neuron();
  const int64_t last = last_step<K>(p.T);
  LeakSum<S> leak = {p.grad_leak_partials != nullptr, S(0), 0};
  Pack<S, N> sums[2] = {fill_pack<S, N>(S(0)), fill_pack<S, N>(S(0))};  // of dL/dy, and of dL/dy (z - mean)
  for (Walker<N> at(walk); at.inside(walk); at.advance(walk)) {
    GradSum<Storage, N> incoming{{{p.grad_out, last, at.i}, p.T},
                                 {{p.grad_skip, last, at.i}, p.T},
                                 p.grad_skip.data != nullptr,
                                 p.grad_sum,
                                 p.M,
                                 at.i};
    const auto take = [&](const Step<Storage, N>& step) {
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        sums[0].at[j] += step.grad_y.at[j];
        sums[1].at[j] += step.grad_y.at[j] * (load_(step.z.at[j]) - norm[0].at[j]);
      }
    };
    backward_row<Storage, K, N, Shortcut, true>(p, o, neuron, norm, at.i, incoming, leak, take);
  }
  store_partials<kLine<Storage>>(walk, sums, p.partials);
  if (leak.wanted) {
    const double sum = block_sum<kThreads>(leak.all);
    if (threadIdx.x == 0) store_global(p.grad_leak_partials + blockIdx.x, sum);
  }
}

// The second stage of reduce.
template <class S>
__global__ void __launch_bounds__(kSumThreads, 1) bn_sums_kernel(const BnReduceParams p, S eps, int64_t slabs) {
  const int64_t channels = p.channels.count;
  double sums[2];
  const int64_t channel = add_slabs(static_cast<const S*>(p.partials), slabs, channels, sums);
  if (channel >= channels) return;
  S* const out = static_cast<S*>(p.sums) + channel;
  store_global(out, S(sums[0]));
  store_global(out + channels, S(sums[1] * double(inverse_deviation(p.norm, eps, channel))));
}

template <class Storage, int K, int N, bool Shortcut>
__global__ void __launch_bounds__(kThreads, blocks_wanted<Storage, K, Shortcut, false>())
    bn_apply_kernel(const BnApplyParams p, const BnSetup<State<Storage>> o, const State<Storage> count,
                    const Walk walk) {
  using S = State<Storage>;
  // mean, scale, bias, and the two numbers in dL/dz = scale (dL/dy - norm[3] - (z - mean) norm[4])
  Pack<S, N> norm[5];
  share_by_channel<kLine<Storage>>(walk, norm, [&](int64_t channel, S(&out)[5]) {
    const S inverse = inverse_deviation(p.norm, o.eps, channel);
    load_affine(p.norm, inverse, channel, out[0], out[1], out[2]);
    out[3] = out[4] = S(0);
    if (!p.sums) return;
    const S* const sums = static_cast<const S*>(p.sums) + channel;
    out[3] = load_global(sums) / count;
    out[4] = load_global(sums + p.channels.count) / count * inverse;
  });
  const AnyNeuron<S> neuron = o.sn.load_neuron();
  const int64_t last = last_step<K>(p.T);
  LeakSum<S> no_leak = {};
  for (Walker<N> at(walk); at.inside(walk); at.advance(walk)) {
    GradOut<Storage, N> incoming{{p.grad_out, last, at.i}, p.T};
    const auto store_grad_z = [&](int64_t t, const Pack<S, N>& grad_y, const Pack<Storage, N>& z) {
      Pack<S, N> grad_z;
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        const S u = load_(z.at[j]) - norm[0].at[j];
        grad_z.at[j] = norm[1].at[j] * (grad_y.at[j] - norm[3].at[j] - u * norm[4].at[j]);
      }
      Cursor<Storage, N>(p.grad_z, p.M, t, at.i).store(store_<Storage>(grad_z));
    };
    Pack<S, N> sum = fill_pack<S, N>(S(0));  // sum of dL/dy over T, if z is one row
    const auto take = [&](const Step<Storage, N>& step) {
      if (p.still) {
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) sum.at[j] += step.grad_y.at[j];
      } else {
        store_grad_z(step.t, step.grad_y, step.z);
      }
      if (Shortcut && p.grad_shortcut) {
        Pack<S, N> grad;
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) {
          const S a = !p.spiking ? step.h.at[j] : o.sn.fire.fires(step.h.at[j]) ? S(1) : S(0);
          grad.at[j] = p.connect == Connect::AddBefore
                           ? step.grad_y.at[j]
                           : load_(step.grad_out.at[j]) * (p.connect == Connect::And ? a : S(1) - a);
        }
        Cursor<Storage, N>(p.grad_shortcut, p.M, step.t, at.i).store(store_<Storage>(grad));
      }
    };
    backward_row<Storage, K, N, Shortcut, false>(p, o, neuron, norm, at.i, incoming, no_leak, take);
    if (p.still) store_grad_z(0, sum, Cursor<Storage, N>(p.z, 0, at.i).load());
  }
}

SEWSNN_END
