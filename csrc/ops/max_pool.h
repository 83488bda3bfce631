// sewsnn::max_pool and max_pool_backward for CPU and CUDA: from tensors to params and back (core/max_pool_params.h).
#pragma once

#include "core/max_pool_params.h"
#include "ops/bn.h"

namespace sewsnn {

// Images [..., C, H, W]; all dimensions before C count images.
struct Images {
  std::vector<int64_t> sizes, strides;
  bool channels_last = false;

  Images(std::vector<int64_t> sizes, bool channels_last);
  // In the order of t: channels_last if t is, and is not contiguous as well.
  static Images of(const char* name, const Tensor& t);
  Images with_size(int64_t height, int64_t width) const;
  Tensor empty(ScalarType dtype, const Tensor& like) const { return empty_strided(sizes, strides, dtype, like); }
  int64_t numel() const { return count_of(sizes); }
};

// Sets the sizes; an error unless the images have such windows.
void set_shape(MaxPoolParams&, const Images&, DType, const PoolWindow&);

struct MaxPoolForwardCall {
  MaxPoolForwardParams params;
  Operand x;
  Tensor out;
  MaybeTensor positions;

  MaxPoolForwardCall(const Tensor& x, const MaybeTensor& weight, const PoolWindow&, bool need_positions);
  bool empty() const { return out.numel() == 0; }
};

struct MaxPoolBackwardCall {
  MaxPoolBackwardParams params;
  Operand grad_out, positions, x;
  Tensor grad_x;

  MaxPoolBackwardCall(const Tensor& grad_out, const Tensor& positions, const MaybeTensor& x, const MaybeTensor& affine,
                      int64_t height, int64_t width, const PoolWindow&);
  bool empty() const { return grad_x.numel() == 0; }
};

// Takes the statistics and pools in one pass, and returns true, or returns false: there is no kernel for this.
template <class Device>
bool run_both(const Device&, BnStatisticsCall&, MaxPoolForwardCall&);
template <>
inline bool run_both(const Cpu&, BnStatisticsCall&, MaxPoolForwardCall&) {
  return false;
}

// From Arguments or a NumberList.
template <class From>
PoolWindow read_window(From& read) {
  return {read.whole(), read.whole(), read.whole()};
}

template <class Device>
std::tuple<Tensor, Tensor> max_pool(Arguments& read) {
  const Tensor x = read.tensor();
  const MaybeTensor weight = read.maybe_tensor();
  const PoolWindow window = read_window(read);
  const bool need_positions = read.flag();
  const Device device(x, "max_pool");
  MaxPoolForwardCall call(x, weight, window, need_positions);
  if (!call.empty()) run(device, call);
  return {call.out, or_empty(call.positions, ScalarType::Byte, x)};
}

template <class Device>
std::tuple<Tensor> max_pool_backward(Arguments& read) {
  const Tensor grad_out = read.tensor(), positions = read.tensor();
  const MaybeTensor x = read.maybe_tensor(), affine = read.maybe_tensor();
  const int64_t height = read.whole(), width = read.whole();
  const PoolWindow window = read_window(read);
  const Device device(grad_out, "max_pool_backward");
  MaxPoolBackwardCall call(grad_out, positions, x, affine, height, width, window);
  if (!call.empty()) run(device, call);
  return {call.grad_x};
}

// The statistics of a batch z [T, N, C, H, W], the update of the running ones, and the pooled z. numbers: the momentum,
// the window, and whether the positions are needed.
template <class Device>
std::tuple<Tensor, Tensor, Tensor> max_pool_statistics(Arguments& read) {
  const Tensor z = read.tensor();
  const MaybeTensor weight = read.maybe_tensor();
  BnRunning running = {read.maybe_tensor(), read.maybe_tensor(), read.maybe_tensor(), 0};
  const std::vector<double> numbers = read.numbers();
  const Device device(z, "max_pool_statistics");
  NumberList list(numbers);
  running.momentum = list.number();
  const PoolWindow window = read_window(list);
  const bool need_positions = list.flag();
  list.end();
  STD_TORCH_CHECK(z.dim() == 5, "z must be [T, N, C, H, W], got ", z.dim(), " dimensions");
  BnStatisticsCall statistics(z, 0, true);
  statistics.set_running(running);
  MaxPoolForwardCall pooled(z, weight, window, need_positions);
  if (!run_both(device, statistics, pooled)) {
    run(device, statistics);
    if (!pooled.empty()) run(device, pooled);
  }
  return {pooled.out, or_empty(pooled.positions, ScalarType::Byte, z), statistics.statistics};
}

template <class Device>
void add_max_pool_ops(Library& library) {
  library.impl("max_pool", &boxed<&max_pool<Device>>);
  library.impl("max_pool_statistics", &boxed<&max_pool_statistics<Device>>);
  library.impl("max_pool_backward", &boxed<&max_pool_backward<Device>>);
}

}  // namespace sewsnn
