// Max pooling on the CPU (core/max_pool_params.h). With channels_last, a unit of work is a row of the result, and
// vectors hold neighbouring channels. Otherwise it is a plane: vectors hold neighbouring windows of a row, whose
// numbers are first put next to each other; backward adds one gradient after the other at its position. Units are
// independent, so any number of threads gives the same result.
#pragma once

#include "kernels/cpu_tiles.h"
#include "kernels/max_pool_window.h"

SEWSNN_BEGIN

constexpr int kPoolTile = 64;  // windows of a row that are worked on together

// Not those of std: the linker may keep the copy of another instruction set (core/macros.h).
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// A mask for the lanes of a vector of S, and its lanes as bytes.
template <class S>
using PoolMask = decltype(Vector<S>{} < Vector<S>{});
template <class S>
struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(kLanes<S>)));
};

inline int64_t max_pool_units(const MaxPoolParams& p, int64_t rows) {
  return p.images * (p.channels_last ? rows : p.channels);
}

// ---- forward

template <class S>
S sign_of(S weight) {
  return weight > 0 ? S(1) : weight < 0 ? S(-1) : S(0);
}

// The best of `count` numbers, which stand at at[q] + i, and its code, for lanes i. The weight is one for each lane, if
// `Each`, else one for all. f(i, best, code) takes vectors, or one lane each.
template <bool Signed, bool Each, class T, class F>
void best_of_lanes(const T* const* at, const int* code, int count, const State<T>* weight, int64_t n, const F& f) {
  using S = State<T>;
  using V = Vector<S>;
  constexpr int lanes = kLanes<S>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    V sign = splat<V>(S(1));
    if constexpr (Signed) {
      if constexpr (Each) {
        const V w = read<V>(weight + i);
        sign = select(w > 0, splat<V>(S(1)), select(w < 0, splat<V>(S(-1)), V{}));
      } else {
        sign = splat<V>(sign_of(*weight));
      }
    }
    V best = load_vector(at[0] + i);
    PoolMask<S> where = PoolMask<S>{} + code[0];
    for (int q = 1; q < count; ++q) {
      const V next = load_vector(at[q] + i);
      const PoolMask<S> takes =
          Signed ? (sign * next > sign * best) | (sign * next != sign * next) : (next > best) | (next != next);
      best = select(takes, next, best);
      where = (takes & code[q]) | (~takes & where);
    }
    f(i, best, where);
  }
  for (; i < n; ++i) {
    const S sign = Signed ? sign_of(weight[Each ? i : 0]) : S(1);
    S best = load_(at[0][i]);
    int where = code[0];
    for (int q = 1; q < count; ++q) {
      const S next = load_(at[q][i]);
      if (better(next, best, sign)) best = next, where = code[q];
    }
    f(i, best, where);
  }
}

// Stores the lanes of best_of_lanes.
template <class Storage>
struct PoolStore {
  using S = State<Storage>;
  Storage* out;
  uint8_t* positions;  // or null

  void operator()(int64_t i, const Vector<S>& best, const PoolMask<S>& where) const {
    store_vector(out + i, best);
    if (positions) write(positions + i, __builtin_convertvector(where, typename BytesOf<S>::type));
  }
  void operator()(int64_t i, S best, int where) const {
    out[i] = store_<Storage>(best);
    if (positions) positions[i] = uint8_t(where);
  }
};

inline bool is_inside(int64_t at, int64_t size) { return at >= 0 && at < size; }
// Rows and columns outside the image are replaced by the nearest inside, with its code: a number that is there twice
// changes no maximum.
inline int inside(int64_t at, int64_t size) { return int(at < 0 ? 0 : at >= size ? size - 1 : at); }

