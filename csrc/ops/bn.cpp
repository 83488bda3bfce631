// Batch norm + neuron + connection: schemas, checks, params. Autograd and the fake kernels are in sewsnn/ops/bn.py; the
// readable reference in sewsnn/ops/reference.py.
#include "ops/bn.h"

#include <cmath>

#include "core/bn_pooled_params.h"

namespace sewsnn {
namespace {

constexpr int64_t kNoNeuron = -1;  // the `kind` of batch norm without a neuron; no future neuron gets a negative number

// Repeats a still z T times over a time axis of stride 0.
Tensor with_time(const Tensor& z, int64_t T) {
  STD_TORCH_CHECK(T >= 0, "T must be at least 0, got ", T);
  STD_TORCH_CHECK(z.dim() >= (T ? 2 : 3), T ? "a still z must be [N, C, ...]" : "z must be [T, N, C, ...]", ", got ",
                  z.dim(), " dimensions");
  if (T == 0) return z;
  times(T, z.numel());
  std::vector<int64_t> sizes = {T}, strides = {0};
  sizes.insert(sizes.end(), z.sizes().begin(), z.sizes().end());
  strides.insert(strides.end(), z.strides().begin(), z.strides().end());
  return view_of(z, sizes, strides);
}

// Without neurons, the operand stays empty and nothing is read.
Operand like_z(const char* name, const Tensor& t, const Tensor& z, const Layout& layout, bool broadcast) {
  check_like(name, t, z, z.scalar_type(), layout, true);
  return layout.M ? as_operand(t, layout, layout.T, broadcast) : Operand{};
}

void set_checkpoints(BnBackwardParams& p, const MaybeTensor& checkpoints, const Tensor& z, const Layout& layout) {
  const int64_t count = p.spiking ? checkpoint_numel(layout, kind_of(p.neuron)) : 0;
  STD_TORCH_CHECK(checkpoints || count == 0, "checkpoints must be those of a forward with needs_grad=True");
  p.checkpoints = checkpoints ? checkpoint_data(*checkpoints, z, count) : nullptr;
}

Tensor empty_like(const Layout& layout, const Tensor& z) {
  return empty_strided(layout.sizes, layout.strides, z.scalar_type(), z);
}

Tensor empty_grad_z(const Layout& layout, const Tensor& z, bool still) {
  return still ? empty_strided(layout.step_sizes(), layout.step_strides(), z.scalar_type(), z) : empty_like(layout, z);
}

// [2, C] in the state's dtype.
Tensor empty_sums(const Tensor& z, int64_t C, bool zero) {
  const ScalarType state = state_type(z);
  return zero ? torch::stable::new_zeros(z, {2, C}, state) : empty_strided({2, C}, {C, 1}, state, z);
}

void check_shortcut_gradient(Connect connect, bool wanted) {
  const bool own = connect == Connect::And || connect == Connect::Iand || connect == Connect::AddBefore;
  STD_TORCH_CHECK(!wanted || own, "this connection's shortcut has no gradient of its own");
}

}  // namespace

BnStatisticsCall::BnStatisticsCall(const Tensor& z_in, int64_t T, bool check_in)
    : layout(layout_of(with_time(z_in, T ? 1 : 0))),
      statistics(empty_sums(z_in, layout.sizes[2], false)),
      check(check_in) {
  STD_TORCH_CHECK(layout.M > 0, "z must not be empty");
  params.dtype = dtype_of(z_in);
  params.T = layout.T, params.M = layout.M;
  params.channels = channels_of(layout);
  z = x_operand(with_time(z_in, T ? 1 : 0), layout);
  params.z = z.rows;
  params.statistics = statistics.mutable_data_ptr();
}

void BnStatisticsCall::set_running(const BnRunning& running) {
  STD_TORCH_CHECK(count() > 1, "a channel must have more than one value in training");
  if (!running.mean && !running.var && !running.tracked) return;
  STD_TORCH_CHECK(running.mean && running.var, "the running mean and the running variance belong together");
  check_running({statistics, running.momentum, double(count()), *running.mean, *running.var});
  params.running_mean = running.mean->mutable_data_ptr();
  params.running_var = running.var->mutable_data_ptr();
  params.momentum = running.momentum;
  if (!running.tracked) return;
  check_device("num_batches_tracked", *running.tracked, statistics);
  STD_TORCH_CHECK(running.tracked->numel() == 1 && running.tracked->scalar_type() == ScalarType::Long,
                  "num_batches_tracked must be one int64");
  address(*running.tracked);
  params.tracked = static_cast<int64_t*>(running.tracked->mutable_data_ptr());
}

template <class P>
BnCall<P>::BnCall(const BnTensors& in, const BnOptions& options) : layout(layout_of(with_time(in.z, options.T))) {
  params.spiking = options.neuron.kind != kNoNeuron;
  if (params.spiking) params.neuron = checked(options.neuron);
  STD_TORCH_CHECK(options.connect >= 0 && options.connect <= 5, "unknown connection ", options.connect);
  params.connect = Connect(options.connect);
  STD_TORCH_CHECK(params.spiking || params.connect != Connect::Sum, "the sum is a second result only with a neuron");
  STD_TORCH_CHECK(kind().binary || (params.connect != Connect::And && params.connect != Connect::Iand),
                  "the connections AND and IAND need spikes that are 0 or 1, and those of ", kind().name, " are not");
  params.dtype = dtype_of(in.z);
  params.T = layout.T, params.M = layout.M;
  params.channels = channels_of(layout);
  params.still = options.T > 0;
  z = x_operand(with_time(in.z, options.T), layout);
  params.z = z.rows;
  STD_TORCH_CHECK((params.connect == Connect::None) == !in.shortcut.has_value() || params.connect == Connect::Sum,
                  "a connection needs a shortcut, and nothing else does");
  if (in.shortcut) {
    shortcut = like_z("shortcut", *in.shortcut, in.z, layout, false);
    params.shortcut = shortcut.rows;
  }
  check_device("leak", in.leak, in.z);
  if (params.spiking) params.neuron.learnt = learnt_params(in.leak, in.z, params.neuron, params.channels);
  params.norm = norm_params(in.z, params.channels.count, in.statistics, in.weight, in.bias, options.eps);
}

template BnCall<BnPooledForwardParams>::BnCall(const BnTensors&, const BnOptions&);  // for bn_pooled.cpp

BnForwardCall::BnForwardCall(const BnTensors& in, const BnOptions& options, int64_t v_mode, bool needs_grad, bool pack)
    : BnCall(in, options), out(empty_like(layout, in.z)) {
  const VMode mode = checked_mode(v_mode);
  STD_TORCH_CHECK(mode != VMode::Sequence, "v_mode must be 0 or 1, got ", v_mode);
  STD_TORCH_CHECK(!pack || (params.spiking && (params.connect == Connect::None || adds_before(params.connect)) &&
                            params.M % 8 == 0),
                  "only the spikes of a neuron can be packed, 8 to a byte");
  STD_TORCH_CHECK(!pack || kind().binary, "only spikes that are 0 or 1 can be packed, and those of ", kind().name,
                  " are not");
  if (mode == VMode::Final && params.spiking) v = empty_states(layout, kind(), false, in.z);
  if (needs_grad && params.spiking && layout.T > kChunk)
    checkpoints = sewsnn::empty(checkpoint_numel(layout, kind()), state_type(in.z), in.z);
  if (pack) bits = sewsnn::empty(layout.T * layout.M / 8, ScalarType::Byte, in.z);
  if (params.connect == Connect::Sum) sum = empty_like(layout, in.z);
  params.out = data(out);
  params.sum = data(sum);
  params.v = data(v);
  params.checkpoints = data(checkpoints);
  params.bits = data(bits);
}

BnReduceCall::BnReduceCall(const MaybeTensor& grad_out_in, const MaybeTensor& grad_skip_in, const BnTensors& in,
                           const MaybeTensor& checkpoints, const BnOptions& options, bool need_leak)
    : BnCall(in, options),
      sums(empty_sums(in.z, params.channels.count, empty())),
      grad_leak(learnt_gradient(need_leak, in.leak, params.neuron, empty())) {
  STD_TORCH_CHECK(params.connect != Connect::Sum || in.shortcut, "bn_neuron_reduce needs the sum as shortcut");
  set_checkpoints(params, checkpoints, in.z, layout);
  if (grad_out_in) {
    grad_out = like_z("grad_out", *grad_out_in, in.z, layout, true);
    params.grad_out = grad_out.rows;
  }
  if (grad_skip_in) {
    grad_skip = like_z("grad_skip", *grad_skip_in, in.z, layout, true);
    params.grad_skip = grad_skip.rows;
  }
  if (grad_skip_in || params.connect == Connect::Sum) grad_sum = empty_like(layout, in.z);
  params.sums = sums.mutable_data_ptr();
  params.grad_sum = data(grad_sum);
  if (!grad_leak || !kind().per_channel) return;
  if (grad_leak->numel() != kind().learnt * params.channels.count)
    channel_sums = empty_sums(in.z, params.channels.count, empty());
  params.learnt_sums = data(channel_sums ? channel_sums : grad_leak);
}

void BnReduceCall::keep_grad_y(const Tensor& z_in) {
  const bool gated = params.connect == Connect::And || params.connect == Connect::Iand;
  if (!params.spiking || params.still || gated || params.connect == Connect::Sum || empty()) return;
  if (z_in.scalar_type() != state_type(z_in)) return;
  grad_y = empty_like(layout, z_in);
  params.grad_y = data(grad_y);
}

void BnReduceCall::set_learnt_partials(int64_t count) {
  learnt_partials = sewsnn::empty(count, ScalarType::Double, sums);
  params.learnt_partials = static_cast<double*>(learnt_partials->mutable_data_ptr());
}

BnApplyCall::BnApplyCall(const Tensor& grad_out_in, const BnTensors& in, const MaybeTensor& checkpoints,
                         const MaybeTensor& sums, double count, const BnOptions& options, bool need_shortcut)
    : BnCall(in, options), grad_z(empty_grad_z(layout, in.z, params.still)) {
  STD_TORCH_CHECK(params.connect != Connect::Sum,
                  "after bn_neuron_reduce of a sum, apply its grad_sum without a neuron");
  set_checkpoints(params, checkpoints, in.z, layout);
  params.sums = channel_data("sums", sums, in.z, times(2, params.channels.count));
  STD_TORCH_CHECK(!sums || empty() || (count > 0 && std::isfinite(count)), "count must be positive, got ", count);
  params.count = count;
  grad_out = like_z("grad_out", grad_out_in, in.z, layout, true);
  params.grad_out = grad_out.rows;
  check_shortcut_gradient(params.connect, need_shortcut);
  set_results(need_shortcut);
}

BnApplyCall::BnApplyCall(const BnReduceCall& first, const Tensor& z_in, bool training, bool need_shortcut)
    : BnCall(first.layout, first.params),
      grad_out(first.grad_out),
      grad_z(first.grad_y && !need_shortcut ? *first.grad_y : empty_grad_z(layout, z_in, params.still)) {
  check_shortcut_gradient(params.connect, need_shortcut);
  if (params.connect == Connect::Sum || first.grad_y) {  // the first pass has written dL/dy, and no neuron remains
    params.connect = Connect::None;
    params.shortcut = {};
    params.spiking = false;
    params.checkpoints = nullptr;
  }
  if (first.grad_y) {
    grad_out = {*first.grad_y, {first.params.grad_y, layout.M, 1}};
    params.grad_out = grad_out.rows;
  } else if (first.params.grad_sum) {  // the two gradients of the output, which the first pass has added
    grad_out = {*first.grad_sum, {first.params.grad_sum, layout.M, 1}};
    params.grad_out = grad_out.rows;
  }
  if (training) {
    params.sums = first.params.sums;
    const int64_t steps = params.still ? 1 : params.T;
    params.count = double(steps) * double(params.M / params.channels.count);
  }
  set_results(need_shortcut && !first.grad_y);
  if (need_shortcut && first.grad_y) grad_shortcut = first.grad_y;
}

void BnApplyCall::set_results(bool need_shortcut) {
  if (need_shortcut) grad_shortcut = empty_like(layout, grad_z);
  params.grad_z = data(grad_z);
  params.grad_shortcut = data(grad_shortcut);
}

void check_running(const BnUpdateCall& in) {
  STD_TORCH_CHECK(std::isfinite(in.momentum), "momentum must be finite, got ", in.momentum);
  STD_TORCH_CHECK(in.count > 1 && std::isfinite(in.count), "an unbiased variance needs more than one value, got ",
                  in.count);
  const ScalarType state = in.statistics.scalar_type();
  STD_TORCH_CHECK(in.statistics.dim() == 2 && in.statistics.size(0) == 2 && in.statistics.is_contiguous() &&
                      (state == ScalarType::Float || state == ScalarType::Double),
                  "statistics must be [2, C], float32 or float64");
  for (const Tensor* t : {&in.statistics, &in.mean, &in.var}) {
    check_device("running statistics", *t, in.statistics);
    address(*t);
    STD_TORCH_CHECK(
        t == &in.statistics || (t->numel() == in.statistics.size(1) && t->is_contiguous() && t->scalar_type() == state),
        "running statistics must be [C], with dtype and device of the statistics");
  }
}

}  // namespace sewsnn

