// Forward of batch norm, neuron and connection over T (core/bn_params.h). A thread runs all time-steps of its N neurons
// in registers, then goes to the next row of its column.
#pragma once

#include "kernels/bn_statistics.cuh"

SEWSNN_BEGIN

// Neurons is CommonNeuron or OneNeuron (neurons/choice.h).
template <class Neurons, class S>
struct BnSetup {
  Setup<Neurons, S> sn;
  S eps;

  static BnSetup from(const BnParams& p) { return {Setup<Neurons, S>::from(p.neuron), S(p.norm.eps)}; }
};

// Whether one instance serves calls with and without a shortcut. Common neurons have an instance for each.
template <class Neurons>
constexpr bool kOptionalShortcut = true;
template <class S>
constexpr bool kOptionalShortcut<CommonNeuron<S>> = false;

template <class S>
__device__ __forceinline__ S inverse_deviation(const Norm& norm, S eps, int64_t channel) {
  if (!norm.mean) return S(1);
  return S(1) / std::sqrt(load_global(static_cast<const S*>(norm.var) + channel) + eps);
}

// Loads mean, scale and bias of a channel, with y = (z - mean) scale + bias.
template <class S>
__device__ __forceinline__ void load_affine(const Norm& norm, S inverse, int64_t channel, S& mean, S& scale, S& bias) {
  mean = bias = S(0), scale = inverse;
  if (!norm.mean) return;
  mean = load_global(static_cast<const S*>(norm.mean) + channel);
  if (norm.weight) scale = load_global(static_cast<const S*>(norm.weight) + channel) * inverse;
  if (norm.bias) bias = load_global(static_cast<const S*>(norm.bias) + channel);
}

template <class S>
struct Affine {
  S mean, scale, bias;
  __device__ __forceinline__ S operator()(S z) const { return (z - mean) * scale + bias; }
};

template <class S>
__device__ __forceinline__ S connected(Connect connect, S a, S s) {
  switch (connect) {
    case Connect::Add: return a + s;
    case Connect::And: return a * s;
    case Connect::Iand: return s * (S(1) - a);
    default: return a;
  }
}

// Stores the spikes of a time-step, one bit each.
template <class S, int N>
__device__ __forceinline__ void store_bits(const Cursor<uint8_t, 1>& at, const Pack<S, N>& spikes, int64_t i) {
  static_assert(N == 4 || N == 8, "a byte is one thread's, or two neighbours'");
  unsigned byte = 0;
  SEWSNN_UNROLL
  for (int j = 0; j < N; ++j) byte |= unsigned(spikes.at[j] != S(0)) << j;
  if (N == 4) {
    const unsigned pair = 3u << (threadIdx.x % kWarp & ~1u);
    const unsigned other = __shfl_xor_sync(pair, byte, 1);
    if (i % 8 != 0) return;
    byte |= other << 4;
  }
  at.store({{uint8_t(byte)}});
}

// What forward reads of N neurons in the kAhead time-steps from `start` on.
template <class Storage, int N, bool Shortcut, bool Optional>
struct ForwardInputs {
  Words<Storage, N> z[kAhead], shortcut[Shortcut ? kAhead : 1];

  __device__ __forceinline__ void load(const BnForwardParams& p, int64_t start, int64_t i) {
    Cursor<Storage, N> z_at(p.z, start, i), shortcut_at(p.shortcut, start, i);
    SEWSNN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (start + k < p.T) {
        z[k].load(z_at);
        if (Shortcut && ((!Optional && !p.sum) || p.shortcut.data)) shortcut[k].load(shortcut_at);
      }
      z_at.move(1), shortcut_at.move(1);
    }
  }
};