template <bool Signed, class Storage, class W>
void max_pool_row(const MaxPoolForwardParams& p, const W& w, int64_t unit) {
  using S = State<Storage>;
  const int64_t C = p.channels, rows = p.out_height, width = p.out_width, row = unit % rows;
  const Storage* const image = static_cast<const Storage*>(p.x) + unit / rows * p.height * p.width * C;
  Storage* const out = static_cast<Storage*>(p.out) + unit * width * C;
  uint8_t* const positions = p.positions ? p.positions + unit * width * C : nullptr;
  const int k = w.kernel(), count = k * k;
  const int64_t top = row * w.stride() - w.padding();
  const Storage* at[W::kMost];
  int code[W::kMost];
  for (int64_t j = 0; j < width; ++j) {
    const int64_t left = j * w.stride() - w.padding();
    for (int q = 0; q < count; ++q) {
      const int y = inside(top + q / k, p.height), x = inside(left + q % k, p.width);
      at[q] = image + (int64_t(y) * p.width + x) * C;
      code[q] = int(y - top) * k + int(x - left);
    }
    best_of_lanes<Signed, true>(at, code, count, static_cast<const S*>(p.weight), C,
                                PoolStore<Storage>{out + j * C, positions ? positions + j * C : nullptr});
  }
}

template <bool Signed, class Storage, class W>
void max_pool_plane(const MaxPoolForwardParams& p, const W& w, int64_t unit) {
  using S = State<Storage>;
  const int64_t rows = p.out_height, width = p.out_width;
  const Storage* const plane = static_cast<const Storage*>(p.x) + unit * p.height * p.width;
  const S* const weight = Signed ? static_cast<const S*>(p.weight) + unit % p.channels : nullptr;
  const int k = w.kernel(), count = k * k, stride = w.stride(), padding = w.padding();
  alignas(64) S numbers[W::kMost][kPoolTile], best[kPoolTile];
  memset(numbers, 0, sizeof(S) * kPoolTile * size_t(count));
  alignas(64) uint8_t where[kPoolTile];
  const S* at[W::kMost];
  int code[W::kMost];
  for (int q = 0; q < count; ++q) at[q] = numbers[q];
  // Windows [first, last) do not reach over the sides of the image.
  const int64_t first = smaller((padding + stride - 1) / stride, width);
  const int64_t last = larger(first, p.width + padding < k ? 0 : smaller((p.width + padding - k) / stride + 1, width));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t top = row * stride - padding, to = (unit * rows + row) * width;
    for (int64_t begin = 0; begin < width; begin += kPoolTile) {
      const int64_t end = smaller(begin + kPoolTile, width), from = larger(begin, first), until = smaller(end, last);
      const int n = int(end - begin);
      const auto sides = [&](const auto& f) {
        for (int64_t j = begin; j < end; ++j) {
          if (j == from && from < until) j = until;
          if (j < end) f(j);
        }
      };
      for (int y = 0; y < k; ++y) {
        const int source = inside(top + y, p.height);
        const Storage* const line = plane + source * p.width;
        for (int x = 0; x < k; ++x) {
          S* const into = numbers[y * k + x] - begin;
          const Storage* const column = line + x - padding;
          for (int64_t j = from; j < until; ++j) into[j] = load_(column[j * stride]);
          sides([&](int64_t j) { into[j] = load_(line[inside(j * stride - padding + x, p.width)]); });
          code[y * k + x] = int(source - top) * k + x;
        }
      }
      constexpr int lanes = kLanes<S>;
      best_of_lanes<Signed, false>(at, code, count, weight, (n + lanes - 1) / lanes * lanes, PoolStore<S>{best, where});
      sides([&](int64_t j) {
        uint8_t& at_side = where[j - begin];
        const int64_t left = j * stride - padding;
        at_side = uint8_t(at_side / k * k + inside(left + at_side % k, p.width) - left);
      });
      Storage* const out = static_cast<Storage*>(p.out) + to + begin;
      for (int i = 0; i < n; ++i) out[i] = store_<Storage>(best[i]);
      if (p.positions) memcpy(p.positions + to + begin, where, size_t(n));
    }
  }
}

