// The CPU kernels of the stem (core/bn_params.h, PoolParams) as one table per instruction set. No torch here.
#pragma once

#include "core/bn_params.h"

namespace sewsnn {

struct CpuPoolKernels {
  // The functions below run blocks [first, last) of these; one leak partial per block.
  int64_t (*blocks)(const PoolParams&);
  void (*forward)(const PoolForwardParams&, int64_t first, int64_t last);
  void (*reduce)(const PoolReduceParams&, int64_t first, int64_t last);
  void (*add)(const PoolReduceParams&);  // after all blocks: the sums from the partials, in a fixed order
  void (*apply)(const PoolApplyParams&, int64_t first, int64_t last);
};

// Bytes of PoolReduceParams::partials.
inline int64_t cpu_pool_workspace(const PoolParams& p) { return p.images * 2 * p.channels * int64_t(sizeof(double)); }

}  // namespace sewsnn
