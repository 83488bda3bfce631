// Compiled once per instruction set, with SEWSNN_ISA and SEWSNN_NAME naming it (CMakeLists.txt).
#include "kernels/cpu_pool_kernels.h"
#include "kernels/pool_backward_cpu.h"

namespace sewsnn {

extern template class Recurrence<float>;  // of recurrence_cpu.cpp
extern template class Recurrence<double>;

namespace {

int64_t blocks(const PoolParams& p) { return pool_blocks(p); }

void forward(const PoolForwardParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    using S = State<Storage>;
    for_pool_blocks<S>(p, first, last, nullptr, 1, [&](int64_t, const PoolBlock& b, const PoolNorm<S>& norm) {
      pool_forward_block<Storage>(p, b, norm);
    });
  });
}

void reduce(const PoolReduceParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    using S = State<Storage>;
    for_pool_blocks<S>(p, first, last, nullptr, 1, [&](int64_t index, const PoolBlock& b, const PoolNorm<S>& norm) {
      pool_reduce_block<Storage>(p, index, b, norm);
    });
  });
}

void add(const PoolReduceParams& p) {
  with_storage(p.dtype, [&](auto tag) { pool_add_partials<State<typename decltype(tag)::type>>(p); });
}

void apply(const PoolApplyParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    using S = State<Storage>;
    for_pool_blocks<S>(
        p, first, last, static_cast<const S*>(p.sums), p.count,
        [&](int64_t, const PoolBlock& b, const PoolNorm<S>& norm) { pool_apply_block<Storage>(p, b, norm); });
  });
}

}  // namespace

extern const CpuPoolKernels SEWSNN_NAMED(PoolKernels) = {blocks, forward, reduce, add, apply};

}  // namespace sewsnn