template <class Storage>
void max_pool_forward(const MaxPoolForwardParams& p, int64_t first, int64_t last) {
  with_window(p.window, [&](auto tag) {
    using W = typename decltype(tag)::type;
    const W w(p.window);
    with_bool(p.weight, [&](auto is_signed) {
      constexpr bool Signed = decltype(is_signed)::value;
      for (int64_t unit = first; unit < last; ++unit) {
        if (p.channels_last) max_pool_row<Signed, Storage>(p, w, unit);
        else max_pool_plane<Signed, Storage>(p, w, unit);
      }
    });
  });
}

// ---- backward

// A window that a number lies in: its gradients, its positions, and the number's place in it.
template <class Storage>
struct PoolTerm {
  const Storage* grads;
  const uint8_t* positions;
  int code;
};

// The numbers of `affine` (core/max_pool_params.h) for the lanes from one on; data null: none.
template <class Storage>
struct PoolAffine {
  using S = State<Storage>;
  const S* data;
  int64_t channels;
  const Storage* x;

  template <class V>
  V added(const V& offset, const V& slope, const V& mean, const V& number) const {
    return offset + slope * (number - mean);
  }
  Vector<S> vector(int64_t i) const {
    using V = Vector<S>;
    return added(read<V>(data + i), read<V>(data + channels + i), read<V>(data + 2 * channels + i), load_vector(x + i));
  }
  S number(int64_t i) const { return added(data[i], data[channels + i], data[2 * channels + i], load_(x[i])); }
};

// The sum of the gradients of the windows whose maximum is here, in their order, for n lanes.
template <int Count, class Storage>
void sum_terms(const PoolTerm<Storage>* terms, int count, const PoolAffine<Storage>& affine, int64_t n, bool streaming,
               Storage* out) {
  using S = State<Storage>;
  using V = Vector<S>;
  constexpr int lanes = kLanes<S>;
  if (Count) count = Count;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    V sum = {};
    for (int q = 0; q < count; ++q) {
      const PoolMask<S> at =
          __builtin_convertvector(read<typename BytesOf<S>::type>(terms[q].positions + i), PoolMask<S>);
      sum += select(at == terms[q].code, load_vector(terms[q].grads + i), V{});
    }
    if (affine.data) sum += affine.vector(i);
    if (streaming) stream_vector(out + i, sum);
    else store_vector(out + i, sum);
  }
  for (; i < n; ++i) {
    S sum = 0;
    for (int q = 0; q < count; ++q) sum += terms[q].positions[i] == terms[q].code ? load_(terms[q].grads[i]) : S(0);
    if (affine.data) sum += affine.number(i);
    out[i] = store_<Storage>(sum);
  }
}

template <class Storage, class W>
void max_unpool_row(const MaxPoolBackwardParams& p, const W& w, int64_t unit, bool streaming) {
  using S = State<Storage>;
  const int64_t C = p.channels, width = p.out_width, row = unit % p.height;
  const int64_t from = unit / p.height * p.out_height * width * C, to = unit * p.width * C;
  const Storage* const grad_out = static_cast<const Storage*>(p.grad_out) + from;
  const uint8_t* const positions = p.positions + from;
  const Covering rows = covering(w, int(row), int(p.out_height));
  PoolTerm<Storage> terms[W::kCovering * W::kCovering];
  for (int64_t x = 0; x < p.width; ++x) {
    const Covering columns = covering(w, int(x), int(width));
    int count = 0;
    for (int y = rows.first; y <= rows.last; ++y)
      for (int j = columns.first; j <= columns.last; ++j) {
        const int64_t window = (y * width + j) * C;
        const int code = (int(row) + w.padding() - w.stride() * y) * w.kernel() + int(x) + w.padding() - w.stride() * j;
        terms[count++] = {grad_out + window, positions + window, code};
      }
    const int64_t here = to + x * C;
    const PoolAffine<Storage> affine = {static_cast<const S*>(p.affine), C,
                                        p.affine ? static_cast<const Storage*>(p.x) + here : nullptr};
    Storage* const out = static_cast<Storage*>(p.grad_x) + here;
    if (count == 1) sum_terms<1>(terms, count, affine, C, streaming, out);
    else if (count == 2) sum_terms<2>(terms, count, affine, C, streaming, out);
    else if (count == 4) sum_terms<4>(terms, count, affine, C, streaming, out);
    else sum_terms<0>(terms, count, affine, C, streaming, out);
  }
}

