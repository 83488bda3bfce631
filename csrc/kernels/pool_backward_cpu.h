// The stem's backward on the CPU. It recomputes the spikes one row of windows ahead of the gradients, then processes
// the neurons row by row. Reduce and apply differ only in their use of dL/dy.
#pragma once

#include "kernels/pool_cpu.h"

SEWSNN_BEGIN

// The bits of a window row that say which gradients go to each of the three columns of a row of z.
struct Wins {
  Array<Train> left, middle, right;
  explicit Wins(const PoolBlock& b) : left(b.room()), middle(b.room()), right(b.room()) {}
};

// A row of windows: its gradients [T, room], and where they go in each of its three rows of z.
template <class S>
struct WindowRow {
  Array<S> grads;
  Wins first, second, third;
  WindowRow(const PoolBlock& b, int64_t T) : grads(T * b.room()), first(b), second(b), third(b) {}

  void set(const PoolBlock& b, bool at_top, const TrainRow& row0, const TrainRow& row1, const TrainRow& row2) {
    const TrainRow* const rows[3] = {&row0, &row1, &row2};
    const Wins* const wins[3] = {&first, &second, &third};
    for (int64_t k = 0; k < b.padded; k += kTrains) {
      Window<Trains> spikes;
      for (int r = 0; r < 3; ++r) {
        spikes.at[r][0] = read<Trains>(rows[r]->odd + k - b.inner);
        spikes.at[r][1] = read<Trains>(rows[r]->even + k);
        spikes.at[r][2] = read<Trains>(rows[r]->odd + k);
      }
      Trains at_left = {};
      for (int l = 0; l < kTrains && k + l < b.inner; ++l) at_left[l] = Train(~0u);
      const Window<Trains> won = winners(spikes, at_top, at_left);
      for (int r = 0; r < 3; ++r) {
        write(wins[r]->left + k, won.at[r][0]);
        write(wins[r]->middle + k, won.at[r][1]);
        write(wins[r]->right + k, won.at[r][2]);
      }
    }
    // Clear the entries after the last window of a row: no window there can win.
    for (const Wins* w : wins) memset(w->left + b.n, 0, size_t(b.padded - b.n) * sizeof(Train));
  }
};

// One of the rows of windows that contain a row of z.
template <class S>
struct Share {
  const WindowRow<S>* window;
  const Wins* wins;
};

// Computes dL/dy of an image's plane, or of the channels of a block, and passes it to the callbacks of run().
template <class Storage>
class PoolBackward {
 public:
  using S = State<Storage>;

  PoolBackward(const PoolBackwardParams& p, const PoolBlock& b, const PoolNorm<S>& norm, bool learn)
      : p_(p), b_(b), forward_(p, b, norm), neuron_(p.neuron, learn) {}

  // Calls tile(z of kTile neurons, their dL/dy summed over time, even or odd, k) for each tile, and row_end(y) after
  // each row of z. grad_leak has kTile lanes, or is null.
  template <class Tile, class RowEnd>
  void run(double* grad_leak, const Tile& tile, const RowEnd& row_end) const {
    struct Row {
      Array<S> even, odd;
      TrainRow trains;
      explicit Row(const PoolBlock& b) : even(b.padded), odd(b.padded), trains(b) {}
    };
    Row rows[3] = {Row(b_), Row(b_), Row(b_)};
    WindowRow<S> windows[2] = {{b_, p_.T}, {b_, p_.T}};
    const auto load = [&](int64_t y) -> Row& {
      Row& r = rows[(y + 3) % 3];
      forward_.row(y, r.even, r.odd, r.trains);
      return r;
    };
    const auto finish = [&](int64_t y, const Share<S>* shares, int n) {
      const Row& r = rows[y % 3];
      for (int64_t k = 0; k < b_.n; k += kTile) backward_tile_at(r.even, true, k, shares, n, grad_leak, tile);
      for (int64_t k = 0; k < b_.odd_n(); k += kTile) backward_tile_at(r.odd, false, k, shares, n, grad_leak, tile);
      row_end(y);
    };
    load(-1);
    for (int64_t i = 0; i < b_.out_height; ++i) {
      WindowRow<S>&here = windows[i % 2], &above = windows[(i + 1) % 2];
      const Row& first = rows[(2 * i + 2) % 3];  // row 2 i - 1
      const Row &second = load(2 * i), &third = load(2 * i + 1);
      here.set(b_, i == 0, first.trains, second.trains, third.trains);
      read_grads(i, here.grads);
      const Share<S> odd_row[2] = {{&above, &above.third}, {&here, &here.first}}, even_row[1] = {{&here, &here.second}};
      if (i > 0) finish(2 * i - 1, odd_row, 2);
      finish(2 * i, even_row, 1);
      if (i + 1 == b_.out_height && 2 * i + 1 < b_.height) {
        const Share<S> last_row[1] = {{&here, &here.third}};
        finish(2 * i + 1, last_row, 1);
      }
    }
  }

 private:
  void read_grads(int64_t i, S* grads) const {
    for (int64_t t = 0; t < p_.T; ++t) {
      const Storage* const from = static_cast<const Storage*>(p_.grad_out) + b_.out + t * b_.out_step + i * b_.out_row;
      S* const to = grads + t * b_.room();
      for_runs(b_, [&](int64_t at, int64_t k, int64_t n) { read_run(from + at, to + k, n); });
    }
  }

  // The part that one window per neuron adds to the gradients of a tile's spikes: where it has won, and its gradients
  // [T, room].
  struct Term {
    const Train* wins;
    const S* grads;
  };

