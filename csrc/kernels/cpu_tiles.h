// The inner loops of the CPU kernels. They run a tile of neighbouring neurons over some time-steps, one group of
// vectors after the other, and keep the state of a group in registers over all these time-steps. Run-time choices about
// the neuron are template arguments. Choices about memory cost one branch per group.
#pragma once

#include "core/vector.h"
#include "neurons/fire.h"
#include "neurons/integrate_fire.h"
#include "neurons/leaky.h"
#include "neurons/surrogate.h"

SEWSNN_BEGIN

constexpr int kTile = 64;        // neurons
constexpr int kGroup = 4;        // vectors that have their state in registers at the same time
constexpr int kPrefetch = 2048;  // bytes to prefetch ahead in each row that is read

template <class S>
constexpr int kGroupSize = kGroup * kLanes<S>;  // neurons

template <class S>
struct Group {
  Vector<S> at[kGroup];

  static Group read_from(const S* p) {
    Group g;
    for (int k = 0; k < kGroup; ++k) g.at[k] = read<Vector<S>>(p + k * kLanes<S>);
    return g;
  }
  void write_to(S* p) const {
    for (int k = 0; k < kGroup; ++k) write(p + k * kLanes<S>, at[k]);
  }
};

// The rows of an operand, one per time-step, from the tile's first neuron on.
template <class T>
struct Source {
  using S = State<T>;
  const T* data;
  int64_t row_stride;
  int64_t step;  // 1, or 0: one number for all neurons

  static Source of(const Rows& rows, int64_t t, int64_t i) {
    return {static_cast<const T*>(rows.data) + t * rows.row_stride + i * rows.step, rows.row_stride, rows.step};
  }
  Group<S> group(int64_t t, int i) const {
    const T* const p = data + t * row_stride;
    Group<S> g;
    if (step) {
      for (int k = 0; k < kGroup; ++k) g.at[k] = load_vector(p + i + k * kLanes<S>);
    } else {
      for (int k = 0; k < kGroup; ++k) g.at[k] = splat<Vector<S>>(load_(*p));
    }
    return g;
  }
  void prefetch_group(int64_t t, int i) const {
    const auto p = reinterpret_cast<uintptr_t>(data + t * row_stride + i);
    for (int line = 0; line < kGroupSize<S> * int(sizeof(T)); line += 64)
      prefetch(reinterpret_cast<const void*>(p + kPrefetch + line));
  }
};

template <class T>
struct Sink {
  using S = State<T>;
  T* data;  // null: not requested
  int64_t row_stride;
  bool streaming;

  void put(int64_t t, int i, const Group<S>& g) const {
    T* const p = data + t * row_stride + i;
    if (streaming) {
      for (int k = 0; k < kGroup; ++k) stream_vector(p + k * kLanes<S>, g.at[k]);
    } else {
      for (int k = 0; k < kGroup; ++k) store_vector(p + k * kLanes<S>, g.at[k]);
    }
  }
};

// The neuron with its run-time choices as template arguments.
template <class S, class Neuron, bool Decay, bool Hard, bool Detach = true>
struct Dynamics {
  Neuron neuron;
  FireReset<S> fire;

  static Dynamics from(NeuronParams p, S leak) {
    p.decay_input = Decay, p.hard_reset = Hard, p.detach_reset = Detach;
    return {Neuron::from(p, leak), FireReset<S>::from(p)};
  }
};

// ---- forward

template <class Storage>
struct ForwardTile {
  using S = State<Storage>;
  int64_t steps;
  Source<Storage> x;
  Source<S> v_before;  // one row: the potential before the first time-step
  S* v_after;          // [kTile]: the potential after the last time-step
  Sink<Storage> s;
  Sink<S> v_seq;
};

template <class Storage>
using ForwardFunction = void (*)(const NeuronParams&, State<Storage> leak, const ForwardTile<Storage>&);

template <class Storage, class Neuron, bool Decay, bool Hard>
void forward_tile(const NeuronParams& p, State<Storage> leak, const ForwardTile<Storage>& in) {
  using S = State<Storage>;
  using V = Vector<S>;
  const ForwardTile<Storage> tile = in;  // a copy that no store can change: it stays in registers
  const auto [neuron, fire] = Dynamics<S, Neuron, Decay, Hard>::from(p, leak);
  for (int i = 0; i < kTile; i += kGroupSize<S>) {
    Group<S> v = tile.v_before.group(0, i), s;
    for (int64_t t = 0; t < tile.steps; ++t) {
      tile.x.prefetch_group(t, i);
      const Group<S> x = tile.x.group(t, i);
      for (int k = 0; k < kGroup; ++k) {
        const V h = neuron.charge(v.at[k], x.at[k]);
        s.at[k] = select(fire.fires(h), splat<V>(1), V{});
        v.at[k] = fire.reset(h);
      }
      tile.s.put(t, i, s);
      if (tile.v_seq.data) tile.v_seq.put(t, i, v);
    }
    v.write_to(tile.v_after + i);
  }
}

// ---- backward: recomputes h from x and v, then runs through the time-steps in reverse

