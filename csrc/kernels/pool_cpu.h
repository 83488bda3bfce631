// The stem on the CPU: batch norm, neuron and max pooling of a still image, with only a few of its rows in memory at
// the same time. A block is a plane of an image, or kPoolChannels channels of a channels_last image. Blocks are
// independent, so any number of threads gives the same result. This file has forward, and the code that backward
// shares.
#pragma once

#include "kernels/multistep_cpu.h"
#include "kernels/pool_rows.h"

SEWSNN_BEGIN

// The spike trains of one row, with silence (0) on both sides of it.
struct TrainRow {
  Array<Train> memory;
  Train *even, *odd;

  explicit TrainRow(const PoolBlock& b) : memory(b.room() + b.padded), even(memory + b.room()), odd(memory + kTile) {}
};

template <class Storage>
class PoolForward {
 public:
  using S = State<Storage>;

  PoolForward(const PoolParams& p, const PoolBlock& b, const PoolNorm<S>& norm)
      : p_(p), b_(b), norm_(norm), neuron_(p.neuron) {}

  // Normalises the numbers k to k + kTile of one side (even or odd columns) of a row: z to the input y of the neurons.
  void normalise(const S* z, int64_t k, S* y) const {
    const int64_t c = k % b_.inner;
    for (int i = 0; i < kTile; ++i) y[i] = (z[k + i] - norm_.mean[c + i]) * norm_.scale[c + i] + norm_.bias[c + i];
  }

  // Reads row y of z, split into even and odd columns, and computes its spike trains. Outside the image all are 0.
  void row(int64_t y, S* even, S* odd, const TrainRow& trains) const {
    if (y < 0 || y >= b_.height) {
      memset(trains.even, 0, size_t(b_.padded) * sizeof(Train));
      memset(trains.odd, 0, size_t(b_.padded) * sizeof(Train));
      return;
    }
    read_split(b_, static_cast<const Storage*>(p_.z) + b_.z + y * b_.z_row, even, odd);
    for (int64_t k = 0; k < b_.padded; k += kTile) fire(even, k, trains.even + k);
    for (int64_t k = 0; k < b_.padded; k += kTile) fire(odd, k, trains.odd + k);
    memset(trains.odd + b_.odd_n(), 0, size_t(b_.padded - b_.odd_n()) * sizeof(Train));
  }

 private:
  void fire(const S* z, int64_t k, Train* trains) const {
    alignas(64) S y[kTile], v[kTile], s[kChunk * kTile];
    normalise(z, k, y);
    ForwardTile<S> tile = {};
    tile.steps = p_.T;
    tile.x = {y, 0, 1};
    tile.before[0] = neuron_.at_rest(0), tile.after[0] = v;
    tile.s = {s, kTile, false};
    tile.learnt[0] = static_cast<const S*>(p_.neuron.learnt.data);
    neuron_.forward(tile);
    for (int i = 0; i < kTile; i += kLanes<S>) {
      Mask<S> train = {};
      for (int64_t t = 0; t < p_.T; ++t) train |= (read<Vector<S>>(s + t * kTile + i) > S(0)) & (1 << t);
      write(trains + i, __builtin_convertvector(train, typename TrainsOf<S>::type));
    }
  }

  const PoolParams& p_;
  const PoolBlock& b_;
  const PoolNorm<S>& norm_;
  const Recurrence<S> neuron_;
};

template <class Storage>
void pool_forward_block(const PoolForwardParams& p, const PoolBlock& b, const PoolNorm<State<Storage>>& norm) {
  using S = State<Storage>;
  const PoolForward<Storage> forward(p, b, norm);
  const Array<S> even(b.padded), odd(b.padded);
  const Array<Train> above(b.padded), here(b.padded), pooled(b.padded);  // above: first row of the window
  const TrainRow trains(b);
  const Storage one = store_<Storage>(S(1)), zero = store_<Storage>(S(0));
  // The OR of three columns of row y, for each window.
  const auto columns = [&](int64_t y, Train* out) {
    forward.row(y, even, odd, trains);
    for (int64_t k = 0; k < b.padded; k += kTrains)
      write(out + k,
            read<Trains>(trains.even + k) | read<Trains>(trains.odd + k) | read<Trains>(trains.odd + k - b.inner));
  };
  for (int64_t i = 0; i < b.out_height; ++i) {
    columns(2 * i, here);
    for (int64_t k = 0; k < b.padded; k += kTrains) write(pooled + k, read<Trains>(above + k) | read<Trains>(here + k));
    columns(2 * i + 1, above);
    for (int64_t k = 0; k < b.padded; k += kTrains)
      write(pooled + k, read<Trains>(pooled + k) | read<Trains>(above + k));
    for (int64_t t = 0; t < p.T; ++t) {
      Storage* const out = static_cast<Storage*>(p.out) + b.out + t * b.out_step + i * b.out_row;
      const Train* const from = pooled;
      for_runs(b, [&](int64_t to, int64_t k, int64_t n) {
        for (int64_t c = 0; c < n; ++c) out[to + c] = from[k + c] >> t & 1 ? one : zero;
      });
    }
  }
}

// Calls f(index, block, norm) for blocks [first, last).
template <class S, class F>
void for_pool_blocks(const PoolParams& p, int64_t first, int64_t last, const S* sums, double count, const F& f) {
  PoolNorm<S> norm;
  int64_t channel = -1;
  for (int64_t index = first; index < last; ++index) {
    const PoolBlock b = pool_block(p, index);
    if (b.channel != channel) norm.set(p.norm, b, sums, p.channels, S(count));
    channel = b.channel;
    f(index, b, norm);
  }
}

SEWSNN_END
