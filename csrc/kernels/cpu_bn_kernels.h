// The CPU kernels of batch norm + neuron + connection as one table per instruction set. No torch here, and none of the
// kernels' headers.
#pragma once

#include "core/bn_params.h"

namespace sewsnn {

// `table`: what the kernels know of each channel, rows of [C] numbers in the state's type (NormRow, made by
// ops/bn_cpu.cpp): mean, scale, bias; for apply also scale's two means of gradients. Of statistics one row: a number
// near the mean.
// Slabs and blocks [first, last) are independent. A slab leaves [2, C] doubles in params.partials.
struct CpuBnKernels {
  int64_t block;  // neurons per block; there are ceil(M / block)
  void (*statistics)(const BnStatisticsParams&, const void* table, int64_t slabs, int64_t first, int64_t last);
  void (*forward)(const BnForwardParams&, const void* table, int64_t first, int64_t last);
  void (*reduce)(const BnReduceParams&, const void* table, int64_t slabs, int64_t first, int64_t last);
  void (*apply)(const BnApplyParams&, const void* table, int64_t first, int64_t last);
};

}  // namespace sewsnn
