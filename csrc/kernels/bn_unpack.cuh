// Unpacks spikes to numbers: each thread makes eight numbers from one byte.
#pragma once

#include "core/access.h"
#include "core/dtype.h"

SEWSNN_BEGIN

constexpr int kUnpackThreads = 256;

template <class Storage>
__global__ void __launch_bounds__(kUnpackThreads) bn_unpack_kernel(const uint8_t* bits, int64_t bytes, Storage* out) {
  wait_for_earlier_kernels();
  const int64_t i = int64_t(blockIdx.x) * kUnpackThreads + threadIdx.x;
  if (i >= bytes) return;
  const uint32_t byte = load_global(bits + i);
  Pack<State<Storage>, 8> spikes;
  SEWSNN_UNROLL
  for (int j = 0; j < 8; ++j) spikes.at[j] = State<Storage>(byte >> j & 1u);
  Cursor<Storage, 8>(out, 8, 0, 8 * i).store(store_<Storage>(spikes));
}

SEWSNN_END