// `sums` has room for a plane; if it is the result itself, nothing is converted.
template <class Storage, class W>
void max_unpool_plane(const MaxPoolBackwardParams& p, const W& w, int64_t unit, State<Storage>* sums) {
  using S = State<Storage>;
  const int64_t rows = p.out_height, width = p.out_width, plane = p.height * p.width;
  const Storage* grads = static_cast<const Storage*>(p.grad_out) + unit * rows * width;
  const uint8_t* positions = p.positions + unit * rows * width;
  const int k = w.kernel(), stride = w.stride(), padding = w.padding();
  int64_t place[W::kMost];  // of each position, from a window's first number
  for (int q = 0; q < k * k; ++q) place[q] = q / k * p.width + q % k;
  memset(sums, 0, size_t(plane) * sizeof(S));
  for (int64_t row = 0; row < rows; ++row, grads += width, positions += width) {
    const int64_t top = row * stride - padding;
    for (int64_t j = 0; j < width; ++j) {
      const int64_t left = j * stride - padding;
      const int q = positions[j];
      if (q >= k * k) continue;  // never, unless somebody has changed the positions
      const bool reaches_over = top < 0 || left < 0 || top + k > p.height || left + k > p.width;
      if (reaches_over && (!is_inside(top + q / k, p.height) || !is_inside(left + q % k, p.width))) continue;  // never
      sums[top * p.width + left + place[q]] += load_(grads[j]);
    }
  }
  Storage* const out = static_cast<Storage*>(p.grad_x) + unit * plane;
  S affine[3] = {};
  const Storage* const x = p.affine ? static_cast<const Storage*>(p.x) + unit * plane : nullptr;
  for (int q = 0; x && q < 3; ++q) affine[q] = static_cast<const S*>(p.affine)[q * p.channels + unit % p.channels];
  using V = Vector<S>;
  int64_t i = 0;
  if (static_cast<const void*>(sums) == out && !x) return;
  for (; i + kLanes<S> <= plane; i += kLanes<S>) {
    V sum = read<V>(sums + i);
    if (x) sum += splat<V>(affine[0]) + splat<V>(affine[1]) * (load_vector(x + i) - splat<V>(affine[2]));
    store_vector(out + i, sum);
  }
  for (; i < plane; ++i)
    out[i] = store_<Storage>(x ? sums[i] + (affine[0] + affine[1] * (load_(x[i]) - affine[2])) : sums[i]);
}

// scratch: memory for the sums of a plane, if they have another type than the result.
template <class Storage>
void max_pool_backward(const MaxPoolBackwardParams& p, int64_t first, int64_t last, void* scratch) {
  const int64_t bytes = p.images * p.channels * p.height * p.width * int64_t(sizeof(Storage));
  const bool aligned =
      (reinterpret_cast<uintptr_t>(p.grad_x) | uintptr_t(p.channels * sizeof(Storage))) % kVectorBytes == 0;
  const bool streaming = aligned && bytes >= kStreamingBytes;
  with_window(p.window, [&](auto tag) {
    using W = typename decltype(tag)::type;
    using S = State<Storage>;
    const W w(p.window);
    for (int64_t unit = first; unit < last; ++unit) {
      if (p.channels_last) {
        max_unpool_row<Storage>(p, w, unit, streaming);
      } else {
        S* sums = static_cast<S*>(scratch);
        if constexpr (std::is_same_v<Storage, S>) sums = static_cast<S*>(p.grad_x) + unit * p.height * p.width;
        max_unpool_plane<Storage>(p, w, unit, sums);
      }
    }
  });
  if (streaming && p.channels_last) finish_streaming();
}

SEWSNN_END
