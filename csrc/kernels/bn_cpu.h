// Batch norm + neuron + connection on the CPU. As in multistep_cpu.h, a tile of neurons runs all its time-steps in
// the first-level cache, so each pass reads every operand from memory once. Sums over channels are computed slab by
// slab. The number of slabs depends only on the shape, so the result does not depend on the number of threads.
#pragma once

#include "kernels/bn_cpu_tiles.h"

SEWSNN_BEGIN

// The neurons of a slab: whole tiles; only the last tile of all may be incomplete.
struct Slab {
  int64_t begin, end;
  static Slab of(int64_t slab, int64_t slabs, int64_t M) {
    const int64_t tiles = (M + kTile - 1) / kTile, end = (slab + 1) * tiles / slabs * kTile;
    return {slab * tiles / slabs * kTile, end < M ? end : M};
  }
};

// Scratch arrays [time-step][neuron] of a tile, packed for the actual number of time-steps. Arrays of kChunk time-steps
// would lie 4 KB apart, as rows of tensors often do, and would evict each other from the first-level cache.
template <class S, int Count>
class Scratch {
 public:
  explicit Scratch(int64_t T) : stride_(((T < kChunk ? T : kChunk) + 1) * kTile) {}
  S* operator[](int i) { return memory_ + i * stride_; }
  const S* operator[](int i) const { return memory_ + i * stride_; }

 private:
  const int64_t stride_;
  alignas(64) S memory_[Count * (kChunk + 1) * kTile];
};

inline int tile_size(int64_t i, int64_t end) { return int(end - i < kTile ? end - i : kTile); }

// Optional [T, M] operands.
template <class T>
Source<T> source_at(const Rows& rows, int64_t t, int64_t i) {
  return rows.data ? Source<T>::of(rows, t, i) : Source<T>{};
}

// Sums of z - k and of (z - k)^2 for each channel, as [2, C] doubles per slab; the first row of the table is k.
template <class Storage>
void bn_statistics_slabs(const BnStatisticsParams& p, const void* table, int64_t slabs, int64_t first, int64_t last) {
  using S = State<Storage>;
  Padded<Storage> tail;
  for (int64_t slab = first; slab < last; ++slab) {
    const auto [begin, end] = Slab::of(slab, slabs, p.M);
    NormLanes<S> lanes(p.channels, table, 1);
    double* const to = static_cast<double*>(p.partials) + slab * 2 * p.channels.count;
    ChannelSums<S, kNormRows> sums(lanes, p.channels.count, {{to, to + p.channels.count}});
    for (int64_t i = begin; i < end; i += kTile) {
      sums.move_to(i);
      const int n = tile_size(i, end);
      for (int64_t t = 0; t < p.T; t += kChunk) {
        const int64_t steps = t + kChunk < p.T ? kChunk : p.T - t;
        Source<Storage> z = Source<Storage>::of(p.z, t, i);
        if (n < kTile) {
          z = tail.filled(z, steps, n);
          for (int64_t s = 0; s < steps; ++s)  // fill the unused lanes with k, so that they add 0
            for (int j = n; j < kTile; ++j) tail.rows[s][j] = store_<Storage>(lanes.row(kMean)[j]);
        }
        for (int j = 0; j < kTile; j += kGroupSize<S>) {
          const Group<S> k = lanes.group(kMean, j);
          Group<S> sum = splat_group(S(0)), squares = sum;
          for (int64_t s = 0; s < steps; ++s) {
            z.prefetch_group(s, j);
            const Group<S> d = z.group(s, j) - k;
            sum = sum + d;
            squares = squares + d * d;
          }
          sums.add(0, j, sum);
          sums.add(1, j, squares);
        }
      }
    }
    sums.flush();
  }
}

