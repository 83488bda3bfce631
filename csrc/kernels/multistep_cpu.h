// Multi-step IF/LIF/PLIF on the CPU. The neurons are cut into tiles. A tile runs all T time-steps (in chunks of kChunk,
// which backward replays from x and the checkpoints), so x, s and the gradients are read or written once. Blocks
// consist of tiles and are independent, so any number of threads gives the same result.
#pragma once

#include "core/dispatch.h"
#include "kernels/cpu_tiles.h"

SEWSNN_BEGIN

constexpr int64_t kBlock = 1024;  // neurons
static_assert(kBlock % kTile == 0 && kTile % kGroupSize<float> == 0, "tiles fill blocks, vectors fill tiles");

// Results of this size and more do not stay in any cache until a later op uses them.
constexpr int64_t kStreamingBytes = int64_t(8) << 20;

// A [T, M] result. It is streamed past the cache if it is large and every vector of it is aligned.
template <class T>
Sink<T> sink_of(void* data, int64_t T_steps, int64_t M) {
  const int64_t row_bytes = M * int64_t(sizeof(T));
  const bool aligned = (reinterpret_cast<uintptr_t>(data) | uintptr_t(row_bytes)) % kVectorBytes == 0;
  return {static_cast<T*>(data), M, aligned && T_steps * row_bytes >= kStreamingBytes};
}

template <class T>
Sink<T> from(const Sink<T>& sink, int64_t t, int64_t i) {
  return {sink.data ? sink.data + t * sink.row_stride + i : nullptr, sink.row_stride, sink.streaming};
}

// The last tile may have fewer than kTile neurons. It is processed in a copy of its rows that is filled up with zeros.
// The additional neurons get no gradient and therefore add nothing to the gradient of the leak.
template <class T>
struct Padded {
  alignas(64) T rows[kChunk][kTile];

  Source<T> filled(const Source<T>& from, int64_t steps, int n) {
    if (!from.data) return from;
    memset(rows, 0, sizeof rows);
    for (int64_t t = 0; t < steps; ++t)
      for (int i = 0; i < n; ++i) rows[t][i] = from.data[t * from.row_stride + i * from.step];
    return {rows[0], kTile, 1};
  }
  Sink<T> sink(const Sink<T>& to) { return {to.data ? rows[0] : nullptr, kTile, false}; }
  void copy_to(const Sink<T>& to, int64_t steps, int n) const {
    for (int64_t t = 0; to.data && t < steps; ++t) memcpy(to.data + t * to.row_stride, rows[t], n * sizeof(T));
  }
};

// v before time-step t, a multiple of kChunk: v0 or a checkpoint; `rest` without v0.
template <class S>
Source<S> v_before(const void* v0, const void* checkpoints, int64_t t, int64_t M, int64_t i, const S* rest) {
  const S* const row = t == 0 ? static_cast<const S*>(v0) : static_cast<const S*>(checkpoints) + (t / kChunk - 1) * M;
  return row ? Source<S>{row + i, 0, 1} : Source<S>{rest, 0, 0};
}

// Calls f(neuron, decay, hard) with the types that stand for the choices in p.
template <class S, class F>
auto with_dynamics(const NeuronParams& p, F&& f) {
  return with_neuron<S>(p, [&](auto neuron) {
    using N = typename decltype(neuron)::type;
    return with_bool(p.decay_input && N::has_leak, [&](auto decay) {
      return with_bool(p.hard_reset,
                       [&](auto hard) { return f(neuron, Bool<decltype(decay)::value && N::has_leak>(), hard); });
    });
  });
}

template <class Storage>
ForwardFunction<Storage> select_forward(const NeuronParams& p) {
  return with_dynamics<State<Storage>>(p, [](auto neuron, auto decay, auto hard) -> ForwardFunction<Storage> {
    return forward_tile<Storage, typename decltype(neuron)::type, decltype(decay)::value, decltype(hard)::value>;
  });
}

template <class Storage>
BackwardFunction<Storage> select_replay(const NeuronParams& p) {
  return with_dynamics<State<Storage>>(p, [](auto neuron, auto decay, auto hard) -> BackwardFunction<Storage> {
    return replay_tile<Storage, typename decltype(neuron)::type, decltype(decay)::value, decltype(hard)::value>;
  });
}

template <class Storage>
BackwardFunction<Storage> select_backward(const NeuronParams& p) {
  return with_dynamics<State<Storage>>(p, [&](auto neuron, auto decay, auto hard) {
    return with_bool(p.detach_reset, [&](auto detach) -> BackwardFunction<Storage> {
      return backward_tile<Storage, typename decltype(neuron)::type, decltype(decay)::value, decltype(hard)::value,
                           decltype(detach)::value>;
    });
  });
}

template <class S>
SurrogateFunction<S> select_surrogate(const NeuronParams& p) {
  return Surrogate<S>::from(p).visit(
      [](auto surrogate) -> SurrogateFunction<S> { return surrogate_values<S, decltype(surrogate)>; });
}

