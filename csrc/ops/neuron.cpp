// sewsnn::neuron_forward and sewsnn::neuron_backward: schemas, checks, params. Autograd and the fake kernels are in
// sewsnn/ops/neuron.py; the readable reference in sewsnn/ops/reference.py.
#include "ops/neuron.h"

namespace sewsnn {
namespace {

Operand v_operand(const std::optional<Tensor>& v, const Tensor& x, const Layout& layout) {
  if (!v) return {Tensor(), {}};
  check_like("v", *v, x, state_type(x), layout, false);
  return as_operand(*v, layout, false, false);
}

}  // namespace

ForwardCall::ForwardCall(const Tensor& x_in, const std::optional<Tensor>& v_in, const std::optional<Tensor>& leak_in,
                         const NeuronOptions& options, int64_t v_mode, bool needs_grad)
    : layout(layout_of(x_in)) {
  params.neuron = neuron_params(options);
  params.dtype = dtype_of(x_in);
  params.T = layout.T, params.M = layout.M;
  const ScalarType state = state_type(x_in);
  x = x_operand(x_in, layout);
  v0 = v_operand(v_in, x_in, layout);
  leak = leak_operand(leak_in, x_in, params.neuron.kind);
  params.neuron.leak = leak.rows.data;
  params.x = x.rows;
  params.v0 = v0.rows.data;

  const VMode mode = checked_mode(v_mode);
  s = empty_strided(layout.sizes, layout.strides, x_in.scalar_type(), x_in);
  v = mode == VMode::Sequence ? empty_strided(layout.sizes, layout.strides, state, x_in)
      : mode == VMode::Final  ? empty_strided(layout.step_sizes(), layout.step_strides(), state, x_in)
                              : sewsnn::empty(0, state, x_in);
  checkpoints = sewsnn::empty(needs_grad ? checkpoint_count(layout.T) * layout.M : 0, state, x_in);
  params.s = data(s);
  params.v = data(v);
  params.v_seq = mode == VMode::Sequence;
  params.checkpoints = data(checkpoints);
}

BackwardCall::BackwardCall(const std::optional<Tensor>& grad_s_in, const std::optional<Tensor>& grad_v_in,
                           const Tensor& x_in, const std::optional<Tensor>& v_in, const std::optional<Tensor>& leak_in,
                           const Tensor& checkpoints_in, const NeuronOptions& options, int64_t v_mode, bool need_v,
                           bool need_leak)
    : layout(layout_of(x_in)), checkpoints(checkpoints_in) {
  params.neuron = neuron_params(options);
  params.dtype = dtype_of(x_in);
  params.T = layout.T, params.M = layout.M;
  const ScalarType state = state_type(x_in);
  params.checkpoints = checkpoint_data(checkpoints, x_in, checkpoint_count(layout.T) * layout.M);
  x = x_operand(x_in, layout);
  v0 = v_operand(v_in, x_in, layout);
  leak = leak_operand(leak_in, x_in, params.neuron.kind);
  params.neuron.leak = leak.rows.data;
  params.x = x.rows;
  params.v0 = v0.rows.data;
  STD_TORCH_CHECK(!need_leak || params.neuron.kind == NeuronKind::PLIF, "only PLIF has a leak to derive by");
  params.v_seq = checked_mode(v_mode) == VMode::Sequence;
  if (grad_s_in) {
    check_like("grad_s", *grad_s_in, x_in, x_in.scalar_type(), layout, true);
    grad_s = as_operand(*grad_s_in, layout, true, true);
    params.grad_s = grad_s.rows;
  }
  if (grad_v_in) {
    check_like("grad_v", *grad_v_in, x_in, state, layout, params.v_seq);
    grad_v = as_operand(*grad_v_in, layout, params.v_seq, true);
    params.grad_v = grad_v.rows;
  }
  grad_x = empty_strided(layout.sizes, layout.strides, x_in.scalar_type(), x_in);
  grad_v0 =
      need_v ? empty_strided(layout.step_sizes(), layout.step_strides(), state, x_in) : sewsnn::empty(0, state, x_in);
  // Without neurons nothing is launched, and the gradient of the leak is 0.
  grad_leak = !need_leak ? sewsnn::empty(0, state, x_in)
              : empty()  ? torch::stable::new_zeros(leak_in.value(), {})
                         : empty_strided({}, {}, state, x_in);
  params.grad_x = data(grad_x);
  params.grad_v0 = data(grad_v0);
}

void BackwardCall::set_partials(int64_t count) {
  partials = sewsnn::empty(count, ScalarType::Double, grad_x);
  params.grad_leak_partials = static_cast<double*>(partials.mutable_data_ptr());
}

}  // namespace sewsnn

STABLE_TORCH_LIBRARY(sewsnn, m) {
  m.def(
      "neuron_forward(Tensor x, Tensor? v, Tensor? leak, int kind, float tau, bool decay_input, float v_threshold, "
      "float? v_reset, int surrogate, float alpha, bool detach_reset, int v_mode, bool needs_grad) "
      "-> (Tensor s, Tensor v, Tensor checkpoints)");
  m.def(
      "neuron_backward(Tensor? grad_s, Tensor? grad_v, Tensor x, Tensor? v, Tensor? leak, Tensor checkpoints, int "
      "kind, "
      "float tau, bool decay_input, float v_threshold, float? v_reset, int surrogate, float alpha, bool detach_reset, "
      "int v_mode, bool need_v, bool need_leak) -> (Tensor grad_x, Tensor grad_v, Tensor grad_leak)");
}