  // Computes the gradients of a tile's spikes: the sum of the terms, in their order.
  template <int Terms>
  void spike_grads(const Term* terms, S* gs) const {
    using V = Vector<S>;
    using Short = typename TrainsOf<S>::type;
    for (int i = 0; i < kTile; i += kLanes<S>) {
      Mask<S> won[Terms];
      for (int w = 0; w < Terms; ++w) won[w] = __builtin_convertvector(read<Short>(terms[w].wins + i), Mask<S>);
      for (int64_t t = 0; t < p_.T; ++t) {
        V sum = {};
        for (int w = 0; w < Terms; ++w)
          sum += select((won[w] & (1 << t)) != 0, read<V>(terms[w].grads + t * b_.room() + i), V{});
        write(gs + t * kTile + i, sum);
      }
    }
  }
  // The order is ascending rows of windows, then columns.
  void spike_grads(bool even, int64_t k, const Share<S>* shares, int n, S* gs) const {
    Term terms[4];
    int count = 0;
    for (int w = 0; w < n; ++w) {
      const Wins& wins = *shares[w].wins;
      const S* const grads = shares[w].window->grads + k;
      terms[count++] = {(even ? wins.middle : wins.right) + k, grads};
      if (!even) terms[count++] = {wins.left + k + b_.inner, grads + b_.inner};
    }
    if (count == 1) spike_grads<1>(terms, gs);
    else if (count == 2) spike_grads<2>(terms, gs);
    else spike_grads<4>(terms, gs);
  }

  template <class Tile>
  void backward_tile_at(const S* z, bool even, int64_t k, const Share<S>* shares, int n, double* grad_leak,
                        const Tile& tile) const {
    alignas(64) S y[kTile], gv[kTile], total[kTile];
    alignas(64) S gs[kChunk * kTile], gy[kChunk * kTile], h[kChunk * kTile], g[kChunk * kTile];
    const S nothing = 0;
    forward_.normalise(z, k, y);
    spike_grads(even, k, shares, n, gs);
    BackwardTile<S> neurons = {};
    neurons.steps = p_.T;
    neurons.x = {y, 0, 1};
    neurons.before[0] = neuron_.at_rest(0);
    neurons.grad_s = {gs, kTile, 1};
    neurons.grad_after[0] = {&nothing, 0, 0};
    neurons.grad_before[0] = gv;
    neurons.grad_x = {gy, kTile, false};
    neurons.h[0] = h;
    neurons.g = g;
    neurons.learnt[0] = static_cast<const S*>(p_.neuron.learnt.data);
    neurons.grad_learnt = grad_leak;
    neuron_.backward(neurons);
    memcpy(total, gy + (p_.T - 1) * kTile, sizeof total);
    for (int64_t t = p_.T - 2; t >= 0; --t)
      for (int i = 0; i < kTile; ++i) total[i] += gy[t * kTile + i];
    tile(z + k, total, even, k);
  }

  const PoolBackwardParams& p_;
  const PoolBlock& b_;
  const PoolForward<Storage> forward_;
  const Recurrence<S> neuron_;
};

// The block's share of the sums, as doubles [images, 2, C].
template <class Storage>
void pool_reduce_block(const PoolReduceParams& p, int64_t index, const PoolBlock& b,
                       const PoolNorm<State<Storage>>& norm) {
  using S = State<Storage>;
  double grad_leak[kTile] = {};
  double sums[2][PoolNorm<S>::size] = {};
  PoolBackward<Storage>(p, b, norm, p.learnt_partials != nullptr)
      .run(
          p.learnt_partials ? grad_leak : nullptr,
          [&](const S* z, const S* grad, bool, int64_t k) {
            const int64_t c = k % b.inner;
            for (int i = 0; i < kTile; ++i) {
              const S xhat = (z[i] - norm.mean[c + i]) * norm.invstd[c + i];
              sums[0][c + i] += double(grad[i]);
              sums[1][c + i] += double(grad[i]) * double(xhat);
            }
          },
          [](int64_t) {});
  double* const out = static_cast<double*>(p.partials) + b.image * 2 * p.channels + b.channel;
  for (int which = 0; which < 2; ++which) {
    for (int64_t c = 0; c < b.inner; ++c) {
      double sum = 0;
      for (int64_t i = c; i < PoolNorm<S>::size; i += b.inner) sum += sums[which][i];
      out[which * p.channels + c] = sum;
    }
  }
  if (p.learnt_partials) {
    double sum = 0;
    for (double lane : grad_leak) sum += lane;
    p.learnt_partials[index] = sum;
  }
}

template <class S>
void pool_add_partials(const PoolReduceParams& p) {
  const double* const partials = static_cast<const double*>(p.partials);
  for (int64_t i = 0; i < 2 * p.channels; ++i) {
    double sum = 0;
    for (int64_t image = 0; image < p.images; ++image) sum += partials[image * 2 * p.channels + i];
    static_cast<S*>(p.sums)[i] = S(sum);
  }
}

template <class Storage>
void pool_apply_block(const PoolApplyParams& p, const PoolBlock& b, const PoolNorm<State<Storage>>& norm) {
  using S = State<Storage>;
  const Array<S> even(b.padded), odd(b.padded);
  PoolBackward<Storage>(p, b, norm, false)
      .run(
          nullptr,
          [&](const S* z, const S* grad, bool is_even, int64_t k) {
            S* const out = (is_even ? even : odd) + k;
            const int64_t c = k % b.inner;
            for (int i = 0; i < kTile; ++i) {
              const S xhat = (z[i] - norm.mean[c + i]) * norm.invstd[c + i];
              out[i] = norm.scale[c + i] * (grad[i] - norm.grad_mean[c + i] - xhat * norm.grad_xhat[c + i]);
            }
          },
          [&](int64_t y) { write_split(b, even, odd, static_cast<Storage*>(p.grad_z) + b.z + y * b.z_row); });
}

SEWSNN_END
