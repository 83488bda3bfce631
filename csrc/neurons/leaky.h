// LIF and PLIF, with u = v - rest:
//   decay_input      h = v + (x - u) / tau                                                        (supplement, A.1)
//   otherwise        h = v - u / tau + x
// `rest` is v_reset, or 0 for soft reset. The two forms differ only in rounding: LIF divides by tau, PLIF multiplies by
// its learnt leak = 1/tau. If 1/tau is exact (tau is a power of two), both round alike, and LIF also multiplies,
// because that is cheaper.
#pragma once

#include "core/macros.h"
#include "core/params.h"

SEWSNN_BEGIN

// PLIF reads its leak from memory on the device of the tensors. The leak of LIF is a constant.
template <class S>
S leak_of(const NeuronParams& p) {
  return p.leak ? *static_cast<const S*>(p.leak) : S(p.inverse_tau);
}

template <class S>
struct LeakyDivide {
  static constexpr bool has_leak = true;
  S tau, rest;
  bool decay_input;
  static SEWSNN_HD LeakyDivide from(const NeuronParams& p, S) { return {S(p.tau), S(p.v_reset), p.decay_input}; }
  SEWSNN_HD void set_leak(S) {}

  template <class V>
  SEWSNN_HD V charge(V v, V x) const {
    const V u = v - rest;
    const V part = (decay_input ? x - u : u) / tau;
    return decay_input ? v + part : (v - part) + x;
  }
  template <class V>
  SEWSNN_HD V grad_x(V gh) const {
    return decay_input ? gh / tau : gh;
  }
  template <class V>
  SEWSNN_HD V grad_v(V gh) const {
    return gh - gh / tau;
  }
  template <class V>
  SEWSNN_HD V d_leak(V, V) const {  // tau is a constant here
    return V{};
  }
};

template <class S>
struct LeakyMultiply {
  static constexpr bool has_leak = true;
  S leak, rest;
  bool decay_input;
  static SEWSNN_HD LeakyMultiply from(const NeuronParams& p, S leak) { return {leak, S(p.v_reset), p.decay_input}; }
  SEWSNN_HD void set_leak(S value) { leak = value; }

  template <class V>
  SEWSNN_HD V charge(V v, V x) const {
    const V u = v - rest;
    return decay_input ? v + (x - u) * leak : (v - u * leak) + x;
  }
  template <class V>
  SEWSNN_HD V grad_x(V gh) const {
    return decay_input ? gh * leak : gh;
  }
  template <class V>
  SEWSNN_HD V grad_v(V gh) const {
    return gh - gh * leak;
  }
  template <class V>
  SEWSNN_HD V d_leak(V v, V x) const {
    return decay_input ? x - (v - rest) : rest - v;
  }
};

SEWSNN_END
