// The second stage of the sums over channels, in the kernel of the first stage: the last block to arrive adds.
//
// A block writes its partial sums and then counts itself in. The slabs of a group form chunks of kChunkSlabs. The last
// block of a chunk adds the sums of the chunk, and the last block of all chunks adds the sums of the chunks. The order
// of the additions depends only on the shape, and not on which block comes last. They are in double and rounded once.
//
// The counters are 0 before the kernel. A counter wraps around to 0 with the last block, so that the next kernel on the
// stream needs no fill.
#pragma once

#include "kernels/bn_walk.cuh"

SEWSNN_BEGIN

constexpr int kChunkSlabs = 32;

struct SecondStage {
  unsigned* counters;  // [groups * chunks] blocks of a chunk, then [groups] chunks, then the number of groups
  double* sums;        // [groups, chunks, 2 * channels_per_block] workspace; not used for one chunk
  int chunks;
};

inline int chunks_of(const Walk& w) { return int(divide_up(w.slabs, kChunkSlabs)); }
inline int64_t counters_of(const Walk& w) { return int64_t(w.groups) * (chunks_of(w) + 1) + 1; }
// Bytes of the partial sums [slabs, 2, C], and of the sums of the chunks that follow them.
inline int64_t partial_bytes(const Walk& w, int64_t state_bytes) { return w.slabs * 2 * w.channels * state_bytes; }
inline int64_t chunk_bytes(const Walk& w) {
  const int chunks = chunks_of(w);
  return chunks > 1 ? int64_t(w.groups) * chunks * 2 * w.channels_per_block() * int64_t(sizeof(double)) : 0;
}
inline SecondStage second_stage(const Walk& w, void* partials, int64_t state_bytes, unsigned* counters) {
  return {counters, reinterpret_cast<double*>(static_cast<char*>(partials) + partial_bytes(w, state_bytes)),
          chunks_of(w)};
}

// Counts this block in. Returns true in the last of `count` blocks, which then sees what the others have written.
__device__ __forceinline__ bool arrive(unsigned* counter, unsigned count) {
  __shared__ int last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicInc(counter, count - 1) == count - 1;
  __syncthreads();
  const bool mine = last;
  if (mine) __threadfence();
  return mine;
}

// Adds `count` numbers that other blocks have written, `step` apart, in their order.
template <class S>
__device__ __forceinline__ double add_others(const S* from, int count, int64_t step) {
  constexpr int kAtOnce = 8;  // loads in flight
  double sum = 0;
  SEWSNN_ROLLED
  for (int first = 0; first < count; first += kAtOnce) {
    S x[kAtOnce];
    SEWSNN_UNROLL
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k < count) x[k] = load_others(from + (first + k) * step);
    SEWSNN_UNROLL
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k < count) sum += double(x[k]);
  }
  return sum;
}

// The place of a thread in the second stage: it adds sum q of a channel.
struct Entry {
  int q, entry;
  int64_t channel;
  bool inside;  // whether there is such a sum

  __device__ __forceinline__ explicit Entry(const Walk& w) {
    const int own = w.channels_per_block();
    q = int(threadIdx.x) / own, entry = int(threadIdx.x) % own;
    channel = first_channel(w) + entry;
    inside = q < 2 && channel < w.channels;
  }
};

// Called by all threads of all blocks after store_partials. Returns true in one block of each group. There `sum` is the
// sum over all rows, in the threads whose entry is inside.
template <class S>
__device__ __forceinline__ bool finish_group(const Walk& w, const SecondStage& o, const void* partials, double& sum) {
  const Entry mine(w);
  const unsigned groups = unsigned(w.groups), group = blockIdx.x % groups, slab = blockIdx.x / groups;
  const int chunk = int(slab) / kChunkSlabs, first = chunk * kChunkSlabs;
  const int count = w.slabs - first < kChunkSlabs ? w.slabs - first : kChunkSlabs;
  if (!arrive(o.counters + group * unsigned(o.chunks) + unsigned(chunk), unsigned(count))) return false;
  sum = 0;
  const S* const from = static_cast<const S*>(partials) + (2 * int64_t(first) + mine.q) * w.channels + mine.channel;
  if (mine.inside) sum = add_others(from, count, 2 * w.channels);
  if (o.chunks == 1) return true;
  const int numbers = 2 * w.channels_per_block();
  double* const sums = o.sums + int64_t(group) * o.chunks * numbers + threadIdx.x;
  if (mine.inside) store_global(sums + chunk * numbers, sum);
  if (!arrive(o.counters + groups * unsigned(o.chunks) + group, unsigned(o.chunks))) return false;
  if (mine.inside) sum = add_others(sums, o.chunks, numbers);
  return true;
}

// Called by the blocks in which finish_group returned true. Returns true in the last of them.
__device__ __forceinline__ bool finish_all(const Walk& w, const SecondStage& o) {
  return arrive(o.counters + unsigned(w.groups) * unsigned(o.chunks + 1), unsigned(w.groups));
}

// Gives the first sum of a channel's thread the second one: returns true in the threads that then have both.
template <int Line>
__device__ __forceinline__ bool both_sums(const Entry& mine, double sum, double& second) {
  __shared__ double seconds[Line];
  if (mine.inside && mine.q == 1) seconds[mine.entry] = sum;
  __syncthreads();
  if (!mine.inside || mine.q != 0) return false;
  second = seconds[mine.entry];
  return true;
}

SEWSNN_END
