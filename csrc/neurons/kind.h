// A neuron as users know it. Its header derives a struct from Kind, and registry.h lists it.
#pragma once

#include "core/lists.h"
#include "core/params.h"

SEWSNN_BEGIN

// Struct<S> computes the neuron. A kind may have several structs, which differ in rounding; struct_of then chooses.
template <template <class> class... Struct>
struct Kind {
  template <class S>
  using Structs = List<Struct<S>...>;
  static int struct_of(const NeuronParams&) { return 0; }
  static constexpr int kLearnt = 0;  // rows of NeuronParams::learnt
  static constexpr int kExtra = 0;   // numbers of NeuronParams::extra
  static constexpr bool kUsesTau = false;
  // What is wrong with the numbers of the kind; null: nothing. All are finite, and tau is at least 1 if it is used.
  static const char* problem(const NeuronParams&) { return nullptr; }
};

SEWSNN_END
