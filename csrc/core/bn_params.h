// The parameters of the kernels of batch norm + neuron + connection, forward and backward, on CPU and CUDA.
//
//   y = (z - mean) scale + bias,  scale = weight / sqrt(var + eps)         batch norm, mean and var over T, N, H, W
//   A = SN(y)                                                              the neuron over T
//   out = g(A, S)                                                          the connection with the shortcut S
#pragma once

#include "core/macros.h"
#include "core/params.h"

namespace sewsnn {

static_assert(kMostLearnt == 2, "the kernels of batch norm sum the gradients of two learnt parameters over a channel");

// g is the connection of the main paper's Table 1. AddBefore is the order of Spiking ResNet: out = SN(y + S). Sum is
// the membrane shortcut: u = y + S, rounded to the storage type, is a second result, and out = SN(u). Without S, u = y.
enum class Connect : int { None = 0, Add = 1, And = 2, Iand = 3, AddBefore = 4, Sum = 5 };

// Whether the shortcut is added before the neuron.
SEWSNN_HD constexpr bool adds_before(Connect connect) {
  return connect == Connect::AddBefore || connect == Connect::Sum;
}

// All arrays are [C], in the state's type.
struct Norm {
  const void* mean = nullptr;    // null: no normalisation, y = z (the convolution's weights include it)
  const void* var = nullptr;     // biased
  const void* weight = nullptr;  // null: 1
  const void* bias = nullptr;    // null: 0
  double eps = 1e-5;
};

struct BnStatisticsParams {
  DType dtype = DType::Float32;
  int64_t T = 1, M = 0;
  Channels channels;
  Rows z;                        // [T, M] storage
  void* partials = nullptr;      // workspace
  unsigned* counters = nullptr;  // CUDA: zeros, which the kernel leaves at 0
  void* statistics = nullptr;    // [2, C] state: mean, biased variance
  void* running_mean = nullptr;  // [C] state, updated unless a statistic is not finite; null: not requested
  void* running_var = nullptr;   // [C] state
  double momentum = 0;
  int64_t* tracked = nullptr;  // the number of calls, which grows by one; null: not requested
};

// Parameters of forward and backward.
struct BnParams {
  NeuronParams neuron;
  bool spiking = true;  // false: no neuron, A = y
  Norm norm;
  Channels channels;
  Connect connect = Connect::None;
  DType dtype = DType::Float32;
  int64_t T = 0, M = 0;
  bool still = false;  // z is one row that is shown T times; its gradient is one row as well
  Rows z;              // [T, M] storage
  Rows shortcut;       // [T, M] storage; data null: no shortcut (Connect::None, and backward of Connect::Add)
};

struct BnForwardParams : BnParams {
  void* out = nullptr;          // [T, M] storage, dense
  void* sum = nullptr;          // [T, M] storage, dense: u; only with Connect::Sum
  void* v = nullptr;            // [states, M] state; null: not requested
  void* checkpoints = nullptr;  // [states, checkpoint_count(T), M] state; null: no backward will follow
  void* bits = nullptr;         // [T, M / 8]: spike i of a row is bit i % 8 of byte i / 8; null: not requested
};

// Backward makes two passes over z. The first one (reduce) recomputes dL/dy and sums it. The second one (apply)
// recomputes dL/dy again and computes
//   dL/dz = scale (dL/dy - sum(dL/dy) / count - xhat sum(dL/dy xhat) / count),  xhat = (z - mean) / sqrt(var + eps)
struct BnBackwardParams : BnParams {
  static constexpr bool kPooled = false;  // core/bn_pooled_params.h
  const void* checkpoints = nullptr;      // [states, checkpoint_count(T), M] state
  Rows grad_out;                          // [T, M] storage
};

// With Connect::Sum, `shortcut` is u, and reduce writes dL/du, which is dL/dS and dL/dy. It leaves nothing of the
// neuron to apply, which then runs without a neuron on dL/du.
struct BnReduceParams : BnBackwardParams {
  Rows grad_skip;                // second gradient of the same output, or of u, which is added; data null: none
  void* grad_sum = nullptr;      // [T, M] storage: grad_out + grad_skip, or dL/du; else null
  void* grad_y = nullptr;        // CPU: [T, M] state: dL/dy; null: not requested
  void* partials = nullptr;      // workspace
  unsigned* counters = nullptr;  // as in BnStatisticsParams
  void* sums = nullptr;          // [2, C] state: sum of dL/dy (gradient of bias), of dL/dy xhat (of weight)
  // Gradients of the learnt parameters. Both null: not requested.
  double* learnt_partials = nullptr;  // kinds whose parameters are the same for all neurons: workspace
  void* learnt_sums = nullptr;        // the others: [parameters, C] state
  void* learnt_workspace = nullptr;   // for learnt_sums, as large as partials
};

struct BnApplyParams : BnBackwardParams {
  const void* sums = nullptr;     // [2, C] state, over the elements that mean and var average; null: those are constant
  double count = 1;               // number of elements of a channel that mean and var average
  void* grad_z = nullptr;         // [T, M] storage, dense; [M] if still
  void* grad_shortcut = nullptr;  // [T, M] storage, dense; null: not requested, or equal to grad_out (Connect::Add)
};

// The stem: batch norm and neuron of one still image over T, then max pooling 3x3, stride 2, padding 1. T <= kChunk.
// Spikes are 0 or 1, so the maximum of a window is 1 if any spike in it is 1. The gradient of a window goes to the
// first position, row by row, that holds the maximum, as in torch's max_pool2d.
struct PoolParams {
  NeuronParams neuron;
  Norm norm;
  DType dtype = DType::Float32;
  int64_t T = 0, images = 0, channels = 0, height = 0, width = 0;
  bool channels_last = false;
  const void* z = nullptr;  // [images, C, H, W] storage, dense in this order or channels_last

  int64_t out_height() const { return (height - 1) / 2 + 1; }
  int64_t out_width() const { return (width - 1) / 2 + 1; }
};

struct PoolForwardParams : PoolParams {
  void* out = nullptr;  // [T, images, C, out_height, out_width] storage, in the order of z
};

struct PoolBackwardParams : PoolParams {
  const void* grad_out = nullptr;  // shape and order of out
};

struct PoolReduceParams : PoolBackwardParams {
  void* partials = nullptr;           // workspace
  double* learnt_partials = nullptr;  // workspace; null: not requested
  void* sums = nullptr;               // see BnReduceParams
};

struct PoolApplyParams : PoolBackwardParams {
  const void* sums = nullptr;  // see BnApplyParams
  double count = 1;
  void* grad_z = nullptr;  // shape and order of z
};

}  // namespace sewsnn
