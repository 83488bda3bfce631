// The inner loops of batch norm + neuron + connection on the CPU, before and after the loops of the neuron
// (cpu_tiles.h). All of them work on scratch arrays [time-step][neuron] in the first-level cache.
#pragma once

#include "core/bn_params.h"
#include "kernels/multistep_cpu.h"

SEWSNN_BEGIN

// The rows of a channel table [kNormRows, C]: the numbers of each channel that a call needs.
enum NormRow : int { kMean, kScale, kBias, kMeanGrad, kMeanGradU, kNormRows };

// The rows of the table, with one number for each neuron of a tile.
template <class S>
class NormLanes {
 public:
  NormLanes(const Channels& channels, const void* table, int rows)
      : channels_(channels), table_(static_cast<const S*>(table)), rows_(rows) {}

  const S* row(int r) const { return direct() ? table_ + r * channels_.count + place_.channel : lanes_[r]; }
  // The numbers of a row for the group that begins at lane i.
  Group<S> group(int r, int i) const { return Group<S>::read_from(row(r) + i); }

  // Whether the tile at neuron i has other channels than the current tile.
  bool differs(int64_t i) const { return !(place_ == place(i)); }
  void move_to(int64_t i) {
    if (!differs(i)) return;
    place_ = place(i);
    if (direct()) return;
    each([&](int lane, int n, int64_t c) {
      for (int r = 0; r < rows_; ++r)
        for (int i = lane; i < lane + n; ++i) lanes_[r][i] = table_[r * channels_.count + c];
    });
  }

  // The sums of the tile's channels, if they are in memory lane by lane; else null, and scatter() adds to them.
  double* in_place(double* sums) const { return direct() ? sums + place_.channel : nullptr; }
  void scatter(const double* lanes, double* sums) const {
    each([&](int lane, int n, int64_t c) { sums[c] += sum(lanes + lane, n); });
  }

 private:
  // The channel of a tile's first neuron, and the offset of this neuron in the channel's plane. The offset is 0 if the
  // whole tile lies in one plane, because it does not matter then.
  struct Place {
    int64_t channel, offset;
    bool operator==(const Place& other) const { return channel == other.channel && offset == other.offset; }
  };
  Place place(int64_t i) const {
    const int64_t offset = i % channels_.inner;
    return {i / channels_.inner % channels_.count, offset + kTile <= channels_.inner ? 0 : offset};
  }
  // Whether neighbouring neurons are also neighbours in the table.
  bool direct() const { return channels_.inner == 1 && channels_.count % kTile == 0; }
  // Calls f(lane, n, c) for each run of n neighbouring lanes from `lane` on that belong to channel c.
  template <class F>
  void each(const F& f) const {
    int64_t c = place_.channel, left = channels_.inner - place_.offset;
    for (int lane = 0, n; lane < kTile; lane += n) {
      n = int(left < kTile - lane ? left : kTile - lane);
      f(lane, n, c);
      left = channels_.inner;
      if (++c == channels_.count) c = 0;
    }
  }
  // Always four partial sums, so that every instruction set gives the same bits.
  static double sum(const double* p, int n) {
    double s[4] = {};
    int i = 0;
    for (; i + 4 <= n; i += 4)
      for (int j = 0; j < 4; ++j) s[j] += p[i + j];
    for (; i < n; ++i) s[0] += p[i];
    return (s[0] + s[1]) + (s[2] + s[3]);
  }

  const Channels channels_;
  const S* const table_;
  const int rows_;
  Place place_ = {-1, 0};
  alignas(64) S lanes_[kNormRows][kTile];
};

