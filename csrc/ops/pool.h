// Converts tensors to the params structs of the stem (batch norm + neuron + max pooling) and back.
#pragma once

#include <optional>
#include <tuple>

#include "core/bn_params.h"
#include "ops/operands.h"

namespace sewsnn {

struct PoolOptions {
  double eps;
  int64_t T;
  NeuronOptions neuron;
};

// z is [N, C, H, W]; out is [T, N, C, H / 2, W / 2] (rounded up) in the same memory order. P is the type of the params.
template <class P>
struct PoolCall {
  P params;
  Operand z, leak;
  std::optional<Tensor> statistics, weight, bias;
  std::vector<int64_t> out_sizes, out_strides;

  PoolCall(const Tensor& z, const std::optional<Tensor>& statistics, const std::optional<Tensor>& weight,
           const std::optional<Tensor>& bias, const std::optional<Tensor>& leak, const PoolOptions& options);
  bool empty() const { return params.images * params.channels * params.height * params.width == 0; }
};

struct PoolForwardCall : PoolCall<PoolForwardParams> {
  Tensor out;

  PoolForwardCall(const Tensor& z, const std::optional<Tensor>& statistics, const std::optional<Tensor>& weight,
                  const std::optional<Tensor>& bias, const std::optional<Tensor>& leak, const PoolOptions& options);
};

struct PoolReduceCall : PoolCall<PoolReduceParams> {
  Operand grad_out;
  Tensor sums, grad_leak, partials, leak_partials;

  PoolReduceCall(const Tensor& grad_out, const Tensor& z, const std::optional<Tensor>& statistics,
                 const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                 const std::optional<Tensor>& leak, const PoolOptions& options, bool need_leak);
  bool wants_leak() const { return grad_leak.numel() != 0; }
  void set_partials(int64_t bytes, int64_t leak_count);
  std::tuple<Tensor, Tensor> result() const { return {sums, grad_leak}; }
};

struct PoolApplyCall : PoolCall<PoolApplyParams> {
  Operand grad_out;
  Tensor grad_z;
  std::optional<Tensor> sums;

  PoolApplyCall(const Tensor& grad_out, const Tensor& z, const std::optional<Tensor>& statistics,
                const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                const std::optional<Tensor>& leak, const std::optional<Tensor>& sums, double count,
                const PoolOptions& options);
};

}  // namespace sewsnn
