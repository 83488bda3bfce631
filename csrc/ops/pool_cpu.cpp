// The stem's ops on the CPU: distributes blocks over torch's thread pool.
#include "kernels/cpu_kernels.h"
#include "ops/call.h"
#include "ops/pool.h"

namespace sewsnn {
namespace {

const CpuPoolKernels& kernels() { return *cpu_kernels().pool; }

// Calls f(first, last) for ranges of all blocks.
template <class F>
void parallel_blocks(const PoolParams& p, const F& f) {
  const int64_t blocks = kernels().blocks(p);
  const int64_t neurons = p.images * p.channels * p.height * p.width;
  parallel_for(0, blocks, grain(neurons / std::max<int64_t>(1, blocks), p.T), f);
}

Tensor bn_neuron_pool_forward(Tensor z, std::optional<Tensor> statistics, std::optional<Tensor> weight,
                              std::optional<Tensor> bias, std::optional<Tensor> leak, double eps, int64_t T,
                              int64_t kind, double tau, bool decay_input, double v_threshold,
                              std::optional<double> v_reset, int64_t surrogate, double alpha, bool detach_reset,
                              bool /*training*/) {
  const PoolForwardCall call(z, statistics, weight, bias, leak,
                             {eps, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}});
  if (!call.empty())
    parallel_blocks(call.params, [&](int64_t first, int64_t last) { kernels().forward(call.params, first, last); });
  return call.out;
}

std::tuple<Tensor, Tensor> bn_neuron_pool_reduce(Tensor grad_out, Tensor z, std::optional<Tensor> statistics,
                                                 std::optional<Tensor> weight, std::optional<Tensor> bias,
                                                 std::optional<Tensor> leak, double eps, int64_t T, int64_t kind,
                                                 double tau, bool decay_input, double v_threshold,
                                                 std::optional<double> v_reset, int64_t surrogate, double alpha,
                                                 bool detach_reset, bool need_leak) {
  PoolReduceCall call(grad_out, z, statistics, weight, bias, leak,
                      {eps, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}},
                      need_leak);
  if (call.empty()) return call.result();
  const int64_t blocks = kernels().blocks(call.params);
  call.set_partials(cpu_pool_workspace(call.params), blocks);
  parallel_blocks(call.params, [&](int64_t first, int64_t last) { kernels().reduce(call.params, first, last); });
  kernels().add(call.params);
  if (call.wants_leak()) {
    double sum = 0;
    for (int64_t i = 0; i < blocks; ++i) sum += call.params.grad_leak_partials[i];
    if (call.params.dtype == DType::Float64) *static_cast<double*>(call.grad_leak.mutable_data_ptr()) = sum;
    else *static_cast<float*>(call.grad_leak.mutable_data_ptr()) = float(sum);
  }
  return call.result();
}

Tensor bn_neuron_pool_apply(Tensor grad_out, Tensor z, std::optional<Tensor> statistics, std::optional<Tensor> weight,
                            std::optional<Tensor> bias, std::optional<Tensor> leak, std::optional<Tensor> sums,
                            double count, double eps, int64_t T, int64_t kind, double tau, bool decay_input,
                            double v_threshold, std::optional<double> v_reset, int64_t surrogate, double alpha,
                            bool detach_reset) {
  const PoolApplyCall call(grad_out, z, statistics, weight, bias, leak, sums, count,
                           {eps, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}});
  if (!call.empty())
    parallel_blocks(call.params, [&](int64_t first, int64_t last) { kernels().apply(call.params, first, last); });
  return call.grad_z;
}

}  // namespace
}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CPU, m) {
  m.impl("bn_neuron_pool_forward", SEWSNN_BOX(sewsnn::bn_neuron_pool_forward));
  m.impl("bn_neuron_pool_reduce", SEWSNN_BOX(sewsnn::bn_neuron_pool_reduce));
  m.impl("bn_neuron_pool_apply", SEWSNN_BOX(sewsnn::bn_neuron_pool_apply));
}
