#include "kernels/pool_launch.cuh"

namespace sewsnn {
template cudaError_t launch_pool_forward<double, 16>(const PoolForwardParams&, cudaStream_t);
template PoolTiling pool_reduce_tiling<double, 16>(const PoolReduceParams&);
template cudaError_t launch_pool_reduce<double, 16>(const PoolReduceParams&, cudaStream_t);
template cudaError_t launch_pool_apply<double, 16>(const PoolApplyParams&, cudaStream_t);
}  // namespace sewsnn