template <class Storage>
struct BackwardTile {
  using S = State<Storage>;
  int64_t steps;
  Source<Storage> x;
  Source<S> v_before;  // one row: the potential before the first time-step
  Source<Storage> grad_s;
  Source<S> grad_v;        // gradient of v of every time-step; data null: none
  Source<S> grad_v_after;  // one row: dL/dv after the last time-step, from later time-steps
  S* grad_v_before;        // [kTile]
  Sink<Storage> grad_x;
  S* h;  // [kChunk, kTile] scratch
  S* g;  // [kChunk, kTile] scratch: sigma'(h - v_threshold), then dL/dh if leak_gradient() needs it
  bool keep_grad_h;
};

template <class Storage>
using BackwardFunction = void (*)(const NeuronParams&, State<Storage> leak, const BackwardTile<Storage>&);

template <class Storage, class Neuron, bool Decay, bool Hard>
void replay_tile(const NeuronParams& p, State<Storage> leak, const BackwardTile<Storage>& in) {
  using S = State<Storage>;
  const BackwardTile<Storage> tile = in;
  const auto [neuron, fire] = Dynamics<S, Neuron, Decay, Hard>::from(p, leak);
  for (int i = 0; i < kTile; i += kGroupSize<S>) {
    Group<S> v = tile.v_before.group(0, i), h;
    for (int64_t t = 0; t < tile.steps; ++t) {
      tile.x.prefetch_group(t, i);
      tile.grad_s.prefetch_group(t, i);
      const Group<S> x = tile.x.group(t, i);
      for (int k = 0; k < kGroup; ++k) {
        h.at[k] = neuron.charge(v.at[k], x.at[k]);
        v.at[k] = fire.reset(h.at[k]);
      }
      h.write_to(tile.h + t * kTile + i);
    }
  }
}

template <class S>
using SurrogateFunction = void (*)(const NeuronParams&, const S* h, S* out, int64_t n);

template <class S, class Sigma>
void surrogate_values(const NeuronParams& p, const S* h, S* out, int64_t n) {
  const Sigma sigma = Sigma::of(p.alpha);
  const S v_threshold = S(p.v_threshold);
  for (int64_t i = 0; i < n; i += kLanes<S>) write(out + i, sigma(read<Vector<S>>(h + i) - v_threshold));
}

template <class Storage, class Neuron, bool Decay, bool Hard, bool Detach>
void backward_tile(const NeuronParams& p, State<Storage> leak, const BackwardTile<Storage>& in) {
  using S = State<Storage>;
  const BackwardTile<Storage> tile = in;
  const auto [neuron, fire] = Dynamics<S, Neuron, Decay, Hard, Detach>::from(p, leak);
  for (int i = 0; i < kTile; i += kGroupSize<S>) {
    Group<S> gv = tile.grad_v_after.group(0, i), gx;
    for (int64_t t = tile.steps - 1; t >= 0; --t) {
      if (tile.grad_v.data) {
        const Group<S> grad_v = tile.grad_v.group(t, i);
        for (int k = 0; k < kGroup; ++k) gv.at[k] += grad_v.at[k];
      }
      const Group<S> gs = tile.grad_s.group(t, i), h = Group<S>::read_from(tile.h + t * kTile + i);
      Group<S> g = Group<S>::read_from(tile.g + t * kTile + i);
      for (int k = 0; k < kGroup; ++k) {
        g.at[k] = fire.grad_h(gs.at[k], gv.at[k], h.at[k], g.at[k]);
        gx.at[k] = neuron.grad_x(g.at[k]);
        gv.at[k] = neuron.grad_v(g.at[k]);
      }
      if (tile.keep_grad_h) g.write_to(tile.g + t * kTile + i);
      tile.grad_x.put(t, i, gx);
    }
    gv.write_to(tile.grad_v_before + i);
  }
}

// Adds the tile's share of dL/dleak, the sum over time-steps of dL/dh dh/dleak, to kTile double lanes, one per neuron.
// The result does not depend on the width of vectors. Call it after backward_tile with keep_grad_h.
template <class Storage>
void leak_gradient(const NeuronParams& p, State<Storage> leak, const BackwardTile<Storage>& tile, double* lanes) {
  using S = State<Storage>;
  using V = Vector<S>;
  const LeakyMultiply<S> neuron = LeakyMultiply<S>::from(p, leak);
  const FireReset<S> fire = FireReset<S>::from(p);
  for (int i = 0; i < kTile; i += kGroupSize<S>) {
    Group<S> v = tile.v_before.group(0, i);
    Doubles<S> sums[kGroup];
    for (int k = 0; k < kGroup; ++k) sums[k] = read<Doubles<S>>(lanes + i + k * kLanes<S>);
    for (int64_t t = 0; t < tile.steps; ++t) {
      const Group<S> x = tile.x.group(t, i), gh = Group<S>::read_from(tile.g + t * kTile + i);
      const Group<S> h = Group<S>::read_from(tile.h + t * kTile + i);
      for (int k = 0; k < kGroup; ++k) {
        const V d = neuron.d_leak(v.at[k], x.at[k]);
        sums[k] += __builtin_convertvector(gh.at[k], Doubles<S>) * __builtin_convertvector(d, Doubles<S>);
        v.at[k] = fire.reset(h.at[k]);
      }
    }
    for (int k = 0; k < kGroup; ++k) write(lanes + i + k * kLanes<S>, sums[k]);
  }
}

SEWSNN_END
