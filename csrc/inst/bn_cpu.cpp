// Compiled once per instruction set, with SEWSNN_ISA and SEWSNN_NAME naming it (CMakeLists.txt).
#include "kernels/bn_cpu.h"
#include "kernels/cpu_bn_kernels.h"

namespace sewsnn {

extern template class Recurrence<float>;  // of recurrence_cpu.cpp
extern template class Recurrence<double>;

namespace {

void statistics(const BnStatisticsParams& p, const void* table, int64_t slabs, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto storage) {
    bn_statistics_slabs<typename decltype(storage)::type>(p, table, slabs, first, last);
  });
}

void forward(const BnForwardParams& p, const void* table, int64_t first, int64_t last) {
  with_storage(p.dtype,
               [&](auto storage) { bn_forward_blocks<typename decltype(storage)::type>(p, table, first, last); });
}

void reduce(const BnReduceParams& p, const void* table, int64_t slabs, int64_t first, int64_t last) {
  with_storage(p.dtype,
               [&](auto storage) { bn_reduce_slabs<typename decltype(storage)::type>(p, table, slabs, first, last); });
}

void apply(const BnApplyParams& p, const void* table, int64_t first, int64_t last) {
  with_storage(p.dtype,
               [&](auto storage) { bn_apply_blocks<typename decltype(storage)::type>(p, table, first, last); });
}

}  // namespace

extern const CpuBnKernels SEWSNN_NAMED(BnKernels) = {kBlock, statistics, forward, reduce, apply};

}  // namespace sewsnn
