// Batch norm + neuron + connection: schemas, checks, params. bn_neuron_train is bn_statistics, bn_neuron_forward and
// bn_update in one call; bn_neuron_backward is bn_neuron_reduce and bn_neuron_apply. The separate ops serve statistics
// that come from elsewhere: other processes, evaluation, or the graph of a compiler.
//
// Autograd and the fake kernels are in sewsnn/ops/bn.py; the readable reference in sewsnn/ops/reference.py.
#include "ops/bn.h"

#include <cmath>

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
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(z.get(), int64_t(sizes.size()), sizes.data(), strides.data(), 0, &handle));
  return Tensor(handle);
}

// The memory order is dense, so the stride of the channels is enough to find the channel of an element.
Channels channels_of(const Layout& layout) {
  const int64_t count = layout.sizes[2];
  if (count == 1) return {1, std::max<int64_t>(layout.M, 1)};
  return {count, layout.strides[2]};
}

// Without neurons, the operand stays empty and nothing is read.
Operand like_z(const char* name, const Tensor& t, const Tensor& z, const Layout& layout, bool broadcast) {
  check_like(name, t, z, z.scalar_type(), layout, true);
  return layout.M ? as_operand(t, layout, true, broadcast) : Operand{};
}

void set_checkpoints(BnBackwardParams& p, const MaybeTensor& checkpoints, const Tensor& z) {
  const int64_t count = p.spiking ? checkpoint_count(p.T) * p.M : 0;
  STD_TORCH_CHECK(checkpoints || count == 0, "checkpoints must be those of a forward with needs_grad=True");
  p.checkpoints = checkpoints ? checkpoint_data(*checkpoints, z, count) : nullptr;
}

}  // namespace

double NumberReader::number() {
  STD_TORCH_CHECK(at_ < numbers_.size(), "there must be more than ", numbers_.size(), " numbers");
  return numbers_[at_++];
}

int64_t NumberReader::whole() {
  const double x = number();
  STD_TORCH_CHECK(std::abs(x) <= double(kMostSteps) && x == std::floor(x), "number ", at_ - 1,
                  " must be an integer of at most 32 bits, got ", x);
  return int64_t(x);
}

bool NumberReader::flag() {
  const double x = number();
  STD_TORCH_CHECK(x == 0 || x == 1, "number ", at_ - 1, " must be 0 or 1, got ", x);
  return x == 1;
}

BnOptions NumberReader::options() {
  BnOptions o;
  o.eps = number(), o.connect = whole(), o.T = whole();
  NeuronOptions& n = o.neuron;
  n.kind = whole(), n.tau = number(), n.decay_input = flag(), n.v_threshold = number();
  const bool hard_reset = flag();
  const double v_reset = number();
  if (hard_reset) n.v_reset = v_reset;
  n.surrogate = whole(), n.alpha = number(), n.detach_reset = flag();
  return o;
}

void NumberReader::end() const {
  STD_TORCH_CHECK(at_ == numbers_.size(), "there must be ", at_, " numbers, got ", numbers_.size());
}

BnTrainNumbers::BnTrainNumbers(const std::vector<double>& numbers) {
  NumberReader read(numbers);
  options = read.options(), momentum = read.number(), v_mode = read.whole();
  needs_grad = read.flag(), pack = read.flag();
  read.end();
}

BnBackwardNumbers::BnBackwardNumbers(const std::vector<double>& numbers) {
  NumberReader read(numbers);
  options = read.options();
  training = read.flag(), need_shortcut = read.flag(), need_leak = read.flag();
  read.end();
}

BnStatisticsCall::BnStatisticsCall(const Tensor& z_in, int64_t T) : layout(layout_of(with_time(z_in, T ? 1 : 0))) {
  STD_TORCH_CHECK(layout.M > 0, "z must not be empty");
  params.dtype = dtype_of(z_in);
  params.T = layout.T, params.M = layout.M;
  params.channels = channels_of(layout);
  z = x_operand(with_time(z_in, T ? 1 : 0), layout);
  params.z = z.rows;
  const int64_t C = params.channels.count;
  statistics = empty_strided({2, C}, {C, 1}, state_type(z_in), z_in);
  params.statistics = statistics.mutable_data_ptr();
}

