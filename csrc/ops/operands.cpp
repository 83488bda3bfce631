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

void check_like(const char* name, const Tensor& t, const Tensor& x, ScalarType dtype, const Layout& layout, bool time,
                int states) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype");
  check_device(name, t, x);
  const int64_t lead = states > 1, skip = time ? 0 : 1;  // dimensions that only t, only x has
  bool same = t.dim() - lead == int64_t(layout.sizes.size()) - skip && (!lead || t.size(0) == states);
  for (int64_t d = lead; same && d < t.dim(); ++d) same = t.size(d) == layout.sizes[size_t(d - lead + skip)];
  if (same) return;
  const char* const shape = time ? " must have the shape of x" : " must have the shape of one time-step of x";
  STD_TORCH_CHECK(!lead, name, shape, " for each of ", states, " states");
  STD_TORCH_CHECK(false, name, shape);
}

Layout layout_of(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 1, "x must be [T, ...], got a 0-dimensional tensor");
  STD_TORCH_CHECK(x.size(0) >= 1, "x must have at least one time-step, got T = 0");
  return Layout(x);
}

Operand x_operand(const Tensor& x, const Layout& layout) {
  if (layout.x_in_place) return {x, {address(x), x.stride(0), 1}};
  if (layout.M == 0) return {x, {}};
  return as_operand(x, layout, layout.T, false);
}

VMode checked_mode(int64_t v_mode) {
  STD_TORCH_CHECK(v_mode >= 0 && v_mode <= 2, "v_mode must be 0, 1 or 2, got ", v_mode);
  return VMode(v_mode);
}

Tensor empty_states(const Layout& layout, const KindInfo& kind, bool time, const Tensor& x) {
  const ScalarType state = state_type(x);
  if (kind.states == 1)
    return time ? empty_strided(layout.sizes, layout.strides, state, x)
                : empty_strided(layout.step_sizes(), layout.step_strides(), state, x);
  std::vector<int64_t> sizes = time ? layout.sizes : layout.step_sizes();
  std::vector<int64_t> strides = time ? layout.strides : layout.step_strides();
  strides.insert(strides.begin(), std::max<int64_t>(count_of(sizes), 1));
  sizes.insert(sizes.begin(), kind.states);
  return empty_strided(sizes, strides, state, x);
}

int64_t checkpoint_numel(const Layout& layout, const KindInfo& kind) {
  return times(kind.states, checkpoint_count(layout.T) * layout.M);
}

const void* checkpoint_data(const Tensor& checkpoints, const Tensor& x, int64_t count) {
  check_device("checkpoints", checkpoints, x);
  STD_TORCH_CHECK(
      checkpoints.scalar_type() == state_type(x) && checkpoints.is_contiguous() && checkpoints.numel() == count,
      "checkpoints must be those of a forward with needs_grad=True");
  return count ? address(checkpoints) : nullptr;
}

LearntParams learnt_params(const MaybeTensor& leak, const Tensor& x, const NeuronParams& neuron,
                           const Channels& channels) {
  check_device("leak", leak, x);
  const KindInfo& kind = kind_of(neuron);
  if (kind.learnt == 0) return {};
  STD_TORCH_CHECK(leak.has_value(), "leak is needed by ", kind.name);
  const bool state = leak->scalar_type() == state_type(x);
  if (kind.learnt == 1 && !kind.per_channel) {
    STD_TORCH_CHECK(state && leak->numel() == 1,
                    "leak must be one number in the dtype of the state, on the device of x");
    return {address(*leak), {}};
  }
  const bool shared = leak->numel() == kind.learnt;
  STD_TORCH_CHECK(state && leak->is_contiguous() &&
                      (shared || (leak->dim() == 2 && leak->size(0) == kind.learnt && leak->size(1) == channels.count)),
                  "leak must be the ", kind.learnt, " learnt parameters of ", kind.name, ", [", kind.learnt,
                  ", 1] or [", kind.learnt, ", ", channels.count,
                  "], contiguous, in the dtype of the state, on the device of x");
  return {address(*leak), shared ? Channels{} : channels};
}

MaybeTensor learnt_gradient(bool requested, const MaybeTensor& leak, const NeuronParams& neuron, bool zero) {
  if (!requested) return {};
  STD_TORCH_CHECK(kind_of(neuron).learnt, kind_of(neuron).name,
                  " has no learnt parameters (of IF, LIF and PLIF only PLIF has a leak to derive by)");
  const std::vector<int64_t> sizes(leak->sizes().begin(), leak->sizes().end());
  if (zero) return torch::stable::new_zeros(*leak, sizes);
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
  return empty_strided(sizes, strides, leak->scalar_type(), *leak);
}

const void* channel_data(const char* name, const MaybeTensor& t, const Tensor& z, int64_t numel) {
  if (!t) return nullptr;
  check_device(name, *t, z);
  STD_TORCH_CHECK(t->scalar_type() == state_type(z) && t->is_contiguous() && t->numel() == numel, name, " must have ",
                  numel, " numbers in the dtype of the state, on the device of z");
  return address(*t);
}

Norm norm_params(const Tensor& z, int64_t channels, const MaybeTensor& statistics, const MaybeTensor& weight,
                 const MaybeTensor& bias, double eps) {
  STD_TORCH_CHECK(eps >= 0 && std::isfinite(eps), "eps must be at least 0 and finite, got ", eps);
  const void* const mean = channel_data("statistics", statistics, z, times(2, channels));
  STD_TORCH_CHECK(mean || (!weight && !bias), "weight and bias need statistics");
  const int64_t bytes = state_type(z) == ScalarType::Double ? 8 : 4;
  const void* const var = mean ? static_cast<const char*>(mean) + channels * bytes : nullptr;
  return {mean, var, channel_data("weight", weight, z, channels), channel_data("bias", bias, z, channels), eps};
}

}  // namespace sewsnn