template <class Storage>
void bn_forward_blocks(const BnForwardParams& p, const void* table, int64_t first, int64_t last) {
  using S = State<Storage>;
  const Recurrence<S> neuron(p.neuron);
  const int states = p.spiking ? neuron.states() : 0;
  const int64_t kept = checkpoint_count(p.T);
  const Sink<Storage> out = sink_of<Storage>(p.out, p.T, p.M), sum = sink_of<Storage>(p.sum, p.T, p.M);
  // The spikes are the output, in the type in which they are computed.
  const bool direct = std::is_same_v<Storage, S> && p.spiking && !connects_after(p.connect) && !p.bits;
  uint8_t* const bits = static_cast<uint8_t*>(p.bits);
  NormLanes<S> lanes(p.channels, table, kBias + 1);
  LearntLanes<S> learnt(p.neuron.learnt, neuron.learnt(), neuron.own_learnt());
  Scratch<S, 2> scratch(p.T);
  S *const y = scratch[0], *const a = scratch[1];
  alignas(64) S v[kMostStates][kTile];
  Padded<Storage> z_tail, shortcut_tail, out_tail, sum_tail;

  const int64_t end = last * kBlock < p.M ? last * kBlock : p.M;
  for (int64_t i = first * kBlock; i < end; i += kTile) {
    lanes.move_to(i);
    const int n = tile_size(i, end);
    ForwardTile<S> tile = {};
    tile.learnt = learnt.at(i);
    tile.x = {y, kTile, 1};
    for (int k = 0; k < states; ++k) tile.before[k] = neuron.at_rest(k), tile.after[k] = v[k];
    for (int64_t t = 0; t < p.T; t += kChunk) {
      const int64_t steps = t + kChunk < p.T ? kChunk : p.T - t;
      Source<Storage> z = Source<Storage>::of(p.z, t, i), shortcut = source_at<Storage>(p.shortcut, t, i);
      const Sink<Storage> out_here = from(out, t, i);
      Sink<Storage> sink = out_here;
      if (n < kTile) {
        z = z_tail.filled(z, steps, n);
        shortcut = shortcut_tail.filled(shortcut, steps, n);
        sink = out_tail.sink(out_here);
      }
      normalise(steps, z, shortcut, adds_before(p.connect) && p.shortcut.data, lanes, y);
      if (p.sum) {
        const Sink<Storage> here = from(sum, t, i);
        store_rounded(steps, y, n < kTile ? sum_tail.sink(here) : here);
        if (n < kTile) sum_tail.copy_to(here, steps, n);
      }
      if (p.spiking) {
        tile.steps = steps;
        tile.s = {a, kTile, false};
        if constexpr (std::is_same_v<Storage, S>)
          if (direct) tile.s = sink;
        neuron.forward(tile);
        for (int k = 0; k < states; ++k) {
          tile.before[k] = {v[k], 0, 1};
          if (p.checkpoints && t + kChunk < p.T)
            memcpy(static_cast<S*>(p.checkpoints) + (k * kept + t / kChunk) * p.M + i, v[k], n * sizeof(S));
        }
      }
      if (!direct) connect(p.connect, steps, p.spiking ? a : y, shortcut, sink);
      if (n < kTile) out_tail.copy_to(out_here, steps, n);
      if (bits) pack_spikes(steps, a, bits + (t * p.M + i) / 8, p.M / 8, n);
    }
    for (int k = 0; p.v && k < states; ++k) memcpy(static_cast<S*>(p.v) + k * p.M + i, v[k], n * sizeof(S));
  }
  if (out.streaming || sum.streaming) finish_streaming();
}

// Computes dL/dy of a tile, chunk by chunk from the last time-step to the first, and recomputes all values it needs.
template <class Storage>
class GradY {
 public:
  using S = State<Storage>;

  explicit GradY(const BnBackwardParams& p, bool learn = false)
      : p_(p),
        neuron_(p.neuron, learn),
        learnt_(p.neuron.learnt, neuron_.learnt(), neuron_.own_learnt()),
        scratch_(p.T) {}

  GradY(const GradY&) = delete;

  void begin(int64_t i, int n) {
    i_ = i, n_ = n;
    memset(grads_, 0, sizeof grads_);
  }
  int learnt() const { return neuron_.learnt(); }

  // grad_out has rows of whole tiles. The gradients of learnt parameters are added to grad_learnt [parameters, kTile].
  void run(int64_t t, int64_t steps, const Source<Storage>& grad_out, const NormLanes<S>& lanes, double* grad_learnt) {
    z_ = Source<Storage>::of(p_.z, t, i_);
    Source<Storage> shortcut = source_at<Storage>(p_.shortcut, t, i_);
    if (n_ < kTile) {
      z_ = z_tail_.filled(z_, steps, n_);
      shortcut = shortcut_tail_.filled(shortcut, steps, n_);
    }
    Source<S> grad_a = {dy_, kTile, 1};
    const bool direct = std::is_same_v<Storage, S> && p_.spiking && !connects_after(p_.connect);
    if constexpr (std::is_same_v<Storage, S>)
      if (direct) grad_a = grad_out;
    if (!direct) connect_grad_a(p_.connect, steps, grad_out, shortcut, dy_);
    if (p_.connect == Connect::Sum) {
      each_group<S>(steps, [&](int64_t s, int j) {
        shortcut.prefetch_group(s, j);
        shortcut.group(s, j).write_to(y_ + s * kTile + j);
      });
    } else {
      normalise(steps, z_, shortcut, p_.connect == Connect::AddBefore, lanes, y_);
    }
    if (!p_.spiking) return;
    BackwardTile<S> tile = {};
    tile.steps = steps;
    tile.x = {y_, kTile, 1};
    set_before<S>(tile.before, neuron_, {}, p_.checkpoints, p_.T, t, p_.M, i_);
    if (n_ < kTile) before_tail_.fill(tile.before, neuron_.states(), 1, n_);
    tile.grad_s = grad_a;
    for (int k = 0; k < neuron_.states(); ++k) {
      tile.grad_after[k] = {grads_[k], 0, 1};
      tile.grad_before[k] = grads_[k];
      tile.h[k] = scratch_[kFirst + k];
    }
    tile.grad_x = {dy_, kTile, false};
    tile.g = sigma_;
    tile.spikes = p_.connect == Connect::And || p_.connect == Connect::Iand ? spikes_ : nullptr;
    tile.learnt = learnt_.at(i_);
    tile.grad_learnt = grad_learnt;
    neuron_.backward(tile);
  }

