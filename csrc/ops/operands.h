// What the ops check and convert alike: dtypes, shapes, the neuron's options.
#pragma once

#include "ops/layout.h"

namespace sewsnn {

// What the schemas carry besides tensors, in their order.
struct NeuronOptions {
  int64_t kind;
  double tau;
  bool decay_input;
  double v_threshold;
  std::optional<double> v_reset;
  int64_t surrogate;
  double alpha;
  bool detach_reset;
};

enum class VMode : int64_t { None = 0, Final = 1, Sequence = 2 };

DType dtype_of(const Tensor& x);
ScalarType state_type(const Tensor& x);
NeuronParams neuron_params(const NeuronOptions&);
VMode checked_mode(int64_t v_mode);

// t has this dtype, is where x is, and has the shape of the layout, or of one time-step of it.
void check_like(const char* name, const Tensor& t, const Tensor& x, ScalarType dtype, const Layout&, bool time);
Layout layout_of(const Tensor& x);

Operand x_operand(const Tensor& x, const Layout&);
Operand leak_operand(const std::optional<Tensor>& leak, const Tensor& x, NeuronKind);

// Null if there is nothing in it.
inline void* data(const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; }

}  // namespace sewsnn