template <class Storage>
void forward_blocks(const ForwardParams& p, int64_t first, int64_t last) {
  using S = State<Storage>;
  const S leak = leak_of<S>(p.neuron), rest = S(p.neuron.v_reset);
  const ForwardFunction<Storage> forward = select_forward<Storage>(p.neuron);
  const Sink<Storage> s = sink_of<Storage>(p.s, p.T, p.M);
  const Sink<S> v_seq = sink_of<S>(p.v_seq ? p.v : nullptr, p.T, p.M);
  S* const checkpoints = static_cast<S*>(p.checkpoints);
  S* const v_final = p.v_seq ? nullptr : static_cast<S*>(p.v);
  alignas(64) S v[kTile];
  Padded<Storage> x_tail, s_tail;
  Padded<S> v_tail, v_seq_tail;

  const int64_t end = last * kBlock < p.M ? last * kBlock : p.M;
  for (int64_t i = first * kBlock; i < end; i += kTile) {
    const int n = int(end - i < kTile ? end - i : kTile);
    Source<S> before = v_before<S>(p.v0, nullptr, 0, p.M, i, &rest);
    for (int64_t t = 0; t < p.T; t += kChunk) {
      const bool ends = t + kChunk >= p.T;
      const int64_t steps = ends ? p.T - t : kChunk;
      S* const after = ends ? v_final : checkpoints ? checkpoints + t / kChunk * p.M : nullptr;
      const Sink<Storage> s_here = from(s, t, i);
      const Sink<S> v_seq_here = from(v_seq, t, i);
      ForwardTile<Storage> tile = {steps, Source<Storage>::of(p.x, t, i), before, v, s_here, v_seq_here};
      if (n == kTile) {
        if (after) tile.v_after = after + i;
        forward(p.neuron, leak, tile);
      } else {
        tile.x = x_tail.filled(tile.x, steps, n);
        tile.v_before = v_tail.filled(before, 1, n);
        tile.s = s_tail.sink(s_here);
        tile.v_seq = v_seq_tail.sink(v_seq_here);
        forward(p.neuron, leak, tile);
        s_tail.copy_to(s_here, steps, n);
        v_seq_tail.copy_to(v_seq_here, steps, n);
        if (after) memcpy(after + i, v, n * sizeof(S));
      }
      before = {tile.v_after, 0, 1};
    }
  }
  if (s.streaming || v_seq.streaming) finish_streaming();
}

template <class Storage>
void backward_blocks(const BackwardParams& p, int64_t first, int64_t last) {
  using S = State<Storage>;
  static constexpr Storage no_grad_s = {};
  static constexpr S no_grad_v = 0;
  const S leak = leak_of<S>(p.neuron), rest = S(p.neuron.v_reset);
  const BackwardFunction<Storage> replay = select_replay<Storage>(p.neuron);
  const BackwardFunction<Storage> backward = select_backward<Storage>(p.neuron);
  const SurrogateFunction<S> surrogate = select_surrogate<S>(p.neuron);
  const Sink<Storage> grad_x = sink_of<Storage>(p.grad_x, p.T, p.M);
  const Rows grad_s = p.grad_s.data ? p.grad_s : Rows{&no_grad_s, 0, 0};
  const Rows grad_v = p.grad_v.data && !p.v_seq ? p.grad_v : Rows{&no_grad_v, 0, 0};
  S* const grad_v0 = static_cast<S*>(p.grad_v0);
  alignas(64) S gv[kTile], h[kChunk * kTile], g[kChunk * kTile];
  Padded<Storage> x_tail, grad_s_tail, grad_x_tail;
  Padded<S> v_tail, grad_v_tail, after_tail;

  for (int64_t block = first; block < last; ++block) {
    double grad_leak[kTile] = {};
    const int64_t end = (block + 1) * kBlock < p.M ? (block + 1) * kBlock : p.M;
    for (int64_t i = block * kBlock; i < end; i += kTile) {
      const int n = int(end - i < kTile ? end - i : kTile);
      Source<S> after = Source<S>::of(grad_v, 0, i);
      for (int64_t t = (p.T - 1) / kChunk * kChunk; t >= 0; t -= kChunk) {
        const int64_t steps = t + kChunk < p.T ? kChunk : p.T - t;
        const Sink<Storage> grad_x_here = from(grad_x, t, i);
        BackwardTile<Storage> tile = {};
        tile.steps = steps;
        tile.x = Source<Storage>::of(p.x, t, i);
        tile.v_before = v_before<S>(p.v0, p.checkpoints, t, p.M, i, &rest);
        tile.grad_s = Source<Storage>::of(grad_s, t, i);
        if (p.grad_v.data && p.v_seq) tile.grad_v = Source<S>::of(p.grad_v, t, i);
        tile.grad_v_after = after;
        tile.grad_v_before = gv;
        tile.grad_x = grad_x_here;
        tile.h = h;
        tile.g = g;
        tile.keep_grad_h = p.grad_leak_partials != nullptr;
        if (n < kTile) {
          tile.x = x_tail.filled(tile.x, steps, n);
          tile.v_before = v_tail.filled(tile.v_before, 1, n);
          tile.grad_s = grad_s_tail.filled(tile.grad_s, steps, n);
          tile.grad_v = grad_v_tail.filled(tile.grad_v, steps, n);
          tile.grad_v_after = after_tail.filled(after, 1, n);
          tile.grad_x = grad_x_tail.sink(grad_x_here);
        }
        replay(p.neuron, leak, tile);
        surrogate(p.neuron, h, g, steps * kTile);
        backward(p.neuron, leak, tile);
        if (n < kTile) grad_x_tail.copy_to(grad_x_here, steps, n);
        if (p.grad_leak_partials) leak_gradient(p.neuron, leak, tile, grad_leak);
        after = {gv, 0, 1};
      }
      if (grad_v0) memcpy(grad_v0 + i, gv, n * sizeof(S));
    }
    if (p.grad_leak_partials) {
      double sum = 0;
      for (double lane : grad_leak) sum += lane;
      p.grad_leak_partials[block] = sum;
    }
  }
  if (grad_x.streaming) finish_streaming();
}

SEWSNN_END
