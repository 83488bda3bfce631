// The recurrence of every neuron on the CPU: forward over the time-steps of a tile, and backward, which first replays
// them. The kernels of the neuron, of batch norm and of the stem call it; where x comes from and where dL/dx goes are
// arguments. The neuron and its run-time choices are template arguments.
#pragma once

#include "core/dispatch.h"
#include "kernels/cpu_tiles.h"
#include "neurons/choice.h"

SEWSNN_BEGIN

// The learnt parameters of a tile's neurons: one number each, or [kTile] numbers if they differ between channels.
template <class S>
using LearntTile = Numbers<const S*, kMostLearnt>;

template <class Storage>
struct ForwardTile {
  using S = State<Storage>;
  int64_t steps;
  Source<Storage> x;
  Source<S> before[kMostStates];  // one row for each state, before the first time-step
  S* after[kMostStates];          // [kTile] for each state, after the last time-step
  Sink<Storage> s;
  Sink<S> v_seq[kMostStates];
  LearntTile<S> learnt;
};

template <class Storage>
struct BackwardTile {
  using S = State<Storage>;
  int64_t steps;
  Source<Storage> x;
  Source<S> before[kMostStates];  // one row for each state, before the first time-step
  Source<Storage> grad_s;
  Source<S> grad_v[kMostStates];      // gradient of the states of every time-step; data null: none
  Source<S> grad_after[kMostStates];  // one row: the gradient after the last time-step, from later time-steps
  S* grad_before[kMostStates];        // [kTile]
  Sink<Storage> grad_x;
  S* h[kMostStates];  // scratch [steps, kTile]: the states before the reset
  S* g;               // scratch [steps, kTile]: sigma'(h - v_threshold)
  S* spikes;          // [steps, kTile]; null: not requested
  LearntTile<S> learnt;
  double* grad_learnt;  // [parameters, kTile], to which their gradients are added; null: not requested
};

// The neuron with its run-time choices as template arguments.
template <class S, class Neuron, bool Decay, bool Hard, bool Detach = true>
struct Dynamics {
  using V = Vector<S>;
  static constexpr int kStates = Neuron::kStates, kOwn = Neuron::kPerChannel ? Neuron::kLearnt : 0;
  using States = Numbers<V, kStates>;
  using Learnt = Numbers<V, kOwn>;  // those that differ between neurons
  Neuron neuron;
  FireReset<S> fire;

  static Dynamics from(NeuronParams p, const LearntTile<S>& learnt) {
    p.decay_input = Decay, p.hard_reset = Hard, p.detach_reset = Detach;
    Dynamics d = {Neuron::from(p), FireReset<S>::from(p)};
    if constexpr (Neuron::kLearnt > 0 && kOwn == 0)
      if (learnt[0]) d.neuron.set_learnt(*learnt[0]);
    return d;
  }
  // Those of vector k of the group at lane i.
  static Learnt learnt_at(const LearntTile<S>& learnt, int i) {
    Learnt w;
    if constexpr (kOwn > 0)
      for (int q = 0; q < kOwn; ++q) w[q] = read<V>(learnt[q] + i);
    return w;
  }
};

template <class S, int Count>
Numbers<Vector<S>, Count> of_vector(const Group<S> (&groups)[Count], int k) {
  Numbers<Vector<S>, Count> u;
  for (int n = 0; n < Count; ++n) u[n] = groups[n].at[k];
  return u;
}
template <class S, int Count>
void set_vector(Group<S> (&groups)[Count], int k, const Numbers<Vector<S>, Count>& u) {
  for (int n = 0; n < Count; ++n) groups[n].at[k] = u[n];
}
template <class S, int Count>
void read_rows(const Source<S>* rows, int i, Group<S> (&groups)[Count]) {
  for (int n = 0; n < Count; ++n) groups[n] = rows[n].group(0, i);
}

