// Batch norm + neuron + connection with a pooled output: schemas, checks, params. Autograd and the fake kernels are in
// sewsnn/ops/bn_pooled.py.
#include "ops/bn_pooled.h"

namespace sewsnn {
namespace {

Images images_of(const Layout& layout, const Channels& channels) {
  STD_TORCH_CHECK(layout.sizes.size() == 5, "z must be [T, N, C, H, W], got ", layout.sizes.size(), " dimensions");
  const bool pixels = layout.sizes[3] * layout.sizes[4] > 1;
  return {layout.sizes, pixels && channels.count > 1 && channels.inner == 1};
}

bool same_strides(const Layout& layout, const Images& images) {
  for (size_t d = 1; d < layout.sizes.size(); ++d)
    if (layout.sizes[d] > 1 && layout.strides[d] != images.strides[d]) return false;
  return true;
}

}  // namespace

PooledImages::PooledImages(const Layout& layout, const Channels& channels, DType dtype, const PoolWindow& window)
    : pooled(images_of(layout, channels)) {
  const Images images = pooled;
  in_order = same_strides(layout, images) && images.channels_last == (channels.inner == 1);
  set_shape(params, images, dtype, window);
  params.images = layout.sizes[1];
  pooled = images.with_size(params.out_height, params.out_width);
}

BnPooledForwardCall::BnPooledForwardCall(const BnTensors& in, const BnOptions& options, const PoolWindow& window,
                                         bool need_positions)
    : BnCall(in, options),
      images(layout, params.channels, params.dtype, window),
      out(images.pooled.empty(in.z.scalar_type(), in.z)) {
  params.pool = images.params;
  if (need_positions) positions = images.pooled.empty(ScalarType::Byte, in.z);
  params.out = data(out);
  params.positions = static_cast<uint8_t*>(data(positions));
}

BnPooledBackwardCall::BnPooledBackwardCall(const Tensor& grad_in, const Tensor& positions_in, const BnTensors& in,
                                           const MaybeTensor& checkpoints, const BnOptions& options,
                                           const PoolWindow& window, bool need_leak)
    : first({}, {}, in, checkpoints, options, need_leak),
      images(first.layout, first.params.channels, first.params.dtype, window) {
  const auto has_shape = [&](const Tensor& t) {
    return std::vector<int64_t>(t.sizes().begin(), t.sizes().end()) == images.pooled.sizes;
  };
  check_device("grad_out", grad_in, in.z);
  check_device("positions", positions_in, in.z);
  STD_TORCH_CHECK(has_shape(grad_in) && grad_in.scalar_type() == in.z.scalar_type(),
                  "grad_out must have the shape of the pooled output and the dtype of z");
  STD_TORCH_CHECK(has_shape(positions_in) && positions_in.scalar_type() == ScalarType::Byte,
                  "positions must be bytes in the shape of the pooled output");
  if (first.empty()) return;
  grad_out = with_strides(grad_in, images.pooled.sizes, images.pooled.strides);
  positions = with_strides(positions_in, images.pooled.sizes, images.pooled.strides);
}

BnApplyCall& BnPooledBackwardCall::apply(const Tensor& z, bool training, bool dense) {
  second.emplace(first, z, training, false);
  if (dense) {
    second->grad_shortcut = empty_strided(first.layout.sizes, first.layout.strides, z.scalar_type(), z);
    second->params.grad_shortcut = data(second->grad_shortcut);
  }
  return *second;
}

}  // namespace sewsnn

#define SEWSNN_Z "Tensor z, Tensor? shortcut, Tensor? statistics, Tensor? weight, Tensor? bias, Tensor? leak, "

STABLE_TORCH_LIBRARY_FRAGMENT(sewsnn, m) {
  sewsnn::def(m, "bn_neuron_pooled(" SEWSNN_Z
                 "float eps, int connect, int T, {neuron}, int v_mode, bool needs_grad, int kernel, int stride, int "
                 "padding, bool training, {extra}) -> (Tensor out, Tensor v, Tensor checkpoints, Tensor positions)");
  m.def("bn_neuron_pooled_backward(Tensor grad_out, Tensor positions, " SEWSNN_Z
        "Tensor? checkpoints, float[] numbers) -> (Tensor grad_z, Tensor grad_shortcut, Tensor grad_weight, Tensor "
        "grad_bias, Tensor grad_leak)");
}

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CPU, m) { sewsnn::add_bn_pooled_ops<sewsnn::Cpu>(m); }
