// sewsnn::bn_neuron_pooled and bn_neuron_pooled_backward: batch norm + neuron + connection whose output is pooled, for
// CPU and CUDA. Where there are no kernels for this, those of bn.h and max_pool.h run one after the other.
#pragma once

#include "core/bn_pooled_params.h"
#include "ops/bn.h"
#include "ops/max_pool.h"

namespace sewsnn {

// The images of z [T, N, C, H, W], their pooled output, and whether neurons and windows can have one order: z is
// contiguous or channels_last.
struct PooledImages {
  Images pooled;
  MaxPoolParams params;  // of one time-step
  bool in_order;

  PooledImages(const Layout&, const Channels&, DType, const PoolWindow&);
};

struct BnPooledForwardCall : BnCall<BnPooledForwardParams> {
  PooledImages images;
  Tensor out;
  MaybeTensor positions;

  BnPooledForwardCall(const BnTensors&, const BnOptions&, const PoolWindow&, bool need_positions);
};

struct BnPooledBackwardCall {
  BnReduceCall first;
  PooledImages images;
  Operand grad_out, positions;
  std::optional<BnApplyCall> second;

  BnPooledBackwardCall(const Tensor& grad_out, const Tensor& positions, const BnTensors&,
                       const MaybeTensor& checkpoints, const BnOptions&, const PoolWindow&, bool need_leak);
  // The params of both passes with what the pooled output needs.
  template <class P>
  void fill(P& p) const {
    p.pool = images.params;
    p.grad_out = {grad_out.rows.data, images.pooled.strides[0], 1};
    p.positions = static_cast<const uint8_t*>(positions.rows.data);
  }
  // The second pass. `dense`: it also returns the gradient of the output, as grad_shortcut.
  BnApplyCall& apply(const Tensor& z, bool training, bool dense);
};

// Runs the call in kernels of its own and returns true, or returns false: there are none for it.
template <class Device>
bool run_pooled(const Device&, BnPooledForwardCall&);
template <class Device>
bool run_pooled(const Device&, BnPooledBackwardCall&, const Tensor& z, bool training, bool dense);
template <>
inline bool run_pooled(const Cpu&, BnPooledForwardCall&) {
  return false;
}
template <>
inline bool run_pooled(const Cpu&, BnPooledBackwardCall&, const Tensor&, bool, bool) {
  return false;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> bn_neuron_pooled(Arguments& read) {
  const BnTensors tensors = BnTensors::read(read);
  const BnOptions options = BnOptions::read(read);
  const int64_t v_mode = read.whole();
  const bool needs_grad = read.flag();
  const PoolWindow window = read_window(read);
  read.flag();  // whether the statistics are those of the batch: it changes only the gradient
  const Device device(tensors.z, "bn_neuron_pooled");
  const ScalarType state = state_type(tensors.z);
  if (v_mode == int64_t(VMode::None)) {
    BnPooledForwardCall call(tensors, options, window, needs_grad);
    if (!call.empty() && run_pooled(device, call))
      return {call.out, empty(0, state, call.out), empty(0, state, call.out),
              or_empty(call.positions, ScalarType::Byte, call.out)};
  }
  BnForwardCall call(tensors, options, v_mode, needs_grad, false);
  STD_TORCH_CHECK(!call.sum, "bn_neuron_pooled cannot return the sum");
  if (!call.empty()) run(device, call);
  MaxPoolForwardCall pooled(call.out, {}, window, needs_grad);
  if (!pooled.empty()) run(device, pooled);
  return {pooled.out, or_empty(call.v, state, call.out), or_empty(call.checkpoints, state, call.out),
          or_empty(pooled.positions, ScalarType::Byte, call.out)};
}

// numbers: the options, the window, and the flags training, need_shortcut (its gradient differs from that of the
// output), need_dense (return the gradient of the output in its place), need_leak.
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bn_neuron_pooled_backward(Arguments& read) {
  const Tensor grad_out = read.tensor(), positions = read.tensor();
  const BnTensors tensors = BnTensors::read(read);
  const MaybeTensor checkpoints = read.maybe_tensor();
  const std::vector<double> numbers = read.numbers();
  const Device device(tensors.z, "bn_neuron_pooled_backward");
  NumberList list(numbers);
  const BnOptions options = BnOptions::read(list);
  const PoolWindow window = read_window(list);
  const bool training = list.flag(), need_shortcut = list.flag(), need_dense = list.flag(), need_leak = list.flag();
  list.end();
  // A result that is not requested is empty, not missing: torch's is_grads_batched takes no optional results.
  const auto results = [&](const BnReduceCall& first, const Tensor& grad_z, const MaybeTensor& grad_shortcut) {
    return std::tuple{grad_z, or_empty(grad_shortcut, tensors.z.scalar_type(), grad_z), slice_of(first.sums, 1),
                      slice_of(first.sums, 0), or_empty(first.grad_leak, first.sums.scalar_type(), grad_z)};
  };
  if (!need_shortcut) {
    BnPooledBackwardCall call(grad_out, positions, tensors, checkpoints, options, window, need_leak);
    if (!call.first.empty() && run_pooled(device, call, tensors.z, training, need_dense))
      return results(call.first, call.second->grad_z, call.second->grad_shortcut);
  }
  STD_TORCH_CHECK(tensors.z.dim() == 5 && options.T == 0, "z must be [T, N, C, H, W]");
  MaxPoolBackwardCall dense(grad_out, positions, {}, {}, tensors.z.size(3), tensors.z.size(4), window);
  if (!dense.empty()) run(device, dense);
  BnReduceCall first(dense.grad_x, {}, tensors, checkpoints, options, need_leak);
  if constexpr (std::is_same_v<Device, Cpu>) first.keep_grad_y(tensors.z);
  if (!first.empty()) run(device, first);
  BnApplyCall second(first, tensors.z, training, need_shortcut);
  if (!second.empty()) run(device, second);
  return results(first, second.grad_z, need_dense ? MaybeTensor(dense.grad_x) : second.grad_shortcut);
}

template <class Device>
void add_bn_pooled_ops(Library& library) {
  library.impl("bn_neuron_pooled", &boxed<&bn_neuron_pooled<Device>>);
  library.impl("bn_neuron_pooled_backward", &boxed<&bn_neuron_pooled_backward<Device>>);
}

}  // namespace sewsnn
