// The parameters of the CUDA kernels of batch norm + neuron + connection whose output is pooled
// (core/max_pool_params.h).
#pragma once

#include "core/bn_params.h"
#include "core/max_pool_params.h"

namespace sewsnn {

// out is [T, M] of pooled images. T <= kChunk. Neither v nor bits nor checkpoints nor a second result.
struct BnPooledForwardParams : BnForwardParams {
  MaxPoolParams pool;            // of the images of one time-step
  uint8_t* positions = nullptr;  // like out; null: not requested
};

// grad_out is that of the pooled output, in dense rows. The connection is None or Add.
struct PooledGradient {
  static constexpr bool kPooled = true;
  MaxPoolParams pool;
  const uint8_t* positions = nullptr;  // like grad_out
};
struct BnPooledReduceParams : BnReduceParams, PooledGradient {
  static constexpr bool kPooled = true;
};
// With Add, grad_shortcut gets the gradient of the output.
struct BnPooledApplyParams : BnApplyParams, PooledGradient {
  static constexpr bool kPooled = true;
};

}  // namespace sewsnn
