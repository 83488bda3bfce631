// The neuron ops on the GPU, on torch's current stream.
#include "kernels/cuda_kernels.h"
#include "ops/call.h"
#include "ops/cuda.h"
#include "ops/neuron.h"

namespace sewsnn {
namespace {

// Copies gradients that are missing, or that are one number for all neurons, to the form that the kernels read.
void widen_gradients(BackwardCall& call) {
  BackwardParams& p = call.params;
  if (!p.grad_s.data) {
    call.grad_s.holder = torch::stable::new_zeros(call.x.holder, {kBroadcast});
    p.grad_s = {call.grad_s.holder.const_data_ptr(), 0, 0};
  } else if (p.grad_s.step == 0) {
    call.grad_s = broadcast(call.grad_s, p.T);
    p.grad_s = call.grad_s.rows;
  }
  if (p.grad_v.data && p.grad_v.step == 0) {
    call.grad_v = broadcast(call.grad_v, p.v_seq ? p.T : 1);
    p.grad_v = call.grad_v.rows;
  }
}

std::tuple<Tensor, Tensor, Tensor> neuron_forward(Tensor x, std::optional<Tensor> v, std::optional<Tensor> leak,
                                                  int64_t kind, double tau, bool decay_input, double v_threshold,
                                                  std::optional<double> v_reset, int64_t surrogate, double alpha,
                                                  bool detach_reset, int64_t v_mode, bool needs_grad) {
  const auto guard = guard_of(x);
  const ForwardCall call(x, v, leak, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset},
                         v_mode, needs_grad);
  if (!call.empty()) check_launch(cuda_forward(call.params, current_stream(x)), "neuron_forward");
  return call.result();
}

std::tuple<Tensor, Tensor, Tensor> neuron_backward(std::optional<Tensor> grad_s, std::optional<Tensor> grad_v, Tensor x,
                                                   std::optional<Tensor> v, std::optional<Tensor> leak,
                                                   Tensor checkpoints, int64_t kind, double tau, bool decay_input,
                                                   double v_threshold, std::optional<double> v_reset, int64_t surrogate,
                                                   double alpha, bool detach_reset, int64_t v_mode, bool need_v,
                                                   bool need_leak) {
  const auto guard = guard_of(x);
  BackwardCall call(grad_s, grad_v, x, v, leak, checkpoints,
                    {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}, v_mode, need_v,
                    need_leak);
  if (call.empty()) return call.result();
  widen_gradients(call);
  const cudaStream_t stream = current_stream(x);
  const int64_t blocks = call.wants_leak() ? cuda_backward_blocks(call.params) : 0;
  if (blocks) call.set_partials(blocks);
  check_launch(cuda_backward(call.params, stream), "neuron_backward");
  if (blocks)
    check_launch(cuda_sum_partials(call.params.grad_leak_partials, blocks, call.params.dtype,
                                   call.grad_leak.mutable_data_ptr(), stream),
                 "neuron_backward");
  return call.result();
}

}  // namespace
}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CUDA, m) {
  m.impl("neuron_forward", SEWSNN_BOX(sewsnn::neuron_forward));
  m.impl("neuron_backward", SEWSNN_BOX(sewsnn::neuron_backward));
}
