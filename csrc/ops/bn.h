// Batch norm + neuron + connection for CPU and CUDA: from tensors to params and back. bn_neuron_train is bn_statistics,
// bn_neuron_forward and bn_update in one call; bn_neuron_backward is bn_neuron_reduce and bn_neuron_apply. The separate
// ops serve statistics that come from elsewhere: other processes, evaluation, or the graph of a compiler.
#pragma once

#include "ops/device.h"
#include "ops/operands.h"

namespace sewsnn {

// z and its gradient are [T, N, C, ...], or [N, C, ...] if z is still. out, the shortcut and their gradients are
// [T, N, C, ...]. Statistics are [2, C], weight and bias are [C], in the state's dtype.
struct BnTensors {
  Tensor z;
  MaybeTensor shortcut, statistics, weight, bias, leak;

  static BnTensors read(Arguments& from) {
    return {from.tensor(),       from.maybe_tensor(), from.maybe_tensor(),
            from.maybe_tensor(), from.maybe_tensor(), from.maybe_tensor()};
  }
};

struct BnOptions {
  double eps;
  int64_t connect;
  int64_t T;  // 0: z has a time axis; else z is shown T times
  NeuronNumbers neuron;

  // From Arguments or a NumberList.
  template <class From>
  static BnOptions read(From& from) {
    return {from.number(), from.whole(), from.whole(), from.neuron()};
  }
};

// The running statistics and how they change: running += momentum (new - running), with the unbiased variance. Nothing
// changes if a statistic is not finite. `tracked` counts the calls. All are undefined: there are none.
struct BnRunning {
  MaybeTensor mean, var, tracked;
  double momentum;
};

struct BnStatisticsCall {
  Layout layout;
  BnStatisticsParams params;
  Operand z;
  Tensor statistics;
  MaybeTensor partials;  // workspace on a GPU
  bool check;            // an error if a statistic is not finite; not on a GPU, for which the host would have to wait

  BnStatisticsCall(const Tensor& z, int64_t T, bool check);
  int64_t count() const { return params.T * (params.M / params.channels.count); }  // elements of a channel
  // Checks the number of values and the running statistics, and makes run() update them.
  void set_running(const BnRunning&);
};

// Common part of the other calls. P is the type of their params. The tensors must outlive the call.
template <class P>
struct BnCall {
  Layout layout;
  P params;
  Operand z, shortcut;

  BnCall(const BnTensors&, const BnOptions&);
  BnCall(const Layout& other_layout, const BnBackwardParams& other) : layout(other_layout) {
    static_cast<BnBackwardParams&>(params) = other;
  }
  const KindInfo& kind() const { return kind_of(params.neuron); }
  bool empty() const { return layout.M == 0; }
};

struct BnForwardCall : BnCall<BnForwardParams> {
  Tensor out;
  MaybeTensor v, checkpoints, bits, sum;  // missing if not requested

  BnForwardCall(const BnTensors&, const BnOptions&, int64_t v_mode, bool needs_grad, bool pack);
};

struct BnReduceCall : BnCall<BnReduceParams> {
  Operand grad_out, grad_skip;
  Tensor sums;
  MaybeTensor grad_sum, grad_leak;  // missing if not requested; with Connect::Sum, grad_sum is always there
  MaybeTensor grad_y;               // dL/dy, if keep_grad_y() was called
  MaybeTensor channel_sums;         // the gradients of grad_leak for each channel, if it is their sum
  MaybeTensor partials, learnt_partials, learnt_workspace;  // on a GPU; learnt_partials also on the CPU

  // Without grad_out, only what does not depend on it is set.
  BnReduceCall(const MaybeTensor& grad_out, const MaybeTensor& grad_skip, const BnTensors&,
               const MaybeTensor& checkpoints, const BnOptions&, bool need_leak);
  // Whether the gradient of learnt parameters is requested that are the same for all neurons.
  bool wants_shared() const { return grad_leak && !kind().per_channel; }
  void set_learnt_partials(int64_t count);
  // Lets reduce store dL/dy, so that apply need not compute it again, if apply can read it without a loss: z has the
  // state's type and a time axis, and the gradient of the shortcut needs no spikes. For the CPU, where the neuron takes
  // longer than the memory: one pass more over memory, one neuron less.
  void keep_grad_y(const Tensor& z);
};

struct BnApplyCall : BnCall<BnApplyParams> {
  Operand grad_out;
  Tensor grad_z;
  MaybeTensor grad_shortcut;

  BnApplyCall(const Tensor& grad_out, const BnTensors&, const MaybeTensor& checkpoints, const MaybeTensor& sums,
              double count, const BnOptions&, bool need_shortcut);
  // The second pass after `first`. `training`: the statistics are those of z alone.
  BnApplyCall(const BnReduceCall& first, const Tensor& z, bool training, bool need_shortcut);

 private:
  void set_results(bool need_shortcut);
};

struct BnUpdateCall {
  const Tensor& statistics;
  double momentum, count;
  const Tensor &mean, &var;  // running
};
// Checks the running statistics ([C] in the state's dtype) and the numbers that update them.
void check_running(const BnUpdateCall&);

}  // namespace sewsnn
