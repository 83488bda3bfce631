// Converts tensors to the params structs of batch norm + neuron + connection and back, for CPU and CUDA.
#pragma once

#include <optional>
#include <tuple>

#include "core/bn_params.h"
#include "ops/operands.h"

namespace sewsnn {

using MaybeTensor = std::optional<Tensor>;

struct BnOptions {
  double eps;
  int64_t connect;
  int64_t T;  // 0: z has a time axis; else z is shown T times
  NeuronOptions neuron;
};

// z and its gradient are [T, N, C, ...], or [N, C, ...] if z is still. out, the shortcut and their gradients are
// [T, N, C, ...]. Statistics are [2, C], weight and bias are [C], in the state's dtype.
struct BnStatisticsCall {
  Layout layout;
  BnStatisticsParams params;
  Operand z;
  Tensor statistics, partials;

  BnStatisticsCall(const Tensor& z, int64_t T);
};

// Common part of the other calls. P is the type of their params.
template <class P>
struct BnCall {
  Layout layout;
  P params;
  Operand z, shortcut, leak;
  MaybeTensor statistics, weight, bias;

  BnCall(const Tensor& z, const MaybeTensor& shortcut, const MaybeTensor& statistics, const MaybeTensor& weight,
         const MaybeTensor& bias, const MaybeTensor& leak, const BnOptions& options);
  bool empty() const { return layout.M == 0; }
};

struct BnForwardCall : BnCall<BnForwardParams> {
  Tensor out, v, checkpoints, bits;

  BnForwardCall(const Tensor& z, const MaybeTensor& shortcut, const MaybeTensor& statistics, const MaybeTensor& weight,
                const MaybeTensor& bias, const MaybeTensor& leak, const BnOptions& options, int64_t v_mode,
                bool needs_grad, bool pack);
  std::tuple<Tensor, Tensor, Tensor, Tensor> result() const { return {out, v, checkpoints, bits}; }
};

struct BnReduceCall : BnCall<BnReduceParams> {
  Operand grad_out, grad_skip;
  Tensor checkpoints, sums, grad_sum, grad_leak, partials, leak_partials;

  BnReduceCall(const Tensor& grad_out, const MaybeTensor& grad_skip, const Tensor& z, const MaybeTensor& shortcut,
               const MaybeTensor& statistics, const MaybeTensor& weight, const MaybeTensor& bias,
               const MaybeTensor& leak, const Tensor& checkpoints, const BnOptions& options, bool need_leak);
  bool wants_leak() const { return grad_leak.numel() != 0; }
  void set_leak_partials(int64_t count);
  std::tuple<Tensor, Tensor, Tensor> result() const { return {sums, grad_sum, grad_leak}; }
};

struct BnApplyCall : BnCall<BnApplyParams> {
  Operand grad_out;
  Tensor checkpoints, grad_z, grad_shortcut;
  MaybeTensor sums;

  BnApplyCall(const Tensor& grad_out, const Tensor& z, const MaybeTensor& shortcut, const MaybeTensor& statistics,
              const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& leak, const Tensor& checkpoints,
              const MaybeTensor& sums, double count, const BnOptions& options, bool need_shortcut);
  std::tuple<Tensor, Tensor> result() const { return {grad_z, grad_shortcut}; }
};

// Checks the running statistics ([C] in the state's dtype) and the numbers that update them.
void check_running(const Tensor& statistics, double momentum, double count, const Tensor& running_mean,
                   const Tensor& running_var);

}  // namespace sewsnn
