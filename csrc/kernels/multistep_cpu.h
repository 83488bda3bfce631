// Multi-step neurons on the CPU. The neurons are cut into tiles. A tile runs all T time-steps (in chunks of kChunk,
// which backward replays from x and the checkpoints), so x, s and the gradients are read or written once. Blocks
// consist of tiles and are independent, so any number of threads gives the same result.
#pragma once

#include "kernels/channel_lanes_cpu.h"

SEWSNN_BEGIN

constexpr int64_t kBlock = 1024;  // neurons
static_assert(kBlock % kTile == 0 && kTile % kGroupSize<float> == 0, "tiles fill blocks, vectors fill tiles");

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
// The additional neurons get no gradient and therefore add nothing to the gradients of learnt parameters.
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

// The states before time-step t, a multiple of kChunk: v0 or checkpoints; at rest without v0.
template <class S, class Storage>
void set_before(Source<S>* before, const Recurrence<Storage>& neuron, const Rows& v0, const void* checkpoints,
                int64_t T, int64_t t, int64_t M, int64_t i) {
  for (int n = 0; n < neuron.states(); ++n) {
    const S* row = v0.data ? static_cast<const S*>(v0.data) + n * v0.row_stride : nullptr;
    if (t > 0) row = static_cast<const S*>(checkpoints) + (n * checkpoint_count(T) + t / kChunk - 1) * M;
    before[n] = row ? Source<S>{row + i, 0, 1} : neuron.at_rest(n);
  }
}

// A tile with fewer than kTile neurons works on copies.
template <class S>
struct PaddedStates {
  Padded<S> at[kMostStates];
  void fill(Source<S>* rows, int states, int64_t steps, int n) {
    for (int k = 0; k < states; ++k) rows[k] = at[k].filled(rows[k], steps, n);
  }
};

template <class Storage>
void forward_blocks(const ForwardParams& p, int64_t first, int64_t last) {
  using S = State<Storage>;
  const Recurrence<Storage> neuron(p.neuron);
  const int states = neuron.states();
  const Sink<Storage> s = sink_of<Storage>(p.s, p.T, p.M);
  const int64_t kept = checkpoint_count(p.T);
  S* const checkpoints = static_cast<S*>(p.checkpoints);
  Sink<S> v_seq[kMostStates] = {};
  for (int k = 0; p.v_seq && k < states; ++k) v_seq[k] = sink_of<S>(static_cast<S*>(p.v) + k * p.T * p.M, p.T, p.M);
  LearntLanes<S> learnt(p.neuron.learnt, neuron.learnt(), neuron.own_learnt());
  alignas(64) S v[kMostStates][kTile];
  Padded<Storage> x_tail, s_tail;
  PaddedStates<S> before_tail, v_seq_tail;

  const int64_t end = last * kBlock < p.M ? last * kBlock : p.M;
  for (int64_t i = first * kBlock; i < end; i += kTile) {
    const int n = int(end - i < kTile ? end - i : kTile);
    ForwardTile<Storage> tile = {};
    tile.learnt = learnt.at(i);
    set_before<S>(tile.before, neuron, p.v0, nullptr, p.T, 0, p.M, i);
    for (int64_t t = 0; t < p.T; t += kChunk) {
      const bool ends = t + kChunk >= p.T;
      tile.steps = ends ? p.T - t : kChunk;
      tile.x = Source<Storage>::of(p.x, t, i);
      const Sink<Storage> s_here = from(s, t, i);
      tile.s = s_here;
      S* after[kMostStates];  // in memory, if anyone wants it
      for (int k = 0; k < states; ++k) {
        S* const row = ends ? p.v_seq ? nullptr : static_cast<S*>(p.v) : checkpoints;
        after[k] = row ? row + (ends ? k : k * kept + t / kChunk) * p.M + i : nullptr;
        tile.after[k] = after[k] && n == kTile ? after[k] : v[k];
        tile.v_seq[k] = from(v_seq[k], t, i);
      }
      if (n == kTile) {
        neuron.forward(tile);
      } else {
        tile.x = x_tail.filled(tile.x, tile.steps, n);
        before_tail.fill(tile.before, states, 1, n);
        tile.s = s_tail.sink(s_here);
        for (int k = 0; k < states; ++k) tile.v_seq[k] = v_seq_tail.at[k].sink(tile.v_seq[k]);
        neuron.forward(tile);
        s_tail.copy_to(s_here, tile.steps, n);
        for (int k = 0; k < states; ++k) {
          v_seq_tail.at[k].copy_to(from(v_seq[k], t, i), tile.steps, n);
          if (after[k]) memcpy(after[k], v[k], n * sizeof(S));
        }
      }
      for (int k = 0; k < states; ++k) tile.before[k] = {tile.after[k], 0, 1};
    }
  }
  if (s.streaming || v_seq[0].streaming) finish_streaming();
}

