// The parameters of the multi-step neuron kernels: plain structs, passed by value, the same for CPU and CUDA.
#pragma once

#include <cstdint>

namespace sewsnn {

enum class DType : int { Float32 = 0, Float16 = 1, BFloat16 = 2, Float64 = 3 };
enum class NeuronKind : int { IF = 0, LIF = 1, PLIF = 2 };
// Each number is the `kind` of a class in sewsnn/surrogate.py.
enum class SurrogateKind : int {
  ATan = 0,
  Rectangular = 1,
  Constant = 2,
  Sigmoid = 3,
  PiecewiseQuadratic = 4,
  PiecewiseExp = 5,
  SoftSign = 6,
  SuperSpike = 7,
  Erf = 8,
  UnitATan = 9,
};
constexpr int kSurrogates = 10;

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

struct NeuronParams {
  NeuronKind kind = NeuronKind::IF;
  SurrogateKind surrogate = SurrogateKind::ATan;
  double alpha = 2;  // the surrogate's parameter
  double tau = 2;    // LIF
  double inverse_tau = 0.5;
  const void* leak = nullptr;  // PLIF: its 1 / tau, one number in the state's type, on the device of the tensors
  double v_threshold = 1;
  double v_reset = 0;  // also the potential at rest; 0 for soft reset
  bool hard_reset = true;
  bool detach_reset = true;
  bool decay_input = true;
};

// "state" below is float for float, half and bfloat16 storage, and double for double.
struct ForwardParams {
  NeuronParams neuron;
  DType dtype = DType::Float32;
  int64_t T = 0, M = 0;
  Rows x;                       // [T, M] storage
  const void* v0 = nullptr;     // [M]    state; null: rest (v_reset, or 0 for soft reset)
  void* s = nullptr;            // [T, M] storage, dense
  void* v = nullptr;            // [M] or [T, M] state; null: not requested
  bool v_seq = false;           // v is [T, M]
  void* checkpoints = nullptr;  // [checkpoint_count(T), M] state; null: no backward will follow
};

struct BackwardParams {
  NeuronParams neuron;
  DType dtype = DType::Float32;
  int64_t T = 0, M = 0;
  Rows x;                             // [T, M] storage
  const void* v0 = nullptr;           // [M] state or null
  const void* checkpoints = nullptr;  // [checkpoint_count(T), M] state
  Rows grad_s;                        // [T, M] storage; data null: zero (CPU only)
  Rows grad_v;                        // [1, M] or [T, M] state; data null: zero
  bool v_seq = false;
  void* grad_x = nullptr;                // [T, M] storage, dense
  void* grad_v0 = nullptr;               // [M] state or null
  double* grad_leak_partials = nullptr;  // one per block of neurons, summed later in index order; null: not requested
};

}  // namespace sewsnn
