// The neuron ops on the GPU, on torch's current stream.
#include "kernels/cuda_bn_kernels.h"
#include "kernels/cuda_kernels.h"
#include "ops/counters.h"
#include "ops/cuda.h"
#include "ops/neuron.h"

namespace sewsnn {

template <>
void run(const Cuda& gpu, ForwardCall& call) {
  gpu.check(cuda_forward(call.params, gpu.stream));
}

template <>
void run(const Cuda& gpu, BackwardCall& call) {
  BackwardParams& p = call.params;
  if (!p.grad_s.data) {  // the kernels need one
    call.grad_s.holder = torch::stable::new_zeros(*call.x.holder, {kBroadcast});
    call.grad_s.rows = {call.grad_s.holder->const_data_ptr(), 0, 0};
  } else {
    widen(call.grad_s, p.T);
  }
  p.grad_s = call.grad_s.rows;
  for (int state = 0; state < call.kind().states; ++state) {
    widen(call.grad_v[state], p.v_seq ? p.T : 1);
    p.grad_v[state] = call.grad_v[state].rows;
  }
  const int64_t blocks = call.wants_shared() ? cuda_backward_blocks(p) : 0;
  call.set_workspace(blocks);
  gpu.check(cuda_backward(p, gpu.stream));
  const int64_t rows = call.kind().learnt;
  if (call.wants_channels()) {
    const Channels& channels = p.neuron.learnt.channels;
    const BnWorkspace need = cuda_bn_workspace(1, p.M, channels, state_of(p.dtype));
    const Tensor partials = empty((need.bytes + 7) / 8, ScalarType::Double, call.grad_x);
    const Counters counters(call.grad_x, need.counters, gpu.stream);
    gpu.check(cuda_channel_sums(p.learnt_elements, rows, p.M, channels, state_of(p.dtype), data(partials),
                                counters.data, data(call.grad_leak), gpu.stream));
  }
  if (!call.wants_shared()) return;
  const int64_t bytes = p.dtype == DType::Float64 ? 8 : 4;
  for (int64_t row = 0; row < rows; ++row)
    gpu.check(cuda_sum_partials(p.learnt_partials + row * blocks, blocks, p.dtype,
                                static_cast<char*>(data(call.grad_leak)) + row * bytes, gpu.stream));
}

}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CUDA, m) { sewsnn::add_neuron_ops<sewsnn::Cuda>(m); }
