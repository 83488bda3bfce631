// Fire and reset, the same for every neuron:
//   s = [h >= v_threshold]
//   hard reset   v = (1 - s) h + s v_reset          soft reset   v = h - s v_threshold              (supplement, A.1)
// NaN compares false: it fires no spike and stays NaN. The selects give v_reset, not 0 * inf, for an overflowed h.
#pragma once

#include "core/macros.h"
#include "core/params.h"

SEWSNN_BEGIN

template <class S>
struct FireReset {
  S v_threshold, v_reset;
  bool hard, detach;
  static SEWSNN_HD FireReset from(const NeuronParams& p) {
    return {S(p.v_threshold), S(p.v_reset), p.hard_reset, p.detach_reset};
  }

  SEWSNN_HD bool fires(S h) const { return h >= v_threshold; }

  SEWSNN_HD S reset(S h) const {
    if (hard) return fires(h) ? v_reset : h;
    return h - (fires(h) ? v_threshold : S(0));
  }

  // dL/dh from gs = dL/ds, gv = dL/dv (v after the reset) and the surrogate sg = sigma'(h - v_threshold).
  // With detach_reset the s inside the reset is a constant.
  SEWSNN_HD S grad_h(S gs, S gv, S h, S sg) const {
    if (!detach) gs += gv * (hard ? v_reset - h : -v_threshold);
    return gs * sg + (hard && fires(h) ? S(0) : gv);
  }
};

SEWSNN_END
