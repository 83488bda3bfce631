// sewsnn::max_pool and max_pool_backward: schemas, checks, params, and the CPU. Autograd and the fake kernels are in
// sewsnn/ops/max_pool.py.
#include "ops/max_pool.h"

#include "kernels/cpu_kernels.h"
#include "ops/parallel.h"

namespace sewsnn {
namespace {

void check_window(const PoolWindow& w) {
  STD_TORCH_CHECK(w.kernel >= 1 && w.kernel <= kMostPoolKernel, "kernel must be 1 to ", kMostPoolKernel, ", got ",
                  w.kernel);
  STD_TORCH_CHECK(w.stride >= 1 && w.stride <= kMostSide, "stride must be 1 to ", kMostSide, ", got ", w.stride);
  STD_TORCH_CHECK(w.padding >= 0 && 2 * w.padding <= w.kernel, "padding must be 0 to half of kernel, got ", w.padding);
}

}  // namespace

Images::Images(std::vector<int64_t> sizes_in, bool last)
    : sizes(std::move(sizes_in)), strides(image_strides(sizes, last)), channels_last(last) {}

Images Images::of(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() >= 3, name, " must be [..., C, H, W], got ", t.dim(), " dimensions");
  const Images plain({t.sizes().begin(), t.sizes().end()}, false), last(plain.sizes, true);
  return !has_strides(t, plain.strides) && has_strides(t, last.strides) ? last : plain;
}

Images Images::with_size(int64_t height, int64_t width) const {
  std::vector<int64_t> other(sizes.begin(), sizes.end() - 2);
  other.push_back(height), other.push_back(width);
  return {other, channels_last};
}

void set_shape(MaxPoolParams& p, const Images& images, DType dtype, const PoolWindow& window) {
  check_window(window);
  const std::vector<int64_t>& sizes = images.sizes;
  const size_t n = sizes.size();
  p.dtype = dtype;
  p.window = window;
  p.channels = sizes[n - 3], p.height = sizes[n - 2], p.width = sizes[n - 1];
  p.images = count_of({sizes.begin(), sizes.end() - 3});
  p.channels_last = images.channels_last;
  STD_TORCH_CHECK(p.height <= kMostSide && p.width <= kMostSide && p.channels <= kMostSide,
                  "an image must have at most ", kMostSide, " channels, rows and columns");
  const bool fits = p.height > 0 && p.width > 0 && p.height + 2 * window.padding >= window.kernel &&
                    p.width + 2 * window.padding >= window.kernel;
  STD_TORCH_CHECK(fits, "an image of ", p.height, " x ", p.width, " has no window of ", window.kernel, " x ",
                  window.kernel, " with padding ", window.padding);
  p.out_height = window.count(p.height), p.out_width = window.count(p.width);
}

MaxPoolForwardCall::MaxPoolForwardCall(const Tensor& x_in, const MaybeTensor& weight, const PoolWindow& window,
                                       bool need_positions)
    : out(x_in) {
  const Images images = Images::of("x", x_in);
  set_shape(params, images, dtype_of(x_in), window);
  params.weight = channel_data("weight", weight, x_in, params.channels);
  const Images pooled = images.with_size(params.out_height, params.out_width);
  out = pooled.empty(x_in.scalar_type(), x_in);
  if (need_positions) positions = pooled.empty(ScalarType::Byte, x_in);
  if (empty()) return;
  x = with_strides(x_in, images.sizes, images.strides);
  params.x = x.rows.data;
  params.out = data(out);
  params.positions = static_cast<uint8_t*>(data(positions));
}

MaxPoolBackwardCall::MaxPoolBackwardCall(const Tensor& grad_in, const Tensor& positions_in, const MaybeTensor& x_in,
                                         const MaybeTensor& affine, int64_t height, int64_t width,
                                         const PoolWindow& window)
    : grad_x(grad_in) {
  STD_TORCH_CHECK(height >= 0 && width >= 0, "height and width must not be negative");
  const Images pooled = Images::of("positions", positions_in), images = pooled.with_size(height, width);
  set_shape(params, images, dtype_of(grad_in), window);
  check_device("positions", positions_in, grad_in);
  STD_TORCH_CHECK(positions_in.scalar_type() == ScalarType::Byte &&
                      pooled.sizes == images.with_size(params.out_height, params.out_width).sizes,
                  "positions must be those of max_pool with this window, for images of ", height, " x ", width);
  STD_TORCH_CHECK(std::vector<int64_t>(grad_in.sizes().begin(), grad_in.sizes().end()) == pooled.sizes,
                  "grad_out must have the shape of positions");
  STD_TORCH_CHECK(x_in.has_value() == affine.has_value(), "x and affine belong together");
  params.affine = channel_data("affine", affine, grad_in, times(3, params.channels));
  if (x_in) {
    check_device("x", *x_in, grad_in);
    STD_TORCH_CHECK(x_in->scalar_type() == grad_in.scalar_type() &&
                        std::vector<int64_t>(x_in->sizes().begin(), x_in->sizes().end()) == images.sizes,
                    "x must have the dtype of grad_out and ", height, " x ", width, " pixels");
  }
  grad_x = images.empty(grad_in.scalar_type(), grad_in);
  if (empty()) return;
  grad_out = with_strides(grad_in, pooled.sizes, pooled.strides);
  positions = with_strides(positions_in, pooled.sizes, pooled.strides);
  if (x_in) x = with_strides(*x_in, images.sizes, images.strides);
  params.grad_out = grad_out.rows.data;
  params.positions = static_cast<const uint8_t*>(positions.rows.data);
  params.x = x.rows.data;
  params.grad_x = data(grad_x);
}

template <>
void run(const Cpu&, MaxPoolForwardCall& call) {
  const CpuMaxPoolKernels& kernels = *cpu_kernels().max_pool;
  const int64_t units = kernels.forward_units(call.params);
  parallel_for(0, units, grain(call.out.numel() / units, call.params.window.kernel),
               [&](int64_t first, int64_t last) { kernels.forward(call.params, first, last); });
}

template <>
void run(const Cpu&, MaxPoolBackwardCall& call) {
  const CpuMaxPoolKernels& kernels = *cpu_kernels().max_pool;
  const int64_t units = kernels.backward_units(call.params);
  parallel_for(0, units, grain(call.grad_x.numel() / units, 1), [&](int64_t first, int64_t last) {
    std::vector<double> scratch(size_t(kernels.backward_scratch(call.params) + 7) / 8);
    kernels.backward(call.params, first, last, scratch.data());
  });
}

}  // namespace sewsnn

#define SEWSNN_WINDOW "int kernel, int stride, int padding"

STABLE_TORCH_LIBRARY_FRAGMENT(sewsnn, m) {
  m.def("max_pool(Tensor x, Tensor? weight, " SEWSNN_WINDOW ", bool need_positions) -> (Tensor out, Tensor positions)");
  m.def(
      "max_pool_statistics(Tensor z, Tensor? weight, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? "
      "tracked, float[] numbers) -> (Tensor out, Tensor positions, Tensor statistics)");
  m.def(
      "max_pool_backward(Tensor grad_out, Tensor positions, Tensor? x, Tensor? affine, int height, int "
      "width, " SEWSNN_WINDOW ") -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CPU, m) { sewsnn::add_max_pool_ops<sewsnn::Cpu>(m); }
