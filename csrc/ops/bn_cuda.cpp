// Batch norm + neuron + connection on the GPU, on torch's current stream.
#include "kernels/cuda_bn_kernels.h"
#include "kernels/cuda_kernels.h"
#include "ops/bn.h"
#include "ops/call.h"
#include "ops/cuda.h"

namespace sewsnn {
namespace {

// Copies a gradient that is one number for all elements to the form that the kernels read.
void widen(Operand& grad, Rows& rows, int64_t T) {
  if (!rows.data || rows.step != 0) return;
  grad = broadcast(grad, T);
  rows = grad.rows;
}

Tensor workspace(int64_t bytes, const Tensor& like) { return sewsnn::empty((bytes + 7) / 8, ScalarType::Double, like); }

// Does not check whether the statistics are finite, because the host would have to wait for the GPU.
Tensor bn_statistics(Tensor z, int64_t T, bool /*check*/) {
  const auto guard = guard_of(z);
  BnStatisticsCall call(z, T);
  BnStatisticsParams& p = call.params;
  call.partials = workspace(cuda_bn_workspace(p.T, p.M, p.channels, p.dtype), z);
  p.partials = data(call.partials);
  check_launch(cuda_bn_statistics(p, current_stream(z)), "bn_statistics");
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

std::tuple<Tensor, Tensor, Tensor> bn_neuron_reduce(Tensor grad_out, MaybeTensor grad_skip, Tensor z,
                                                    MaybeTensor shortcut, MaybeTensor statistics, MaybeTensor weight,
                                                    MaybeTensor bias, MaybeTensor leak, Tensor checkpoints, double eps,
                                                    int64_t connect, int64_t T, int64_t kind, double tau,
                                                    bool decay_input, double v_threshold, std::optional<double> v_reset,
                                                    int64_t surrogate, double alpha, bool detach_reset,
                                                    bool need_leak) {
  const auto guard = guard_of(z);
  BnReduceCall call(grad_out, grad_skip, z, shortcut, statistics, weight, bias, leak, checkpoints,
                    {eps, connect, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}},
                    need_leak);
  if (call.empty()) return call.result();
  BnReduceParams& p = call.params;
  widen(call.grad_out, p.grad_out, p.T);
  widen(call.grad_skip, p.grad_skip, p.T);
  call.partials = workspace(cuda_bn_workspace(p.T, p.M, p.channels, p.dtype), z);
  p.partials = data(call.partials);
  const int64_t leaks = call.wants_leak() ? cuda_bn_leak_partials(p) : 0;
  if (leaks) call.set_leak_partials(leaks);
  const cudaStream_t stream = current_stream(z);
  check_launch(cuda_bn_reduce(p, stream), "bn_neuron_reduce");
  if (leaks)
    check_launch(cuda_sum_partials(p.grad_leak_partials, leaks, p.dtype, call.grad_leak.mutable_data_ptr(), stream),
                 "bn_neuron_reduce");
  return call.result();
}

std::tuple<Tensor, Tensor> bn_neuron_apply(Tensor grad_out, Tensor z, MaybeTensor shortcut, MaybeTensor statistics,
                                           MaybeTensor weight, MaybeTensor bias, MaybeTensor leak, Tensor checkpoints,
                                           MaybeTensor sums, double count, double eps, int64_t connect, int64_t T,
                                           int64_t kind, double tau, bool decay_input, double v_threshold,
                                           std::optional<double> v_reset, int64_t surrogate, double alpha,
                                           bool detach_reset, bool need_shortcut) {
  const auto guard = guard_of(z);
  BnApplyCall call(grad_out, z, shortcut, statistics, weight, bias, leak, checkpoints, sums, count,
                   {eps, connect, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}},
                   need_shortcut);
  if (call.empty()) return call.result();
  widen(call.grad_out, call.params.grad_out, call.params.T);
  check_launch(cuda_bn_apply(call.params, current_stream(z)), "bn_neuron_apply");
  return call.result();
}

}  // namespace
}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CUDA, m) {
  m.impl("bn_statistics", SEWSNN_BOX(sewsnn::bn_statistics));
  m.impl("bn_update", SEWSNN_BOX(sewsnn::bn_update));
  m.impl("bn_neuron_forward", SEWSNN_BOX(sewsnn::bn_neuron_forward));
  m.impl("bn_neuron_reduce", SEWSNN_BOX(sewsnn::bn_neuron_reduce));
  m.impl("bn_neuron_apply", SEWSNN_BOX(sewsnn::bn_neuron_apply));
}
