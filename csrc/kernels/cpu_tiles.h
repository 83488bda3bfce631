// Tiles: the pieces in which the CPU kernels work. A tile is some neighbouring neurons and some time-steps. Its loops
// run over groups of vectors, and keep the state of a group in registers over all these time-steps. Choices about
// memory cost one branch per group.
#pragma once

#include "core/vector.h"

SEWSNN_BEGIN

constexpr int kTile = 64;        // neurons
constexpr int kGroup = 4;        // vectors that have their state in registers at the same time
constexpr int kPrefetch = 2048;  // bytes to prefetch ahead in each row that is read

// Results of this size and more do not stay in any cache until a later op uses them.
constexpr int64_t kStreamingBytes = int64_t(8) << 20;

template <class S>
constexpr int kGroupSize = kGroup * kLanes<S>;  // neurons

template <class S>
struct Group {
  Vector<S> at[kGroup];

  static Group read_from(const S* p) {
    Group g;
    for (int k = 0; k < kGroup; ++k) g.at[k] = read<Vector<S>>(p + k * kLanes<S>);
    return g;
  }
  void write_to(S* p) const {
    for (int k = 0; k < kGroup; ++k) write(p + k * kLanes<S>, at[k]);
  }
};

// The rows of an operand, one per time-step, from the tile's first neuron on.
template <class T>
struct Source {
  using S = State<T>;
  const T* data;
  int64_t row_stride;
  int64_t step;  // 1, or 0: one number for all neurons

  static Source of(const Rows& rows, int64_t t, int64_t i) {
    return {static_cast<const T*>(rows.data) + t * rows.row_stride + i * rows.step, rows.row_stride, rows.step};
  }
  Group<S> group(int64_t t, int i) const {
    const T* const p = data + t * row_stride;
    Group<S> g;
    if (step) {
      for (int k = 0; k < kGroup; ++k) g.at[k] = load_vector(p + i + k * kLanes<S>);
    } else {
      for (int k = 0; k < kGroup; ++k) g.at[k] = splat<Vector<S>>(load_(*p));
    }
    return g;
  }
  void prefetch_group(int64_t t, int i) const {
    const auto p = reinterpret_cast<uintptr_t>(data + t * row_stride + i);
    for (int line = 0; line < kGroupSize<S> * int(sizeof(T)); line += 64)
      prefetch(reinterpret_cast<const void*>(p + kPrefetch + line));
  }
};

template <class T>
struct Sink {
  using S = State<T>;
  T* data;  // null: not requested
  int64_t row_stride;
  bool streaming;

  void put(int64_t t, int i, const Group<S>& g) const {
    T* const p = data + t * row_stride + i;
    if (streaming) {
      for (int k = 0; k < kGroup; ++k) stream_vector(p + k * kLanes<S>, g.at[k]);
    } else {
      for (int k = 0; k < kGroup; ++k) store_vector(p + k * kLanes<S>, g.at[k]);
    }
  }
};

SEWSNN_END
