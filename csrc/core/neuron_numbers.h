// The order, types and names of the numbers of a neuron in the arguments of the ops: their schemas, arguments and lists
// of numbers follow from it. sewsnn/ops/spec.py writes them in the same order.
#pragma once

#include <optional>
#include <vector>

#include "core/params.h"

namespace sewsnn {

// A neuron as an op is told it: NeuronParams before any check, and its further numbers.
struct NeuronNumbers {
  int64_t kind, surrogate;
  NeuronParams rest;
  std::vector<double> extra;
};

template <class From>
NeuronNumbers read_neuron(From& from) {
  NeuronNumbers n;
  n.kind = from.whole("kind"), n.rest.tau = from.number("tau"), n.rest.decay_input = from.flag("decay_input");
  n.rest.v_threshold = from.number("v_threshold");
  const std::optional<double> v_reset = from.maybe_number("v_reset");
  n.rest.hard_reset = v_reset.has_value(), n.rest.v_reset = v_reset.value_or(0);
  n.surrogate = from.whole("surrogate"), n.rest.alpha = from.number("alpha");
  n.rest.detach_reset = from.flag("detach_reset");
  return n;
}

}  // namespace sewsnn