  // Connect::Sum: adds the other gradient of u (data null: none) to dL/dy, rounds the sum, and stores it.
  void add_to_dy(int64_t steps, const Source<Storage>& other, const Sink<Storage>& to) {
    if (other.data) {
      each_group<S>(steps, [&](int64_t s, int j) {
        other.prefetch_group(s, j);
        (dy(s, j) + other.group(s, j)).write_to(dy_ + s * kTile + j);
      });
    }
    store_rounded(steps, dy_, to);
  }
  Group<S> dy(int64_t t, int i) const { return Group<S>::read_from(dy_ + t * kTile + i); }
  const Source<Storage>& z() const { return z_; }
  // dL/dS of the connections for which it depends on recomputed values.
  void shortcut_gradient(int64_t steps, const Source<Storage>& grad_out, const Sink<Storage>& to) const {
    if (p_.connect == Connect::AddBefore) {
      each_group<S>(steps, [&](int64_t t, int i) { to.put(t, i, dy(t, i)); });
    } else {
      connect_grad_shortcut(p_.connect, steps, grad_out, p_.spiking ? spikes_ : y_, to);
    }
  }

 private:
  static constexpr int kFirst = 4;  // of the scratch arrays for the states
  const BnBackwardParams& p_;
  const Recurrence<S> neuron_;
  LearntLanes<S> learnt_;
  int64_t i_ = 0;
  int n_ = 0;
  Source<Storage> z_ = {};
  Scratch<S, kFirst + kMostStates> scratch_;
  // dy_ holds dL/dA (unless dL/dA is dL/dout in memory), then dL/dy.
  S *const y_ = scratch_[0], *const dy_ = scratch_[1], *const sigma_ = scratch_[2], *const spikes_ = scratch_[3];
  alignas(64) S grads_[kMostStates][kTile];
  Padded<Storage> z_tail_, shortcut_tail_;
  PaddedStates<S> before_tail_;
};

// Sums of dL/dy and of dL/dy (z - mean) for each channel, as [2, C] doubles per slab.
template <class Storage>
void bn_reduce_slabs(const BnReduceParams& p, const void* table, int64_t slabs, int64_t first, int64_t last) {
  using S = State<Storage>;
  const bool per_channel = p.learnt_sums != nullptr, learn = per_channel || p.learnt_partials;
  GradY<Storage> grad(p, learn);
  const int64_t C = p.channels.count;
  const Sink<Storage> grad_sum = sink_of<Storage>(p.grad_sum, p.T, p.M);
  const Sink<S> grad_y = sink_of<S>(p.grad_y, p.T, p.M);
  Padded<Storage> out_tail, skip_tail, sums_here;
  Padded<S> y_tail;
  for (int64_t slab = first; slab < last; ++slab) {
    const auto [begin, end] = Slab::of(slab, slabs, p.M);
    NormLanes<S> lanes(p.channels, table, kBias + 1);
    double* const to = static_cast<double*>(p.partials) + slab * 2 * C;
    double* const learnt = per_channel ? static_cast<double*>(p.learnt_workspace) + slab * 2 * C : nullptr;
    ChannelSums<S, kNormRows, 4> sums(lanes, C, {{to, to + C, learnt, learnt ? learnt + C : nullptr}});
    double grad_learnt[kMostLearnt * kTile] = {};
    for (int64_t i = begin; i < end; i += kTile) {
      sums.move_to(i);
      const int n = tile_size(i, end);
      grad.begin(i, n);
      for (int64_t t = (p.T - 1) / kChunk * kChunk; t >= 0; t -= kChunk) {
        const int64_t steps = t + kChunk < p.T ? kChunk : p.T - t;
        Source<Storage> grad_out = Source<Storage>::of(p.grad_out, t, i);
        if (n < kTile) grad_out = out_tail.filled(grad_out, steps, n);
        Source<Storage> skip = source_at<Storage>(p.grad_skip, t, i);
        if (n < kTile) skip = skip_tail.filled(skip, steps, n);
        const Sink<Storage> far = from(grad_sum, t, i), near = sums_here.sink(far);
        if (p.grad_sum && p.connect != Connect::Sum) {
          add_gradients(steps, grad_out, skip, near, n < kTile ? Sink<Storage>{} : far);
          if (n < kTile) sums_here.copy_to(far, steps, n);
          grad_out = {near.data, near.row_stride, 1};
        }
        grad.run(t, steps, grad_out, lanes, learn ? grad_learnt : nullptr);
        if (p.connect == Connect::Sum) {
          grad.add_to_dy(steps, skip, n < kTile ? near : far);
          if (n < kTile) sums_here.copy_to(far, steps, n);
        }
        const Source<Storage> z = grad.z();
        const Sink<S> y_far = from(grad_y, t, i), y_here = n < kTile ? y_tail.sink(y_far) : y_far;
        for (int j = 0; j < kTile; j += kGroupSize<S>) {
          const Group<S> mean = lanes.group(kMean, j);
          Group<S> sum = splat_group(S(0)), products = sum;
          for (int64_t s = 0; s < steps; ++s) {
            const Group<S> dy = grad.dy(s, j);
            if (y_here.data) y_here.put(s, j, dy);
            sum = sum + dy;
            products = products + dy * (z.group(s, j) - mean);
          }
          sums.add(0, j, sum);
          sums.add(1, j, products);
        }
        if (n < kTile) y_tail.copy_to(y_far, steps, n);
      }
      if (per_channel) {
        for (int q = 0; q < kMostLearnt; ++q) sums.add(2 + q, grad_learnt + q * kTile);
        memset(grad_learnt, 0, sizeof grad_learnt);
      }
    }
    sums.flush();
    if (p.learnt_partials) {
      double sum = 0;
      for (int j = 0; j < kTile; ++j) sum += grad_learnt[j];
      p.learnt_partials[slab] = sum;
    }
  }
  if (grad_sum.streaming || grad_y.streaming) finish_streaming();
}