// Spikes as numbers: from the mask of a binary neuron, or from a number of spikes.
template <class Neuron, class V, class Spikes>
V spike_numbers(Spikes spikes) {
  if constexpr (Neuron::kBinary) return select(spikes, splat<V>(1), V{});
  else return spikes;
}

template <class Storage>
using ForwardFunction = void (*)(const NeuronParams&, const ForwardTile<Storage>&);

template <class Storage, class Neuron, bool Decay, bool Hard>
void forward_tile(const NeuronParams& p, const ForwardTile<Storage>& in) {
  using S = State<Storage>;
  using V = Vector<S>;
  using D = Dynamics<S, Neuron, Decay, Hard>;
  const ForwardTile<Storage> tile = in;  // a copy that no store can change: it stays in registers
  const D d = D::from(p, tile.learnt);
  for (int i = 0; i < kTile; i += kGroupSize<S>) {
    Group<S> u[D::kStates], s;
    read_rows(tile.before, i, u);
    typename D::Learnt w[kGroup];
    for (int k = 0; k < kGroup; ++k) w[k] = D::learnt_at(tile.learnt, i + k * kLanes<S>);
    for (int64_t t = 0; t < tile.steps; ++t) {
      tile.x.prefetch_group(t, i);
      const Group<S> x = tile.x.group(t, i);
      for (int k = 0; k < kGroup; ++k) {
        typename D::States v = of_vector(u, k);
        d.neuron.charge(v, x.at[k], w[k]);
        s.at[k] = spike_numbers<Neuron, V>(d.neuron.spikes(d.fire, v, w[k]));
        d.neuron.reset(d.fire, v, w[k]);
        set_vector(u, k, v);
      }
      tile.s.put(t, i, s);
      for (int n = 0; n < D::kStates; ++n)
        if (tile.v_seq[n].data) tile.v_seq[n].put(t, i, u[n]);
    }
    for (int n = 0; n < D::kStates; ++n) u[n].write_to(tile.after[n] + i);
  }
}

template <class Storage>
using BackwardFunction = void (*)(const NeuronParams&, const BackwardTile<Storage>&);

// Recomputes the states before each reset. If the neuron has its own threshold, writes h - v_threshold to g.
template <class Storage, class Neuron, bool Decay, bool Hard>
void replay_tile(const NeuronParams& p, const BackwardTile<Storage>& in) {
  using S = State<Storage>;
  using D = Dynamics<S, Neuron, Decay, Hard>;
  const BackwardTile<Storage> tile = in;
  const D d = D::from(p, tile.learnt);
  for (int i = 0; i < kTile; i += kGroupSize<S>) {
    Group<S> u[D::kStates], h[D::kStates], above, s;
    read_rows(tile.before, i, u);
    typename D::Learnt w[kGroup];
    for (int k = 0; k < kGroup; ++k) w[k] = D::learnt_at(tile.learnt, i + k * kLanes<S>);
    for (int64_t t = 0; t < tile.steps; ++t) {
      tile.x.prefetch_group(t, i);
      tile.grad_s.prefetch_group(t, i);
      const Group<S> x = tile.x.group(t, i);
      for (int k = 0; k < kGroup; ++k) {
        typename D::States v = of_vector(u, k);
        d.neuron.charge(v, x.at[k], w[k]);
        set_vector(h, k, v);
        if constexpr (Neuron::kOwnThreshold) above.at[k] = d.neuron.above_threshold(d.fire, v, w[k]);
        d.neuron.reset(d.fire, v, w[k]);
        set_vector(u, k, v);
      }
      for (int n = 0; n < D::kStates; ++n) h[n].write_to(tile.h[n] + t * kTile + i);
      if constexpr (Neuron::kOwnThreshold) above.write_to(tile.g + t * kTile + i);
      if (!tile.spikes) continue;
      for (int k = 0; k < kGroup; ++k)
        s.at[k] = spike_numbers<Neuron, Vector<S>>(d.neuron.spikes(d.fire, of_vector(h, k), w[k]));
      s.write_to(tile.spikes + t * kTile + i);
    }
  }
}

