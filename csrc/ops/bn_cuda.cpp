// Batch norm + neuron + connection on the GPU, on torch's current stream.
#include "kernels/cuda_bn_kernels.h"
#include "kernels/cuda_kernels.h"
#include "ops/bn.h"
#include "ops/call.h"
#include "ops/counters.h"
#include "ops/cuda.h"

namespace sewsnn {
namespace {

// Copies a gradient that is one number for all elements to the form that the kernels read.
void widen(Operand& grad, Rows& rows, int64_t T) {
  if (!rows.data || rows.step != 0) return;
  grad = broadcast(grad, T);
  rows = grad.rows;
}

// Gives the params of statistics or reduce their workspace. The launch must follow while `counters` exists.
template <class Call>
Counters set_workspace(Call& call, const Tensor& z, cudaStream_t stream) {
  auto& p = call.params;
  const BnWorkspace need = cuda_bn_workspace(p.T, p.M, p.channels, p.dtype);
  call.partials = sewsnn::empty((need.bytes + 7) / 8, ScalarType::Double, z);
  p.partials = data(call.partials);
  const Counters counters(z, need.counters, stream);
  p.counters = counters.data;
  return counters;
}

void run_statistics(BnStatisticsCall& call, const Tensor& z, const char* name) {
  const cudaStream_t stream = current_stream(z);
  const Counters counters = set_workspace(call, z, stream);
  check_launch(cuda_bn_statistics(call.params, stream), name);
}

void run_reduce(BnReduceCall& call, const Tensor& z, const char* name) {
  BnReduceParams& p = call.params;
  widen(call.grad_out, p.grad_out, p.T);
  widen(call.grad_skip, p.grad_skip, p.T);
  const cudaStream_t stream = current_stream(z);
  const Counters counters = set_workspace(call, z, stream);
  const int64_t leaks = call.wants_leak() ? cuda_bn_leak_partials(p) : 0;
  if (leaks) call.set_leak_partials(leaks);
  check_launch(cuda_bn_reduce(p, stream), name);
  if (leaks)
    check_launch(cuda_sum_partials(p.grad_leak_partials, leaks, p.dtype, call.grad_leak->mutable_data_ptr(), stream),
                 name);
}

// Does not check whether the statistics are finite, because the host would have to wait for the GPU.
Tensor bn_statistics(Tensor z, int64_t T, bool /*check*/) {
  const auto guard = guard_of(z);
  BnStatisticsCall call(z, T);
  run_statistics(call, z, "bn_statistics");
  return call.statistics;
}

void bn_update(Tensor statistics, double momentum, double count, Tensor running_mean, Tensor running_var) {
  const auto guard = guard_of(statistics);
  check_running(statistics, momentum, count, running_mean, running_var);
  const DType state = statistics.scalar_type() == ScalarType::Double ? DType::Float64 : DType::Float32;
  check_launch(
      cuda_bn_update(statistics.const_data_ptr(), statistics.size(1), momentum, count, state,
                     running_mean.mutable_data_ptr(), running_var.mutable_data_ptr(), current_stream(statistics)),
      "bn_update");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bn_neuron_forward(Tensor z, MaybeTensor shortcut, MaybeTensor statistics,
                                                             MaybeTensor weight, MaybeTensor bias, MaybeTensor leak,
                                                             double eps, int64_t connect, int64_t T, int64_t kind,
                                                             double tau, bool decay_input, double v_threshold,
                                                             std::optional<double> v_reset, int64_t surrogate,
                                                             double alpha, bool detach_reset, int64_t v_mode,
                                                             bool needs_grad, bool pack, bool /*training*/) {
  const auto guard = guard_of(z);
  const BnForwardCall call(
      z, shortcut, statistics, weight, bias, leak,
      {eps, connect, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}}, v_mode,
      needs_grad, pack);
  if (!call.empty()) check_launch(cuda_bn_forward(call.params, current_stream(z)), "bn_neuron_forward");
  return call.result();
}

BnResults bn_neuron_train(Tensor z, MaybeTensor shortcut, MaybeTensor weight, MaybeTensor bias, MaybeTensor leak,
                          MaybeTensor running_mean, MaybeTensor running_var, MaybeTensor tracked,
                          std::vector<double> numbers) {
  const auto guard = guard_of(z);
  const BnTrainNumbers n(numbers);
  BnStatisticsCall statistics(z, n.options.T);
  set_running(statistics, {running_mean, running_var, tracked, n.momentum});
  // All checks come before the first kernel, so that an error leaves the running statistics as they were.
  const BnForwardCall call(z, shortcut, statistics.statistics, weight, bias, leak, n.options, n.v_mode, n.needs_grad,
                           n.pack);
  run_statistics(statistics, z, "bn_neuron_train");
  if (!call.empty()) check_launch(cuda_bn_forward(call.params, current_stream(z)), "bn_neuron_train");
  return results_of(statistics, call);
}

std::tuple<Tensor, Tensor, Tensor> bn_neuron_reduce(Tensor grad_out, MaybeTensor grad_skip, Tensor z,
                                                    MaybeTensor shortcut, MaybeTensor statistics, MaybeTensor weight,
                                                    MaybeTensor bias, MaybeTensor leak, MaybeTensor checkpoints,
                                                    double eps, int64_t connect, int64_t T, int64_t kind, double tau,
                                                    bool decay_input, double v_threshold, std::optional<double> v_reset,
                                                    int64_t surrogate, double alpha, bool detach_reset,
                                                    bool need_leak) {
  const auto guard = guard_of(z);
  BnReduceCall call(grad_out, grad_skip, z, shortcut, statistics, weight, bias, leak, checkpoints,
                    {eps, connect, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}},
                    need_leak);
  if (!call.empty()) run_reduce(call, z, "bn_neuron_reduce");
  return call.result();
}

std::tuple<Tensor, Tensor> bn_neuron_apply(Tensor grad_out, Tensor z, MaybeTensor shortcut, MaybeTensor statistics,
                                           MaybeTensor weight, MaybeTensor bias, MaybeTensor leak,
                                           MaybeTensor checkpoints, MaybeTensor sums, double count, double eps,
                                           int64_t connect, int64_t T, int64_t kind, double tau, bool decay_input,
                                           double v_threshold, std::optional<double> v_reset, int64_t surrogate,
                                           double alpha, bool detach_reset, bool need_shortcut) {
  const auto guard = guard_of(z);
  BnApplyCall call(grad_out, z, shortcut, statistics, weight, bias, leak, checkpoints, sums, count,
                   {eps, connect, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}},
                   need_shortcut);
  if (call.empty()) return call.result();
  widen(call.grad_out, call.params.grad_out, call.params.T);
  check_launch(cuda_bn_apply(call.params, current_stream(z)), "bn_neuron_apply");
  return call.result();
}

