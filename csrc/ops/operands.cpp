#include "ops/operands.h"

#include <cmath>

namespace sewsnn {

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

void check_device(const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(t.is_cuda() == x.is_cuda() && t.get_device_index() == x.get_device_index(), name,
                  " must be on the device of x");
}

void check_like(const char* name, const Tensor& t, const Tensor& x, ScalarType dtype, const Layout& layout, bool time) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype");
  check_device(name, t, x);
  const int64_t skip = time ? 0 : 1;
  bool same = t.dim() == int64_t(layout.sizes.size()) - skip;
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
  STD_TORCH_CHECK(o.kind != int64_t(NeuronKind::LIF) || (o.tau >= 1 && std::isfinite(o.tau)),
                  "tau must be at least 1, and finite");
  STD_TORCH_CHECK(o.alpha > 0 && std::isfinite(o.alpha), "the surrogate's parameter must be positive and finite, got ",
                  o.alpha);
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
  check_device("leak", leak, x);
  if (kind != NeuronKind::PLIF) return {Tensor(), {}};
  STD_TORCH_CHECK(leak.has_value(), "leak is needed by PLIF");
  STD_TORCH_CHECK(leak->numel() == 1 && leak->scalar_type() == state_type(x),
                  "leak must be one number in the dtype of the state, on the device of x");
  return {*leak, {address(*leak), 0, 0}};
}

Operand x_operand(const Tensor& x, const Layout& layout) {
  if (layout.x_in_place) return {x, {address(x), x.stride(0), 1}};
  if (layout.M == 0) return {x, {}};
  return as_operand(x, layout, true, false);
}

VMode checked_mode(int64_t v_mode) {
  STD_TORCH_CHECK(v_mode >= 0 && v_mode <= 2, "v_mode must be 0, 1 or 2, got ", v_mode);
  return VMode(v_mode);
}

const void* checkpoint_data(const Tensor& checkpoints, const Tensor& x, int64_t count) {
  check_device("checkpoints", checkpoints, x);
  STD_TORCH_CHECK(
      checkpoints.scalar_type() == state_type(x) && checkpoints.is_contiguous() && checkpoints.numel() == count,
      "checkpoints must be those of a forward with needs_grad=True");
  return count ? address(checkpoints) : nullptr;
}

const void* channel_data(const char* name, const std::optional<Tensor>& t, const Tensor& z, int64_t numel) {
  if (!t) return nullptr;
  check_device(name, *t, z);
  STD_TORCH_CHECK(t->scalar_type() == state_type(z) && t->is_contiguous() && t->numel() == numel, name, " must have ",
                  numel, " numbers in the dtype of the state, on the device of z");
  return address(*t);
}

Norm norm_params(const Tensor& z, int64_t channels, const std::optional<Tensor>& statistics,
                 const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps) {
  STD_TORCH_CHECK(eps >= 0 && std::isfinite(eps), "eps must be at least 0 and finite, got ", eps);
  const void* const mean = channel_data("statistics", statistics, z, times(2, channels));
  STD_TORCH_CHECK(mean || (!weight && !bias), "weight and bias need statistics");
  const int64_t bytes = state_type(z) == ScalarType::Double ? 8 : 4;
  const void* const var = mean ? static_cast<const char*>(mean) + channels * bytes : nullptr;
  return {mean, var, channel_data("weight", weight, z, channels), channel_data("bias", bias, z, channels), eps};
}

}  // namespace sewsnn
