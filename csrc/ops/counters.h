// Counters for kernels whose last block does more than the others (kernels/bn_finish.cuh).
#pragma once

#include <cuda_runtime_api.h>

#include "ops/layout.h"

namespace sewsnn {

// `count` zeros on the device of `like`, for one kernel on this stream that leaves them at 0.
//
// Kernels on one stream run one after the other, so they share the counters of the stream, which are filled once. The
// kernels of a CUDA graph may run beside those of another stream. Each of them gets counters of its own, which no other
// kernel will ever use.
struct Counters {
  Tensor holder;  // keeps the memory until the launch
  unsigned* data = nullptr;

  Counters(const Tensor& like, int64_t count, cudaStream_t stream);
};

}  // namespace sewsnn