BnGradients bn_neuron_backward(Tensor grad_out, MaybeTensor grad_skip, Tensor z, MaybeTensor shortcut,
                               MaybeTensor statistics, MaybeTensor weight, MaybeTensor bias, MaybeTensor leak,
                               MaybeTensor checkpoints, std::vector<double> numbers) {
  const auto guard = guard_of(z);
  const BnBackwardNumbers n(numbers);
  BnReduceCall first(grad_out, grad_skip, z, shortcut, statistics, weight, bias, leak, checkpoints, n.options,
                     n.need_leak);
  if (!first.empty()) run_reduce(first, z, "bn_neuron_backward");
  const BnApplyCall second(first, z, n.training, n.need_shortcut);
  if (!second.empty()) check_launch(cuda_bn_apply(second.params, current_stream(z)), "bn_neuron_backward");
  return results_of(first, second);
}

}  // namespace
}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CUDA, m) {
  m.impl("bn_statistics", SEWSNN_BOX(sewsnn::bn_statistics));
  m.impl("bn_update", SEWSNN_BOX(sewsnn::bn_update));
  m.impl("bn_neuron_forward", SEWSNN_BOX(sewsnn::bn_neuron_forward));
  m.impl("bn_neuron_reduce", SEWSNN_BOX(sewsnn::bn_neuron_reduce));
  m.impl("bn_neuron_apply", SEWSNN_BOX(sewsnn::bn_neuron_apply));
  m.impl("bn_neuron_train", SEWSNN_BOX(sewsnn::bn_neuron_train));
  m.impl("bn_neuron_backward", SEWSNN_BOX(sewsnn::bn_neuron_backward));
}
