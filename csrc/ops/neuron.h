// Converts tensors to the params structs of the neuron kernels and back, for CPU and CUDA.
#pragma once

#include <optional>
#include <tuple>

#include "ops/operands.h"

namespace sewsnn {

struct ForwardCall {
  Layout layout;
  ForwardParams params;
  Operand x, v0, leak;
  Tensor s, v, checkpoints;

  ForwardCall(const Tensor& x, const std::optional<Tensor>& v, const std::optional<Tensor>& leak,
              const NeuronOptions& options, int64_t v_mode, bool needs_grad);
  bool empty() const { return layout.M == 0; }
  std::tuple<Tensor, Tensor, Tensor> result() const { return {s, v, checkpoints}; }
};

struct BackwardCall {
  Layout layout;
  BackwardParams params;
  Operand grad_s, grad_v, x, v0, leak;
  Tensor checkpoints, grad_x, grad_v0, grad_leak, partials;

  BackwardCall(const std::optional<Tensor>& grad_s, const std::optional<Tensor>& grad_v, const Tensor& x,
               const std::optional<Tensor>& v, const std::optional<Tensor>& leak, const Tensor& checkpoints,
               const NeuronOptions& options, int64_t v_mode, bool need_v, bool need_leak);
  bool empty() const { return layout.M == 0; }
  bool wants_leak() const { return grad_leak.numel() != 0; }
  void set_partials(int64_t count);  // allocates the partial sums of the leak's gradient
  std::tuple<Tensor, Tensor, Tensor> result() const { return {grad_x, grad_v0, grad_leak}; }
};

}  // namespace sewsnn
