// The parameters of the multi-step neuron kernels: plain structs, passed by value, the same for CPU and CUDA.
#pragma once

#include <cstdint>

namespace sewsnn {

enum class DType : int { Float32 = 0, Float16 = 1, BFloat16 = 2, Float64 = 3 };

// Backward replays this many time-steps at a time; forward keeps v at each boundary (T > kChunk only).
constexpr int64_t kChunk = 16;

inline int64_t checkpoint_count(int64_t T) { return T > kChunk ? (T - 1) / kChunk : 0; }

// A [T, M] operand in memory: element (t, i) is at data[t * row_stride + i * step].
// row_stride 0: the input is repeated over time. step 0: the gradient is one number for all neurons. CUDA kernels have
// wide loads, so they then need this number kBroadcast times in each row.
constexpr int64_t kBroadcast = 16;
struct Rows {
  const void* data = nullptr;
  int64_t row_stride = 0;
  int64_t step = 1;
};

// Room for the numbers of a neuron. The kernels of batch norm count on two learnt parameters (bn_params.h).
constexpr int kMostStates = 2, kMostLearnt = 2, kMostExtra = 6;

// Element i of a time-step belongs to channel (i / inner) % count: inner is 1 for channels_last, H * W for contiguous.
struct Channels {
  int64_t count = 1, inner = 1;
};

// Learnt parameters of a neuron: [parameters, channels] numbers in the state's type, on the device of the tensors.
struct LearntParams {
  const void* data = nullptr;  // null: none
  Channels channels;           // one channel: the same for all neurons
};

// Which neuron, and its numbers. sewsnn/ops/spec.py names the same; everything between only passes them on.
struct NeuronParams {
  int kind = 0;       // its place in the list of kinds (neurons/registry.h)
  int surrogate = 0;  // its place in the list of surrogates
  double alpha = 2;   // the surrogate's parameter
  double tau = 2;     // membrane time constant
  double v_threshold = 1;
  double v_reset = 0;  // also the potential at rest; 0 for soft reset
  bool hard_reset = true;
  bool detach_reset = true;
  bool decay_input = true;
  double extra[kMostExtra] = {};  // further numbers, which the header of the kind names
  LearntParams learnt;
};

// "state" below is float for float, half and bfloat16 storage, and double for double.
struct ForwardParams {
  NeuronParams neuron;
  DType dtype = DType::Float32;
  int64_t T = 0, M = 0;
  Rows x;                       // [T, M] storage
  Rows v0;                      // [states, M] state; data null: rest
  void* s = nullptr;            // [T, M] storage, dense
  void* v = nullptr;            // [states, M] or [states, T, M] state; null: not requested
  bool v_seq = false;           // v is [states, T, M]
  void* checkpoints = nullptr;  // [states, checkpoint_count(T), M] state; null: no backward will follow
};

struct BackwardParams {
  NeuronParams neuron;
  DType dtype = DType::Float32;
  int64_t T = 0, M = 0;
  Rows x;                             // [T, M] storage
  Rows v0;                            // [states, M] state; data null: rest
  const void* checkpoints = nullptr;  // [states, checkpoint_count(T), M] state
  Rows grad_s;                        // [T, M] storage; data null: zero (CPU only)
  Rows grad_v[kMostStates];           // for each state [1, M] or [T, M] state; data null: zero
  bool v_seq = false;
  void* grad_x = nullptr;   // [T, M] storage, dense
  void* grad_v0 = nullptr;  // [states, M] state or null
  // Gradients of the learnt parameters. Both null: not requested.
  double* learnt_partials = nullptr;  // one channel: [parameters, blocks of neurons], which are summed later in order
  void* learnt_elements = nullptr;    // several: [parameters, M] state, summed over T; the sum over a channel follows
};

}  // namespace sewsnn
