// The two passes of backward: reduce recomputes dL/dy and sums it over each channel; apply recomputes dL/dy again and
// computes dL/dz from it. Reading z and the incoming gradient again moves as many bytes as writing and reading dL/dy
// would, and dL/dy needs no memory.
#pragma once

#include "kernels/bn_pooled.cuh"

SEWSNN_BEGIN

// The number of blocks per multiprocessor for which the registers must suffice: four with 128 registers per thread,
// three with 168, two with 255. Reduce needs more registers than apply, for its sums and for PLIF's gradient.
template <class Storage, int K, int N, bool Shortcut, bool Reduce, class Neurons>
constexpr int blocks_wanted() {
  if (sizeof(Storage) == 8) return 2;
  if (sizeof(Storage) == 4) return K > 2 * kAhead || (Shortcut && Reduce) ? 2 : 3;
  if (Shortcut && Reduce) return K > kAhead ? 2 : 3;
  return K == kAhead ? 4 : K * N > 32 ? 2 : 3;
}

template <class Storage, int K, int N, bool Shortcut, bool Usual, class Neurons, class P>
__device__ __forceinline__ void bn_reduce(const P& p, const BnSetup<Neurons, State<Storage>>& o, const Walk& walk,
                                          const SecondStage& second, const SecondStage& second_learnt) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  using Shape = typename Neurons::Shape;
  Walker<N> at(walk);
  int64_t start = last_chunk<K>(p.T);
  ChunkInputs<Storage, K, N, Shortcut, true, kOptionalShortcut<Neurons>> in;
  if (at.inside(walk)) load_chunk(p, walk, at, start, in);  // before the parameters, whose loads take as long
  Pack<S, N> norm[3];
  share_by_channel<kLine<Storage>>(walk, norm, [&](int64_t channel, S(&out)[3]) {
    load_affine(p.norm, inverse_deviation(p.norm, o.eps, channel), channel, out[0], out[1], out[2]);
  });
  const Options<Neurons, S, Usual> options(p, o);
  const auto learnt = share_learnt<Shape, kLine<Storage>, S, N>(walk, o.sn.learnt);
  LearntGrads<Shape, S, N> grad_learnt = {p.learnt_partials != nullptr || p.learnt_sums != nullptr, 0, {}};
  auto grads = zeros<S, N, Shape::kStates>();
  Pack<S, N> sums[2] = {fill_pack<S, N>(S(0)), fill_pack<S, N>(S(0))};  // of dL/dy, and of dL/dy (z - mean)
  while (at.inside(walk)) {
    const auto take = [&](const Step<Storage, N, Shape::kStates>& step) {
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        sums[0].at[j] += step.grad_y.at[j];
        sums[1].at[j] += step.grad_y.at[j] * (step.z.number(j) - norm[0].at[j]);
      }
    };
    backward_chunk<Usual, true>(p, options, o.sn.surrogate, learnt, norm, start, at.i, in, grads, grad_learnt, take);
    start -= K;
    if (start < 0) {
      start = last_chunk<K>(p.T);
      grads = zeros<S, N, Shape::kStates>();
      at.advance(walk);
    }
    if (at.inside(walk)) load_chunk(p, walk, at, start, in);
  }
  store_partials<kLine<Storage>>(walk, sums, p.partials);
  if constexpr (Shape::kPerChannel) {
    if (grad_learnt.wanted) {
      Pack<S, N> learnt_sums[2] = {grad_learnt.own.sums[0], fill_pack<S, N>(S(0))};
      if constexpr (Shape::kLearnt > 1) learnt_sums[1] = grad_learnt.own.sums[1];
      __syncthreads();  // store_partials uses the same shared memory
      store_partials<kLine<Storage>>(walk, learnt_sums, p.learnt_workspace);
      double sum;
      if (finish_group<S>(walk, second_learnt, p.learnt_workspace, sum)) {
        const Entry mine(walk);
        if (mine.inside && (Shape::kLearnt > 1 || mine.q == 0))
          store_global(static_cast<S*>(p.learnt_sums) + mine.q * walk.channels + mine.channel, S(sum));
      }
    }
  } else if constexpr (Shape::kLearnt > 0) {
    if (grad_learnt.wanted) {
      const double sum = block_sum<kThreads>(grad_learnt.shared);
      if (threadIdx.x == 0) store_global(p.learnt_partials + blockIdx.x, sum);
    }
  }
  double sum;
  if (!finish_group<S>(walk, second, p.partials, sum)) return;
  const Entry mine(walk);
  if (!mine.inside) return;
  if (mine.q == 1) sum *= double(inverse_deviation(p.norm, o.eps, mine.channel));
  store_global(static_cast<S*>(p.sums) + mine.q * walk.channels + mine.channel, S(sum));
}

template <class Storage, int K, int N, bool Shortcut, bool Usual, class Neurons>
__global__ void __launch_bounds__(kThreads, blocks_wanted<Storage, K, N, Shortcut, true, Neurons>())
    bn_reduce_kernel(const BnReduceParams p, const BnSetup<Neurons, State<Storage>> o, const Walk walk,
                     const SecondStage second, const SecondStage second_learnt) {
  bn_reduce<Storage, K, N, Shortcut, Usual>(p, o, walk, second, second_learnt);
}

