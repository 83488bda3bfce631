// The CPU kernels of batch norm + neuron + connection as one table per instruction set. This file includes neither
// torch nor the headers of the kernels.
#pragma once

#include "core/bn_params.h"

namespace sewsnn {

// `table` holds the numbers of each channel in rows of [C] in the state's type (NormRow, made by ops/bn_cpu.cpp): mean,
// scale and bias; for apply also the two means of gradients. For statistics it has one row: a number near the
// mean. Slabs and blocks [first, last) are independent. A slab writes [2, C] doubles to params.partials.
struct CpuBnKernels {
  int64_t block;  // neurons per block; the number of blocks is ceil(M / block)
  void (*statistics)(const BnStatisticsParams&, const void* table, int64_t slabs, int64_t first, int64_t last);
  void (*forward)(const BnForwardParams&, const void* table, int64_t first, int64_t last);
  void (*reduce)(const BnReduceParams&, const void* table, int64_t slabs, int64_t first, int64_t last);
  void (*apply)(const BnApplyParams&, const void* table, int64_t first, int64_t last);
};

}  // namespace sewsnn
