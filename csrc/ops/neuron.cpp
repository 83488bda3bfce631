// sewsnn::neuron_forward and sewsnn::neuron_backward: schemas, checks, params. Autograd and the fake kernels are in
// sewsnn/ops/neuron.py; the readable reference in sewsnn/ops/reference.py.
#include "ops/neuron.h"

#include <cmath>

namespace sewsnn {
namespace {

DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::Float32;
    case ScalarType::Half: return DType::Float16;
    case ScalarType::BFloat16: return DType::BFloat16;
    case ScalarType::Double: return DType::Float64;
    default: STD_TORCH_CHECK(false, "x must be float32, float16, bfloat16 or float64");
  }
}

ScalarType state_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_like(const char* name, const Tensor& t, const Tensor& x, ScalarType dtype, const Layout& layout, bool time) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype");
  STD_TORCH_CHECK(t.is_cuda() == x.is_cuda() && t.get_device_index() == x.get_device_index(), name,
                  " must be on the device of x");
  const int64_t skip = time ? 0 : 1;
  bool same = t.dim() == x.dim() - skip;
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == layout.sizes[size_t(d + skip)];
  STD_TORCH_CHECK(same, name, time ? " must have the shape of x" : " must have the shape of one time-step of x");
}

Layout layout_of(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 1, "x must be [T, ...], got a 0-dimensional tensor");
  STD_TORCH_CHECK(x.size(0) >= 1, "x must have at least one time-step, got T = 0");
  return Layout(x);
}

NeuronParams neuron_params(const NeuronOptions& o) {
  STD_TORCH_CHECK(o.kind >= 0 && o.kind <= 2, "unknown neuron kind ", o.kind);
  STD_TORCH_CHECK(o.surrogate >= 0 && o.surrogate < kSurrogates, "unknown surrogate kind ", o.surrogate);
  STD_TORCH_CHECK(std::isfinite(o.v_threshold), "v_threshold must be finite");
  STD_TORCH_CHECK(!o.v_reset || std::isfinite(*o.v_reset), "v_reset must be finite or None");
  STD_TORCH_CHECK(o.kind != int64_t(NeuronKind::LIF) || o.tau >= 1, "tau must be at least 1");
  NeuronParams p;
  p.kind = NeuronKind(o.kind);
  p.surrogate = SurrogateKind(o.surrogate);
  p.alpha = o.alpha;
  p.tau = o.tau;
  p.inverse_tau = 1 / o.tau;
  p.v_threshold = o.v_threshold;
  p.v_reset = o.v_reset.value_or(0);
  p.hard_reset = o.v_reset.has_value();
  p.detach_reset = o.detach_reset;
  p.decay_input = o.decay_input;
  return p;
}

Operand leak_operand(const std::optional<Tensor>& leak, const Tensor& x, NeuronKind kind) {
  if (kind != NeuronKind::PLIF) return {Tensor(), {}};
  STD_TORCH_CHECK(leak.has_value(), "leak is needed by PLIF");
  STD_TORCH_CHECK(leak->numel() == 1 && leak->scalar_type() == state_type(x) && leak->is_cuda() == x.is_cuda(),
                  "leak must be one number in the dtype of the state, on the device of x");
  return {*leak, {leak->const_data_ptr(), 0, 0}};
}

Operand x_operand(const Tensor& x, const Layout& layout) {
  if (layout.x_in_place) return {x, {x.const_data_ptr(), x.stride(0), 1}};
  if (layout.M == 0) return {x, {}};
  return as_operand(x, layout, true, false);
}

Operand v_operand(const std::optional<Tensor>& v, const Tensor& x, const Layout& layout) {
  if (!v) return {Tensor(), {}};
  check_like("v", *v, x, state_type(x), layout, false);
  return as_operand(*v, layout, false, false);
}

VMode checked_mode(int64_t v_mode) {
  STD_TORCH_CHECK(v_mode >= 0 && v_mode <= 2, "v_mode must be 0, 1 or 2, got ", v_mode);
  return VMode(v_mode);
}

void* data(const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; }

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
  STD_TORCH_CHECK(checkpoints.scalar_type() == state && checkpoints.is_contiguous() &&
                      checkpoints.numel() == checkpoint_count(layout.T) * layout.M,
                  "checkpoints must be those of a forward with needs_grad=True");
  x = x_operand(x_in, layout);
  v0 = v_operand(v_in, x_in, layout);
  leak = leak_operand(leak_in, x_in, params.neuron.kind);
  params.neuron.leak = leak.rows.data;
  params.x = x.rows;
  params.v0 = v0.rows.data;
  STD_TORCH_CHECK(!need_leak || params.neuron.kind == NeuronKind::PLIF, "only PLIF has a leak to derive by");
  params.checkpoints = checkpoints.numel() ? checkpoints.const_data_ptr() : nullptr;
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
  // A zero to begin with: what an empty batch returns.
  grad_leak = need_leak ? torch::stable::new_zeros(leak_in.value(), {}) : sewsnn::empty(0, state, x_in);
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