template <class S>
using SurrogateFunction = void (*)(double parameter, S v_threshold, const S* h, S* out, int64_t n);

template <class S, class Sigma>
void surrogate_values(double parameter, S v_threshold, const S* h, S* out, int64_t n) {
  const Sigma sigma = Sigma::of(parameter);
  for (int64_t i = 0; i < n; i += kLanes<S>) write(out + i, sigma(read<Vector<S>>(h + i) - v_threshold));
}

// Runs through the time-steps in reverse, after replay_tile and surrogate_values. The gradients of learnt parameters
// are added in double lanes, one per neuron, so that they do not depend on the width of vectors.
template <class Storage, class Neuron, bool Decay, bool Hard, bool Detach, bool Learn>
void backward_tile(const NeuronParams& p, const BackwardTile<Storage>& in) {
  using S = State<Storage>;
  using D = Dynamics<S, Neuron, Decay, Hard, Detach>;
  constexpr bool kBefore = Learn || Neuron::kNonlinear;  // whether derivatives depend on the states and x
  const BackwardTile<Storage> tile = in;
  const D d = D::from(p, tile.learnt);
  for (int i = 0; i < kTile; i += kGroupSize<S>) {
    Group<S> g[D::kStates], u[D::kStates], gx;
    Doubles<S> sums[Neuron::kLearnt + 1][kGroup];
    read_rows(tile.grad_after, i, g);
    typename D::Learnt w[kGroup];
    for (int k = 0; k < kGroup; ++k) w[k] = D::learnt_at(tile.learnt, i + k * kLanes<S>);
    if constexpr (Learn)
      for (int q = 0; q < Neuron::kLearnt; ++q)
        for (int k = 0; k < kGroup; ++k)
          sums[q][k] = read<Doubles<S>>(tile.grad_learnt + q * kTile + i + k * kLanes<S>);
    for (int64_t t = tile.steps - 1; t >= 0; --t) {
      for (int n = 0; n < D::kStates; ++n) {
        if (tile.grad_v[n].data) {
          const Group<S> grad_v = tile.grad_v[n].group(t, i);
          for (int k = 0; k < kGroup; ++k) g[n].at[k] += grad_v.at[k];
        }
        u[n] = Group<S>::read_from(tile.h[n] + t * kTile + i);
      }
      Group<S> before[D::kStates], x;
      if constexpr (kBefore) {
        x = tile.x.group(t, i);
        if (t == 0) read_rows(tile.before, i, before);
        else
          for (int n = 0; n < D::kStates; ++n) before[n] = Group<S>::read_from(tile.h[n] + (t - 1) * kTile + i);
      }
      const Group<S> gs = tile.grad_s.group(t, i);
      Group<S> sigma = {};
      if constexpr (Neuron::kSurrogate) sigma = Group<S>::read_from(tile.g + t * kTile + i);
      for (int k = 0; k < kGroup; ++k) {
        typename D::States v = {}, grads = of_vector(g, k);
        Numbers<Vector<S>, Neuron::kLearnt> grad_w;
        if constexpr (kBefore) {
          v = of_vector(before, k);
          if (t > 0) d.neuron.reset(d.fire, v, w[k]);
        }
        d.neuron.grad_reset(d.fire, gs.at[k], sigma.at[k], of_vector(u, k), w[k], grads, grad_w);
        gx.at[k] = d.neuron.grad_charge(grads, v, kBefore ? x.at[k] : Vector<S>{}, w[k], grad_w);
        set_vector(g, k, grads);
        if constexpr (Learn)
          for (int q = 0; q < Neuron::kLearnt; ++q) sums[q][k] += __builtin_convertvector(grad_w[q], Doubles<S>);
      }
      tile.grad_x.put(t, i, gx);
    }
    for (int n = 0; n < D::kStates; ++n) g[n].write_to(tile.grad_before[n] + i);
    if constexpr (Learn)
      for (int q = 0; q < Neuron::kLearnt; ++q)
        for (int k = 0; k < kGroup; ++k) write(tile.grad_learnt + q * kTile + i + k * kLanes<S>, sums[q][k]);
  }
}

