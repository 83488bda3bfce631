// Chooses and launches the kernels of batch norm + neuron + connection with a pooled output. The templates are
// instantiated by the short files in csrc/inst.
#pragma once

#include "kernels/bn_launch.cuh"
#include "kernels/cuda_bn_pooled_kernels.h"

namespace sewsnn {

// Whether forward can have packs of N channels.
template <class Storage, int N>
bool fits(const BnPooledForwardParams& p) {
  const int64_t M = p.pool.images * p.pool.channels * p.pool.out_height * p.pool.out_width;
  return p.pool.channels_last && p.pool.channels % N == 0 && aligned<Storage, N>(p.z, p.T) &&
         aligned<Storage, N>(p.shortcut, p.T) && aligned<Storage, N>({p.out, M, 1}, p.T) &&
         aligned<uint8_t, N>({p.positions, M, 1}, p.T);
}

template <class Storage>
cudaError_t launch_bn_pooled_forward(const BnPooledForwardParams& p, cudaStream_t stream) {
  using S = State<Storage>;
  const auto go = [&](auto steps, auto neurons, auto shortcut) {
    constexpr int K = decltype(steps)::value, N = decltype(neurons)::value;
    const int64_t threads = p.pool.out_height * p.pool.out_width * (p.pool.channels / N);
    if (threads > INT_MAX) return cudaErrorInvalidValue;  // counted with 32 bits
    const int64_t per_image = divide_up(threads, kThreads);
    return launch(bn_pooled_forward_kernel<Storage, K, N, decltype(shortcut)::value>, p.pool.images * per_image, stream,
                  p, BnSetup<CommonNeuron<S>, S>::from(p), unsigned(per_image));
  };
  return with_bool(p.connect != Connect::None, [&](auto shortcut) {
    return with_bool(p.T <= 4, [&](auto is_short) {
      using K = Int<decltype(is_short)::value ? 4 : int(kChunk)>;
      return fits<Storage, 4>(p) ? go(K(), Int<4>(), shortcut) : go(K(), Int<1>(), shortcut);
    });
  });
}

// Whether backward can have packs of N. Gradients of images that are not channels_last are read one by one.
template <class Storage, int N, class P>
bool fits_pooled(const P& p) {
  const int64_t M = p.pool.images * p.pool.channels * p.pool.out_height * p.pool.out_width;
  P other = p;
  other.grad_out = p.pool.channels_last ? Rows{p.grad_out.data, M, 1} : Rows{};
  using Plain = std::conditional_t<std::is_base_of_v<BnReduceParams, P>, BnReduceParams, BnApplyParams>;
  return fits<Storage, N>(static_cast<const Plain&>(other)) &&
         (!p.pool.channels_last || aligned<uint8_t, N>({p.positions, M, 1}, p.T));
}

// Calls f(K, N, Usual) for the instance that serves these params.
template <class Storage, class P, class F>
auto with_pooled_instance(const P& p, F&& f) {
  if (usual(p)) {
    if (p.T <= 4 && fits_pooled<Storage, 4>(p)) return f(Int<4>(), Int<4>(), Bool<true>());
    if (fits_pooled<Storage, 2>(p)) return f(Int<int(kChunk)>(), Int<2>(), Bool<true>());
  }
  return f(Int<int(kChunk)>(), Int<1>(), Bool<false>());
}

template <class Storage>
Walk reduce_walk(const BnPooledReduceParams& p) {
  return with_pooled_instance<Storage>(
      p, [&](auto, auto N, auto) { return walk_over(p.M, p.channels, N, sizeof(Storage), kReducingBlocks); });
}

template <class Storage>
cudaError_t launch_bn_pooled_reduce(const BnPooledReduceParams& p, cudaStream_t stream) {
  using S = State<Storage>;
  using Neurons = CommonNeuron<S>;
  const Walk walk = reduce_walk<Storage>(p);
  return with_pooled_instance<Storage>(p, [&](auto K, auto N, auto usual) {
    return launch(bn_pooled_reduce_kernel<Storage, K, N, decltype(usual)::value, Neurons>, walk.blocks(), stream, p,
                  BnSetup<Neurons, S>::from(p), walk, second_stage(walk, p.partials, sizeof(S), p.counters),
                  second_stage(walk, p.learnt_workspace, sizeof(S), p.counters + counters_of(walk)));
  });
}

template <class Storage>
cudaError_t launch_bn_pooled_apply(const BnPooledApplyParams& p, cudaStream_t stream) {
  using S = State<Storage>;
  using Neurons = CommonNeuron<S>;
  return with_pooled_instance<Storage>(p, [&](auto K, auto N, auto usual) {
    const Walk walk = walk_over(p.M, p.channels, N, sizeof(Storage), kMappingBlocks);
    return launch(bn_pooled_apply_kernel<Storage, K, N, decltype(usual)::value, Neurons>, walk.blocks(), stream, p,
                  BnSetup<Neurons, S>::from(p), S(p.count), walk);
  });
}

}  // namespace sewsnn
