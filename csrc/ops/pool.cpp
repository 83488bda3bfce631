// sewsnn::bn_neuron_pool_forward, _reduce and _apply: schemas, checks, params. Autograd and the fake kernels are in
// sewsnn/ops/pool.py.
#include "ops/pool.h"

#include <cmath>

namespace sewsnn {
namespace {

using MaybeTensor = std::optional<Tensor>;

// Strides of a dense tensor [..., C, H, W] with its last four dimensions contiguous or channels_last.
std::vector<int64_t> dense(const std::vector<int64_t>& sizes, bool channels_last) {
  std::vector<int64_t> strides(sizes.size());
  const size_t n = sizes.size(), c = n - 3, h = n - 2, w = n - 1;
  int64_t stride = 1;
  const auto put = [&](size_t d) {
    strides[d] = stride;
    stride = times(stride, std::max<int64_t>(sizes[d], 1));
  };
  if (channels_last) put(c), put(w), put(h);
  else put(w), put(h), put(c);
  for (size_t d = c; d-- > 0;) put(d);
  return strides;
}

bool lies(const Tensor& t, const std::vector<int64_t>& strides) {
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1 && t.stride(d) != strides[size_t(d)]) return false;
  return true;
}

// Returns t itself, or a dense copy.
Operand in_order(const Tensor& t, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  address(t);
  if (lies(t, strides)) return {t, {t.const_data_ptr(), 0, 1}};
  Tensor copy = empty_strided(sizes, strides, t.scalar_type(), t);
  torch::stable::copy_(copy, t);
  return {copy, {copy.const_data_ptr(), 0, 1}};
}

template <class P>
Operand checked_grad(const PoolCall<P>& call, const Tensor& grad_out, const Tensor& z) {
  check_device("grad_out", grad_out, z);
  bool same = grad_out.dim() == 5 && grad_out.scalar_type() == z.scalar_type();
  for (int64_t d = 0; same && d < 5; ++d) same = grad_out.size(d) == call.out_sizes[size_t(d)];
  STD_TORCH_CHECK(same, "grad_out must have the shape of out, the dtype and the device of z");
  return in_order(grad_out, call.out_sizes, call.out_strides);
}

}  // namespace

template <class P>
PoolCall<P>::PoolCall(const Tensor& z_in, const MaybeTensor& statistics_in, const MaybeTensor& weight_in,
                      const MaybeTensor& bias_in, const MaybeTensor& leak_in, const PoolOptions& options)
    : statistics(statistics_in), weight(weight_in), bias(bias_in) {
  STD_TORCH_CHECK(z_in.dim() == 4, "z must be [N, C, H, W], got ", z_in.dim(), " dimensions");
  STD_TORCH_CHECK(options.T >= 1 && options.T <= kChunk, "T must be 1 to ", kChunk, ", got ", options.T);
  params.neuron = neuron_params(options.neuron);
  params.dtype = dtype_of(z_in);
  params.T = options.T;
  params.images = z_in.size(0), params.channels = z_in.size(1);
  params.height = z_in.size(2), params.width = z_in.size(3);
  constexpr int64_t most = int64_t(1) << 30;  // the CUDA kernels count each, and twice the channels, with 32 bits
  STD_TORCH_CHECK(params.channels <= most && params.height <= most && params.width <= most,
                  "z must have at most 2**30 channels, rows and columns");
  const std::vector<int64_t> sizes(z_in.sizes().begin(), z_in.sizes().end());
  const std::vector<int64_t> contiguous = dense(sizes, false), last = dense(sizes, true);
  params.channels_last = !lies(z_in, contiguous) && lies(z_in, last);
  out_sizes = {params.T, sizes[0], sizes[1], (sizes[2] + 1) / 2, (sizes[3] + 1) / 2};  // also if it is empty
  out_strides = dense(out_sizes, params.channels_last);
  if (!empty()) z = in_order(z_in, sizes, params.channels_last ? last : contiguous);
  params.z = z.rows.data;
  leak = leak_operand(leak_in, z_in, params.neuron.kind);
  params.neuron.leak = leak.rows.data;
  params.norm = norm_params(z_in, params.channels, statistics, weight, bias, options.eps);
}
template struct PoolCall<PoolForwardParams>;
template struct PoolCall<PoolReduceParams>;
template struct PoolCall<PoolApplyParams>;