template <class P>
BnCall<P>::BnCall(const Tensor& z_in, const MaybeTensor& shortcut_in, const MaybeTensor& statistics_in,
                  const MaybeTensor& weight_in, const MaybeTensor& bias_in, const MaybeTensor& leak_in,
                  const BnOptions& options)
    : layout(layout_of(with_time(z_in, options.T))), statistics(statistics_in), weight(weight_in), bias(bias_in) {
  params.spiking = options.neuron.kind != kNoNeuron;
  if (params.spiking) params.neuron = neuron_params(options.neuron);
  STD_TORCH_CHECK(options.connect >= 0 && options.connect <= 4, "unknown connection ", options.connect);
  params.connect = Connect(options.connect);
  params.dtype = dtype_of(z_in);
  params.T = layout.T, params.M = layout.M;
  params.channels = channels_of(layout);
  params.still = options.T > 0;
  const Tensor z_seq = with_time(z_in, options.T);
  z = x_operand(z_seq, layout);
  params.z = z.rows;
  STD_TORCH_CHECK((params.connect == Connect::None) == !shortcut_in.has_value(),
                  "a connection needs a shortcut, and nothing else does");
  if (shortcut_in) {
    shortcut = like_z("shortcut", *shortcut_in, z_in, layout, false);
    params.shortcut = shortcut.rows;
  }
  check_device("leak", leak_in, z_in);
  leak = params.spiking ? leak_operand(leak_in, z_in, params.neuron.kind) : Operand{};
  params.neuron.leak = leak.rows.data;
  params.norm = norm_params(z_in, params.channels.count, statistics, weight, bias, options.eps);
}
template struct BnCall<BnForwardParams>;
template struct BnCall<BnReduceParams>;
template struct BnCall<BnApplyParams>;

BnForwardCall::BnForwardCall(const Tensor& z_in, const MaybeTensor& shortcut_in, const MaybeTensor& statistics_in,
                             const MaybeTensor& weight_in, const MaybeTensor& bias_in, const MaybeTensor& leak_in,
                             const BnOptions& options, int64_t v_mode, bool needs_grad, bool pack)
    : BnCall(z_in, shortcut_in, statistics_in, weight_in, bias_in, leak_in, options) {
  const ScalarType state = state_type(z_in);
  const VMode mode = checked_mode(v_mode);
  STD_TORCH_CHECK(mode != VMode::Sequence, "v_mode must be 0 or 1, got ", v_mode);
  STD_TORCH_CHECK(
      !pack || (params.spiking && (params.connect == Connect::None || params.connect == Connect::AddBefore) &&
                params.M % 8 == 0),
      "only the spikes of a neuron can be packed, 8 to a byte");
  const bool keep = needs_grad && params.spiking;
  out = empty_strided(layout.sizes, layout.strides, z_in.scalar_type(), z_in);
  if (mode == VMode::Final && params.spiking)
    v = empty_strided(layout.step_sizes(), layout.step_strides(), state, z_in);
  if (keep && layout.T > kChunk) checkpoints = sewsnn::empty(checkpoint_count(layout.T) * layout.M, state, z_in);
  if (pack) bits = sewsnn::empty(layout.T * layout.M / 8, ScalarType::Byte, z_in);
  params.out = data(out);
  params.v = data(v);
  params.checkpoints = data(checkpoints);
  params.bits = data(bits);
}

namespace {

// A row of a [rows, C] tensor. Like torch's unsafe_split, it does not say that it shares the memory: rows are disjoint.
Tensor row_of(const Tensor& t, int64_t row) {
  const int64_t size = t.size(1), stride = 1;
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.get(), 1, &size, &stride, row * size, &handle));
  return Tensor(handle);
}