// Two sums over the neurons of each channel, in double, in an order that only the tiles determine. They accumulate in
// the lanes of the tile until the lanes belong to other channels.
template <class S>
class ChannelSums {
 public:
  // sums: [2, C]
  ChannelSums(NormLanes<S>& lanes, int64_t channels, double* sums) : lanes_(lanes), sums_(sums), channels_(channels) {
    memset(sums, 0, 2 * channels * sizeof(double));
  }
  void move_to(int64_t i) {
    if (!lanes_.differs(i)) return;
    flush();
    lanes_.move_to(i);
    for (int k = 0; k < 2; ++k) {
      double* const place = lanes_.in_place(sums_ + k * channels_);
      at_[k] = place ? place : own_[k];
    }
  }
  void add(int k, int i, const Group<S>& group) {
    for (int j = 0; j < kGroup; ++j) {
      double* const at = at_[k] + i + j * kLanes<S>;
      write(at, read<Doubles<S>>(at) + __builtin_convertvector(group.at[j], Doubles<S>));
    }
  }
  void flush() {
    if (at_[0] != own_[0]) return;
    for (int k = 0; k < 2; ++k) lanes_.scatter(own_[k], sums_ + k * channels_);
    memset(own_, 0, sizeof own_);
  }

 private:
  NormLanes<S>& lanes_;
  double* const sums_;
  const int64_t channels_;
  double* at_[2] = {};
  alignas(64) double own_[2][kTile] = {};
};

template <class S>
Group<S> operator*(const Group<S>& a, const Group<S>& b) {
  Group<S> r;
  for (int k = 0; k < kGroup; ++k) r.at[k] = a.at[k] * b.at[k];
  return r;
}
template <class S>
Group<S> operator+(const Group<S>& a, const Group<S>& b) {
  Group<S> r;
  for (int k = 0; k < kGroup; ++k) r.at[k] = a.at[k] + b.at[k];
  return r;
}
template <class S>
Group<S> operator-(const Group<S>& a, const Group<S>& b) {
  Group<S> r;
  for (int k = 0; k < kGroup; ++k) r.at[k] = a.at[k] - b.at[k];
  return r;
}
template <class S>
Group<S> splat_group(S s) {
  Group<S> r;
  for (int k = 0; k < kGroup; ++k) r.at[k] = splat<Vector<S>>(s);
  return r;
}

// Calls f(t, i) for every group of neurons and every time-step of a tile.
template <class S, class F>
inline void each_group(int64_t steps, const F& f) {
  for (int i = 0; i < kTile; i += kGroupSize<S>)
    for (int64_t t = 0; t < steps; ++t) f(t, i);
}

// f(i) returns a function of t for the group at i. All time-steps of the group use it, so its variables stay in
// registers.
template <class S, class F>
inline void each_column(int64_t steps, const F& f) {
  for (int i = 0; i < kTile; i += kGroupSize<S>) {
    const auto at = f(i);
    for (int64_t t = 0; t < steps; ++t) at(t);
  }
}

// y = (z - mean) scale + bias, plus the shortcut if it is added before the neuron.
template <class Storage>
void normalise(int64_t steps, const Source<Storage>& z, const Source<Storage>& shortcut, bool add_before,
               const NormLanes<State<Storage>>& lanes, State<Storage>* y) {
  using S = State<Storage>;
  const auto run = [&](auto add) {
    each_column<S>(steps, [&](int i) {
      return
          [=, mean = lanes.group(kMean, i), scale = lanes.group(kScale, i), bias = lanes.group(kBias, i)](int64_t t) {
            z.prefetch_group(t, i);
            Group<S> g = (z.group(t, i) - mean) * scale + bias;
            if constexpr (decltype(add)::value) {
              shortcut.prefetch_group(t, i);
              g = g + shortcut.group(t, i);
            }
            g.write_to(y + t * kTile + i);
          };
    });
  };
  with_bool(add_before, run);
}

// Whether the shortcut is joined with the output of the neuron.
inline bool connects_after(Connect g) { return g == Connect::Add || g == Connect::And || g == Connect::Iand; }

// out = g(A, S)
template <class Storage>
void connect(Connect g, int64_t steps, const State<Storage>* a, const Source<Storage>& shortcut,
             const Sink<Storage>& out) {
  using S = State<Storage>;
  const auto run = [&](auto join) {
    each_group<S>(steps, [&](int64_t t, int i) { out.put(t, i, join(Group<S>::read_from(a + t * kTile + i), t, i)); });
  };
  const auto s = [&](int64_t t, int i) {
    shortcut.prefetch_group(t, i);
    return shortcut.group(t, i);
  };
  switch (g) {
    case Connect::Add: return run([&](const Group<S>& a, int64_t t, int i) { return a + s(t, i); });
    case Connect::And: return run([&](const Group<S>& a, int64_t t, int i) { return a * s(t, i); });
    case Connect::Iand:
      return run([&](const Group<S>& a, int64_t t, int i) { return s(t, i) * (splat_group(S(1)) - a); });
    case Connect::None:
    case Connect::AddBefore: break;
  }
  run([](const Group<S>& a, int64_t, int) { return a; });
}

