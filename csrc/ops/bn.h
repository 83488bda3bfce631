// Converts tensors to the params structs of batch norm + neuron + connection and back, for CPU and CUDA.
#pragma once

#include <optional>
#include <tuple>

#include "core/bn_params.h"
#include "ops/operands.h"

namespace sewsnn {

struct BnOptions {
  double eps;
  int64_t connect;
  int64_t T;  // 0: z has a time axis; else z is shown T times
  NeuronOptions neuron;
};

// Reads the list of numbers that bn_neuron_train and bn_neuron_backward take. Numbers that are arguments of their own
// cost the host ten times as much (docs/kernels.md). sewsnn/ops/options.py writes the list.
class NumberReader {
 public:
  explicit NumberReader(const std::vector<double>& numbers) : numbers_(numbers) {}
  double number();
  int64_t whole();
  bool flag();
  BnOptions options();  // eps, connect, T and those of the neuron, in the order of the other ops' arguments
  void end() const;     // an error if there are more numbers

 private:
  const std::vector<double>& numbers_;
  size_t at_ = 0;
};

struct BnTrainNumbers {
  BnOptions options;
  double momentum;
  int64_t v_mode;
  bool needs_grad, pack;
  explicit BnTrainNumbers(const std::vector<double>& numbers);
};

struct BnBackwardNumbers {
  BnOptions options;
  bool training, need_shortcut, need_leak;
  explicit BnBackwardNumbers(const std::vector<double>& numbers);
};

// z and its gradient are [T, N, C, ...], or [N, C, ...] if z is still. out, the shortcut and their gradients are
// [T, N, C, ...]. Statistics are [2, C], weight and bias are [C], in the state's dtype.
struct BnStatisticsCall {
  Layout layout;
  BnStatisticsParams params;
  Operand z;
  Tensor statistics, partials;  // partials: workspace on a GPU

  BnStatisticsCall(const Tensor& z, int64_t T);
  int64_t count() const { return params.T * (params.M / params.channels.count); }  // elements of a channel
};

// The running statistics and how they change: running += momentum (new - running), with the unbiased variance. Nothing
// changes if a statistic is not finite. `tracked` counts the calls. All are undefined: there are none.
struct BnRunning {
  MaybeTensor mean, var, tracked;
  double momentum;
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
  BnCall() = default;
  bool empty() const { return layout.M == 0; }
};

struct BnForwardCall : BnCall<BnForwardParams> {
  Tensor out;
  MaybeTensor v, checkpoints, bits;  // missing if not requested

  BnForwardCall(const Tensor& z, const MaybeTensor& shortcut, const MaybeTensor& statistics, const MaybeTensor& weight,
                const MaybeTensor& bias, const MaybeTensor& leak, const BnOptions& options, int64_t v_mode,
                bool needs_grad, bool pack);
  // Ops return an empty tensor for a result that was not requested.
  std::tuple<Tensor, Tensor, Tensor, Tensor> result() const;
};

struct BnReduceCall : BnCall<BnReduceParams> {
  Operand grad_out, grad_skip;
  Tensor sums, partials, leak_partials;
  MaybeTensor checkpoints, grad_sum, grad_leak;  // missing if not requested

  BnReduceCall(const Tensor& grad_out, const MaybeTensor& grad_skip, const Tensor& z, const MaybeTensor& shortcut,
               const MaybeTensor& statistics, const MaybeTensor& weight, const MaybeTensor& bias,
               const MaybeTensor& leak, const MaybeTensor& checkpoints, const BnOptions& options, bool need_leak);
  bool wants_leak() const { return grad_leak.has_value(); }
  void set_leak_partials(int64_t count);
  std::tuple<Tensor, Tensor, Tensor> result() const;
};

struct BnApplyCall : BnCall<BnApplyParams> {
  Operand grad_out;
  Tensor grad_z;
  MaybeTensor checkpoints, sums, grad_shortcut;

  BnApplyCall(const Tensor& grad_out, const Tensor& z, const MaybeTensor& shortcut, const MaybeTensor& statistics,
              const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& leak,
              const MaybeTensor& checkpoints, const MaybeTensor& sums, double count, const BnOptions& options,
              bool need_shortcut);
  // The second pass after `first`. `training`: the statistics are those of z alone.
  BnApplyCall(const BnReduceCall& first, const Tensor& z, bool training, bool need_shortcut);
  std::tuple<Tensor, Tensor> result() const;

 private:
  void allocate(const Tensor& z, bool need_shortcut);
};

// The results of bn_neuron_train and bn_neuron_backward. The gradients of weight and bias are rows of one tensor.
using BnResults = std::tuple<Tensor, MaybeTensor, MaybeTensor, MaybeTensor, Tensor>;
using BnGradients = std::tuple<Tensor, MaybeTensor, MaybeTensor, Tensor, Tensor, MaybeTensor>;
BnResults results_of(const BnStatisticsCall&, const BnForwardCall&);
BnGradients results_of(const BnReduceCall&, const BnApplyCall&);

// Checks the number of values and the running statistics, and makes bn_statistics update them.
void set_running(BnStatisticsCall&, const BnRunning&);
// Checks the running statistics ([C] in the state's dtype) and the numbers that update them.
void check_running(const Tensor& statistics, double momentum, double count, const Tensor& running_mean,
                   const Tensor& running_var);

}  // namespace sewsnn