Tensor or_empty(const MaybeTensor& t, ScalarType dtype, const Tensor& like) {
  return t ? *t : sewsnn::empty(0, dtype, like);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> BnForwardCall::result() const {
  const ScalarType state = state_type(out);
  return {out, or_empty(v, state, out), or_empty(checkpoints, state, out), or_empty(bits, ScalarType::Byte, out)};
}

BnReduceCall::BnReduceCall(const Tensor& grad_out_in, const MaybeTensor& grad_skip_in, const Tensor& z_in,
                           const MaybeTensor& shortcut_in, const MaybeTensor& statistics_in,
                           const MaybeTensor& weight_in, const MaybeTensor& bias_in, const MaybeTensor& leak_in,
                           const MaybeTensor& checkpoints_in, const BnOptions& options, bool need_leak)
    : BnCall(z_in, shortcut_in, statistics_in, weight_in, bias_in, leak_in, options), checkpoints(checkpoints_in) {
  const ScalarType state = state_type(z_in);
  set_checkpoints(params, checkpoints, z_in);
  STD_TORCH_CHECK(!need_leak || (params.spiking && params.neuron.kind == NeuronKind::PLIF),
                  "only PLIF has a leak to derive by");
  const int64_t C = params.channels.count;
  grad_out = like_z("grad_out", grad_out_in, z_in, layout, true);
  params.grad_out = grad_out.rows;
  if (grad_skip_in) {
    grad_skip = like_z("grad_skip", *grad_skip_in, z_in, layout, true);
    params.grad_skip = grad_skip.rows;
  }
  sums = empty() ? torch::stable::new_zeros(z_in, {2, C}, state) : empty_strided({2, C}, {C, 1}, state, z_in);
  if (grad_skip_in) grad_sum = empty_strided(layout.sizes, layout.strides, z_in.scalar_type(), z_in);
  // Without neurons nothing is launched, and the gradient is 0.
  if (need_leak)
    grad_leak = empty() ? torch::stable::new_zeros(leak_in.value(), {}) : empty_strided({}, {}, state, z_in);
  params.sums = sums.mutable_data_ptr();
  params.grad_sum = data(grad_sum);
}

std::tuple<Tensor, Tensor, Tensor> BnReduceCall::result() const {
  return {sums, or_empty(grad_sum, z.holder.scalar_type(), sums), or_empty(grad_leak, sums.scalar_type(), sums)};
}

void BnReduceCall::set_leak_partials(int64_t count) {
  leak_partials = sewsnn::empty(count, ScalarType::Double, sums);
  params.grad_leak_partials = static_cast<double*>(leak_partials.mutable_data_ptr());
}

BnApplyCall::BnApplyCall(const Tensor& grad_out_in, const Tensor& z_in, const MaybeTensor& shortcut_in,
                         const MaybeTensor& statistics_in, const MaybeTensor& weight_in, const MaybeTensor& bias_in,
                         const MaybeTensor& leak_in, const MaybeTensor& checkpoints_in, const MaybeTensor& sums_in,
                         double count, const BnOptions& options, bool need_shortcut)
    : BnCall(z_in, shortcut_in, statistics_in, weight_in, bias_in, leak_in, options),
      checkpoints(checkpoints_in),
      sums(sums_in) {
  set_checkpoints(params, checkpoints, z_in);
  params.sums = channel_data("sums", sums, z_in, times(2, params.channels.count));
  STD_TORCH_CHECK(!sums || empty() || (count > 0 && std::isfinite(count)), "count must be positive, got ", count);
  params.count = count;
  grad_out = like_z("grad_out", grad_out_in, z_in, layout, true);
  params.grad_out = grad_out.rows;
  allocate(z_in, need_shortcut);
}

BnApplyCall::BnApplyCall(const BnReduceCall& first, const Tensor& z_in, bool training, bool need_shortcut)
    : grad_out(first.grad_out), checkpoints(first.checkpoints) {
  layout = first.layout;
  static_cast<BnBackwardParams&>(params) = first.params;
  if (first.params.grad_sum) {  // the two gradients of the output, which the first pass has added
    grad_out = {*first.grad_sum, {first.params.grad_sum, layout.M, 1}};
    params.grad_out = grad_out.rows;
  }
  if (training) {
    params.sums = first.params.sums;
    const int64_t steps = params.still ? 1 : params.T;
    params.count = double(steps) * double(params.M / params.channels.count);
  }
  allocate(z_in, need_shortcut);
}

void BnApplyCall::allocate(const Tensor& z_in, bool need_shortcut) {
  STD_TORCH_CHECK(!need_shortcut || params.connect == Connect::And || params.connect == Connect::Iand ||
                      params.connect == Connect::AddBefore,
                  "this connection's shortcut has no gradient of its own");
  grad_z = params.still ? empty_strided(layout.step_sizes(), layout.step_strides(), z_in.scalar_type(), z_in)
                        : empty_strided(layout.sizes, layout.strides, z_in.scalar_type(), z_in);
  if (need_shortcut) grad_shortcut = empty_strided(layout.sizes, layout.strides, z_in.scalar_type(), z_in);
  params.grad_z = data(grad_z);
  params.grad_shortcut = data(grad_shortcut);
}

std::tuple<Tensor, Tensor> BnApplyCall::result() const {
  return {grad_z, or_empty(grad_shortcut, grad_z.scalar_type(), grad_z)};
}

BnResults results_of(const BnStatisticsCall& statistics, const BnForwardCall& call) {
  return {call.out, call.v, call.checkpoints, call.bits, statistics.statistics};
}

BnGradients results_of(const BnReduceCall& first, const BnApplyCall& second) {
  return {second.grad_z,         second.grad_shortcut,  first.grad_sum,
          row_of(first.sums, 1), row_of(first.sums, 0), first.grad_leak};
}

void set_running(BnStatisticsCall& call, const BnRunning& running) {
  STD_TORCH_CHECK(call.count() > 1, "a channel must have more than one value in training");
  if (!running.mean && !running.var && !running.tracked) return;
  STD_TORCH_CHECK(running.mean && running.var, "the running mean and the running variance belong together");
  check_running(call.statistics, running.momentum, double(call.count()), *running.mean, *running.var);
  call.params.running_mean = running.mean->mutable_data_ptr();
  call.params.running_var = running.var->mutable_data_ptr();
  call.params.momentum = running.momentum;
  if (!running.tracked) return;
  check_device("num_batches_tracked", *running.tracked, call.statistics);
  STD_TORCH_CHECK(running.tracked->numel() == 1 && running.tracked->scalar_type() == ScalarType::Long,
                  "num_batches_tracked must be one int64");
  address(*running.tracked);
  call.params.tracked = static_cast<int64_t*>(running.tracked->mutable_data_ptr());
}

void check_running(const Tensor& statistics, double momentum, double count, const Tensor& running_mean,
                   const Tensor& running_var) {
  STD_TORCH_CHECK(std::isfinite(momentum), "momentum must be finite, got ", momentum);
  STD_TORCH_CHECK(count > 1 && std::isfinite(count), "an unbiased variance needs more than one value, got ", count);
  const ScalarType state = statistics.scalar_type();
  STD_TORCH_CHECK(statistics.dim() == 2 && statistics.size(0) == 2 && statistics.is_contiguous() &&
                      (state == ScalarType::Float || state == ScalarType::Double),
                  "statistics must be [2, C], float32 or float64");
  for (const Tensor* t : {&statistics, &running_mean, &running_var}) {
    check_device("running statistics", *t, statistics);
    address(*t);
    STD_TORCH_CHECK(
        t == &statistics || (t->numel() == statistics.size(1) && t->is_contiguous() && t->scalar_type() == state),
        "running statistics must be [C], with dtype and device of the statistics");
  }
}

}  // namespace sewsnn

