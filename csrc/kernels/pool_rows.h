// How the CPU kernels of the stem store a row of an image: its even columns next to each other, and its odd columns
// next to each other. Window j then covers odd j - 1, even j and odd j, so vectors serve all channels and windows of a
// row.
#pragma once

#include <cmath>
#include <new>

#include "core/bn_params.h"
#include "kernels/cpu_tiles.h"
#include "kernels/pool_window.h"

SEWSNN_BEGIN

constexpr int64_t kPoolChannels = 32;  // channels per block if channels_last: two cache lines of float, one of bfloat16

// The spikes of a neuron: bit t is time-step t.
using Train = uint16_t;
static_assert(kChunk <= 16, "a spike train is one number");
typedef Train Trains __attribute__((vector_size(kVectorBytes)));
constexpr int kTrains = kVectorBytes / int(sizeof(Train));
template <class S>
struct TrainsOf {
  typedef Train type __attribute__((vector_size(kLanes<S> * int(sizeof(Train)))));
};
// A mask for the lanes of a vector of S.
template <class S>
using Mask = decltype(Vector<S>{} < Vector<S>{});

// An array that is initialised with zeros.
template <class T>
class Array {
 public:
  explicit Array(int64_t n) : data_(static_cast<T*>(::operator new(size_t(n) * sizeof(T), std::align_val_t(64)))) {
    memset(static_cast<void*>(data_), 0, size_t(n) * sizeof(T));
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { ::operator delete(data_, std::align_val_t(64)); }
  operator T*() const { return data_; }

 private:
  T* const data_;
};

// The shape and the position of a block: `inner` channels of one image.
struct PoolBlock {
  int64_t image, channel, inner;
  int64_t height, width, out_height, out_width;
  int64_t column;                  // distance of columns, in z and in out
  int64_t z, z_row;                // offset of the first number; distance of rows
  int64_t out, out_row, out_step;  // the same for out; distance of time-steps
  int64_t n, padded;               // windows of a row times channels; rounded up to whole tiles

  // The number of odd columns may be one less than the number of windows.
  int64_t odd_n() const { return width / 2 * inner; }
  // Size of an array with `padded` entries and one more window.
  int64_t room() const { return padded + kTile; }
};
static_assert(kPoolChannels <= kTile, "room for a window more is room for a tile more");

inline int64_t pool_blocks_per_image(const PoolParams& p) {
  return p.channels_last ? (p.channels + kPoolChannels - 1) / kPoolChannels : p.channels;
}
inline int64_t pool_blocks(const PoolParams& p) { return p.images * pool_blocks_per_image(p); }

inline PoolBlock pool_block(const PoolParams& p, int64_t index) {
  PoolBlock b;
  const int64_t per_image = pool_blocks_per_image(p), size = p.channels_last ? kPoolChannels : 1;
  b.image = index / per_image;
  b.channel = index % per_image * size;
  b.inner = p.channels - b.channel < size ? p.channels - b.channel : size;
  b.height = p.height, b.width = p.width, b.out_height = p.out_height(), b.out_width = p.out_width();
  b.column = p.channels_last ? p.channels : 1;
  const int64_t plane = p.height * p.width, out_plane = b.out_height * b.out_width;
  b.z = b.image * p.channels * plane + b.channel * (p.channels_last ? 1 : plane);
  b.z_row = p.width * b.column;
  b.out = b.image * p.channels * out_plane + b.channel * (p.channels_last ? 1 : out_plane);
  b.out_row = b.out_width * b.column;
  b.out_step = p.images * p.channels * out_plane;
  b.n = b.out_width * b.inner;
  b.padded = (b.n + kTile - 1) / kTile * kTile;
  return b;
}

// ---- between memory and scratch: n neighbours, then rows of `columns` runs of `inner` neighbours

template <class Storage>
void read_run(const Storage* from, State<Storage>* to, int64_t n) {
  constexpr int lanes = kLanes<State<Storage>>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) write(to + i, load_vector(from + i));
  for (; i < n; ++i) to[i] = load_(from[i]);
}

template <class Storage>
void write_run(const State<Storage>* from, Storage* to, int64_t n) {
  constexpr int lanes = kLanes<State<Storage>>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store_vector(to + i, read<Vector<State<Storage>>>(from + i));
  for (; i < n; ++i) to[i] = store_<Storage>(from[i]);
}

// Calls f(offset in the tensor, offset in the scratch, length) for each run of a row of windows.
template <class F>
void for_runs(const PoolBlock& b, const F& f) {
  if (b.inner == b.column) return f(0, 0, b.n);
  for (int64_t j = 0; j < b.out_width; ++j) f(j * b.column, j * b.inner, b.inner);
}

template <class Storage>
void read_split(const PoolBlock& b, const Storage* from, State<Storage>* even, State<Storage>* odd) {
  if (b.column == 1) {
    const int64_t pairs = b.width / 2;
    for (int64_t j = 0; j < pairs; ++j) even[j] = load_(from[2 * j]), odd[j] = load_(from[2 * j + 1]);
    if (b.width % 2) even[pairs] = load_(from[b.width - 1]);
    return;
  }
  for (int64_t x = 0; x < b.width; ++x) read_run(from + x * b.column, (x % 2 ? odd : even) + x / 2 * b.inner, b.inner);
}

template <class Storage>
void write_split(const PoolBlock& b, const State<Storage>* even, const State<Storage>* odd, Storage* to) {
  if (b.column == 1) {
    const int64_t pairs = b.width / 2;
    for (int64_t j = 0; j < pairs; ++j) to[2 * j] = store_<Storage>(even[j]), to[2 * j + 1] = store_<Storage>(odd[j]);
    if (b.width % 2) to[b.width - 1] = store_<Storage>(even[pairs]);
    return;
  }
  for (int64_t x = 0; x < b.width; ++x) write_run((x % 2 ? odd : even) + x / 2 * b.inner, to + x * b.column, b.inner);
}

// ---- numbers of the channels, repeated over a tile, which may begin at any channel

template <class S>
struct PoolNorm {
  static constexpr int64_t size = kTile + kPoolChannels;
  alignas(64) S mean[size], invstd[size], scale[size], bias[size];
  alignas(64) S grad_mean[size], grad_xhat[size];  // for backward: the means that are subtracted from dL/dy

  void set(const Norm& norm, const PoolBlock& b, const S* sums, int64_t channels, S count) {
    const auto at = [&](const void* numbers, int64_t c, S otherwise) {
      return numbers ? static_cast<const S*>(numbers)[b.channel + c] : otherwise;
    };
    for (int64_t i = 0; i < size; ++i) {
      const int64_t c = i % b.inner;
      mean[i] = at(norm.mean, c, S(0));
      invstd[i] = norm.mean ? S(1) / std::sqrt(at(norm.var, c, S(1)) + S(norm.eps)) : S(1);
      scale[i] = norm.mean && norm.weight ? at(norm.weight, c, S(1)) * invstd[i] : invstd[i];
      bias[i] = norm.mean ? at(norm.bias, c, S(0)) : S(0);
      grad_mean[i] = at(sums, c, S(0)) / count;
      grad_xhat[i] = at(sums ? sums + channels : nullptr, c, S(0)) / count;
    }
  }
};

SEWSNN_END
