// Forward of batch norm, neuron and connection over T (core/bn_params.h). A thread runs all time-steps of its N neurons
// in registers, then goes to the next row of its column.
#pragma once

#include "kernels/bn_statistics.cuh"
#include "neurons/any.h"

SEWSNN_BEGIN

// The settings in the state's type. The host converts them, so that kernels compute no constants.
template <class S>
struct BnSetup {
  Setup<AnyNeuron<S>, S> sn;
  S eps;

  static BnSetup from(const BnParams& p) { return {Setup<AnyNeuron<S>, S>::from(p.neuron), S(p.norm.eps)}; }
};

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
template <class Storage, int N, bool Shortcut>
struct ForwardInputs {
  Words<Storage, N> z[kAhead], shortcut[Shortcut ? kAhead : 1];

  __device__ __forceinline__ void load(const BnForwardParams& p, int64_t start, int64_t i) {
    Cursor<Storage, N> z_at(p.z, start, i), shortcut_at(p.shortcut, start, i);
    SEWSNN_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (start + k < p.T) {
        z[k].load(z_at);
        if (Shortcut) shortcut[k].load(shortcut_at);
      }
      z_at.move(1), shortcut_at.move(1);
    }
  }
};

// Runs N neurons over kAhead time-steps, as far as they exist. v is the potential before, then after them.
template <class Storage, int N, bool Shortcut>
__device__ __forceinline__ void forward_steps(const BnForwardParams& p, const BnSetup<State<Storage>>& o,
                                              const AnyNeuron<State<Storage>>& neuron,
                                              const Pack<State<Storage>, N> (&norm)[3], int64_t start, int64_t i,
                                              const ForwardInputs<Storage, N, Shortcut>& in,
                                              Pack<State<Storage>, N>& v) {
  using S = State<Storage>;
  constexpr int G = N < 8 ? kAhead : 2;  // time-steps that have their A in registers at the same time
  const FireReset<S>& fire = o.sn.fire;
  const bool before = p.connect == Connect::AddBefore;
  Cursor<Storage, N> out_at(p.out, p.M, start, i);
  Cursor<uint8_t, 1> bits_at(p.bits, p.M / 8, start, i / 8);
  if (p.checkpoints && start > 0 && start % kChunk == 0)
    Cursor<S, N>(p.checkpoints, p.M, start / kChunk - 1, i).store(v);
  const auto input = [&](int k, int j) {
    const S y = Affine<S>{norm[0].at[j], norm[1].at[j], norm[2].at[j]}(in.z[k].number(j));
    return Shortcut && before ? y + in.shortcut[Shortcut ? k : 0].number(j) : y;
  };
  SEWSNN_UNROLL
  for (int group = 0; group < kAhead; group += G) {
    Pack<S, N> a[G];
    if (p.spiking) {
      neuron.visit([&](const auto& n) {
        SEWSNN_UNROLL
        for (int k = 0; k < G; ++k) {
          if (start + group + k >= p.T) break;
          SEWSNN_UNROLL
          for (int j = 0; j < N; ++j) {
            const S h = n.charge(v.at[j], input(group + k, j));
            a[k].at[j] = fire.fires(h) ? S(1) : S(0);
            v.at[j] = fire.reset(h);
          }
        }
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

template <class Storage, int N, bool Shortcut>
__global__ void __launch_bounds__(kThreads, 4)
    bn_forward_kernel(const BnForwardParams p, const BnSetup<State<Storage>> o, const Walk walk) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  Walker<N> at(walk);
  ForwardInputs<Storage, N, Shortcut> in;
  if (at.inside(walk)) in.load(p, 0, at.i);  // before the parameters, whose loads take as long
  Pack<S, N> norm[3];
  share_by_channel<kLine<Storage>>(walk, norm, [&](int64_t channel, S(&out)[3]) {
    load_affine(p.norm, inverse_deviation(p.norm, o.eps, channel), channel, out[0], out[1], out[2]);
  });
  const AnyNeuron<S> neuron = o.sn.load_neuron();
  const Pack<S, N> rest = fill_pack<S, N>(o.sn.fire.v_reset);
  Pack<S, N> v = rest;
  for (int64_t start = 0; at.inside(walk);) {
    forward_steps<Storage, N, Shortcut>(p, o, neuron, norm, start, at.i, in, v);
    start += kAhead;
    if (start >= p.T) {
      if (p.v) Cursor<S, N>(p.v, p.M, 0, at.i).store(v);
      v = rest, start = 0;
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
