// LIF whose leak and threshold are learnt, one of each for all neurons or for each channel. The formulas are those of
// leaky.h and fire.h. If the leak is a constant, LIF divides by tau.
#pragma once

#include "neurons/leaky.h"

SEWSNN_BEGIN

template <class S>
struct LearntLeaky : OneThreshold {
  static constexpr int kStates = 1, kLearnt = 2;  // leak, threshold
  static constexpr bool kDecayInput = true, kPerChannel = true, kOwnThreshold = true;
  S tau, rest;
  bool decay_input, divide;
  // extra: whether the leak is learnt
  static SEWSNN_HD LearntLeaky from(const NeuronParams& p) {
    return {{}, S(p.tau), S(p.v_reset), p.decay_input, p.extra[0] == 0};
  }
  static SEWSNN_HD S at_rest(const FireReset<S>& fire, int) { return fire.v_reset; }
  SEWSNN_HD bool decays_input() const { return decay_input; }
  SEWSNN_HD void set_decays_input() { decay_input = true; }

  template <class V>
  SEWSNN_HD V leaked(V x, const Numbers<V, 2>& w) const {
    return divide ? x / tau : x * w[0];
  }
  template <class V>
  SEWSNN_HD void charge(Numbers<V, 1>& v, V x, const Numbers<V, 2>& w) const {
    const V u = v[0] - rest;
    v[0] = decay_input ? v[0] + leaked(x - u, w) : (v[0] - leaked(u, w)) + x;
  }
  template <class V>
  SEWSNN_HD V grad_charge(Numbers<V, 1>& g, const Numbers<V, 1>& v, V x, const Numbers<V, 2>& w,
                          Numbers<V, 2>& grad) const {
    const V gh = g[0], part = leaked(gh, w);
    grad[0] = gh * (decay_input ? x - (v[0] - rest) : rest - v[0]);
    g[0] = gh - part;
    return decay_input ? part : gh;
  }

  template <class V>
  static SEWSNN_HD V above_threshold(const FireReset<S>&, const Numbers<V, 1>& u, const Numbers<V, 2>& w) {
    return u[0] - w[1];
  }
  template <class V>
  static SEWSNN_HD auto spikes(const FireReset<S>&, const Numbers<V, 1>& u, const Numbers<V, 2>& w) {
    return u[0] >= w[1];
  }
  template <class V>
  static SEWSNN_HD void reset(const FireReset<S>& fire, Numbers<V, 1>& u, const Numbers<V, 2>& w) {
    u[0] = fire.with_threshold(w[1]).reset(u[0]);
  }
  template <class V>
  static SEWSNN_HD void grad_reset(const FireReset<S>& fire, V gs, V sg, const Numbers<V, 1>& u, const Numbers<V, 2>& w,
                                   Numbers<V, 1>& g, Numbers<V, 2>& grad) {
    const FireReset<S, V> own = fire.with_threshold(w[1]);
    grad[1] = own.grad_threshold(gs, g[0], u[0], sg);
    g[0] = own.grad_h(gs, g[0], u[0], sg);
  }
};

struct LearntLIF : Kind<LearntLeaky> {
  static constexpr const char* kName = "LearntLIF";
  static constexpr int kLearnt = 2, kExtra = 1;
  static constexpr bool kUsesTau = true;
  static const char* problem(const NeuronParams& p) {
    return p.extra[0] == 0 || p.extra[0] == 1 ? nullptr : "whether the leak is learnt must be 0 or 1";
  }
};

SEWSNN_END
