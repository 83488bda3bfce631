// The order of the numbers of a neuron: in the arguments of the ops, and in the lists that sewsnn/ops/spec.py writes.
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
  n.kind = from.whole(), n.rest.tau = from.number(), n.rest.decay_input = from.flag();
  n.rest.v_threshold = from.number();
  const std::optional<double> v_reset = from.maybe_number();
  n.rest.hard_reset = v_reset.has_value(), n.rest.v_reset = v_reset.value_or(0);
  n.surrogate = from.whole(), n.rest.alpha = from.number(), n.rest.detach_reset = from.flag();
  return n;
}

}  // namespace sewsnn
