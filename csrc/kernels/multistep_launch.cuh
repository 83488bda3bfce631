// Chooses and launches the kernels of multistep.cuh. The templates are instantiated by the short files in csrc/inst.
#pragma once

#include <cuda_runtime.h>

#include <climits>

#include "core/dispatch.h"
#include "kernels/cuda_kernels.h"
#include "kernels/multistep.cuh"

namespace sewsnn {

// Neurons per thread: 16 bytes of storage, and at most 64 states in registers. For doubles at most 16, because each
// takes two registers and their arithmetic needs more registers. The less frequent neurons, too, need more registers.
template <class Neuron, class Storage, int K>
constexpr int neurons_per_thread() {
  const bool common = kIsCommon<Neuron, State<Storage>>;
  const int by_access = 16 / int(sizeof(Storage));
  const int by_registers = (common && sizeof(Storage) < 8 ? 64 : 16) / K / Neuron::kStates;
  const int n = by_access < by_registers ? by_access : by_registers;
  return n > 1 ? n : 1;
}

inline bool aligned(const void* p, int64_t row_stride_bytes, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % uintptr_t(bytes) == 0 && row_stride_bytes % bytes == 0;
}

template <class T, int N>
bool aligned(const Rows& rows, int64_t T_steps) {
  return !rows.data ||
         aligned(rows.data, T_steps > 1 ? rows.row_stride * int64_t(sizeof(T)) : 0, int64_t(sizeof(T)) * N);
}

inline int64_t blocks_for(int64_t M, int neurons) {
  const int64_t per_block = int64_t(kThreads) * neurons;
  return (M + per_block - 1) / per_block;
}

// Launches a kernel like <<<blocks, Threads, 0, stream>>>. More blocks than a grid can have are an error. Where the
// device allows it, the kernel begins before the one in front of it has ended, and waits (wait_for_earlier_kernels).
template <int Threads = kThreads, class... P, class... Given>
cudaError_t launch(void (*kernel)(P...), int64_t blocks, cudaStream_t stream, const Given&... arguments) {
  if (blocks < 1 || blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(Threads);
  config.stream = stream;
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = cuda_can_begin_early() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <class Storage>
cudaError_t launch_forward(const ForwardParams& p, cudaStream_t stream) {
  using S = State<Storage>;
  return with_neuron<S>(p.neuron, [&](auto tag) {
    using Neuron = typename decltype(tag)::type;
    constexpr int N = neurons_per_thread<Neuron, Storage, kAhead>();
    const bool wide = p.M % N == 0 && aligned<Storage, N>(p.x, p.T) && aligned<Storage, N>({p.s, p.M, 1}, p.T) &&
                      aligned<S, N>(p.v0, Neuron::kStates) && aligned<S, N>({p.v, p.M, 1}, 2) &&
                      aligned<S, N>({p.checkpoints, p.M, 1}, 2);
    const auto setup = Setup<OneNeuron<Neuron>, S>::from(p.neuron);
    return wide ? launch(forward_kernel<Neuron, Storage, N>, blocks_for(p.M, N), stream, p, setup)
                : launch(forward_kernel<Neuron, Storage, 1>, blocks_for(p.M, 1), stream, p, setup);
  });
}

template <class Neuron, class Storage, int K>
bool backward_is_wide(const BackwardParams& p) {
  using S = State<Storage>;
  constexpr int N = neurons_per_thread<Neuron, Storage, K>();
  bool wide = p.M % N == 0 && aligned<Storage, N>(p.x, p.T) && aligned<Storage, N>(p.grad_s, p.T) &&
              aligned<S, N>(p.v0, Neuron::kStates) && aligned<S, N>({p.checkpoints, p.M, 1}, 2) &&
              aligned<Storage, N>({p.grad_x, p.M, 1}, p.T) && aligned<S, N>({p.grad_v0, p.M, 1}, 2) &&
              aligned<S, N>({p.learnt_elements, p.M, 1}, 2);
  for (int n = 0; n < Neuron::kStates; ++n) wide = wide && aligned<S, N>(p.grad_v[n], p.v_seq ? p.T : 1);
  return wide;
}

// K = 4 serves T <= 4, K = kChunk serves any T. K = 8 serves T <= 8 for common neurons where accesses are wide.
template <class Storage, int K>
bool backward_is_common_and_wide(const BackwardParams& p) {
  return with_neuron<State<Storage>>(p.neuron, [&](auto tag) {
    using Neuron = typename decltype(tag)::type;
    return kIsCommon<Neuron, State<Storage>> && backward_is_wide<Neuron, Storage, K>(p);
  });
}

template <class Storage, int K>
int64_t backward_blocks(const BackwardParams& p) {
  return with_neuron<State<Storage>>(p.neuron, [&](auto tag) {
    using Neuron = typename decltype(tag)::type;
    return blocks_for(p.M, backward_is_wide<Neuron, Storage, K>(p) ? neurons_per_thread<Neuron, Storage, K>() : 1);
  });
}

template <class Storage, int K>
cudaError_t launch_backward(const BackwardParams& p, cudaStream_t stream) {
  using S = State<Storage>;
  return with_neuron<S>(p.neuron, [&](auto tag) {
    using Neuron = typename decltype(tag)::type;
    if constexpr (K == 8 && !kIsCommon<Neuron, S>) {
      return cudaErrorInvalidValue;
    } else {
      constexpr int N = neurons_per_thread<Neuron, Storage, K>();
      const auto setup = Setup<OneNeuron<Neuron>, S>::from(p.neuron);
      const bool wide = backward_is_wide<Neuron, Storage, K>(p);
      const auto go = [&](auto learn) {
        constexpr bool Learn = decltype(learn)::value;
        if (wide) return launch(backward_kernel<Neuron, Storage, K, N, Learn>, blocks_for(p.M, N), stream, p, setup);
        if constexpr (K == 8) return cudaErrorInvalidValue;
        else return launch(backward_kernel<Neuron, Storage, K, 1, Learn>, blocks_for(p.M, 1), stream, p, setup);
      };
      if constexpr (Neuron::kLearnt > 0)
        if (p.learnt_partials || p.learnt_elements) return go(Bool<true>());
      return go(Bool<false>());
    }
  });
}

}  // namespace sewsnn
