// sewsnn::bn_neuron_pool_forward, _reduce and _apply, the stem (batch norm + neuron + max pooling), for CPU and CUDA:
// from tensors to params and back.
#pragma once

#include "ops/device.h"
#include "ops/operands.h"

namespace sewsnn {

struct PoolTensors {
  Tensor z;
  MaybeTensor statistics, weight, bias, leak;

  static PoolTensors read(Arguments& from) {
    return {from.tensor(), from.maybe_tensor(), from.maybe_tensor(), from.maybe_tensor(), from.maybe_tensor()};
  }
};

struct PoolOptions {
  double eps;
  int64_t T;
  NeuronNumbers neuron;

  static PoolOptions read(Arguments& from) { return {from.number(), from.whole(), read_neuron(from)}; }
};

// z is [N, C, H, W]; out is [T, N, C, H / 2, W / 2] (rounded up) in the same memory order. P is the type of the params.
// The tensors must outlive the call.
template <class P>
struct PoolCall {
  P params;
  Operand z;
  std::vector<int64_t> sizes, strides, out_sizes, out_strides;

  PoolCall(const PoolTensors&, const PoolOptions&);
  bool empty() const { return params.images * params.channels * params.height * params.width == 0; }
};

struct PoolForwardCall : PoolCall<PoolForwardParams> {
  Tensor out;

  PoolForwardCall(const PoolTensors&, const PoolOptions&);
};

struct PoolReduceCall : PoolCall<PoolReduceParams> {
  Operand grad_out;
  Tensor sums;
  MaybeTensor grad_leak;  // missing if not requested
  MaybeTensor partials, learnt_partials;

  PoolReduceCall(const Tensor& grad_out, const PoolTensors&, const PoolOptions&, bool need_leak);
  void set_workspace(int64_t bytes, int64_t learnt_count);
};

struct PoolApplyCall : PoolCall<PoolApplyParams> {
  Operand grad_out;
  Tensor grad_z;

  PoolApplyCall(const Tensor& grad_out, const PoolTensors&, const MaybeTensor& sums, double count, const PoolOptions&);
};

// The last flag, whether the statistics are those of the batch, changes only the gradient.
template <class Device>
std::tuple<Tensor> bn_neuron_pool_forward(Arguments& read) {
  const PoolTensors tensors = PoolTensors::read(read);
  const PoolOptions options = PoolOptions::read(read);
  read.flag();
  const Device device(tensors.z, "bn_neuron_pool_forward");
  PoolForwardCall call(tensors, options);
  if (!call.empty()) run(device, call);
  return {call.out};
}

template <class Device>
std::tuple<Tensor, Tensor> bn_neuron_pool_reduce(Arguments& read) {
  const Tensor grad_out = read.tensor();
  const PoolTensors tensors = PoolTensors::read(read);
  const PoolOptions options = PoolOptions::read(read);
  const bool need_leak = read.flag();
  const Device device(tensors.z, "bn_neuron_pool_reduce");
  PoolReduceCall call(grad_out, tensors, options, need_leak);
  if (!call.empty()) run(device, call);
  return {call.sums, or_empty(call.grad_leak, call.sums.scalar_type(), call.sums)};
}

template <class Device>
std::tuple<Tensor> bn_neuron_pool_apply(Arguments& read) {
  const Tensor grad_out = read.tensor();
  const PoolTensors tensors = PoolTensors::read(read);
  const MaybeTensor sums = read.maybe_tensor();
  const double count = read.number();
  const PoolOptions options = PoolOptions::read(read);
  const Device device(tensors.z, "bn_neuron_pool_apply");
  PoolApplyCall call(grad_out, tensors, sums, count, options);
  if (!call.empty()) run(device, call);
  return {call.grad_z};
}

template <class Device>
void add_stem_ops(Library& library) {
  library.impl("bn_neuron_pool_forward", &boxed<&bn_neuron_pool_forward<Device>>);
  library.impl("bn_neuron_pool_reduce", &boxed<&bn_neuron_pool_reduce<Device>>);
  library.impl("bn_neuron_pool_apply", &boxed<&bn_neuron_pool_apply<Device>>);
}

}  // namespace sewsnn
