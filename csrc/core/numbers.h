// A few numbers that belong together: the states of a neuron, its learnt parameters, or their gradients.
#pragma once

#include "core/macros.h"

SEWSNN_BEGIN

// V is one number or a vector of them. N may be 0.
template <class V, int N>
struct Numbers {
  V at[N];
  SEWSNN_HD V& operator[](int i) { return at[i]; }
  SEWSNN_HD const V& operator[](int i) const { return at[i]; }
};
template <class V>
struct Numbers<V, 0> {};

SEWSNN_END
