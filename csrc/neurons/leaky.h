// LIF and PLIF, with u = v - rest:
//   decay_input      h = v + (x - u) / tau                                                        (supplement, A.1)
//   otherwise        h = v - u / tau + x
// `rest` is v_reset, or 0 for soft reset. The two forms differ only in rounding: LIF divides by tau, PLIF multiplies by
// its learnt leak = 1/tau. If 1/tau is exact (tau is a power of two), both round alike, and LIF also multiplies,
// because that is cheaper.
#pragma once

#include <cmath>

#include "neurons/fire.h"
#include "neurons/kind.h"

SEWSNN_BEGIN

// If tau is a power of two, 1 / tau is exact, and multiplying by it rounds like dividing by tau.
inline bool has_exact_reciprocal(double tau) {
  int exponent;
  return frexp(tau, &exponent) == 0.5 && exponent < 100;
}

template <class S>
struct LeakyDivide : OneThreshold {
  static constexpr int kStates = 1;
  static constexpr bool kDecayInput = true;
  S tau, rest;
  bool decay_input;
  static SEWSNN_HD LeakyDivide from(const NeuronParams& p) { return {{}, S(p.tau), S(p.v_reset), p.decay_input}; }
  static SEWSNN_HD S at_rest(const FireReset<S>& fire, int) { return fire.v_reset; }
  SEWSNN_HD bool decays_input() const { return decay_input; }
  SEWSNN_HD void set_decays_input() { decay_input = true; }
  SEWSNN_HD void assume_usual() { decay_input = true, rest = S(0); }

  template <class V, class W>
  SEWSNN_HD void charge(Numbers<V, 1>& v, V x, const W&) const {
    const V u = v[0] - rest;
    const V part = (decay_input ? x - u : u) / tau;
    v[0] = decay_input ? v[0] + part : (v[0] - part) + x;
  }
  template <class V, class W, class G>
  SEWSNN_HD V grad_charge(Numbers<V, 1>& g, const Numbers<V, 1>&, V, const W&, G&) const {
    const V gh = g[0], part = gh / tau;
    g[0] = gh - part;
    return decay_input ? part : gh;
  }
};

// The leak of LIF is a constant. That of PLIF is learnt: one number for all neurons.
template <class S>
struct LeakyMultiply : OneThreshold {
  static constexpr int kStates = 1, kLearnt = 1;
  static constexpr bool kDecayInput = true;
  S leak, rest;
  bool decay_input;
  static SEWSNN_HD LeakyMultiply from(const NeuronParams& p) { return {{}, S(1 / p.tau), S(p.v_reset), p.decay_input}; }
  static SEWSNN_HD S at_rest(const FireReset<S>& fire, int) { return fire.v_reset; }
  SEWSNN_HD bool decays_input() const { return decay_input; }
  SEWSNN_HD void set_decays_input() { decay_input = true; }
  SEWSNN_HD void assume_usual() { decay_input = true, rest = S(0); }
  SEWSNN_HD void set_learnt(S value) { leak = value; }

  template <class V, class W>
  SEWSNN_HD void charge(Numbers<V, 1>& v, V x, const W&) const {
    const V u = v[0] - rest;
    v[0] = decay_input ? v[0] + (x - u) * leak : (v[0] - u * leak) + x;
  }
  template <class V, class W>
  SEWSNN_HD V grad_charge(Numbers<V, 1>& g, const Numbers<V, 1>& v, V x, const W&, Numbers<V, 1>& grad_leak) const {
    const V gh = g[0], part = gh * leak;
    grad_leak[0] = gh * (decay_input ? x - (v[0] - rest) : rest - v[0]);
    g[0] = gh - part;
    return decay_input ? part : gh;
  }
};

struct LIF : Kind<LeakyDivide, LeakyMultiply> {
  static constexpr const char* kName = "LIF";
  static constexpr bool kUsesTau = true;
  static int struct_of(const NeuronParams& p) { return has_exact_reciprocal(p.tau) ? 1 : 0; }
};

struct PLIF : Kind<LeakyMultiply> {
  static constexpr const char* kName = "PLIF";
  static constexpr int kLearnt = 1;
};

SEWSNN_END
