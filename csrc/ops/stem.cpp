// sewsnn::bn_neuron_pool_forward, _reduce and _apply: schemas, checks, params, and the CPU. Autograd and the fake
// kernels are in sewsnn/ops/pool.py.
#include "ops/stem.h"

#include <cmath>

#include "kernels/cpu_kernels.h"
#include "ops/parallel.h"

namespace sewsnn {
namespace {

template <class P>
Operand checked_grad(const PoolCall<P>& call, const Tensor& grad_out, const Tensor& z) {
  check_device("grad_out", grad_out, z);
  bool same = grad_out.dim() == 5 && grad_out.scalar_type() == z.scalar_type();
  for (int64_t d = 0; same && d < 5; ++d) same = grad_out.size(d) == call.out_sizes[size_t(d)];
  STD_TORCH_CHECK(same, "grad_out must have the shape of out, the dtype and the device of z");
  return with_strides(grad_out, call.out_sizes, call.out_strides);
}

}  // namespace

template <class P>
PoolCall<P>::PoolCall(const PoolTensors& in, const PoolOptions& options)
    : sizes(in.z.sizes().begin(), in.z.sizes().end()) {
  STD_TORCH_CHECK(sizes.size() == 4, "z must be [N, C, H, W], got ", sizes.size(), " dimensions");
  STD_TORCH_CHECK(options.T >= 1 && options.T <= kChunk, "T must be 1 to ", kChunk, ", got ", options.T);
  STD_TORCH_CHECK(kind_of(options.neuron).in_stem, "bn_neuron_pool has no kernels for ", kind_of(options.neuron).name,
                  "; use batch norm, neuron and max pooling after one another");
  params.neuron = checked(options.neuron);
  params.dtype = dtype_of(in.z);
  params.T = options.T;
  params.images = sizes[0], params.channels = sizes[1], params.height = sizes[2], params.width = sizes[3];
  constexpr int64_t most = int64_t(1) << 30;  // the CUDA kernels count each, and twice the channels, with 32 bits
  STD_TORCH_CHECK(params.channels <= most && params.height <= most && params.width <= most,
                  "z must have at most 2**30 channels, rows and columns");
  const std::vector<int64_t> last = image_strides(sizes, true);
  strides = image_strides(sizes, false);
  params.channels_last = !has_strides(in.z, strides) && has_strides(in.z, last);
  if (params.channels_last) strides = last;
  out_sizes = {params.T, sizes[0], sizes[1], (sizes[2] + 1) / 2, (sizes[3] + 1) / 2};  // also if it is empty
  out_strides = image_strides(out_sizes, params.channels_last);
  if (!empty()) z = with_strides(in.z, sizes, strides);
  params.z = z.rows.data;
  params.neuron.learnt = learnt_params(in.leak, in.z, params.neuron, {});
  params.norm = norm_params(in.z, params.channels, in.statistics, in.weight, in.bias, options.eps);
}

PoolForwardCall::PoolForwardCall(const PoolTensors& in, const PoolOptions& options)
    : PoolCall(in, options), out(empty_strided(out_sizes, out_strides, in.z.scalar_type(), in.z)) {
  params.out = data(out);
}

PoolReduceCall::PoolReduceCall(const Tensor& grad_out_in, const PoolTensors& in, const PoolOptions& options,
                               bool need_leak)
    : PoolCall(in, options),
      grad_out(checked_grad(*this, grad_out_in, in.z)),
      sums(empty() ? torch::stable::new_zeros(in.z, {2, params.channels}, state_type(in.z))
                   : empty_strided({2, params.channels}, {params.channels, 1}, state_type(in.z), in.z)),
      grad_leak(learnt_gradient(need_leak, in.leak, params.neuron, empty())) {
  params.grad_out = grad_out.rows.data;
  params.sums = data(sums);
}

void PoolReduceCall::set_workspace(int64_t bytes, int64_t learnt_count) {
  partials = sewsnn::empty((bytes + 7) / 8, ScalarType::Double, sums);
  params.partials = data(partials);
  if (!grad_leak) return;
  learnt_partials = sewsnn::empty(learnt_count, ScalarType::Double, sums);
  params.learnt_partials = static_cast<double*>(learnt_partials->mutable_data_ptr());
}

PoolApplyCall::PoolApplyCall(const Tensor& grad_out_in, const PoolTensors& in, const MaybeTensor& sums, double count,
                             const PoolOptions& options)
    : PoolCall(in, options),
      grad_out(checked_grad(*this, grad_out_in, in.z)),
      grad_z(empty_strided(sizes, strides, in.z.scalar_type(), in.z)) {
  params.grad_out = grad_out.rows.data;
  params.sums = channel_data("sums", sums, in.z, times(2, params.channels));
  STD_TORCH_CHECK(!sums || empty() || (count > 0 && std::isfinite(count)), "count must be positive, got ", count);
  params.count = count;
  params.grad_z = data(grad_z);
}

namespace {

const CpuPoolKernels& kernels() { return *cpu_kernels().pool; }

// Calls the kernel f for all blocks.
template <class P, class F>
void run_blocks(const P& p, const F& f) {
  const int64_t blocks = kernels().blocks(p);
  const int64_t neurons = p.images * p.channels * p.height * p.width;
  parallel_for(0, blocks, grain(neurons / std::max<int64_t>(1, blocks), p.T),
               [&](int64_t first, int64_t last) { f(p, first, last); });
}

}  // namespace

template <>
void run(const Cpu&, PoolForwardCall& call) {
  run_blocks(call.params, kernels().forward);
}

template <>
void run(const Cpu&, PoolReduceCall& call) {
  const PoolReduceParams& p = call.params;
  const int64_t blocks = kernels().blocks(p);
  call.set_workspace(cpu_pool_workspace(p), blocks);
  run_blocks(p, kernels().reduce);
  kernels().add(p);
  if (call.grad_leak) sum_partials(p.learnt_partials, 1, blocks, p.dtype, data(call.grad_leak));
}

template <>
void run(const Cpu&, PoolApplyCall& call) {
  run_blocks(call.params, kernels().apply);
}

}  // namespace sewsnn

#define SEWSNN_NORM "Tensor? statistics, Tensor? weight, Tensor? bias, Tensor? leak, "
#define SEWSNN_POOL_OPTIONS "float eps, int T, {neuron}"

STABLE_TORCH_LIBRARY_FRAGMENT(sewsnn, m) {
  sewsnn::def(m, "bn_neuron_pool_forward(Tensor z, " SEWSNN_NORM SEWSNN_POOL_OPTIONS ", bool training) -> Tensor");
  sewsnn::def(m, "bn_neuron_pool_reduce(Tensor grad_out, Tensor z, " SEWSNN_NORM SEWSNN_POOL_OPTIONS
                 ", bool need_leak) -> (Tensor sums, Tensor grad_leak)");
  sewsnn::def(m, "bn_neuron_pool_apply(Tensor grad_out, Tensor z, " SEWSNN_NORM
                 "Tensor? sums, float count, " SEWSNN_POOL_OPTIONS ") -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CPU, m) { sewsnn::add_stem_ops<sewsnn::Cpu>(m); }
