// Max pooling on the GPU, on torch's current stream.
#include "kernels/cuda_max_pool_kernels.h"
#include "ops/bn_cuda.h"
#include "ops/max_pool.h"

namespace sewsnn {

template <>
void run(const Cuda& gpu, MaxPoolForwardCall& call) {
  gpu.check(cuda_max_pool(call.params, gpu.stream));
}

template <>
void run(const Cuda& gpu, MaxPoolBackwardCall& call) {
  gpu.check(cuda_max_pool_backward(call.params, gpu.stream));
}

template <>
bool run_both(const Cuda& gpu, BnStatisticsCall& statistics, MaxPoolForwardCall& pooled) {
  PoolStatisticsParams p = {statistics.params, pooled.params};
  if (pooled.empty() || !cuda_max_pool_statistics_serves(p)) return false;
  const Counters counters = set_workspace(statistics, cuda_max_pool_statistics_workspace(p), 1, gpu.stream);
  p.statistics = statistics.params;
  p.statistics.z.data = p.pool.x;  // not a copy that was made for the statistics alone
  p.statistics.channels.inner = p.pool.channels_last ? 1 : p.pool.height * p.pool.width;
  gpu.check(cuda_max_pool_statistics(p, gpu.stream));
  return true;
}

}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CUDA, m) { sewsnn::add_max_pool_ops<sewsnn::Cuda>(m); }