// Calls f(neuron, decay, hard) with the types that stand for the choices in p.
template <class S, class F>
auto with_dynamics(const NeuronParams& p, F&& f) {
  return with_neuron<S>(p, [&](auto neuron) {
    constexpr bool kDecays = decltype(neuron)::type::kDecayInput;
    return with_bool(p.decay_input && kDecays, [&](auto decay) {
      return with_bool(p.hard_reset,
                       [&](auto hard) { return f(neuron, Bool<decltype(decay)::value && kDecays>(), hard); });
    });
  });
}

// The neuron of a call: its functions, chosen once, and its sizes. Learn: backward computes the gradients of the learnt
// parameters.
template <class Storage>
class Recurrence {
 public:
  using S = State<Storage>;

  explicit Recurrence(const NeuronParams&, bool learn = false);

  int states() const { return states_; }
  int learnt() const { return learnt_; }
  bool own_learnt() const { return own_; }  // learnt parameters may differ between channels
  // One row: a state at rest.
  Source<S> at_rest(int state) const { return {rest_ + state, 0, 0}; }

  void forward(const ForwardTile<Storage>& tile) const { forward_(p_, tile); }
  void backward(const BackwardTile<Storage>& tile) const {
    replay_(p_, tile);
    if (own_threshold_) surrogate_(p_.alpha, S(0), tile.g, tile.g, tile.steps * kTile);
    else if (uses_surrogate_) surrogate_(p_.alpha, S(p_.v_threshold), tile.h[0], tile.g, tile.steps * kTile);
    backward_(p_, tile);
  }

 private:
  const NeuronParams& p_;
  int states_ = 1, learnt_ = 0;
  bool own_ = false, own_threshold_ = false, uses_surrogate_ = true;
  S rest_[kMostStates] = {};
  ForwardFunction<Storage> forward_ = nullptr;
  BackwardFunction<Storage> replay_ = nullptr, backward_ = nullptr;
  SurrogateFunction<S> surrogate_ = nullptr;
};

// Not in the class: then all files can leave the instances to inst/recurrence_cpu.cpp.
template <class Storage>
Recurrence<Storage>::Recurrence(const NeuronParams& p, bool learn) : p_(p) {
  with_dynamics<S>(p, [&](auto neuron, auto decay, auto hard) {
    using Neuron = typename decltype(neuron)::type;
    constexpr bool Decay = decltype(decay)::value, Hard = decltype(hard)::value;
    states_ = Neuron::kStates, learnt_ = Neuron::kLearnt;
    own_ = Neuron::kPerChannel, own_threshold_ = Neuron::kOwnThreshold, uses_surrogate_ = Neuron::kSurrogate;
    const Neuron resting = Neuron::from(p);
    for (int n = 0; n < states_; ++n) rest_[n] = resting.at_rest(FireReset<S>::from(p), n);
    forward_ = forward_tile<Storage, Neuron, Decay, Hard>;
    replay_ = replay_tile<Storage, Neuron, Decay, Hard>;
    with_bool(p.detach_reset, [&](auto detach) {
      constexpr bool Detach = decltype(detach)::value;
      backward_ = backward_tile<Storage, Neuron, Decay, Hard, Detach, false>;
      if constexpr (Neuron::kLearnt > 0)
        if (learn) backward_ = backward_tile<Storage, Neuron, Decay, Hard, Detach, true>;
    });
  });
  surrogate_ = Surrogate<S>::from(p).visit(
      [](auto surrogate) -> SurrogateFunction<S> { return surrogate_values<S, decltype(surrogate)>; });
}

SEWSNN_END
