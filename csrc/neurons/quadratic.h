// QIF: the quadratic integrate-and-fire neuron.
//   h = v + (x + a0 (v - v_rest) (v - v_c)) / tau
// The potential starts at v_reset (soft reset: 0).                              (Gerstner et al., Neuronal
// Dynamics, 5.3)
#pragma once

#include "neurons/fire.h"
#include "neurons/kind.h"

SEWSNN_BEGIN

template <class S>
struct Quadratic : OneThreshold {
  static constexpr int kStates = 1;
  static constexpr bool kNonlinear = true;
  S tau, v_c, a0, v_rest;
  // extra: v_c, a0, v_rest
  static SEWSNN_HD Quadratic from(const NeuronParams& p) {
    return {{}, S(p.tau), S(p.extra[0]), S(p.extra[1]), S(p.extra[2])};
  }
  static SEWSNN_HD S at_rest(const FireReset<S>& fire, int) { return fire.v_reset; }

  template <class V, class W>
  SEWSNN_HD void charge(Numbers<V, 1>& u, V x, const W&) const {
    u[0] = u[0] + (x + a0 * (u[0] - v_rest) * (u[0] - v_c)) / tau;
  }
  template <class V, class W, class G>
  SEWSNN_HD V grad_charge(Numbers<V, 1>& g, const Numbers<V, 1>& v, V, const W&, G&) const {
    const V gx = g[0] / tau;
    g[0] = g[0] + gx * (a0 * ((v[0] - v_rest) + (v[0] - v_c)));
    return gx;
  }
};

struct QIF : Kind<Quadratic> {
  static constexpr const char* kName = "QIF";
  static constexpr int kExtra = 3;
  static constexpr bool kUsesTau = true;
};

SEWSNN_END
