// IF: h = v + x.                                                                              (main paper, section 3.1)
#pragma once

#include "core/macros.h"
#include "core/params.h"

SEWSNN_BEGIN

template <class S>
struct IntegrateFire {
  static constexpr bool has_leak = false;
  static SEWSNN_HD IntegrateFire from(const NeuronParams&, S) { return {}; }
  SEWSNN_HD void set_leak(S) {}

  template <class V>
  SEWSNN_HD V charge(V v, V x) const {
    return v + x;
  }
  template <class V>
  SEWSNN_HD V grad_x(V gh) const {
    return gh;
  }
  template <class V>
  SEWSNN_HD V grad_v(V gh) const {
    return gh;
  }
  template <class V>
  SEWSNN_HD V d_leak(V, V) const {  // dh / d leak; IF has no leak
    return V{};
  }
};

SEWSNN_END