// dL/dA from dL/dout.
template <class Storage>
void connect_grad_a(Connect g, int64_t steps, const Source<Storage>& grad_out, const Source<Storage>& shortcut,
                    State<Storage>* grad_a) {
  using S = State<Storage>;
  const auto run = [&](auto gate) {
    each_group<S>(steps, [&](int64_t t, int i) {
      grad_out.prefetch_group(t, i);
      gate(grad_out.group(t, i), t, i).write_to(grad_a + t * kTile + i);
    });
  };
  const auto gated = [&](const Group<S>& go, int64_t t, int i) {
    shortcut.prefetch_group(t, i);
    return go * shortcut.group(t, i);
  };
  if (g == Connect::And) return run(gated);
  if (g == Connect::Iand)
    return run([&](const Group<S>& go, int64_t t, int i) { return splat_group(S(0)) - gated(go, t, i); });
  run([](const Group<S>& go, int64_t, int) { return go; });
}

// dL/dS of AND and IAND: dL/dout A and dL/dout (1 - A). `potential` is h; without a neuron it is A itself.
template <class Storage>
void connect_grad_shortcut(Connect g, int64_t steps, const Source<Storage>& grad_out, const State<Storage>* potential,
                           const FireReset<State<Storage>>* fire, const Sink<Storage>& grad_shortcut) {
  using S = State<Storage>;
  each_group<S>(steps, [&](int64_t t, int i) {
    Group<S> a = Group<S>::read_from(potential + t * kTile + i);
    if (fire)
      for (int k = 0; k < kGroup; ++k) a.at[k] = select(fire->fires(a.at[k]), splat<Vector<S>>(1), Vector<S>{});
    if (g == Connect::Iand) a = splat_group(S(1)) - a;
    grad_shortcut.put(t, i, grad_out.group(t, i) * a);
  });
}

// grad_out + grad_skip, rounded to the storage type, for reduce (in the cache) and for apply (in memory).
template <class Storage>
void add_gradients(int64_t steps, const Source<Storage>& a, const Source<Storage>& b, const Sink<Storage>& near,
                   const Sink<Storage>& far) {
  using S = State<Storage>;
  each_group<S>(steps, [&](int64_t t, int i) {
    a.prefetch_group(t, i);
    b.prefetch_group(t, i);
    const Group<S> sum = a.group(t, i) + b.group(t, i);
    near.put(t, i, sum);
    if (far.data) far.put(t, i, sum);
  });
}

// dL/dz = scale (dL/dy - mean(dL/dy) - (z - mean) mean(dL/dy xhat) / sqrt(var + eps))
template <class S>
struct NormGrad {
  Group<S> mean, scale, mean_grad, mean_grad_u;

  NormGrad(const NormLanes<S>& lanes, int i)
      : mean(lanes.group(kMean, i)),
        scale(lanes.group(kScale, i)),
        mean_grad(lanes.group(kMeanGrad, i)),
        mean_grad_u(lanes.group(kMeanGradU, i)) {}
  Group<S> operator()(const Group<S>& dy, const Group<S>& z) const {
    return scale * ((dy - mean_grad) - (z - mean) * mean_grad_u);
  }
};

// Packs spikes as bits: the spike of neuron i is bit i % 8 of byte i / 8.
template <class S>
void pack_spikes(int64_t steps, const S* a, uint8_t* bits, int64_t row_bytes, int n) {
  for (int64_t t = 0; t < steps; ++t)
    for (int i = 0; i < n; i += 8) {
      uint64_t bytes = 0;  // one spike in each byte
      for (int j = 0; j < 8; ++j) bytes |= uint64_t(a[t * kTile + i + j] != S(0)) << (8 * j);
      bits[t * row_bytes + i / 8] = uint8_t(bytes * 0x0102040810204080u >> 56);  // bit 8 j to bit 56 + j
    }
}

SEWSNN_END
