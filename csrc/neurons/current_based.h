// CUBA-LIF: the input charges a current, and the current charges the potential. Both decay.
//   c = c_decay c + x,  h = v_decay v + c
// The potential starts at v_reset (soft reset: 0), the current at 0.                             (Davies et al., 2018)
#pragma once

#include "neurons/fire.h"
#include "neurons/kind.h"

SEWSNN_BEGIN

template <class S>
struct CurrentBased : OneThreshold {
  static constexpr int kStates = 2;  // v, c
  S c_decay, v_decay;
  // extra: c_decay, v_decay
  static SEWSNN_HD CurrentBased from(const NeuronParams& p) { return {{}, S(p.extra[0]), S(p.extra[1])}; }
  SEWSNN_HD S at_rest(const FireReset<S>& fire, int state) const { return state == 0 ? fire.v_reset : S(0); }

  template <class V, class W>
  SEWSNN_HD void charge(Numbers<V, 2>& u, V x, const W&) const {
    u[1] = u[1] * c_decay + x;
    u[0] = u[0] * v_decay + u[1];
  }
  template <class V, class W, class G>
  SEWSNN_HD V grad_charge(Numbers<V, 2>& g, const Numbers<V, 2>&, V, const W&, G&) const {
    const V gh = g[0], gc = g[1] + gh;
    g[0] = gh * v_decay;
    g[1] = gc * c_decay;
    return gc;
  }
};

struct CUBALIF : Kind<CurrentBased> {
  static constexpr const char* kName = "CUBALIF";
  static constexpr int kExtra = 2;
};

SEWSNN_END
