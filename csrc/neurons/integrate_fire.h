// IF: h = v + x.                                                                              (main paper, section 3.1)
#pragma once

#include "neurons/fire.h"
#include "neurons/kind.h"

SEWSNN_BEGIN

template <class S>
struct IntegrateFire : OneThreshold {
  static constexpr int kStates = 1;
  static SEWSNN_HD IntegrateFire from(const NeuronParams&) { return {}; }
  static SEWSNN_HD S at_rest(const FireReset<S>& fire, int) { return fire.v_reset; }

  template <class V, class W>
  SEWSNN_HD void charge(Numbers<V, 1>& u, V x, const W&) const {
    u[0] = u[0] + x;
  }
  template <class V, class W, class G>
  SEWSNN_HD V grad_charge(Numbers<V, 1>& g, const Numbers<V, 1>&, V, const W&, G&) const {
    return g[0];
  }
};

struct IF : Kind<IntegrateFire> {
  static constexpr const char* kName = "IF";
};

SEWSNN_END
