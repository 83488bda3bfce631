// The CPU kernels of max pooling (core/max_pool_params.h) as one table per instruction set. No torch is included.
#pragma once

#include "core/max_pool_params.h"

namespace sewsnn {

// The functions run units [first, last) of `forward_units` or `backward_units` in total. Units are rows of the result,
// or planes of it.
struct CpuMaxPoolKernels {
  int64_t (*forward_units)(const MaxPoolParams&);
  int64_t (*backward_units)(const MaxPoolParams&);
  int64_t (*backward_scratch)(const MaxPoolParams&);  // bytes that a call of `backward` needs as scratch
  void (*forward)(const MaxPoolForwardParams&, int64_t first, int64_t last);
  void (*backward)(const MaxPoolBackwardParams&, int64_t first, int64_t last, void* scratch);
};

}  // namespace sewsnn
