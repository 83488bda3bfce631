#include "kernels/pool_launch.cuh"

namespace sewsnn {
template cudaError_t launch_pool_forward<BFloat16, 4>(const PoolForwardParams&, cudaStream_t);
template PoolTiling pool_reduce_tiling<BFloat16, 4>(const PoolReduceParams&);
template cudaError_t launch_pool_reduce<BFloat16, 4>(const PoolReduceParams&, cudaStream_t);
template cudaError_t launch_pool_apply<BFloat16, 4>(const PoolApplyParams&, cudaStream_t);
template cudaError_t launch_pool_forward<BFloat16, 16>(const PoolForwardParams&, cudaStream_t);
template PoolTiling pool_reduce_tiling<BFloat16, 16>(const PoolReduceParams&);
template cudaError_t launch_pool_reduce<BFloat16, 16>(const PoolReduceParams&, cudaStream_t);
template cudaError_t launch_pool_apply<BFloat16, 16>(const PoolApplyParams&, cudaStream_t);
}  // namespace sewsnn
