// Fire and reset of a neuron with one threshold:
//   s = [h >= v_threshold]
//   hard reset   v = (1 - s) h + s v_reset          soft reset   v = h - s v_threshold              (supplement, A.1)
// A NaN compares false, so it never fires and stays NaN. If h overflowed to infinity, the selects give v_reset and not
// 0 * inf.
#pragma once

#include "core/math.h"
#include "core/numbers.h"
#include "core/params.h"

SEWSNN_BEGIN

// V, the type of the potentials, is one S or a vector of S. Threshold is S, or V if each neuron has its own.
template <class S, class Threshold = S>
struct FireReset {
  Threshold v_threshold;
  S v_reset;
  bool hard, detach;
  static SEWSNN_HD FireReset from(const NeuronParams& p) {
    return {S(p.v_threshold), S(p.v_reset), p.hard_reset, p.detach_reset};
  }
  template <class V>
  SEWSNN_HD FireReset<S, V> with_threshold(V threshold) const {
    return {threshold, v_reset, hard, detach};
  }

  // Makes constants of what most networks use, a hard reset to 0 that is detached, so that the compiler drops all else.
  SEWSNN_HD void assume_usual() { hard = detach = true, v_reset = S(0); }

  // Whether the neuron fires; for a vector, a mask for select().
  template <class V>
  SEWSNN_HD auto fires(V h) const {
    return h >= v_threshold;
  }

  template <class V>
  SEWSNN_HD V reset(V h) const {
    if (hard) return select(fires(h), splat<V>(v_reset), h);
    return h - select(fires(h), in_lanes<V>(v_threshold), V{});
  }

  // dL/dh from gs = dL/ds, gv = dL/dv (v after the reset) and the surrogate sg = sigma'(h - v_threshold).
  // With detach_reset, s inside the reset is a constant.
  template <class V>
  SEWSNN_HD V grad_h(V gs, V gv, V h, V sg) const {
    if (!detach) gs += gv * (hard ? v_reset - h : in_lanes<V>(-v_threshold));
    return gs * sg + (hard ? select(fires(h), V{}, gv) : gv);
  }

  // dL/dv_threshold: the spike depends on h - v_threshold, and a soft reset subtracts v_threshold.
  template <class V>
  SEWSNN_HD V grad_threshold(V gs, V gv, V h, V sg) const {
    if (!detach) gs += gv * (hard ? v_reset - h : in_lanes<V>(-v_threshold));
    return -(gs * sg) - (hard ? V{} : select(fires(h), gv, V{}));
  }
};

// The base class of neurons that fire by one threshold and whose reset changes the potential alone. u are the states,
// g their gradients; the first of them is the potential.
struct OneThreshold {
  static constexpr bool kBinary = true;         // spikes are 0 or 1
  static constexpr bool kSurrogate = true;      // backward uses the surrogate gradient
  static constexpr bool kDecayInput = false;    // there is an option decay_input
  static constexpr int kLearnt = 0;             // learnt parameters
  static constexpr bool kPerChannel = false;    // these may differ from channel to channel
  static constexpr bool kNonlinear = false;     // the derivatives of the charge depend on the states or on x
  static constexpr bool kOwnThreshold = false;  // the struct has its own above_threshold

  // These do nothing for a neuron without such an option.
  static SEWSNN_HD bool decays_input() { return true; }
  static SEWSNN_HD void set_decays_input() {}
  static SEWSNN_HD void assume_usual() {}  // see FireReset; with decay_input
  template <class S>
  static SEWSNN_HD void set_learnt(S) {}  // a learnt parameter that is the same for all neurons

  template <class S, class V, int N, class W>
  static SEWSNN_HD V above_threshold(const FireReset<S>& fire, const Numbers<V, N>& u, const W&) {
    return u[0] - fire.v_threshold;
  }
  // For a vector, a mask for select(). Neurons that are not binary return the number of spikes.
  template <class S, class V, int N, class W>
  static SEWSNN_HD auto spikes(const FireReset<S>& fire, const Numbers<V, N>& u, const W&) {
    return fire.fires(u[0]);
  }
  template <class S, class V, int N, class W>
  static SEWSNN_HD void reset(const FireReset<S>& fire, Numbers<V, N>& u, const W&) {
    u[0] = fire.reset(u[0]);
  }
  // From the gradients after the reset to those before it. u: the states before the reset.
  template <class S, class V, int N, class W, class G>
  static SEWSNN_HD void grad_reset(const FireReset<S>& fire, V gs, V sg, const Numbers<V, N>& u, const W&,
                                   Numbers<V, N>& g, G&) {
    g[0] = fire.grad_h(gs, g[0], u[0], sg);
  }
};

SEWSNN_END
