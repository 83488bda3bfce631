// The CPU kernels as one table per instruction set. This file includes neither torch nor the headers of the kernels.
#pragma once

#include "kernels/cpu_bn_kernels.h"
#include "kernels/cpu_max_pool_kernels.h"
#include "kernels/cpu_pool_kernels.h"

namespace sewsnn {

struct CpuKernels {
  const char* isa;
  int64_t block;  // neurons per block; the functions below run blocks [first, last) of ceil(M / block)
  void (*forward)(const ForwardParams&, int64_t first, int64_t last);
  void (*backward)(const BackwardParams&, int64_t first, int64_t last);  // one leak partial per block
  const CpuBnKernels* bn;
  const CpuPoolKernels* pool;
  const CpuMaxPoolKernels* max_pool;
};

// Defined by csrc/inst/multistep_cpu.cpp, bn_cpu.cpp, pool_cpu.cpp and max_pool_cpu.cpp, compiled once per instruction
// set.
extern const CpuKernels kGenericKernels;
#if defined(__x86_64__)
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;
#endif

// cpu_kernels() returns the best table that this processor can run, or the one that SEWSNN_CPU=generic|avx2|avx512 asks
// for. The choice is made once. cpu_problem() says if SEWSNN_CPU names no table that this processor can run (null: no
// problem); cpu_kernels() then throws an exception.
const CpuKernels& cpu_kernels();
const char* cpu_problem();

}  // namespace sewsnn
