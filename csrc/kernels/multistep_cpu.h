// Multi-step IF/LIF/PLIF on the CPU. The neurons are cut into blocks whose rows stay in the cache; a block runs all T
// time-steps (backward: in chunks of kChunk, replayed from x and the checkpoints), so x, s and the gradients cross
// memory once. Blocks are independent: any split over threads gives the same result.
#pragma once

#include "core/dispatch.h"
#include "kernels/cpu_rows.h"

SEWSNN_BEGIN

constexpr int64_t kBlock = 1024;  // neurons; backward holds kChunk + 5 rows of them

struct Block {
  int64_t begin, size;
  Block(int64_t index, int64_t M) : begin(index * kBlock), size(M - begin < kBlock ? M - begin : kBlock) {}
};

// Row t of an operand as state values: in place where storage is the state, else converted into `scratch`.
template <class Storage>
const State<Storage>* row(const Rows& rows, int64_t t, const Block& b, State<Storage>* scratch) {
  using S = State<Storage>;
  const Storage* data = static_cast<const Storage*>(rows.data);
  if (!data || rows.step == 0) {
    const S value = data ? load_(data[t * rows.row_stride]) : S(0);
    for (int64_t i = 0; i < b.size; ++i) scratch[i] = value;
    return scratch;
  }
  data += t * rows.row_stride + b.begin;
  if constexpr (sizeof(Storage) == sizeof(S)) return data;
  else return load_row<Storage>(data, scratch, b.size), scratch;
}

// v before time-step t (a multiple of kChunk) into `out`.
template <class S>
void initial_v(const NeuronParams& p, const void* v0, const void* checkpoints, int64_t t, int64_t M, const Block& b,
               S* out) {
  const S* from = t == 0 ? static_cast<const S*>(v0) : static_cast<const S*>(checkpoints) + (t / kChunk - 1) * M;
  for (int64_t i = 0; i < b.size; ++i) out[i] = from ? from[b.begin + i] : S(p.v_reset);
}

template <class S, bool Spikes>
ForwardRow<S> select_forward(const NeuronParams& p) {
  return with_neuron<S>(p, [&](auto neuron) {
    return with_bool(p.decay_input, [&](auto decay) {
      return with_bool(p.hard_reset, [&](auto hard) -> ForwardRow<S> {
        using N = typename decltype(neuron)::type;
        return forward_row < S, N, decltype(decay)::value && N::has_leak, decltype(hard)::value, Spikes > ;
      });
    });
  });
}

template <class S>
BackwardRow<S> select_backward(const NeuronParams& p) {
  return with_neuron<S>(p, [&](auto neuron) {
    return with_bool(p.decay_input, [&](auto decay) {
      return with_bool(p.hard_reset, [&](auto hard) {
        return with_bool(p.detach_reset, [&](auto detach) -> BackwardRow<S> {
          using N = typename decltype(neuron)::type;
          return backward_row < S, N, decltype(decay)::value && N::has_leak, decltype(hard)::value,
                 decltype(detach)::value > ;
        });
      });
    });
  });
}

template <class S>
SurrogateRow<S> select_surrogate(const NeuronParams& p) {
  return with_surrogate<S>(p.surrogate, p.alpha,
                           [](auto surrogate) -> SurrogateRow<S> { return surrogate_row<S, decltype(surrogate)>; });
}

template <class S>
LeakRow<S> select_leak(const NeuronParams& p, bool from_h) {
  return with_bool(p.decay_input, [&](auto decay) {
    return with_bool(p.hard_reset, [&](auto hard) {
      return with_bool(from_h, [&](auto h) -> LeakRow<S> {
        return leak_row<S, decltype(decay)::value, decltype(hard)::value, decltype(h)::value>;
      });
    });
  });
}

