#include "kernels/bn_launch.cuh"

namespace sewsnn {
template cudaError_t launch_bn_reduce<Half>(const BnReduceParams&, cudaStream_t);
template cudaError_t launch_bn_apply<Half>(const BnApplyParams&, cudaStream_t);
}  // namespace sewsnn