PoolForwardCall::PoolForwardCall(const Tensor& z_in, const MaybeTensor& statistics_in, const MaybeTensor& weight_in,
                                 const MaybeTensor& bias_in, const MaybeTensor& leak_in, const PoolOptions& options)
    : PoolCall(z_in, statistics_in, weight_in, bias_in, leak_in, options) {
  out = empty_strided(out_sizes, out_strides, z_in.scalar_type(), z_in);
  params.out = data(out);
}

PoolReduceCall::PoolReduceCall(const Tensor& grad_out_in, const Tensor& z_in, const MaybeTensor& statistics_in,
                               const MaybeTensor& weight_in, const MaybeTensor& bias_in, const MaybeTensor& leak_in,
                               const PoolOptions& options, bool need_leak)
    : PoolCall(z_in, statistics_in, weight_in, bias_in, leak_in, options) {
  STD_TORCH_CHECK(!need_leak || params.neuron.kind == NeuronKind::PLIF, "only PLIF has a leak to derive by");
  const ScalarType state = state_type(z_in);
  grad_out = checked_grad(*this, grad_out_in, z_in);
  params.grad_out = grad_out.rows.data;
  sums = empty() ? torch::stable::new_zeros(z_in, {2, params.channels}, state)
                 : empty_strided({2, params.channels}, {params.channels, 1}, state, z_in);
  params.sums = data(sums);
  // Without neurons nothing is launched, and the gradient of the leak is 0.
  grad_leak = !need_leak ? sewsnn::empty(0, state, z_in)
              : empty()  ? torch::stable::new_zeros(leak_in.value(), {})
                         : empty_strided({}, {}, state, z_in);
}

void PoolReduceCall::set_partials(int64_t bytes, int64_t leak_count) {
  partials = sewsnn::empty((bytes + 7) / 8, ScalarType::Double, sums);
  params.partials = data(partials);
  if (!wants_leak()) return;
  leak_partials = sewsnn::empty(leak_count, ScalarType::Double, sums);
  params.grad_leak_partials = static_cast<double*>(leak_partials.mutable_data_ptr());
}

PoolApplyCall::PoolApplyCall(const Tensor& grad_out_in, const Tensor& z_in, const MaybeTensor& statistics_in,
                             const MaybeTensor& weight_in, const MaybeTensor& bias_in, const MaybeTensor& leak_in,
                             const MaybeTensor& sums_in, double count, const PoolOptions& options)
    : PoolCall(z_in, statistics_in, weight_in, bias_in, leak_in, options), sums(sums_in) {
  grad_out = checked_grad(*this, grad_out_in, z_in);
  params.grad_out = grad_out.rows.data;
  params.sums = channel_data("sums", sums, z_in, times(2, params.channels));
  STD_TORCH_CHECK(!sums || empty() || (count > 0 && std::isfinite(count)), "count must be positive, got ", count);
  params.count = count;
  const std::vector<int64_t> sizes(z_in.sizes().begin(), z_in.sizes().end());
  grad_z = empty_strided(sizes, dense(sizes, params.channels_last), z_in.scalar_type(), z_in);
  params.grad_z = data(grad_z);
}

}  // namespace sewsnn

#define SEWSNN_POOL "Tensor? statistics, Tensor? weight, Tensor? bias, Tensor? leak, "
#define SEWSNN_NEURON                                                                                           \
  "float eps, int T, int kind, float tau, bool decay_input, float v_threshold, float? v_reset, int surrogate, " \
  "float alpha, bool detach_reset"

STABLE_TORCH_LIBRARY_FRAGMENT(sewsnn, m) {
  m.def("bn_neuron_pool_forward(Tensor z, " SEWSNN_POOL SEWSNN_NEURON ", bool training) -> Tensor");
  m.def("bn_neuron_pool_reduce(Tensor grad_out, Tensor z, " SEWSNN_POOL SEWSNN_NEURON
        ", bool need_leak) -> (Tensor sums, Tensor grad_leak)");
  m.def("bn_neuron_pool_apply(Tensor grad_out, Tensor z, " SEWSNN_POOL "Tensor? sums, float count, " SEWSNN_NEURON
        ") -> Tensor");
}
