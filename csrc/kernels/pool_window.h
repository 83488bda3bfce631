// Max pooling of spikes, 3x3 with stride 2 and padding 1, as logic on words. Each bit of V is a separate window (a
// time-step, a channel). V is an unsigned integer (a CUDA thread) or a vector of them (the CPU kernels).
#pragma once

#include "core/macros.h"

SEWSNN_BEGIN

template <class V>
struct Window {
  V at[3][3];  // rows, columns; 0 outside the image
};

// The position that gets a window's gradient: the first one, row by row, that holds the maximum. This is the first
// spike, or without a spike the first position inside the image. Row 0 is outside the image if `at_top`; column 0 is
// outside where the bits of `at_left` are set.
template <class V>
SEWSNN_HD Window<V> winners(const Window<V>& spikes, bool at_top, V at_left) {
  Window<V> wins;
  V taken = V{};
  SEWSNN_UNROLL
  for (int r = 0; r < 3; ++r) {
    SEWSNN_UNROLL
    for (int c = 0; c < 3; ++c) {
      wins.at[r][c] = spikes.at[r][c] & ~taken;
      taken |= spikes.at[r][c];
    }
  }
  const V silent = ~taken, zero = V{};
  const V top = at_top ? zero : silent, below = at_top ? silent : zero;
  wins.at[0][0] |= top & ~at_left;
  wins.at[0][1] |= top & at_left;
  wins.at[1][0] |= below & ~at_left;
  wins.at[1][1] |= below & at_left;
  return wins;
}

SEWSNN_END
