// Compiled once per instruction set, with SEWSNN_ISA and SEWSNN_NAME naming it (CMakeLists.txt).
#include "kernels/max_pool_cpu.h"
#include "core/dispatch.h"
#include "kernels/cpu_max_pool_kernels.h"

namespace sewsnn {
namespace {

int64_t forward_units(const MaxPoolParams& p) { return max_pool_units(p, p.out_height); }
int64_t backward_units(const MaxPoolParams& p) { return max_pool_units(p, p.height); }

int64_t backward_scratch(const MaxPoolParams& p) {
  const bool half = p.dtype == DType::Float16 || p.dtype == DType::BFloat16;
  return half && !p.channels_last ? p.height * p.width * int64_t(sizeof(float)) : 0;
}

void forward(const MaxPoolForwardParams& p, int64_t first, int64_t last) {
  with_storage(p.dtype, [&](auto storage) { max_pool_forward<typename decltype(storage)::type>(p, first, last); });
}

void backward(const MaxPoolBackwardParams& p, int64_t first, int64_t last, void* scratch) {
  with_storage(p.dtype,
               [&](auto storage) { max_pool_backward<typename decltype(storage)::type>(p, first, last, scratch); });
}

}  // namespace

extern const CpuMaxPoolKernels SEWSNN_NAMED(MaxPoolKernels) = {forward_units, backward_units, backward_scratch, forward,
                                                               backward};

}  // namespace sewsnn
