#include "kernels/pool_launch.cuh"

namespace sewsnn {
template cudaError_t launch_pool_forward<Half, 4>(const PoolForwardParams&, cudaStream_t);
template PoolTiling pool_reduce_tiling<Half, 4>(const PoolReduceParams&);
template cudaError_t launch_pool_reduce<Half, 4>(const PoolReduceParams&, cudaStream_t);
template cudaError_t launch_pool_apply<Half, 4>(const PoolApplyParams&, cudaStream_t);
template cudaError_t launch_pool_forward<Half, 16>(const PoolForwardParams&, cudaStream_t);
template PoolTiling pool_reduce_tiling<Half, 16>(const PoolReduceParams&);
template cudaError_t launch_pool_reduce<Half, 16>(const PoolReduceParams&, cudaStream_t);
template cudaError_t launch_pool_apply<Half, 16>(const PoolApplyParams&, cudaStream_t);
}  // namespace sewsnn
