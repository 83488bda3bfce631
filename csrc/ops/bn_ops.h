// The ops of batch norm + neuron + connection. Each reads its arguments in the order of its schema (bn.cpp).
#pragma once

#include "ops/bn.h"

namespace sewsnn {

template <class Device>
std::tuple<Tensor> bn_statistics(Arguments& read) {
  const Tensor z = read.tensor();
  const int64_t T = read.whole();
  const bool check = read.flag();
  const Device device(z, "bn_statistics");
  BnStatisticsCall call(z, T, check);
  run(device, call);
  return {call.statistics};
}

// The statistics of a batch, and the update of the running ones. numbers: T and the momentum.
template <class Device>
std::tuple<Tensor> bn_take_statistics(Arguments& read) {
  const Tensor z = read.tensor();
  BnRunning running = {read.maybe_tensor(), read.maybe_tensor(), read.maybe_tensor(), 0};
  const std::vector<double> numbers = read.numbers();
  const Device device(z, "bn_take_statistics");
  NumberList list(numbers);
  const int64_t T = list.whole();
  running.momentum = list.number();
  list.end();
  BnStatisticsCall call(z, T, true);
  call.set_running(running);
  run(device, call);
  return {call.statistics};
}

template <class Device>
std::tuple<> bn_update(Arguments& read) {
  const Tensor statistics = read.tensor();
  const double momentum = read.number(), count = read.number();
  const Tensor mean = read.tensor(), var = read.tensor();
  const Device device(statistics, "bn_update");
  BnUpdateCall call = {statistics, momentum, count, mean, var};
  check_running(call);
  run(device, call);
  return {};
}

// The last flag, whether the statistics are those of the batch, changes only the gradient.
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> bn_neuron_forward(Arguments& read) {
  const BnTensors tensors = BnTensors::read(read);
  const BnOptions options = BnOptions::read(read);
  const int64_t v_mode = read.whole();
  const bool needs_grad = read.flag(), pack = read.flag();
  read.flag();
  const Device device(tensors.z, "bn_neuron_forward");
  BnForwardCall call(tensors, options, v_mode, needs_grad, pack);
  STD_TORCH_CHECK(!call.sum, "unknown connection ", options.connect,
                  ": bn_neuron_forward cannot return the sum, call bn_neuron_sum");
  if (!call.empty()) run(device, call);
  const ScalarType state = state_type(call.out);
  return {call.out, or_empty(call.v, state, call.out), or_empty(call.checkpoints, state, call.out),
          or_empty(call.bits, ScalarType::Byte, call.out)};
}

// bn_neuron_forward with Connect::Sum.
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> bn_neuron_sum(Arguments& read) {
  const BnTensors tensors = BnTensors::read(read);
  const BnOptions options = BnOptions::read(read);
  const int64_t v_mode = read.whole();
  const bool needs_grad = read.flag();
  read.flag();
  const Device device(tensors.z, "bn_neuron_sum");
  BnForwardCall call(tensors, options, v_mode, needs_grad, false);
  STD_TORCH_CHECK(call.sum, "bn_neuron_sum needs the connection ", int(Connect::Sum), ", got ", options.connect);
  if (!call.empty()) run(device, call);
  const ScalarType state = state_type(call.out);
  return {call.out, *call.sum, or_empty(call.v, state, call.out), or_empty(call.checkpoints, state, call.out)};
}

template <class Device>
std::tuple<Tensor, MaybeTensor, MaybeTensor, MaybeTensor, Tensor, MaybeTensor> bn_neuron_train(Arguments& read) {
  BnTensors tensors = {read.tensor(),       read.maybe_tensor(), {},
                       read.maybe_tensor(), read.maybe_tensor(), read.maybe_tensor()};
  BnRunning running = {read.maybe_tensor(), read.maybe_tensor(), read.maybe_tensor(), 0};
  const std::vector<double> numbers = read.numbers();
  const Device device(tensors.z, "bn_neuron_train");
  NumberList list(numbers);
  const BnOptions options = BnOptions::read(list);
  running.momentum = list.number();
  const int64_t v_mode = list.whole();
  const bool needs_grad = list.flag(), pack = list.flag();
  list.end();
  BnStatisticsCall statistics(tensors.z, options.T, true);
  statistics.set_running(running);
  tensors.statistics = statistics.statistics;
  // All checks come before the first kernel, so that an error leaves the running statistics as they were.
  BnForwardCall call(tensors, options, v_mode, needs_grad, pack);
  run(device, statistics);
  if (!call.empty()) run(device, call);
  return {call.out, call.v, call.checkpoints, call.bits, statistics.statistics, call.sum};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> bn_neuron_reduce(Arguments& read) {
  const Tensor grad_out = read.tensor();
  const MaybeTensor grad_skip = read.maybe_tensor();
  const BnTensors tensors = BnTensors::read(read);
  const MaybeTensor checkpoints = read.maybe_tensor();
  const BnOptions options = BnOptions::read(read);
  const bool need_leak = read.flag();
  const Device device(tensors.z, "bn_neuron_reduce");
  BnReduceCall call(grad_out, grad_skip, tensors, checkpoints, options, need_leak);
  if (!call.empty()) run(device, call);
  return {call.sums, or_empty(call.grad_sum, tensors.z.scalar_type(), call.sums),
          or_empty(call.grad_leak, call.sums.scalar_type(), call.sums)};
}

template <class Device>
std::tuple<Tensor, Tensor> bn_neuron_apply(Arguments& read) {
  const Tensor grad_out = read.tensor();
  const BnTensors tensors = BnTensors::read(read);
  const MaybeTensor checkpoints = read.maybe_tensor(), sums = read.maybe_tensor();
  const double count = read.number();
  const BnOptions options = BnOptions::read(read);
  const bool need_shortcut = read.flag();
  const Device device(tensors.z, "bn_neuron_apply");
  BnApplyCall call(grad_out, tensors, checkpoints, sums, count, options, need_shortcut);
  if (!call.empty()) run(device, call);
  return {call.grad_z, or_empty(call.grad_shortcut, call.grad_z.scalar_type(), call.grad_z)};
}

// The gradients of weight and bias are rows of one tensor.
template <class Device>
std::tuple<Tensor, MaybeTensor, MaybeTensor, Tensor, Tensor, MaybeTensor> bn_neuron_backward(Arguments& read) {
  const Tensor grad_out = read.tensor();
  const MaybeTensor grad_skip = read.maybe_tensor();
  const BnTensors tensors = BnTensors::read(read);
  const MaybeTensor checkpoints = read.maybe_tensor();
  const std::vector<double> numbers = read.numbers();
  const Device device(tensors.z, "bn_neuron_backward");
  NumberList list(numbers);
  const BnOptions options = BnOptions::read(list);
  const bool training = list.flag(), need_shortcut = list.flag(), need_leak = list.flag();
  list.end();
  BnReduceCall first(grad_out, grad_skip, tensors, checkpoints, options, need_leak);
  if constexpr (std::is_same_v<Device, Cpu>) first.keep_grad_y(tensors.z);
  if (!first.empty()) run(device, first);
  BnApplyCall second(first, tensors.z, training, need_shortcut);
  if (!second.empty()) run(device, second);
  return {second.grad_z,           second.grad_shortcut,    first.grad_sum,
          slice_of(first.sums, 1), slice_of(first.sums, 0), first.grad_leak};
}

template <class Device>
void add_bn_ops(Library& library) {
  library.impl("bn_statistics", &boxed<&bn_statistics<Device>>);
  library.impl("bn_take_statistics", &boxed<&bn_take_statistics<Device>>);
  library.impl("bn_update", &boxed<&bn_update<Device>>);
  library.impl("bn_neuron_forward", &boxed<&bn_neuron_forward<Device>>);
  library.impl("bn_neuron_sum", &boxed<&bn_neuron_sum<Device>>);
  library.impl("bn_neuron_train", &boxed<&bn_neuron_train<Device>>);
  library.impl("bn_neuron_reduce", &boxed<&bn_neuron_reduce<Device>>);
  library.impl("bn_neuron_apply", &boxed<&bn_neuron_apply<Device>>);
  library.impl("bn_neuron_backward", &boxed<&bn_neuron_backward<Device>>);
}

}  // namespace sewsnn