template <class Storage>
void bn_apply_blocks(const BnApplyParams& p, const void* table, int64_t first, int64_t last) {
  using S = State<Storage>;
  const Sink<Storage> grad_z = sink_of<Storage>(p.grad_z, p.still ? 1 : p.T, p.M);
  const Sink<Storage> grad_shortcut = sink_of<Storage>(p.grad_shortcut, p.T, p.M);
  NormLanes<S> lanes(p.channels, table, kNormRows);
  GradY<Storage> grad(p);
  Padded<Storage> out_tail, z_tail, shortcut_tail;

  const int64_t end = last * kBlock < p.M ? last * kBlock : p.M;
  for (int64_t i = first * kBlock; i < end; i += kTile) {
    lanes.move_to(i);
    const int n = tile_size(i, end);
    grad.begin(i, n);
    alignas(64) S over_time[kTile] = {};  // still: the sum of dL/dy
    for (int64_t t = (p.T - 1) / kChunk * kChunk; t >= 0; t -= kChunk) {
      const int64_t steps = t + kChunk < p.T ? kChunk : p.T - t;
      Source<Storage> grad_out = Source<Storage>::of(p.grad_out, t, i);
      if (n < kTile) grad_out = out_tail.filled(grad_out, steps, n);
      grad.run(t, steps, grad_out, lanes, nullptr);
      if (grad_shortcut.data) {
        const Sink<Storage> here = from(grad_shortcut, t, i);
        grad.shortcut_gradient(steps, grad_out, n < kTile ? shortcut_tail.sink(here) : here);
        if (n < kTile) shortcut_tail.copy_to(here, steps, n);
      }
      if (p.still) {
        for (int j = 0; j < kTile; j += kGroupSize<S>) {
          Group<S> sum = Group<S>::read_from(over_time + j);
          for (int64_t s = steps - 1; s >= 0; --s) sum = sum + grad.dy(s, j);
          sum.write_to(over_time + j);
        }
        if (t > 0) continue;
      }
      const int64_t rows = p.still ? 1 : steps;
      const Sink<Storage> here = from(grad_z, p.still ? 0 : t, i), to = n < kTile ? z_tail.sink(here) : here;
      const Source<Storage> z = grad.z();
      each_column<S>(rows, [&](int j) {
        return [&, j, z, to, grad_z = NormGrad<S>(lanes, j)](int64_t s) {
          const Group<S> dy = p.still ? Group<S>::read_from(over_time + j) : grad.dy(s, j);
          to.put(s, j, grad_z(dy, z.group(s, j)));
        };
      });
      if (n < kTile) z_tail.copy_to(here, rows, n);
    }
  }
  if (grad_z.streaming || grad_shortcut.streaming) finish_streaming();
}

SEWSNN_END
