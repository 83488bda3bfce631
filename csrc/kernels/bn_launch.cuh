// Chooses and launches the kernels of batch norm + neuron + connection. The templates are instantiated by the short
// files in csrc/inst.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cmath>

#include "kernels/bn_backward.cuh"
#include "kernels/cuda_bn_kernels.h"
#include "kernels/multistep_launch.cuh"

namespace sewsnn {

// Number of blocks to launch. For kernels with partial sums it is one or two times the number that a GPU runs at the
// same time. For the others it is larger, which distributes the work more evenly.
constexpr int64_t kReducingBlocks = 1024, kMappingBlocks = 2048;

// Neurons per thread of statistics and forward: 16 bytes of storage. (Doubles have no packs: nobody trains in them.)
template <class Storage>
constexpr int kWide = sizeof(Storage) == 8 ? 1 : 16 / int(sizeof(Storage));
// Backward has fewer neurons per thread, because parameters, sums, h and sigma' need registers as well. With long
// chunks of float and a shortcut it has no packs.
constexpr int kWideShort = 4;
template <class Storage, bool Shortcut>
constexpr int kWideLong = sizeof(Storage) == 2 || !Shortcut ? 2 : 1;

// Whether no pack of N crosses the border of a channel or a plane.
inline bool divides(int N, const Channels& c) { return (c.inner == 1 ? c.count : c.inner) % N == 0; }

// Whether the counters of a thread can hold these numbers.
inline bool countable(const Channels& c) { return c.inner <= INT_MAX && c.count <= INT_MAX; }

// ---- sums over channels

// z as one long time-step, if its rows follow each other in memory; images are not split.
inline BnStatisticsParams joined(BnStatisticsParams p) {
  if (p.T > 1 && p.z.row_stride == p.M) p.M *= p.T, p.T = 1;
  return p;
}

template <class S>
Momentum<S> momentum_of(double momentum, double count, void* running_mean, void* running_var, int64_t* tracked) {
  return {
      S(1 - momentum), S(momentum), S(count / (count - 1)), static_cast<S*>(running_mean), static_cast<S*>(running_var),
      tracked};
}

template <class Storage>
cudaError_t launch_bn_statistics(const BnStatisticsParams& given, cudaStream_t stream) {
  using S = State<Storage>;
  constexpr int N = kWide<Storage>;
  const BnStatisticsParams p = joined(given);
  const auto go = [&](auto kernel, int neurons) {
    const Walk walk = walk_over(p.M, p.channels, neurons, sizeof(Storage), kReducingBlocks);
    const double count = double(p.T) * double(p.M / p.channels.count);
    return launch(kernel, walk.blocks(), stream, p, walk, second_stage(walk, p.partials, sizeof(S), p.counters), count,
                  momentum_of<S>(p.momentum, count, p.running_mean, p.running_var, p.tracked));
  };
  if (divides(N, p.channels) && aligned<Storage, N>(p.z, p.T)) return go(bn_statistics_kernel<Storage, N>, N);
  return go(bn_statistics_kernel<Storage, 1>, 1);
}

// ---- forward

// Neurons per thread of the kernels for neurons that are not common, where they have packs.
template <class Neurons>
constexpr int kWideOwn = 4 / Neurons::Shape::kStates;

template <class Storage, int N>
bool fits(const BnForwardParams& p) {
  using S = State<Storage>;
  return divides(N, p.channels) && aligned<Storage, N>(p.z, p.T) && aligned<Storage, N>(p.shortcut, p.T) &&
         aligned<Storage, N>({p.out, p.M, 1}, p.T) && aligned<Storage, N>({p.sum, p.M, 1}, p.T) &&
         aligned<S, N>({p.v, p.M, 1}, 1) && aligned<S, N>({p.checkpoints, p.M, 1}, p.T);
}

template <class Storage>
cudaError_t launch_bn_forward(BnForwardParams p, cudaStream_t stream) {
  using S = State<Storage>;
  void* const bits = p.bits;
  bool bits_later = false;
  const auto go = [&](auto family, auto neurons, auto shortcut, bool packs) {
    using Neurons = typename decltype(family)::type;
    constexpr int N = decltype(neurons)::value;
    bits_later = bits && !(packs && N >= 4 && divides(8, p.channels));
    if (bits_later) p.bits = nullptr;
    const Walk walk = walk_over(p.M, p.channels, N, sizeof(Storage), kMappingBlocks);
    return launch(bn_forward_kernel<Storage, N, decltype(shortcut)::value, Neurons>, walk.blocks(), stream, p,
                  BnSetup<Neurons, S>::from(p), walk);
  };
  const cudaError_t error = with_family<S>(p.neuron, [&](auto family) {
    using Neurons = typename decltype(family)::type;
    constexpr bool own = kOptionalShortcut<Neurons>;
    constexpr int N = own && sizeof(Storage) < 8 ? kWideOwn<Neurons> : kWide<Storage>;
    const bool wide = N > 1 && fits<Storage, N>(p);
    if constexpr (own) {
      return wide ? go(family, Int<N>(), Bool<true>(), true) : go(family, Int<1>(), Bool<true>(), false);
    } else {
      return with_bool(p.connect != Connect::None, [&](auto shortcut) {
        return wide ? go(family, Int<N>(), shortcut, true) : go(family, Int<1>(), shortcut, false);
      });
    }
  });
  if (error != cudaSuccess || !bits_later) return error;
  const int64_t bytes = p.T * (p.M / 8);
  return launch(bn_bits_kernel<Storage>, blocks_for(bytes, 1), stream, static_cast<const Storage*>(p.out), bytes,
                static_cast<uint8_t*>(bits));
}

// ---- backward

template <class Storage, int N>
bool fits(const BnBackwardParams& p) {
  return divides(N, p.channels) && aligned<Storage, N>(p.z, p.T) && aligned<Storage, N>(p.shortcut, p.T) &&
         aligned<Storage, N>(p.grad_out, p.T) && aligned<State<Storage>, N>({p.checkpoints, p.M, 1}, p.T);
}
template <class Storage, int N>
bool fits(const BnReduceParams& p) {
  return fits<Storage, N>(static_cast<const BnBackwardParams&>(p)) && aligned<Storage, N>(p.grad_skip, p.T) &&
         aligned<Storage, N>({p.grad_sum, p.M, 1}, p.T);
}
template <class Storage, int N>
bool fits(const BnApplyParams& p) {
  return fits<Storage, N>(static_cast<const BnBackwardParams&>(p)) &&
         aligned<Storage, N>({p.grad_z, p.M, 1}, p.still ? 1 : p.T) &&
         aligned<Storage, N>({p.grad_shortcut, p.M, 1}, p.T);
}

// Whether backward reads the shortcut.
inline bool reads_shortcut(Connect connect) { return connect != Connect::None && connect != Connect::Add; }

// Whether the neuron has the options that most networks use (FireReset::assume_usual).
inline bool usual(const BnParams& p) {
  const NeuronParams& n = p.neuron;
  const bool plain = n.hard_reset && n.detach_reset && n.v_reset == 0 && !std::signbit(n.v_reset);
  return p.spiking && plain &&
         (n.decay_input || !with_neuron<float>(n, [](auto tag) { return decltype(tag)::type::kDecayInput; }));
}

// Calls f(K, N, Shortcut, Usual, Tag<Neurons>) for the instance that serves these params: K time-steps per chunk, N
// neurons per thread. K = 4 serves T <= 4. K = 8 serves T <= 8 in half precision, and in fp32 with the usual options.
// The usual options have instances of their own only if no shortcut is read.
template <class Storage, class P, class Family, class F>
auto with_common_instance(const P& p, Family family, F&& f) {
  constexpr bool half = sizeof(Storage) == 2, reduce = std::is_same_v<P, BnReduceParams>;
  return with_bool(reads_shortcut(p.connect), [&](auto shortcut) {
    constexpr bool Shortcut = decltype(shortcut)::value;
    return with_bool(sizeof(Storage) < 8 && !Shortcut && usual(p), [&](auto is_usual) {
      constexpr int kLong = int(kChunk);
      if constexpr (sizeof(Storage) < 8) {
        constexpr bool Usual = !Shortcut && decltype(is_usual)::value;
        constexpr int N = kWideLong<Storage, Shortcut>;
        if (fits<Storage, kWideShort>(p)) {
          if (p.T <= 4) return f(Int<4>(), Int<kWideShort>(), shortcut, Bool<Usual>(), family);
          if constexpr (half) {
            if (p.T <= 8) return f(Int<8>(), Int<kWideShort>(), shortcut, Bool<Usual>(), family);
          }
          // Reduce has sums and a second stage as well, and would spill.
          if constexpr (Usual && half && !reduce)
            return f(Int<kLong>(), Int<kWideShort>(), shortcut, Bool<true>(), family);
        }
        if (fits<Storage, N>(p)) {
          constexpr bool kUsual = Usual && (reduce || !half);
          constexpr int kShort = Usual && !half ? 8 : kLong;  // nvcc compiles the kernels of discarded branches
          if (p.T <= kShort) return f(Int<kShort>(), Int<N>(), shortcut, Bool<kUsual>(), family);
          return f(Int<kLong>(), Int<N>(), shortcut, Bool<kUsual>(), family);
        }
      }
      return f(Int<kLong>(), Int<1>(), shortcut, Bool<false>(), family);
    });
  });
}

// Neurons that are not common have one instance for T <= 4, if packs fit, and one for everything else.
template <class Storage, class P, class Family, class F>
auto with_own_instance(const P& p, Family family, F&& f) {
  if constexpr (sizeof(Storage) < 8) {
    constexpr int N = kWideOwn<typename Family::type>;
    if (p.T <= 4 && fits<Storage, N>(p)) return f(Int<4>(), Int<N>(), Bool<true>(), Bool<false>(), family);
  }
  return f(Int<int(kChunk)>(), Int<1>(), Bool<true>(), Bool<false>(), family);
}

template <class Storage, class P, class F>
auto with_instance(const P& p, F&& f) {
  return with_family<State<Storage>>(p.neuron, [&](auto family) {
    if constexpr (kOptionalShortcut<typename decltype(family)::type>) return with_own_instance<Storage>(p, family, f);
    else return with_common_instance<Storage>(p, family, f);
  });
}

template <class Storage>
Walk reduce_walk(const BnReduceParams& p) {
  return with_instance<Storage>(p, [&](auto, auto N, auto, auto, auto) {
    return walk_over(p.M, p.channels, N, sizeof(Storage), kReducingBlocks);
  });
}

template <class Storage>
cudaError_t launch_bn_reduce(const BnReduceParams& p, cudaStream_t stream) {
  using S = State<Storage>;
  const Walk walk = reduce_walk<Storage>(p);
  return with_instance<Storage>(p, [&](auto K, auto N, auto shortcut, auto usual, auto family) {
    using Neurons = typename decltype(family)::type;
    return launch(bn_reduce_kernel<Storage, K, N, decltype(shortcut)::value, decltype(usual)::value, Neurons>,
                  walk.blocks(), stream, p, BnSetup<Neurons, S>::from(p), walk,
                  second_stage(walk, p.partials, sizeof(S), p.counters),
                  second_stage(walk, p.learnt_workspace, sizeof(S), p.counters + counters_of(walk)));
  });
}

template <class Storage>
cudaError_t launch_bn_apply(const BnApplyParams& p, cudaStream_t stream) {
  using S = State<Storage>;
  return with_instance<Storage>(p, [&](auto K, auto N, auto shortcut, auto usual, auto family) {
    using Neurons = typename decltype(family)::type;
    const Walk walk = walk_over(p.M, p.channels, N, sizeof(Storage), kMappingBlocks);
    return launch(bn_apply_kernel<Storage, K, N, decltype(shortcut)::value, decltype(usual)::value, Neurons>,
                  walk.blocks(), stream, p, BnSetup<Neurons, S>::from(p), S(p.count), walk);
  });
}

}  // namespace sewsnn
