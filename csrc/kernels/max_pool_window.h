// Windows of max pooling whose size the compiler may know, for the kernels of CPU and CUDA.
#pragma once

#include "core/lists.h"
#include "core/max_pool_params.h"

SEWSNN_BEGIN

// K x K, S apart, P rows and columns around the image.
template <int K, int S, int P>
struct FixedWindow {
  static constexpr bool kFixed = true;
  // Whether each window contains a cell of S x S pixels that no other has (max_pool_statistics.cuh).
  static constexpr bool kHasCells = K == P + S;
  static constexpr int kMost = K * K;                // positions
  static constexpr int kCovering = (K + S - 1) / S;  // windows, in one direction, that a pixel lies in at most
  SEWSNN_HD explicit FixedWindow(const PoolWindow&) {}
  SEWSNN_HD constexpr int kernel() const { return K; }
  SEWSNN_HD constexpr int stride() const { return S; }
  SEWSNN_HD constexpr int padding() const { return P; }
};

// The usual windows.
struct Window3x3 : FixedWindow<3, 2, 1> {
  using FixedWindow::FixedWindow;
};
struct Window2x2 : FixedWindow<2, 2, 0> {
  using FixedWindow::FixedWindow;
};

struct AnyWindow {
  static constexpr bool kFixed = false, kHasCells = false;
  static constexpr int kMost = int(kMostPoolKernel * kMostPoolKernel);
  static constexpr int kCovering = int(kMostPoolKernel);
  int k, s, p;
  SEWSNN_HD explicit AnyWindow(const PoolWindow& w) : k(int(w.kernel)), s(int(w.stride)), p(int(w.padding)) {}
  SEWSNN_HD int kernel() const { return k; }
  SEWSNN_HD int stride() const { return s; }
  SEWSNN_HD int padding() const { return p; }
};

// Calls f(Tag<Window>): the usual windows have kernels of their own.
template <class F>
auto with_window(const PoolWindow& w, F&& f) {
  if (w.kernel == 3 && w.stride == 2 && w.padding == 1) return f(Tag<Window3x3>());
  if (w.kernel == 2 && w.stride == 2 && w.padding == 0) return f(Tag<Window2x2>());
  return f(Tag<AnyWindow>());
}

// The windows of one direction that a row (or column) lies in: first to last, counted from 0; none if last < first.
// The row is number row + padding - stride * window of such a window.
struct Covering {
  int first, last;
};
template <class W>
SEWSNN_HD Covering covering(const W& w, int row, int windows) {
  const int at = row + w.padding(), before = at - w.kernel();
  Covering c = {before < 0 ? 0 : before / w.stride() + 1, at / w.stride()};
  if (c.last > windows - 1) c.last = windows - 1;
  return c;
}

// Whether the next number takes the place of the best one so far. `sign` is the sign of the weight. A NaN does, and
// with a weight of 0 an infinity, which batch norm makes a NaN.
template <class S>
SEWSNN_HD bool better(S next, S best, S sign) {
  const S signed_next = sign * next;
  return signed_next > sign * best || signed_next != signed_next;
}

SEWSNN_END
