// Fire and reset, the same for every neuron:
//   s = [h >= v_threshold]
//   hard reset   v = (1 - s) h + s v_reset          soft reset   v = h - s v_threshold              (supplement, A.1)
// A NaN compares false, so it never fires and stays NaN. If h overflowed to infinity, the selects give v_reset and not
// 0 * inf.
#pragma once

#include "core/math.h"
#include "core/params.h"

SEWSNN_BEGIN

// V, the type of the potentials, is one S or a vector of S.
template <class S>
struct FireReset {
  S v_threshold, v_reset;
  bool hard, detach;
  static SEWSNN_HD FireReset from(const NeuronParams& p) {
    return {S(p.v_threshold), S(p.v_reset), p.hard_reset, p.detach_reset};
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
    return h - select(fires(h), splat<V>(v_threshold), V{});
  }

  // dL/dh from gs = dL/ds, gv = dL/dv (v after the reset) and the surrogate sg = sigma'(h - v_threshold).
  // With detach_reset, s inside the reset is a constant.
  template <class V>
  SEWSNN_HD V grad_h(V gs, V gv, V h, V sg) const {
    if (!detach) gs += gv * (hard ? v_reset - h : splat<V>(-v_threshold));
    return gs * sg + (hard ? select(fires(h), V{}, gv) : gv);
  }
};

SEWSNN_END
