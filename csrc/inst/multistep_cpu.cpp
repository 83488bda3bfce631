// Compiled once per instruction set, with SEWSNN_ISA and SEWSNN_NAME naming it (CMakeLists.txt).
#include "kernels/multistep_cpu.h"
#include "kernels/cpu_kernels.h"

namespace sewsnn {

extern template class Recurrence<float>;  // of recurrence_cpu.cpp
extern template class Recurrence<double>;

namespace {

void forward(const ForwardParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto storage) { forward_blocks<typename decltype(storage)::type>(p, first, last); });
}

void backward(const BackwardParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto storage) { backward_blocks<typename decltype(storage)::type>(p, first, last); });
}

}  // namespace

extern const CpuBnKernels SEWSNN_NAMED(BnKernels);      // of bn_cpu.cpp
extern const CpuPoolKernels SEWSNN_NAMED(PoolKernels);  // of pool_cpu.cpp
extern const CpuMaxPoolKernels SEWSNN_NAMED(MaxPoolKernels);
#define SEWSNN_STRING_(x) #x
#define SEWSNN_STRING(x) SEWSNN_STRING_(x)
extern const CpuKernels SEWSNN_NAMED(Kernels) = {
    SEWSNN_STRING(SEWSNN_ISA),    kBlock, forward, backward, &SEWSNN_NAMED(BnKernels), &SEWSNN_NAMED(PoolKernels),
    &SEWSNN_NAMED(MaxPoolKernels)};

}  // namespace sewsnn