template <class Storage>
void backward_blocks(const BackwardParams& p, int64_t first, int64_t last) {
  using S = State<Storage>;
  static constexpr Storage no_grad_s = {};
  static constexpr S no_grad_v = 0;
  const bool learn = p.learnt_partials || p.learnt_elements;
  const Recurrence<Storage> neuron(p.neuron, learn);
  const int states = neuron.states(), parameters = neuron.learnt();
  const Sink<Storage> grad_x = sink_of<Storage>(p.grad_x, p.T, p.M);
  const Rows grad_s = p.grad_s.data ? p.grad_s : Rows{&no_grad_s, 0, 0};
  S* const grad_v0 = static_cast<S*>(p.grad_v0);
  LearntLanes<S> learnt(p.neuron.learnt, neuron.learnt(), neuron.own_learnt());
  alignas(64) S g[kMostStates][kTile], h[kMostStates][kChunk * kTile], sigma[kChunk * kTile];
  Padded<Storage> x_tail, grad_s_tail, grad_x_tail;
  PaddedStates<S> before_tail, grad_v_tail, after_tail;

  const int64_t blocks = (p.M + kBlock - 1) / kBlock;
  for (int64_t block = first; block < last; ++block) {
    double grad_learnt[kMostLearnt * kTile] = {};
    const int64_t end = (block + 1) * kBlock < p.M ? (block + 1) * kBlock : p.M;
    for (int64_t i = block * kBlock; i < end; i += kTile) {
      const int n = int(end - i < kTile ? end - i : kTile);
      BackwardTile<Storage> tile = {};
      tile.learnt = learnt.at(i);
      tile.grad_learnt = learn ? grad_learnt : nullptr;
      tile.g = sigma;
      for (int k = 0; k < states; ++k) {
        const Rows grad_v = p.grad_v[k].data && !p.v_seq ? p.grad_v[k] : Rows{&no_grad_v, 0, 0};
        tile.grad_after[k] = Source<S>::of(grad_v, 0, i);
        tile.grad_before[k] = g[k];
        tile.h[k] = h[k];
      }
      if (n < kTile) after_tail.fill(tile.grad_after, states, 1, n);
      for (int64_t t = (p.T - 1) / kChunk * kChunk; t >= 0; t -= kChunk) {
        const Sink<Storage> grad_x_here = from(grad_x, t, i);
        tile.steps = t + kChunk < p.T ? kChunk : p.T - t;
        tile.x = Source<Storage>::of(p.x, t, i);
        set_before<S>(tile.before, neuron, p.v0, p.checkpoints, p.T, t, p.M, i);
        tile.grad_s = Source<Storage>::of(grad_s, t, i);
        for (int k = 0; k < states; ++k)
          tile.grad_v[k] = p.grad_v[k].data && p.v_seq ? Source<S>::of(p.grad_v[k], t, i) : Source<S>{};
        tile.grad_x = grad_x_here;
        if (n < kTile) {
          tile.x = x_tail.filled(tile.x, tile.steps, n);
          before_tail.fill(tile.before, states, 1, n);
          tile.grad_s = grad_s_tail.filled(tile.grad_s, tile.steps, n);
          grad_v_tail.fill(tile.grad_v, states, tile.steps, n);
          tile.grad_x = grad_x_tail.sink(grad_x_here);
        }
        neuron.backward(tile);
        if (n < kTile) grad_x_tail.copy_to(grad_x_here, tile.steps, n);
        for (int k = 0; k < states; ++k) tile.grad_after[k] = {g[k], 0, 1};
      }
      for (int k = 0; grad_v0 && k < states; ++k) memcpy(grad_v0 + k * p.M + i, g[k], n * sizeof(S));
      if (p.learnt_elements) {
        for (int q = 0; q < parameters; ++q)
          for (int j = 0; j < n; ++j)
            static_cast<S*>(p.learnt_elements)[q * p.M + i + j] = S(grad_learnt[q * kTile + j]);
        memset(grad_learnt, 0, sizeof grad_learnt);
      }
    }
    for (int q = 0; p.learnt_partials && q < parameters; ++q) {
      double sum = 0;
      for (int j = 0; j < kTile; ++j) sum += grad_learnt[q * kTile + j];
      p.learnt_partials[q * blocks + block] = sum;
    }
  }
  if (grad_x.streaming) finish_streaming();
}

SEWSNN_END
