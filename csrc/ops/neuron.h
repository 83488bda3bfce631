// sewsnn::neuron_forward and sewsnn::neuron_backward for CPU and CUDA: from tensors to params and back.
#pragma once

#include "ops/device.h"
#include "ops/operands.h"

namespace sewsnn {

struct NeuronTensors {
  Tensor x;
  MaybeTensor v, leak;

  static NeuronTensors read(Arguments& from) { return {from.tensor(), from.maybe_tensor(), from.maybe_tensor()}; }
};

// Common part of the calls. P is the type of their params.
template <class P>
struct NeuronCall {
  Layout layout;
  P params;
  Operand x, v0;
  VMode mode;

  NeuronCall(const NeuronTensors&, const NeuronNumbers&, int64_t v_mode);
  const KindInfo& kind() const { return kind_of(params.neuron); }
  bool empty() const { return layout.M == 0; }
};

struct ForwardCall : NeuronCall<ForwardParams> {
  Tensor s, v, checkpoints;

  ForwardCall(const NeuronTensors&, const NeuronNumbers&, int64_t v_mode, bool needs_grad);
};

struct BackwardCall : NeuronCall<BackwardParams> {
  Operand grad_s, grad_v[kMostStates];
  Tensor grad_x, grad_v0;
  MaybeTensor grad_leak, workspace;

  BackwardCall(const MaybeTensor& grad_s, const MaybeTensor& grad_v, const NeuronTensors&, const Tensor& checkpoints,
               const NeuronNumbers&, int64_t v_mode, bool need_v, bool need_leak);
  // Whether the gradient of the learnt parameters is requested, which are the same for all neurons / for a channel.
  bool wants_shared() const { return grad_leak && params.neuron.learnt.channels.count == 1; }
  bool wants_channels() const { return grad_leak && params.neuron.learnt.channels.count > 1; }
  // Allocates what the kernel adds to the gradient of the learnt parameters: a sum for each of the blocks, or for each
  // neuron if the parameters differ from channel to channel.
  void set_workspace(int64_t blocks);
};

template <class Device>
std::tuple<Tensor, Tensor, Tensor> neuron_forward(Arguments& read) {
  const NeuronTensors tensors = NeuronTensors::read(read);
  const NeuronNumbers neuron = read.neuron();
  const int64_t v_mode = read.whole();
  const bool needs_grad = read.flag();
  const Device device(tensors.x, "neuron_forward");
  ForwardCall call(tensors, neuron, v_mode, needs_grad);
  if (!call.empty()) run(device, call);
  return {call.s, call.v, call.checkpoints};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> neuron_backward(Arguments& read) {
  const MaybeTensor grad_s = read.maybe_tensor(), grad_v = read.maybe_tensor();
  const NeuronTensors tensors = NeuronTensors::read(read);
  const Tensor checkpoints = read.tensor();
  const NeuronNumbers neuron = read.neuron();
  const int64_t v_mode = read.whole();
  const bool need_v = read.flag(), need_leak = read.flag();
  const Device device(tensors.x, "neuron_backward");
  BackwardCall call(grad_s, grad_v, tensors, checkpoints, neuron, v_mode, need_v, need_leak);
  if (!call.empty()) run(device, call);
  return {call.grad_x, call.grad_v0, or_empty(call.grad_leak, state_type(call.grad_x), call.grad_x)};
}

template <class Device>
void add_neuron_ops(Library& library) {
  library.impl("neuron_forward", &boxed<&neuron_forward<Device>>);
  library.impl("neuron_backward", &boxed<&neuron_backward<Device>>);
}

}  // namespace sewsnn
