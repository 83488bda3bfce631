// Checks and conversions that all ops use: dtypes, shapes, memory for results.
#pragma once

#include "core/bn_params.h"
#include "ops/arguments.h"
#include "ops/layout.h"

namespace sewsnn {

enum class VMode : int64_t { None = 0, Final = 1, Sequence = 2 };

DType dtype_of(const Tensor& x);
ScalarType state_type(const Tensor& x);
VMode checked_mode(int64_t v_mode);
inline DType state_of(DType dtype) { return dtype == DType::Float64 ? dtype : DType::Float32; }
inline const KindInfo& kind_of(const NeuronParams& p) { return kinds()[size_t(p.kind)]; }

// Checks that t, if it is given, is on the device of x. The kernels rely on this for every tensor, used or not.
void check_device(const char* name, const Tensor& t, const Tensor& x);
inline void check_device(const char* name, const MaybeTensor& t, const Tensor& x) {
  if (t) check_device(name, *t, x);
}
// Checks that t has this dtype, is on the device of x, and has the shape of the layout or of one time-step of it. If
// there are several states, the shape begins with their number.
void check_like(const char* name, const Tensor& t, const Tensor& x, ScalarType dtype, const Layout&, bool time,
                int states = 1);
Layout layout_of(const Tensor& x);

Operand x_operand(const Tensor& x, const Layout&);

// Memory for one number for each neuron and state, and each time-step if `time`, in the order of the layout.
Tensor empty_states(const Layout&, const KindInfo&, bool time, const Tensor& x);
// Numbers of all checkpoints.
int64_t checkpoint_numel(const Layout&, const KindInfo&);
// The address of the checkpoints: `count` numbers in the state's dtype on the device of x. Null if there are none.
const void* checkpoint_data(const Tensor& checkpoints, const Tensor& x, int64_t count);

// The learnt parameters of the neuron, of which x has these channels.
LearntParams learnt_params(const MaybeTensor& leak, const Tensor& x, const NeuronParams&, const Channels&);
// Memory for their gradient: missing if it is not requested. Without neurons nothing is launched, and it is 0.
MaybeTensor learnt_gradient(bool requested, const MaybeTensor& leak, const NeuronParams&, bool zero);

// The address of numbers of the channels in the state's dtype, on the device of z. Null if there are none.
const void* channel_data(const char* name, const MaybeTensor&, const Tensor& z, int64_t numel);
// Batch norm with [2, C] statistics (mean, variance), or no batch norm.
Norm norm_params(const Tensor& z, int64_t channels, const MaybeTensor& statistics, const MaybeTensor& weight,
                 const MaybeTensor& bias, double eps);

// Null if the tensor is empty or missing.
inline void* data(const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; }
inline void* data(const MaybeTensor& t) { return t ? data(*t) : nullptr; }
// An empty tensor for a result that was not requested.
inline Tensor or_empty(const MaybeTensor& t, ScalarType dtype, const Tensor& like) {
  return t ? *t : empty(0, dtype, like);
}

}  // namespace sewsnn
