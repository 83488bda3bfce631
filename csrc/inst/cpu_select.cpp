// Chooses the instruction set once, when the first kernel runs.
#include <cstdlib>
#include <cstring>

#include "kernels/cpu_kernels.h"
#include "kernels/pool_cpu_kernels.h"

namespace sewsnn {
namespace {

const CpuKernels& choose() {
#if defined(__x86_64__)
  const char* const asked = std::getenv("SEWSNN_CPU");
  const bool below_512 = asked && std::strcmp(asked, "avx512") != 0 && *asked;
  const bool generic = asked && std::strcmp(asked, "generic") == 0;
  __builtin_cpu_init();
  if (!below_512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    return kAvx512Kernels;
  // Every processor with AVX2 has F16C, which not every compiler's builtin knows.
  if (!generic && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2Kernels;
#endif
  return kGenericKernels;
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

const PoolCpuKernels& pool_cpu_kernels() {
#if defined(__x86_64__)
  if (&cpu_kernels() == &kAvx512Kernels) return kAvx512PoolKernels;
  if (&cpu_kernels() == &kAvx2Kernels) return kAvx2PoolKernels;
#endif
  return kGenericPoolKernels;
}

}  // namespace sewsnn