#define SEWSNN_NEURON                                                                                           \
  "int kind, float tau, bool decay_input, float v_threshold, float? v_reset, int surrogate, float alpha, bool " \
  "detach_reset"

STABLE_TORCH_LIBRARY_FRAGMENT(sewsnn, m) {
  m.def("bn_statistics(Tensor z, int T, bool check) -> Tensor");
  m.def(
      "bn_update(Tensor statistics, float momentum, float count, Tensor(a!) running_mean, Tensor(b!) running_var) -> "
      "()");
  m.def(
      "bn_neuron_forward(Tensor z, Tensor? shortcut, Tensor? statistics, Tensor? weight, Tensor? bias, Tensor? leak, "
      "float eps, int connect, int T, " SEWSNN_NEURON
      ", int v_mode, bool needs_grad, bool pack, bool training) -> (Tensor out, Tensor v, Tensor checkpoints, Tensor "
      "bits)");
  m.def(
      "bn_neuron_train(Tensor z, Tensor? shortcut, Tensor? weight, Tensor? bias, Tensor? leak, Tensor(a!)? "
      "running_mean, Tensor(b!)? running_var, Tensor(c!)? tracked, float[] numbers) -> (Tensor out, Tensor? v, Tensor? "
      "checkpoints, Tensor? "
      "bits, Tensor statistics)");
  m.def(
      "bn_neuron_backward(Tensor grad_out, Tensor? grad_skip, Tensor z, Tensor? shortcut, Tensor? statistics, Tensor? "
      "weight, Tensor? bias, Tensor? leak, Tensor? checkpoints, float[] numbers) -> (Tensor grad_z, Tensor? "
      "grad_shortcut, Tensor? grad_sum, Tensor grad_weight, Tensor grad_bias, Tensor? grad_leak)");
  m.def(
      "bn_neuron_reduce(Tensor grad_out, Tensor? grad_skip, Tensor z, Tensor? shortcut, Tensor? statistics, Tensor? "
      "weight, Tensor? bias, Tensor? leak, Tensor? checkpoints, float eps, int connect, int T, " SEWSNN_NEURON
      ", bool need_leak) -> (Tensor sums, Tensor grad_sum, Tensor grad_leak)");
  m.def(
      "bn_neuron_apply(Tensor grad_out, Tensor z, Tensor? shortcut, Tensor? statistics, Tensor? weight, Tensor? bias, "
      "Tensor? leak, Tensor? checkpoints, Tensor? sums, float count, float eps, int connect, int T, " SEWSNN_NEURON
      ", bool need_shortcut) -> (Tensor grad_z, Tensor grad_shortcut)");
}
