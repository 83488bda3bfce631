// The CUDA kernels of batch norm + neuron + connection as functions, without torch. They launch kernels on the stream
// and return the error of the launch.
#pragma once

#include <cuda_runtime_api.h>

#include "core/bn_params.h"

namespace sewsnn {

// What statistics and reduce need: bytes of `partials`, and the number of `counters`. With learnt_sums, reduce needs
// learnt_workspace of as many bytes, and twice as many counters.
struct BnWorkspace {
  int64_t bytes = 0, counters = 0;
};
BnWorkspace cuda_bn_workspace(int64_t T, int64_t M, const Channels&, DType);
// Number of partial sums that reduce writes to learnt_partials; cuda_sum_partials adds them.
int64_t cuda_bn_learnt_partials(const BnReduceParams&);

// Sums up to two rows of [rows, M] numbers in the state's type over each channel: [rows, C]. The workspace is that of
// cuda_bn_workspace(1, M, channels, state).
cudaError_t cuda_channel_sums(const void* elements, int64_t rows, int64_t M, const Channels&, DType state,
                              void* workspace, unsigned* counters, void* out, cudaStream_t);

cudaError_t cuda_bn_statistics(const BnStatisticsParams&, cudaStream_t);
// running += momentum (new - running), with the unbiased variance. If a statistic is not finite, nothing changes.
cudaError_t cuda_bn_update(const void* statistics, int64_t channels, double momentum, double count, DType state,
                           void* running_mean, void* running_var, cudaStream_t);
cudaError_t cuda_bn_forward(const BnForwardParams&, cudaStream_t);
cudaError_t cuda_bn_reduce(const BnReduceParams&, cudaStream_t);
cudaError_t cuda_bn_apply(const BnApplyParams&, cudaStream_t);
// Unpacks spikes (BnForwardParams::bits) to 8 * bytes numbers.
cudaError_t cuda_unpack(const uint8_t* bits, int64_t bytes, DType, void* out, cudaStream_t);

}  // namespace sewsnn
