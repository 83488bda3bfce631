// Adaptive LIF: a current w, which grows with the potential and with every spike, works against the input.
//   h = v + (x - (v - v_rest) - w) / tau
//   w = w + (a (h - v_rest) - w) / tau_w + b s
// The potential starts at v_reset (soft reset: 0), w at w_rest. The reset is detached or not; b s never is.
#pragma once

#include "neurons/fire.h"
#include "neurons/kind.h"

SEWSNN_BEGIN

template <class S>
struct AdaptiveLeaky : OneThreshold {
  static constexpr int kStates = 2;  // v, w
  S tau, v_rest, w_rest, tau_w, a, b;
  // extra: v_rest, w_rest, tau_w, a, b
  static SEWSNN_HD AdaptiveLeaky from(const NeuronParams& p) {
    return {{}, S(p.tau), S(p.extra[0]), S(p.extra[1]), S(p.extra[2]), S(p.extra[3]), S(p.extra[4])};
  }
  SEWSNN_HD S at_rest(const FireReset<S>& fire, int state) const { return state == 0 ? fire.v_reset : w_rest; }

  template <class V, class W>
  SEWSNN_HD void charge(Numbers<V, 2>& u, V x, const W&) const {
    u[0] = u[0] + ((x - (u[0] - v_rest)) - u[1]) / tau;
    u[1] = u[1] + (a * (u[0] - v_rest) - u[1]) / tau_w;
  }
  template <class V, class W, class G>
  SEWSNN_HD V grad_charge(Numbers<V, 2>& g, const Numbers<V, 2>&, V, const W&, G&) const {
    const V part = g[1] / tau_w, gh = g[0] + part * a, gx = gh / tau;
    g[0] = gh - gx;
    g[1] = (g[1] - part) - gx;
    return gx;
  }

  template <class V, class W>
  SEWSNN_HD void reset(const FireReset<S>& fire, Numbers<V, 2>& u, const W&) const {
    u[1] = u[1] + select(fire.fires(u[0]), splat<V>(b), V{});
    u[0] = fire.reset(u[0]);
  }
  template <class V, class W, class G>
  SEWSNN_HD void grad_reset(const FireReset<S>& fire, V gs, V sg, const Numbers<V, 2>& u, const W&, Numbers<V, 2>& g,
                            G&) const {
    g[0] = fire.grad_h(gs + g[1] * b, g[0], u[0], sg);
  }
};

struct AdaptiveLIF : Kind<AdaptiveLeaky> {
  static constexpr const char* kName = "AdaptiveLIF";
  static constexpr int kExtra = 5;
  static constexpr bool kUsesTau = true;
  static const char* problem(const NeuronParams& p) { return p.extra[2] > 0 ? nullptr : "tau_w must be above 0"; }
};

SEWSNN_END
