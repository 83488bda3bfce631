// The parameters of the kernels of max pooling, forward and backward, on CPU and CUDA.
//
//   out[i] = max over the window of x,  positions[i] = where in the window it is
//   grad_x = grad_out, each at its position; overlapping windows add
//
// The position is row * kernel + column within the window, as one byte; of equal numbers it is the first, row by row,
// and of NaNs the last, as in torch's max_pool2d. What lies outside the image is never the maximum.
//
// BN(max(z)) = max(BN(z)) where the weight of a channel is positive, and BN(min(z)) = max(BN(z)) where it is negative:
// an affine function is monotone, and so is its rounding. So z can be pooled before it is normalised. `weight` chooses
// for each channel; where it is 0, BN(z) is the same everywhere, and the position is the first in the image.
#pragma once

#include "core/bn_params.h"

namespace sewsnn {

constexpr int64_t kMostPoolKernel = 15;          // a position is one byte
constexpr int64_t kMostSide = int64_t(1) << 30;  // channels, rows and columns are counted with 32 bits

// Windows of kernel x kernel, `stride` apart in both directions, on an image with `padding` rows and columns around it.
struct PoolWindow {
  int64_t kernel = 2, stride = 2, padding = 0;
  int64_t count(int64_t size) const { return (size + 2 * padding - kernel) / stride + 1; }
};

struct MaxPoolParams {
  DType dtype = DType::Float32;
  PoolWindow window;
  int64_t images = 0, channels = 0, height = 0, width = 0;
  int64_t out_height = 0, out_width = 0;  // window.count() of them
  bool channels_last = false;
};

struct MaxPoolForwardParams : MaxPoolParams {
  const void* x = nullptr;       // [images, C, H, W] storage, dense in this order or channels_last
  const void* weight = nullptr;  // [C] state: see above; null: the maximum
  void* out = nullptr;           // [images, C, out_height, out_width] storage, in the order of x
  uint8_t* positions = nullptr;  // like out; null: not requested
};

// With `affine`, the gradient that x has through its mean and variance is added:
//   grad_x += affine[0] + affine[1] (x - affine[2]), for each channel
struct MaxPoolBackwardParams : MaxPoolParams {
  const void* grad_out = nullptr;  // shape and order of out
  const uint8_t* positions = nullptr;
  const void* x = nullptr;       // only with affine
  const void* affine = nullptr;  // [3, C] state; null: nothing is added
  void* grad_x = nullptr;        // shape and order of x
};

// Pooling of the input of a batch norm together with its statistics, which then cost no further pass over memory. z is
// x, of images of all time-steps.
struct PoolStatisticsParams {
  BnStatisticsParams statistics;
  MaxPoolForwardParams pool;
};

}  // namespace sewsnn