template <class Storage>
void forward_blocks(const ForwardParams& p, int64_t first, int64_t last) {
  using S = State<Storage>;
  const S leak = leak_of<S>(p.neuron);
  const ForwardRow<S> forward = select_forward<S, true>(p.neuron);
  alignas(64) S v[kBlock], x_scratch[kBlock], s_scratch[kBlock];
  for (int64_t index = first; index < last; ++index) {
    const Block b(index, p.M);
    initial_v<S>(p.neuron, p.v0, nullptr, 0, p.M, b, v);
    for (int64_t t = 0; t < p.T; ++t) {
      if (p.checkpoints && t > 0 && t % kChunk == 0)
        memcpy(static_cast<S*>(p.checkpoints) + (t / kChunk - 1) * p.M + b.begin, v, b.size * sizeof(S));
      Storage* const s = static_cast<Storage*>(p.s) + t * p.M + b.begin;
      const S* const x = row<Storage>(p.x, t, b, x_scratch);
      if constexpr (sizeof(Storage) == sizeof(S)) {
        forward(p.neuron, leak, x, v, s, b.size);
      } else {
        forward(p.neuron, leak, x, v, s_scratch, b.size);
        store_row<Storage>(s_scratch, s, b.size);
      }
      if (p.v && (p.v_seq || t == p.T - 1))
        memcpy(static_cast<S*>(p.v) + (p.v_seq ? t * p.M : 0) + b.begin, v, b.size * sizeof(S));
    }
  }
}

template <class Storage>
void backward_blocks(const BackwardParams& p, int64_t first, int64_t last) {
  using S = State<Storage>;
  const S leak = leak_of<S>(p.neuron);
  const ForwardRow<S> replay = select_forward<S, false>(p.neuron);
  const SurrogateRow<S> surrogate = select_surrogate<S>(p.neuron);
  const BackwardRow<S> backward = select_backward<S>(p.neuron);
  const LeakRow<S> leak_from_v = select_leak<S>(p.neuron, false), leak_from_h = select_leak<S>(p.neuron, true);
  alignas(64) S h[kChunk][kBlock], v[kBlock], gv[kBlock], g[kBlock], in_scratch[kBlock], out_scratch[kBlock];

  for (int64_t index = first; index < last; ++index) {
    const Block b(index, p.M);
    double grad_leak = 0;
    const auto add_grad_v = [&](int64_t t) {
      const S* const grad = row<S>(p.grad_v, t, b, in_scratch);
      for (int64_t i = 0; i < b.size; ++i) gv[i] += grad[i];
    };
    for (int64_t i = 0; i < b.size; ++i) gv[i] = S(0);
    if (p.grad_v.data && !p.v_seq) add_grad_v(0);

    for (int64_t start = (p.T - 1) / kChunk * kChunk; start >= 0; start -= kChunk) {
      const int64_t end = start + kChunk < p.T ? start + kChunk : p.T;
      initial_v<S>(p.neuron, p.v0, p.checkpoints, start, p.M, b, v);
      for (int64_t t = start; t < end; ++t)
        replay(p.neuron, leak, row<Storage>(p.x, t, b, in_scratch), v, h[t - start], b.size);

      for (int64_t t = end - 1; t >= start; --t) {
        surrogate(p.neuron, h[t - start], g, b.size);
        if (p.grad_v.data && p.v_seq) add_grad_v(t);
        Storage* const gx = static_cast<Storage*>(p.grad_x) + t * p.M + b.begin;
        const S* const gs = row<Storage>(p.grad_s, t, b, in_scratch);
        if constexpr (sizeof(Storage) == sizeof(S)) {
          backward(p.neuron, leak, h[t - start], gs, g, gv, gx, b.size);
        } else {
          backward(p.neuron, leak, h[t - start], gs, g, gv, out_scratch, b.size);
          store_row<Storage>(out_scratch, gx, b.size);
        }
        if (p.grad_leak_partials) {
          const S* const x = row<Storage>(p.x, t, b, in_scratch);
          if (t == start) initial_v<S>(p.neuron, p.v0, p.checkpoints, start, p.M, b, v);
          grad_leak += t == start ? leak_from_v(p.neuron, leak, v, x, g, b.size)
                                  : leak_from_h(p.neuron, leak, h[t - start - 1], x, g, b.size);
        }
      }
    }
    if (p.grad_v0) memcpy(static_cast<S*>(p.grad_v0) + b.begin, gv, b.size * sizeof(S));
    if (p.grad_leak_partials) p.grad_leak_partials[index] = grad_leak;
  }
}

SEWSNN_END
