// The neuron ops on the CPU: distributes blocks of neurons over torch's thread pool.
#include "kernels/cpu_kernels.h"
#include "ops/call.h"
#include "ops/neuron.h"

namespace sewsnn {
namespace {

// Calls f(first, last) for ranges of blocks of neurons, in parallel if there is enough work to be worth waking a
// thread.
template <class F>
void parallel_blocks(const Layout& layout, const F& f) {
  const int64_t block = cpu_kernels().block;
  parallel_for(0, (layout.M - 1) / block + 1, grain(block, layout.T), f);
}

std::tuple<Tensor, Tensor, Tensor> neuron_forward(Tensor x, std::optional<Tensor> v, std::optional<Tensor> leak,
                                                  int64_t kind, double tau, bool decay_input, double v_threshold,
                                                  std::optional<double> v_reset, int64_t surrogate, double alpha,
                                                  bool detach_reset, int64_t v_mode, bool needs_grad) {
  const ForwardCall call(x, v, leak, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset},
                         v_mode, needs_grad);
  if (call.empty()) return call.result();
  parallel_blocks(call.layout, [&](int64_t first, int64_t last) { cpu_kernels().forward(call.params, first, last); });
  return call.result();
}

std::tuple<Tensor, Tensor, Tensor> neuron_backward(std::optional<Tensor> grad_s, std::optional<Tensor> grad_v, Tensor x,
                                                   std::optional<Tensor> v, std::optional<Tensor> leak,
                                                   Tensor checkpoints, int64_t kind, double tau, bool decay_input,
                                                   double v_threshold, std::optional<double> v_reset, int64_t surrogate,
                                                   double alpha, bool detach_reset, int64_t v_mode, bool need_v,
                                                   bool need_leak) {
  BackwardCall call(grad_s, grad_v, x, v, leak, checkpoints,
                    {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}, v_mode, need_v,
                    need_leak);
  if (call.empty()) return call.result();
  const int64_t blocks = (call.layout.M - 1) / cpu_kernels().block + 1;
  if (call.wants_leak()) call.set_partials(blocks);
  parallel_blocks(call.layout, [&](int64_t first, int64_t last) { cpu_kernels().backward(call.params, first, last); });
  if (call.wants_leak()) {
    const double* const partials = static_cast<const double*>(call.partials.const_data_ptr());
    double sum = 0;
    for (int64_t i = 0; i < blocks; ++i) sum += partials[i];
    if (call.params.dtype == DType::Float64) *static_cast<double*>(call.grad_leak.mutable_data_ptr()) = sum;
    else *static_cast<float*>(call.grad_leak.mutable_data_ptr()) = float(sum);
  }
  return call.result();
}

}  // namespace
}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CPU, m) {
  m.impl("neuron_forward", SEWSNN_BOX(sewsnn::neuron_forward));
  m.impl("neuron_backward", SEWSNN_BOX(sewsnn::neuron_backward));
}