template <class Storage, int K, int N, bool Shortcut, bool Usual, class Neurons, class P>
__device__ __forceinline__ void bn_apply(const P& p, const BnSetup<Neurons, State<Storage>>& o,
                                         const State<Storage>& count, const Walk& walk) {
  wait_for_earlier_kernels();
  using S = State<Storage>;
  using Shape = typename Neurons::Shape;
  Walker<N> at(walk);
  int64_t start = last_chunk<K>(p.T);
  ChunkInputs<Storage, K, N, Shortcut, false, kOptionalShortcut<Neurons>> in;
  if (at.inside(walk)) load_chunk(p, walk, at, start, in);
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
  const Options<Neurons, S, Usual> options(p, o);
  const auto learnt = share_learnt<Shape, kLine<Storage>, S, N>(walk, o.sn.learnt);
  LearntGrads<Shape, S, N> not_wanted = {};
  auto grads = zeros<S, N, Shape::kStates>();
  Pack<S, N> still = fill_pack<S, N>(S(0));  // sum of dL/dy over T, if z is one row
  while (at.inside(walk)) {
    const auto store_grad_z = [&](int64_t t, const Pack<S, N>& grad_y, const Words<Storage, N>& z) {
      Pack<S, N> grad_z;
      SEWSNN_UNROLL
      for (int j = 0; j < N; ++j) {
        const S u = z.number(j) - norm[0].at[j];
        grad_z.at[j] = norm[1].at[j] * (grad_y.at[j] - norm[3].at[j] - u * norm[4].at[j]);
      }
      Words<Storage, N>::of(grad_z).store(Cursor<Storage, N>(p.grad_z, p.M, t, at.i));
    };
    const auto take = [&](const Step<Storage, N, Shape::kStates>& step) {
      if (p.still) {
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) still.at[j] += step.grad_y.at[j];
      } else {
        store_grad_z(step.t, step.grad_y, step.z);
      }
      if constexpr (P::kPooled) {
        if (p.grad_shortcut) step.grad_out.store(Cursor<Storage, N>(p.grad_shortcut, p.M, step.t, at.i));
      }
      if (Shortcut && p.grad_shortcut) {
        Pack<S, N> grad;
        SEWSNN_UNROLL
        for (int j = 0; j < N; ++j) {
          S a = step.h[0].at[j];
          if (options.spiking)
            a = spike_as<S>(options.neuron.spikes(options.fire, of_neuron(step.h, j), of_neuron(learnt, j)), S(1),
                            S(0));
          grad.at[j] = p.connect == Connect::AddBefore
                           ? step.grad_y.at[j]
                           : step.grad_out.number(j) * (p.connect == Connect::And ? a : S(1) - a);
        }
        Words<Storage, N>::of(grad).store(Cursor<Storage, N>(p.grad_shortcut, p.M, step.t, at.i));
      }
    };
    backward_chunk<Usual, false>(p, options, o.sn.surrogate, learnt, norm, start, at.i, in, grads, not_wanted, take);
    start -= K;
    if (start < 0) {
      start = last_chunk<K>(p.T);
      if (p.still) {
        Words<Storage, N> z;
        z.load(Cursor<Storage, N>(p.z, 0, at.i));
        store_grad_z(0, still, z);
        still = fill_pack<S, N>(S(0));
      }
      grads = zeros<S, N, Shape::kStates>();
      at.advance(walk);
    }
    if (at.inside(walk)) load_chunk(p, walk, at, start, in);
  }
}

template <class Storage, int K, int N, bool Shortcut, bool Usual, class Neurons>
__global__ void __launch_bounds__(kThreads, blocks_wanted<Storage, K, N, Shortcut, false, Neurons>())
    bn_apply_kernel(const BnApplyParams p, const BnSetup<Neurons, State<Storage>> o, const State<Storage> count,
                    const Walk walk) {
  bn_apply<Storage, K, N, Shortcut, Usual>(p, o, count, walk);
}

// ---- of a pooled output

template <class Storage, int K, int N, bool Usual, class Neurons>
__global__ void __launch_bounds__(kThreads, 2)
    bn_pooled_reduce_kernel(const BnPooledReduceParams p, const BnSetup<Neurons, State<Storage>> o, const Walk walk,
                            const SecondStage second, const SecondStage second_learnt) {
  bn_reduce<Storage, K, N, false, Usual>(p, o, walk, second, second_learnt);
}

template <class Storage, int K, int N, bool Usual, class Neurons>
__global__ void __launch_bounds__(kThreads, 2)
    bn_pooled_apply_kernel(const BnPooledApplyParams p, const BnSetup<Neurons, State<Storage>> o,
                           const State<Storage> count, const Walk walk) {
  bn_apply<Storage, K, N, false, Usual>(p, o, count, walk);
}

SEWSNN_END
