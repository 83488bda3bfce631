// Chooses and launches the kernels of multistep.cuh. The templates are instantiated by the short files in csrc/inst.
#pragma once

#include <cuda_runtime.h>

#include <climits>

#include "core/dispatch.h"
#include "kernels/cuda_kernels.h"
#include "kernels/multistep.cuh"

namespace sewsnn {

// Neurons per thread: 16 bytes of storage, and at most 64 h in registers. For doubles at most 16 h, because each takes
// two registers and their arithmetic needs more registers.
template <class Storage, int K>
constexpr int neurons_per_thread() {
  const int by_access = 16 / int(sizeof(Storage)), by_registers = (sizeof(Storage) == 8 ? 16 : 64) / K;
  return by_access < by_registers ? by_access : by_registers;
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
  constexpr int N = neurons_per_thread<Storage, kAhead>();
  const bool wide = p.M % N == 0 && aligned<Storage, N>(p.x, p.T) && aligned<Storage, N>({p.s, p.M, 1}, p.T) &&
                    aligned<S, N>({p.v0, p.M, 1}, 1) && aligned<S, N>({p.v, p.M, 1}, p.T) &&
                    aligned<S, N>({p.checkpoints, p.M, 1}, p.T);
  return with_neuron<S>(p.neuron, [&](auto tag) {
    using Neuron = typename decltype(tag)::type;
    const auto setup = Setup<Neuron, S>::from(p.neuron);
    return wide ? launch(forward_kernel<Neuron, Storage, N>, blocks_for(p.M, N), stream, p, setup)
                : launch(forward_kernel<Neuron, Storage, 1>, blocks_for(p.M, 1), stream, p, setup);
  });
}

template <class Storage, int K>
bool backward_is_wide(const BackwardParams& p) {
  using S = State<Storage>;
  constexpr int N = neurons_per_thread<Storage, K>();
  return p.M % N == 0 && aligned<Storage, N>(p.x, p.T) && aligned<Storage, N>(p.grad_s, p.T) &&
         aligned<S, N>(p.grad_v, p.v_seq ? p.T : 1) && aligned<S, N>({p.v0, p.M, 1}, 1) &&
         aligned<S, N>({p.checkpoints, p.M, 1}, p.T) && aligned<Storage, N>({p.grad_x, p.M, 1}, p.T) &&
         aligned<S, N>({p.grad_v0, p.M, 1}, 1);
}

// K = 4 serves T <= 4, K = kChunk serves any T. K = 8 serves T <= 8 where accesses are wide.
template <class Storage, int K>
int64_t backward_blocks(const BackwardParams& p) {
  return blocks_for(p.M, backward_is_wide<Storage, K>(p) ? neurons_per_thread<Storage, K>() : 1);
}

template <class Storage, int K>
cudaError_t launch_backward(const BackwardParams& p, cudaStream_t stream) {
  using S = State<Storage>;
  constexpr int N = neurons_per_thread<Storage, K>();
  const bool wide = backward_is_wide<Storage, K>(p);
  const auto go = [&](auto neuron, auto leak) {
    using Neuron = typename decltype(neuron)::type;
    constexpr bool Leak = decltype(leak)::value;
    const auto setup = Setup<Neuron, S>::from(p.neuron);
    if (wide) return launch(backward_kernel<Neuron, Storage, K, N, Leak>, blocks_for(p.M, N), stream, p, setup);
    if constexpr (K == 8) return cudaErrorInvalidValue;
    else return launch(backward_kernel<Neuron, Storage, K, 1, Leak>, blocks_for(p.M, 1), stream, p, setup);
  };
  if (p.grad_leak_partials) return go(Tag<LeakyMultiply<S>>(), Bool<true>());
  return with_neuron<S>(p.neuron, [&](auto neuron) { return go(neuron, Bool<false>()); });
}

}  // namespace sewsnn
