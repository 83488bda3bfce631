// Numbers of the channels for the neurons of a tile, and sums over the neurons of a channel.
#pragma once

#include "kernels/recurrence_cpu.h"

SEWSNN_BEGIN

// Some rows of a table [Most, channels], with one number for each neuron of a tile.
template <class S, int Most>
class ChannelLanes {
 public:
  ChannelLanes(const Channels& channels, const void* table, int rows)
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
  alignas(64) S lanes_[Most][kTile];
};

// Sums over the neurons of each channel, in double, in an order that only the tiles determine. They accumulate in the
// lanes of the tile until the lanes belong to other channels.
template <class S, int Most, int Count = 2>
class ChannelSums {
 public:
  // sums: [C] each, or null
  ChannelSums(ChannelLanes<S, Most>& lanes, int64_t channels, const Numbers<double*, Count>& sums)
      : lanes_(lanes), sums_(sums) {
    for (int k = 0; k < Count; ++k)
      if (sums[k]) memset(sums[k], 0, channels * sizeof(double));
  }
  void move_to(int64_t i) {
    if (!lanes_.differs(i)) return;
    flush();
    lanes_.move_to(i);
    for (int k = 0; k < Count; ++k) {
      double* const place = sums_[k] ? lanes_.in_place(sums_[k]) : nullptr;
      at_[k] = place ? place : own_[k];
    }
  }
  void add(int k, int i, const Group<S>& group) {
    for (int j = 0; j < kGroup; ++j) {
      double* const at = at_[k] + i + j * kLanes<S>;
      write(at, read<Doubles<S>>(at) + __builtin_convertvector(group.at[j], Doubles<S>));
    }
  }
  void add(int k, const double* numbers) {
    for (int i = 0; i < kTile; ++i) at_[k][i] += numbers[i];
  }
  void flush() {
    for (int k = 0; k < Count; ++k)
      if (sums_[k] && at_[k] == own_[k]) lanes_.scatter(own_[k], sums_[k]);
    memset(own_, 0, sizeof own_);
  }

 private:
  ChannelLanes<S, Most>& lanes_;
  const Numbers<double*, Count> sums_;
  double* at_[Count] = {};
  alignas(64) double own_[Count][kTile] = {};
};

// The learnt parameters of a neuron for the tile at neuron i.
template <class S>
class LearntLanes {
 public:
  LearntLanes(const LearntParams& p, int count, bool own)
      : data_(static_cast<const S*>(p.data)),
        count_(own && p.data ? count : 0),
        lanes_(p.channels.count == 1 ? Channels{1, int64_t(1) << 62} : p.channels, p.data, count_) {}

  LearntTile<S> at(int64_t i) {
    LearntTile<S> tile = {};
    if (count_) lanes_.move_to(i);
    else tile[0] = data_;
    for (int q = 0; q < count_; ++q) tile[q] = lanes_.row(q);
    return tile;
  }

 private:
  const S* const data_;
  const int count_;
  ChannelLanes<S, kMostLearnt> lanes_;
};

SEWSNN_END
