// The CPU kernels of the stem (core/bn_params.h, PoolParams) as one table per instruction set. No torch is included.
#pragma once

#include "core/bn_params.h"

namespace sewsnn {

struct CpuPoolKernels {
  // The functions below run blocks [first, last) of these blocks. Each block has one partial sum of the leak's
  // gradient.
  int64_t (*blocks)(const PoolParams&);
  void (*forward)(const PoolForwardParams&, int64_t first, int64_t last);
  void (*reduce)(const PoolReduceParams&, int64_t first, int64_t last);
  void (*add)(const PoolReduceParams&);  // after all blocks: adds the partial sums in a fixed order
  void (*apply)(const PoolApplyParams&, int64_t first, int64_t last);
};

// Size of PoolReduceParams::partials in bytes.
inline int64_t cpu_pool_workspace(const PoolParams& p) { return p.images * 2 * p.channels * int64_t(sizeof(double)); }

}  // namespace sewsnn
