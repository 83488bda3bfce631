// sewsnn::neuron_forward and sewsnn::neuron_backward: schemas, checks, params, and the CPU. Autograd and the fake
// kernels are in sewsnn/ops/neuron.py; the readable reference in sewsnn/ops/reference.py.
#include "ops/neuron.h"

#include "kernels/cpu_kernels.h"
#include "ops/parallel.h"

namespace sewsnn {
namespace {

Operand v_operand(const MaybeTensor& v, const Tensor& x, const Layout& layout, const KindInfo& kind) {
  if (!v) return {};
  check_like("v", *v, x, state_type(x), layout, false, kind.states);
  return as_operand(*v, layout, kind.states > 1 ? kind.states : 0, false);
}

Tensor v_result(const Layout& layout, const KindInfo& kind, VMode mode, const Tensor& x) {
  if (mode == VMode::None) return empty(0, state_type(x), x);
  return empty_states(layout, kind, mode == VMode::Sequence, x);
}

}  // namespace

template <class P>
NeuronCall<P>::NeuronCall(const NeuronTensors& in, const NeuronNumbers& neuron, int64_t v_mode)
    : layout(layout_of(in.x)), mode(checked_mode(v_mode)) {
  params.neuron = checked(neuron);
  params.dtype = dtype_of(in.x);
  params.T = layout.T, params.M = layout.M;
  params.neuron.learnt = learnt_params(in.leak, in.x, params.neuron, channels_of(layout));
  x = x_operand(in.x, layout);
  v0 = v_operand(in.v, in.x, layout, kind());
  params.x = x.rows;
  params.v0 = v0.rows;
  params.v_seq = mode == VMode::Sequence;
}

ForwardCall::ForwardCall(const NeuronTensors& in, const NeuronNumbers& neuron, int64_t v_mode, bool needs_grad)
    : NeuronCall(in, neuron, v_mode),
      s(empty_strided(layout.sizes, layout.strides, in.x.scalar_type(), in.x)),
      v(v_result(layout, kind(), mode, in.x)),
      checkpoints(sewsnn::empty(needs_grad ? checkpoint_numel(layout, kind()) : 0, state_type(in.x), in.x)) {
  params.s = data(s);
  params.v = data(v);
  params.checkpoints = data(checkpoints);
}

BackwardCall::BackwardCall(const MaybeTensor& grad_s_in, const MaybeTensor& grad_v_in, const NeuronTensors& in,
                           const Tensor& checkpoints, const NeuronNumbers& neuron, int64_t v_mode, bool need_v,
                           bool need_leak)
    : NeuronCall(in, neuron, v_mode),
      grad_x(empty_strided(layout.sizes, layout.strides, in.x.scalar_type(), in.x)),
      grad_v0(need_v ? empty_states(layout, kind(), false, in.x) : sewsnn::empty(0, state_type(in.x), in.x)),
      grad_leak(learnt_gradient(need_leak, in.leak, params.neuron, empty())) {
  params.checkpoints = checkpoint_data(checkpoints, in.x, checkpoint_numel(layout, kind()));
  if (grad_s_in) {
    check_like("grad_s", *grad_s_in, in.x, in.x.scalar_type(), layout, true);
    grad_s = as_operand(*grad_s_in, layout, layout.T, true);
    params.grad_s = grad_s.rows;
  }
  if (grad_v_in) {
    const int states = kind().states;
    const int64_t rows = params.v_seq ? layout.T : 0;
    check_like("grad_v", *grad_v_in, in.x, state_type(in.x), layout, params.v_seq, states);
    for (int state = 0; state < states; ++state) {
      grad_v[state] = as_operand(states > 1 ? slice_of(*grad_v_in, state) : *grad_v_in, layout, rows, true);
      params.grad_v[state] = grad_v[state].rows;
    }
  }
  params.grad_x = data(grad_x);
  params.grad_v0 = data(grad_v0);
}

void BackwardCall::set_workspace(int64_t blocks) {
  const int64_t rows = kind().learnt;
  if (wants_shared()) {
    workspace = sewsnn::empty(rows * blocks, ScalarType::Double, grad_x);
    params.learnt_partials = static_cast<double*>(data(workspace));
  } else if (wants_channels()) {
    workspace = sewsnn::empty(times(rows, layout.M), grad_leak->scalar_type(), grad_x);
    params.learnt_elements = data(workspace);
  }
}

namespace {

// Calls f(first, last) for ranges of blocks of neurons, in parallel if there is enough work to be worth waking a
// thread.
template <class F>
void parallel_blocks(const Layout& layout, const F& f) {
  const int64_t block = cpu_kernels().block;
  parallel_for(0, (layout.M - 1) / block + 1, grain(block, layout.T), f);
}

// Sums the elements [rows, M] of each channel to [rows, C] in an order that depends only on the shape.
template <class S>
void sum_channels(const S* elements, int64_t rows, int64_t M, const Channels& channels, S* sums) {
  const int64_t C = channels.count, inner = channels.inner, outer = M / (C * inner);
  parallel_for(0, C, grain(rows * outer * inner, 1), [&](int64_t first, int64_t last) {
    std::vector<double> added(size_t(last - first));
    for (int64_t row = 0; row < rows; ++row) {
      std::fill(added.begin(), added.end(), 0.0);
      for (int64_t o = 0; o < outer; ++o) {
        const S* const from = elements + row * M + (o * C + first) * inner;
        if (inner == 1) {
          for (int64_t c = 0; c < last - first; ++c) added[size_t(c)] += double(from[c]);
          continue;
        }
        for (int64_t c = 0; c < last - first; ++c) {
          constexpr int64_t lanes = 8;  // independent sums, which the processor adds at the same time
          double sum[lanes] = {};
          const S* const own = from + c * inner;
          for (int64_t i = 0; i < inner / lanes * lanes; i += lanes)
            for (int64_t lane = 0; lane < lanes; ++lane) sum[lane] += double(own[i + lane]);
          for (int64_t i = inner / lanes * lanes; i < inner; ++i) sum[i % lanes] += double(own[i]);
          for (int64_t lane = 0; lane < lanes; ++lane) added[size_t(c)] += sum[lane];
        }
      }
      for (int64_t c = first; c < last; ++c) sums[row * C + c] = S(added[size_t(c - first)]);
    }
  });
}

}  // namespace

template <>
void run(const Cpu&, ForwardCall& call) {
  parallel_blocks(call.layout, [&](int64_t first, int64_t last) { cpu_kernels().forward(call.params, first, last); });
}

template <>
void run(const Cpu&, BackwardCall& call) {
  const BackwardParams& p = call.params;
  const int64_t blocks = (p.M - 1) / cpu_kernels().block + 1;
  call.set_workspace(blocks);
  parallel_blocks(call.layout, [&](int64_t first, int64_t last) { cpu_kernels().backward(p, first, last); });
  void* const grad_leak = data(call.grad_leak);
  if (call.wants_shared()) sum_partials(p.learnt_partials, call.kind().learnt, blocks, p.dtype, grad_leak);
  if (!call.wants_channels()) return;
  with_state(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    sum_channels(static_cast<const S*>(p.learnt_elements), call.kind().learnt, p.M, p.neuron.learnt.channels,
                 static_cast<S*>(grad_leak));
  });
}

}  // namespace sewsnn

STABLE_TORCH_LIBRARY(sewsnn, m) {
  sewsnn::def(
      m,
      "neuron_forward(Tensor x, Tensor? v, Tensor? leak, {neuron}, int v_mode, bool needs_grad, {extra}) -> (Tensor s, "
      "Tensor v, Tensor checkpoints)");
  sewsnn::def(m,
              "neuron_backward(Tensor? grad_s, Tensor? grad_v, Tensor x, Tensor? v, Tensor? leak, Tensor checkpoints, "
              "{neuron}, int v_mode, bool need_v, bool need_leak, {extra}) -> (Tensor grad_x, Tensor grad_v, Tensor "
              "grad_leak)");
}

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CPU, m) { sewsnn::add_neuron_ops<sewsnn::Cpu>(m); }
