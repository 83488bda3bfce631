// The stem's ops on the GPU, on torch's current stream.
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_pool_kernels.h"
#include "ops/call.h"
#include "ops/cuda.h"
#include "ops/pool.h"

namespace sewsnn {
namespace {

Tensor bn_neuron_pool_forward(Tensor z, std::optional<Tensor> statistics, std::optional<Tensor> weight,
                              std::optional<Tensor> bias, std::optional<Tensor> leak, double eps, int64_t T,
                              int64_t kind, double tau, bool decay_input, double v_threshold,
                              std::optional<double> v_reset, int64_t surrogate, double alpha, bool detach_reset,
                              bool /*training*/) {
  const auto guard = guard_of(z);
  const PoolForwardCall call(z, statistics, weight, bias, leak,
                             {eps, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}});
  if (!call.empty()) check_launch(cuda_pool_forward(call.params, current_stream(z)), "bn_neuron_pool_forward");
  return call.out;
}

std::tuple<Tensor, Tensor> bn_neuron_pool_reduce(Tensor grad_out, Tensor z, std::optional<Tensor> statistics,
                                                 std::optional<Tensor> weight, std::optional<Tensor> bias,
                                                 std::optional<Tensor> leak, double eps, int64_t T, int64_t kind,
                                                 double tau, bool decay_input, double v_threshold,
                                                 std::optional<double> v_reset, int64_t surrogate, double alpha,
                                                 bool detach_reset, bool need_leak) {
  const auto guard = guard_of(z);
  PoolReduceCall call(grad_out, z, statistics, weight, bias, leak,
                      {eps, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}},
                      need_leak);
  if (call.empty()) return call.result();
  const int64_t leaks = call.wants_leak() ? cuda_pool_leak_partials(call.params) : 0;
  call.set_partials(cuda_pool_workspace(call.params), leaks);
  const cudaStream_t stream = current_stream(z);
  check_launch(cuda_pool_reduce(call.params, stream), "bn_neuron_pool_reduce");
  if (leaks)
    check_launch(cuda_sum_partials(call.params.grad_leak_partials, leaks, call.params.dtype,
                                   call.grad_leak.mutable_data_ptr(), stream),
                 "bn_neuron_pool_reduce");
  return call.result();
}

Tensor bn_neuron_pool_apply(Tensor grad_out, Tensor z, std::optional<Tensor> statistics, std::optional<Tensor> weight,
                            std::optional<Tensor> bias, std::optional<Tensor> leak, std::optional<Tensor> sums,
                            double count, double eps, int64_t T, int64_t kind, double tau, bool decay_input,
                            double v_threshold, std::optional<double> v_reset, int64_t surrogate, double alpha,
                            bool detach_reset) {
  const auto guard = guard_of(z);
  const PoolApplyCall call(grad_out, z, statistics, weight, bias, leak, sums, count,
                           {eps, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}});
  if (!call.empty()) check_launch(cuda_pool_apply(call.params, current_stream(z)), "bn_neuron_pool_apply");
  return call.grad_z;
}

}  // namespace
}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CUDA, m) {
  m.impl("bn_neuron_pool_forward", SEWSNN_BOX(sewsnn::bn_neuron_pool_forward));
  m.impl("bn_neuron_pool_reduce", SEWSNN_BOX(sewsnn::bn_neuron_pool_reduce));
  m.impl("bn_neuron_pool_apply", SEWSNN_BOX(sewsnn::bn_neuron_pool_apply));
}
