// Checks and conversions that all ops use: dtypes, shapes, options of the neuron.
#pragma once

#include <optional>

#include "core/bn_params.h"
#include "ops/layout.h"

namespace sewsnn {

// The arguments of the schemas that are not tensors, in their order.
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

// Checks that t, if it is given, is on the device of x. The kernels rely on this for every tensor, used or not.
void check_device(const char* name, const Tensor& t, const Tensor& x);
inline void check_device(const char* name, const std::optional<Tensor>& t, const Tensor& x) {
  if (t) check_device(name, *t, x);
}
// Checks that t has this dtype, is on the device of x, and has the shape of the layout or of one time-step of it.
void check_like(const char* name, const Tensor& t, const Tensor& x, ScalarType dtype, const Layout&, bool time);
Layout layout_of(const Tensor& x);

Operand x_operand(const Tensor& x, const Layout&);
Operand leak_operand(const std::optional<Tensor>& leak, const Tensor& x, NeuronKind);

// The address of the checkpoints: `count` numbers in the state's dtype on the device of x. Null if there are none.
const void* checkpoint_data(const Tensor& checkpoints, const Tensor& x, int64_t count);

// The address of numbers of the channels in the state's dtype, on the device of z. Null if there are none.
const void* channel_data(const char* name, const std::optional<Tensor>&, const Tensor& z, int64_t numel);
// Batch norm with [2, C] statistics (mean, variance), or no batch norm.
Norm norm_params(const Tensor& z, int64_t channels, const std::optional<Tensor>& statistics,
                 const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps);

// Null if the tensor is empty or missing.
inline void* data(const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; }
inline void* data(const MaybeTensor& t) { return t ? data(*t) : nullptr; }

}  // namespace sewsnn