#define SEWSNN_Z "Tensor z, Tensor? shortcut, Tensor? statistics, Tensor? weight, Tensor? bias, Tensor? leak, "
#define SEWSNN_OPTIONS "float eps, int connect, int T, {neuron}, "

STABLE_TORCH_LIBRARY_FRAGMENT(sewsnn, m) {
  m.def("bn_statistics(Tensor z, int T, bool check) -> Tensor");
  m.def(
      "bn_take_statistics(Tensor z, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? tracked, float[] "
      "numbers) -> Tensor");
  m.def(
      "bn_update(Tensor statistics, float momentum, float count, Tensor(a!) running_mean, Tensor(b!) running_var) -> "
      "()");
  sewsnn::def(
      m,
      "bn_neuron_forward(" SEWSNN_Z SEWSNN_OPTIONS
      "int v_mode, bool needs_grad, bool pack, bool training, {extra}) -> (Tensor out, Tensor v, Tensor checkpoints, "
      "Tensor bits)");
  m.def(
      "bn_neuron_train(Tensor z, Tensor? shortcut, Tensor? weight, Tensor? bias, Tensor? leak, Tensor(a!)? "
      "running_mean, Tensor(b!)? running_var, Tensor(c!)? tracked, float[] numbers) -> (Tensor out, Tensor? v, Tensor? "
      "checkpoints, Tensor? bits, Tensor statistics, Tensor? sum)");
  sewsnn::def(m, "bn_neuron_sum(" SEWSNN_Z SEWSNN_OPTIONS
                 "int v_mode, bool needs_grad, bool training, {extra}) -> (Tensor out, Tensor sum, Tensor v, Tensor "
                 "checkpoints)");
  m.def("bn_neuron_backward(Tensor grad_out, Tensor? grad_skip, " SEWSNN_Z
        "Tensor? checkpoints, float[] numbers) -> (Tensor grad_z, Tensor? grad_shortcut, Tensor? grad_sum, Tensor "
        "grad_weight, Tensor grad_bias, Tensor? grad_leak)");
  sewsnn::def(m, "bn_neuron_reduce(Tensor grad_out, Tensor? grad_skip, " SEWSNN_Z "Tensor? checkpoints, " SEWSNN_OPTIONS
                 "bool need_leak, {extra}) -> (Tensor sums, Tensor grad_sum, Tensor grad_leak)");
  sewsnn::def(m, "bn_neuron_apply(Tensor grad_out, " SEWSNN_Z
                 "Tensor? checkpoints, Tensor? sums, float count, " SEWSNN_OPTIONS
                 "bool need_shortcut, {extra}) -> (Tensor grad_z, Tensor grad_shortcut)");
}
