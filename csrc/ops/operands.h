// What the ops check and convert alike: dtypes, shapes, the neuron's options.
#pragma once

#include <optional>

#include "core/bn_params.h"
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

// t, if there is one, is where x is. The kernels trust this of every tensor they are given, used or not.
void check_device(const char* name, const Tensor& t, const Tensor& x);
inline void check_device(const char* name, const std::optional<Tensor>& t, const Tensor& x) {
  if (t) check_device(name, *t, x);
}
// t has this dtype, is where x is, and has the shape of the layout, or of one time-step of it.
void check_like(const char* name, const Tensor& t, const Tensor& x, ScalarType dtype, const Layout&, bool time);
Layout layout_of(const Tensor& x);

Operand x_operand(const Tensor& x, const Layout&);
Operand leak_operand(const std::optional<Tensor>& leak, const Tensor& x, NeuronKind);

// What forward kept for backward: `count` numbers of the state, where x is; null if there are none.
const void* checkpoint_data(const Tensor& checkpoints, const Tensor& x, int64_t count);

// Numbers of the channels, in the dtype of the state, where z is; null if there are none.
const void* channel_data(const char* name, const std::optional<Tensor>&, const Tensor& z, int64_t numel);
// Batch norm with [2, C] statistics (mean, variance), or none at all.
Norm norm_params(const Tensor& z, int64_t channels, const std::optional<Tensor>& statistics,
                 const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps);

// Null if there is nothing in it.
inline void* data(const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; }

}  // namespace sewsnn
