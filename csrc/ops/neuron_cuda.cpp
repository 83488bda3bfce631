// The neuron ops on the GPU, on torch's current stream.
#include "kernels/cuda_kernels.h"
#include "ops/neuron.h"

// Weak: a CPU-only torch does not have it, and the library must load there all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace sewsnn {
namespace {

cudaStream_t current_stream(const Tensor& t) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "sewsnn: ", what, " could not be launched: ", cudaGetErrorString(error));
}

// [rows, kBroadcast], each row of one number. `numbers`: where they lie, row_stride apart; the dense copy is as wide as
// the kernels' loads (core/params.h).
Operand broadcast(const Operand& numbers, int64_t rows) {
  if (numbers.rows.row_stride == 0) rows = 1;
  const int64_t sizes[] = {rows, kBroadcast}, strides[] = {numbers.rows.row_stride, 0};
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(numbers.holder.get(), 2, sizes, strides, 0, &handle));
  const Tensor view(handle);
  Tensor dense = empty_strided({rows, kBroadcast}, {kBroadcast, 1}, view.scalar_type(), view);
  torch::stable::copy_(dense, view);
  return {dense, {dense.const_data_ptr(), rows > 1 ? kBroadcast : 0, 0}};
}

// Gradients that are missing, or one number for all neurons, as the kernels read them.
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
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
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
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
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
  m.impl("neuron_forward", TORCH_BOX(&sewsnn::neuron_forward));
  m.impl("neuron_backward", TORCH_BOX(&sewsnn::neuron_backward));
}