// Runs N neurons over kAhead time-steps, as far as they exist. u are the states before, then after them.
template <class Storage, int N, bool Shortcut, class Neurons>
__device__ __forceinline__ void forward_steps(const BnForwardParams& p, const BnSetup<Neurons, State<Storage>>& o,
                                              const Neurons& neuron,
                                              const LearntPacks<typename Neurons::Shape, State<Storage>, N>& learnt,
                                              const Pack<State<Storage>, N> (&norm)[3], int64_t start, int64_t i,
                                              ForwardInputs<Storage, N, Shortcut, kOptionalShortcut<Neurons>>& in,
                                              StatePacks<typename Neurons::Shape, State<Storage>, N>& u) {
  using S = State<Storage>;
  constexpr int G = N < 8 ? kAhead : 2;  // time-steps that have their A in registers at the same time
  const bool before = adds_before(p.connect);
  Cursor<Storage, N> out_at(p.out, p.M, start, i);
  Cursor<uint8_t, 1> bits_at(p.bits, p.M / 8, start, i / 8);
  if (p.checkpoints && start > 0 && start % kChunk == 0)
    store_checkpoints<typename Neurons::Shape, S, N>(p.checkpoints, u, p.T, start, p.M, i);
  const auto normalised = [&](int k, int j) {
    return Affine<S>{norm[0].at[j], norm[1].at[j], norm[2].at[j]}(in.z[k].number(j));
  };
  if (Shortcut && p.sum) {  // the sum takes the place of the shortcut
    Cursor<Storage, N> sum_at(p.sum, p.M, start, i);
    SEWSNN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (start + k >= p.T) break;
      Pack<S, N> sum;
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        const S y = normalised(k, j);
        sum.at[j] = p.shortcut.data ? y + in.shortcut[Shortcut ? k : 0].number(j) : y;
      }
      in.shortcut[Shortcut ? k : 0] = Words<Storage, N>::of(sum);  // rounded
      in.shortcut[Shortcut ? k : 0].store(sum_at);
      sum_at.move(1);
    }
  }
  const auto input = [&](int k, int j) {
    if (Shortcut && p.sum) return in.shortcut[Shortcut ? k : 0].number(j);
    const S y = normalised(k, j);
    return Shortcut && before ? y + in.shortcut[Shortcut ? k : 0].number(j) : y;
  };
  SEWSNN_UNROLL
  for (int group = 0; group < kAhead; group += G) {
    Pack<S, N> a[G];
    if (p.spiking) {
      neuron.visit([&](const auto& n) {
        run_forward<G>(
            n, o.sn.fire, learnt, u, [&](int k) { return start + group + k < p.T; },
            [&](int k, int j) { return input(group + k, j); },
            [&](int k, int j, auto spikes) { a[k].at[j] = spike_as<S>(spikes, S(1), S(0)); }, [](int) {});
      });
    } else {
      SEWSNN_UNROLL
      for (int k = 0; k < G; ++k) {
        if (start + group + k >= p.T) break;
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) a[k].at[j] = input(group + k, j);
      }
    }
    SEWSNN_UNROLL
    for (int k = 0; k < G; ++k) {
      if (start + group + k >= p.T) break;
      if constexpr (N >= 4) {
        if (p.bits) {
          store_bits(bits_at, a[k], i);
          bits_at.move(1);
        }
      }
      if (Shortcut) {
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j)
          a[k].at[j] = connected(p.connect, a[k].at[j], in.shortcut[Shortcut ? group + k : 0].number(j));
      }
      out_at.store(store_<Storage>(a[k]));
      out_at.move(1);
    }
  }
}

template <class Storage, int N, bool Shortcut, class Neurons>
__global__ void __launch_bounds__(kThreads, 4)
    bn_forward_kernel(const BnForwardParams p, const BnSetup<Neurons, State<Storage>> o, const Walk walk) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  using Shape = typename Neurons::Shape;
  Walker<N> at(walk);
  ForwardInputs<Storage, N, Shortcut, kOptionalShortcut<Neurons>> in;
  if (at.inside(walk)) in.load(p, 0, at.i);  // before the parameters, whose loads take as long
  Pack<S, N> norm[3];
  share_by_channel<kLine<Storage>>(walk, norm, [&](int64_t channel, S(&out)[3]) {
    load_affine(p.norm, inverse_deviation(p.norm, o.eps, channel), channel, out[0], out[1], out[2]);
  });
  const Neurons neuron = o.sn.load_neuron();
  const auto learnt = share_learnt<Shape, kLine<Storage>, S, N>(walk, o.sn.learnt);
  const auto rest = at_rest<Shape, S, N>(neuron, o.sn.fire);
  auto u = rest;
  for (int64_t start = 0; at.inside(walk);) {
    forward_steps<Storage, N, Shortcut>(p, o, neuron, learnt, norm, start, at.i, in, u);
    start += kAhead;
    if (start >= p.T) {
      if (p.v) {
        SEWSNN_UNROLL
        for (int n = 0; n < Shape::kStates; ++n) Cursor<S, N>(p.v, p.M, n, at.i).store(u[n]);
      }
      u = rest, start = 0;
      at.advance(walk);
    }
    if (at.inside(walk)) in.load(p, start, at.i);
  }
}

// Reads spikes back and packs eight of them into a byte. Needed where neither one thread nor two neighbouring threads
// had all eight.
template <class Storage>
__global__ void __launch_bounds__(kThreads) bn_bits_kernel(const Storage* spikes, int64_t bytes, uint8_t* bits) {
  wait_for_earlier_kernels();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= bytes) return;
  unsigned byte = 0;
  SEWSNN_UNROLL
  for (int j = 0; j < 8; ++j) byte |= unsigned(load_(load_global(spikes + 8 * i + j)) != 0) << j;
  store_global(bits + i, uint8_t(byte));
}

SEWSNN_END
