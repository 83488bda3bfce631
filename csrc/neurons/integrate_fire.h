// IF: h = v + x.                                                                              (main paper, section 3.1)
#pragma once

#include "core/macros.h"
#include "core/params.h"

SEWSNN_BEGIN

template <class S>
struct IntegrateFire {
  static constexpr bool has_leak = false;
  static SEWSNN_HD IntegrateFire from(const NeuronParams&, S) { return {}; }

  SEWSNN_HD S charge(S v, S x) const { return v + x; }
  SEWSNN_HD S grad_x(S gh) const { return gh; }
  SEWSNN_HD S grad_v(S gh) const { return gh; }
  SEWSNN_HD S d_leak(S, S) const { return S(0); }  // dh / d leak: there is none
};

SEWSNN_END
