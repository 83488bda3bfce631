#include "kernels/pool_launch.cuh"

namespace sewsnn {
template cudaError_t launch_pool_forward<float, 4>(const PoolForwardParams&, cudaStream_t);
template PoolTiling pool_reduce_tiling<float, 4>(const PoolReduceParams&);
template cudaError_t launch_pool_reduce<float, 4>(const PoolReduceParams&, cudaStream_t);
template cudaError_t launch_pool_apply<float, 4>(const PoolApplyParams&, cudaStream_t);
template cudaError_t launch_pool_forward<float, 16>(const PoolForwardParams&, cudaStream_t);
template PoolTiling pool_reduce_tiling<float, 16>(const PoolReduceParams&);
template cudaError_t launch_pool_reduce<float, 16>(const PoolReduceParams&, cudaStream_t);
template cudaError_t launch_pool_apply<float, 16>(const PoolApplyParams&, cudaStream_t);
}  // namespace sewsnn
