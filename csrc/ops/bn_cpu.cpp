// Batch norm + neuron + connection on the CPU: distributes blocks and slabs over torch's thread pool, and does the work
// that is needed once per channel.
#include <cmath>

#include "core/dtype.h"
#include "kernels/cpu_kernels.h"
#include "ops/bn.h"
#include "ops/call.h"

namespace sewsnn {
namespace {

const CpuBnKernels& kernels() { return *cpu_kernels().bn; }

// Calls f with a zero of the state's type.
template <class F>
void with_state(DType dtype, const F& f) {
  if (dtype == DType::Float64) f(double());
  else f(float());
}

// Calls f(first, last) for ranges of blocks of neurons.
template <class F>
void parallel_blocks(const Layout& layout, const F& f) {
  const int64_t block = kernels().block;
  parallel_for(0, (layout.M - 1) / block + 1, grain(block, layout.T), f);
}

// Enough slabs for many threads, but so few that adding them costs little. The number depends only on the shape.
int64_t slab_count(const Layout& layout, int64_t channels) {
  return std::min<int64_t>(128, std::max<int64_t>(1, layout.M / 16 / channels));
}

// Calls f(first, last) for ranges of slabs.
template <class F>
void parallel_slabs(const Layout& layout, int64_t slabs, const F& f) {
  parallel_for(0, slabs, grain(layout.M * layout.T / slabs, 1), f);
}

// Adds the sums of the slabs in their order. Returns [2, C].
std::vector<double> add_slabs(const std::vector<double>& partials, int64_t slabs, int64_t channels) {
  std::vector<double> sums(size_t(2 * channels));
  const double* from = partials.data();
  for (int64_t slab = 0; slab < slabs; ++slab)
    for (double& sum : sums) sum += *from++;
  return sums;
}

// k is the first number of each channel in the first time-step of z. It is near enough to the mean that z - k keeps
// enough digits.
template <class S>
std::vector<S> first_numbers(const BnStatisticsCall& call) {
  std::vector<S> k(size_t(call.params.channels.count));
  for (size_t c = 0; c < k.size(); ++c) {
    const auto* const z = static_cast<const char*>(call.params.z.data);
    const int64_t i = int64_t(c) * call.params.channels.inner;
    switch (call.params.dtype) {
      case DType::Float32: k[c] = S(reinterpret_cast<const float*>(z)[i]); break;
      case DType::Float64: k[c] = S(reinterpret_cast<const double*>(z)[i]); break;
      case DType::Float16: k[c] = S(load_(reinterpret_cast<const Half*>(z)[i])); break;
      case DType::BFloat16: k[c] = S(load_(reinterpret_cast<const BFloat16*>(z)[i])); break;
    }
  }
  return k;
}

template <class S>
void update_running(const S* now, int64_t C, double momentum, double count, S* mean, S* var) {
  for (int64_t i = 0; i < 2 * C; ++i)
    if (!std::isfinite(now[i])) return;
  const S keep = S(1 - momentum), m = S(momentum), unbiased = S(count / (count - 1));
  for (int64_t c = 0; c < C; ++c) {
    mean[c] = mean[c] * keep + now[c] * m;
    var[c] = var[c] * keep + now[C + c] * unbiased * m;
  }
}

void run_statistics(BnStatisticsCall& call, bool check) {
  const int64_t C = call.params.channels.count, slabs = slab_count(call.layout, C);
  std::vector<double> partials(size_t(slabs * 2 * C));
  call.params.partials = partials.data();
  with_state(call.params.dtype, [&](auto zero) {
    using S = decltype(zero);
    const std::vector<S> k = first_numbers<S>(call);
    parallel_slabs(call.layout, slabs, [&](int64_t first, int64_t last) {
      kernels().statistics(call.params, k.data(), slabs, first, last);
    });
    const std::vector<double> sums = add_slabs(partials, slabs, C);
    S* const mean = static_cast<S*>(call.params.statistics);
    const double n = double(call.count());
    for (int64_t c = 0; c < C; ++c) {
      const double d = sums[size_t(c)] / n, variance = sums[size_t(C + c)] / n - d * d;
      mean[c] = S(double(k[size_t(c)]) + d);
      mean[C + c] = S(variance < 0 ? 0 : variance);  // NaN stays
      STD_TORCH_CHECK(!check || (std::isfinite(mean[c]) && std::isfinite(mean[C + c])),
                      "z_seq has values that are not finite, or overflow, in channel ", c,
                      ": its batch statistics are not finite");
    }
  });
}

Tensor bn_statistics(Tensor z, int64_t T, bool check) {
  BnStatisticsCall call(z, T);
  run_statistics(call, check);
  return call.statistics;
}

void bn_update(Tensor statistics, double momentum, double count, Tensor running_mean, Tensor running_var) {
  check_running(statistics, momentum, count, running_mean, running_var);
  with_state(statistics.scalar_type() == ScalarType::Double ? DType::Float64 : DType::Float32, [&](auto zero) {
    using S = decltype(zero);
    update_running(static_cast<const S*>(statistics.const_data_ptr()), statistics.size(1), momentum, count,
                   static_cast<S*>(running_mean.mutable_data_ptr()), static_cast<S*>(running_var.mutable_data_ptr()));
  });
}

// The rows of NormRow. Without sums the last two are 0.
template <class S>
std::vector<S> channel_table(const BnParams& p, const void* sums_or_null, double count) {
  const auto C = size_t(p.channels.count);
  std::vector<S> table(5 * C);
  const auto *const mean = static_cast<const S*>(p.norm.mean), *const var = static_cast<const S*>(p.norm.var),
                    *const weight = static_cast<const S*>(p.norm.weight),
                    *const bias = static_cast<const S*>(p.norm.bias), *const sums = static_cast<const S*>(sums_or_null);
  for (size_t c = 0; c < C; ++c) {
    const S inverse_std = mean ? S(1) / std::sqrt(var[c] + S(p.norm.eps)) : S(1);
    table[c] = mean ? mean[c] : S(0);
    table[C + c] = weight ? weight[c] * inverse_std : inverse_std;
    table[2 * C + c] = bias ? bias[c] : S(0);
    table[3 * C + c] = sums ? S(sums[c] / count) : S(0);
    table[4 * C + c] = sums ? S(sums[C + c] / count) * inverse_std : S(0);
  }
  return table;
}

void run_forward(const BnForwardCall& call) {
  with_state(call.params.dtype, [&](auto zero) {
    const auto table = channel_table<decltype(zero)>(call.params, nullptr, 1);
    parallel_blocks(call.layout,
                    [&](int64_t first, int64_t last) { kernels().forward(call.params, table.data(), first, last); });
  });
}

// `training` (the statistics are those of the batch) changes only the gradient.
std::tuple<Tensor, Tensor, Tensor, Tensor> bn_neuron_forward(Tensor z, MaybeTensor shortcut, MaybeTensor statistics,
                                                             MaybeTensor weight, MaybeTensor bias, MaybeTensor leak,
                                                             double eps, int64_t connect, int64_t T, int64_t kind,
                                                             double tau, bool decay_input, double v_threshold,
                                                             std::optional<double> v_reset, int64_t surrogate,
                                                             double alpha, bool detach_reset, int64_t v_mode,
                                                             bool needs_grad, bool pack, bool /*training*/) {
  const BnForwardCall call(
      z, shortcut, statistics, weight, bias, leak,
      {eps, connect, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}}, v_mode,
      needs_grad, pack);
  if (!call.empty()) run_forward(call);
  return call.result();
}

BnResults bn_neuron_train(Tensor z, MaybeTensor shortcut, MaybeTensor weight, MaybeTensor bias, MaybeTensor leak,
                          MaybeTensor running_mean, MaybeTensor running_var, MaybeTensor tracked,
                          std::vector<double> numbers) {
  const BnTrainNumbers n(numbers);
  BnStatisticsCall statistics(z, n.options.T);
  set_running(statistics, {running_mean, running_var, tracked, n.momentum});
  // All checks come before the first kernel, so that an error leaves the running statistics as they were.
  const BnForwardCall call(z, shortcut, statistics.statistics, weight, bias, leak, n.options, n.v_mode, n.needs_grad,
                           n.pack);
  run_statistics(statistics, true);
  if (!call.empty()) run_forward(call);
  if (running_mean) {
    BnStatisticsParams& p = statistics.params;
    if (p.tracked) ++*p.tracked;
    with_state(p.dtype, [&](auto zero) {
      using S = decltype(zero);
      update_running(static_cast<const S*>(p.statistics), p.channels.count, n.momentum, double(statistics.count()),
                     static_cast<S*>(p.running_mean), static_cast<S*>(p.running_var));
    });
  }
  return results_of(statistics, call);
}

void run_reduce(BnReduceCall& call) {
  const int64_t C = call.params.channels.count, slabs = slab_count(call.layout, C);
  std::vector<double> partials(size_t(slabs * 2 * C));
  call.params.partials = partials.data();
  if (call.wants_leak()) call.set_leak_partials(slabs);
  with_state(call.params.dtype, [&](auto zero) {
    using S = decltype(zero);
    const auto table = channel_table<S>(call.params, nullptr, 1);
    parallel_slabs(call.layout, slabs, [&](int64_t first, int64_t last) {
      kernels().reduce(call.params, table.data(), slabs, first, last);
    });
    const std::vector<double> added = add_slabs(partials, slabs, C);
    const auto* const var = static_cast<const S*>(call.params.norm.var);
    S* const sums = static_cast<S*>(call.params.sums);
    for (int64_t c = 0; c < C; ++c) {
      sums[c] = S(added[size_t(c)]);
      const S inverse_std = var ? S(1) / std::sqrt(var[c] + S(call.params.norm.eps)) : S(1);
      sums[C + c] = S(added[size_t(C + c)] * double(inverse_std));
    }
    if (!call.wants_leak()) return;
    double sum = 0;
    for (int64_t i = 0; i < slabs; ++i) sum += call.params.grad_leak_partials[i];
    *static_cast<S*>(call.grad_leak->mutable_data_ptr()) = S(sum);
  });
}

std::tuple<Tensor, Tensor, Tensor> bn_neuron_reduce(Tensor grad_out, MaybeTensor grad_skip, Tensor z,
                                                    MaybeTensor shortcut, MaybeTensor statistics, MaybeTensor weight,
                                                    MaybeTensor bias, MaybeTensor leak, MaybeTensor checkpoints,
                                                    double eps, int64_t connect, int64_t T, int64_t kind, double tau,
                                                    bool decay_input, double v_threshold, std::optional<double> v_reset,
                                                    int64_t surrogate, double alpha, bool detach_reset,
                                                    bool need_leak) {
  BnReduceCall call(grad_out, grad_skip, z, shortcut, statistics, weight, bias, leak, checkpoints,
                    {eps, connect, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}},
                    need_leak);
  if (!call.empty()) run_reduce(call);
  return call.result();
}

void run_apply(const BnApplyCall& call) {
  with_state(call.params.dtype, [&](auto zero) {
    const auto table = channel_table<decltype(zero)>(call.params, call.params.sums, call.params.count);
    parallel_blocks(call.layout,
                    [&](int64_t first, int64_t last) { kernels().apply(call.params, table.data(), first, last); });
  });
}

std::tuple<Tensor, Tensor> bn_neuron_apply(Tensor grad_out, Tensor z, MaybeTensor shortcut, MaybeTensor statistics,
                                           MaybeTensor weight, MaybeTensor bias, MaybeTensor leak,
                                           MaybeTensor checkpoints, MaybeTensor sums, double count, double eps,
                                           int64_t connect, int64_t T, int64_t kind, double tau, bool decay_input,
                                           double v_threshold, std::optional<double> v_reset, int64_t surrogate,
                                           double alpha, bool detach_reset, bool need_shortcut) {
  const BnApplyCall call(
      grad_out, z, shortcut, statistics, weight, bias, leak, checkpoints, sums, count,
      {eps, connect, T, {kind, tau, decay_input, v_threshold, v_reset, surrogate, alpha, detach_reset}}, need_shortcut);
  if (!call.empty()) run_apply(call);
  return call.result();
}

BnGradients bn_neuron_backward(Tensor grad_out, MaybeTensor grad_skip, Tensor z, MaybeTensor shortcut,
                               MaybeTensor statistics, MaybeTensor weight, MaybeTensor bias, MaybeTensor leak,
                               MaybeTensor checkpoints, std::vector<double> numbers) {
  const BnBackwardNumbers n(numbers);
  BnReduceCall first(grad_out, grad_skip, z, shortcut, statistics, weight, bias, leak, checkpoints, n.options,
                     n.need_leak);
  if (!first.empty()) run_reduce(first);
  const BnApplyCall second(first, z, n.training, n.need_shortcut);
  if (!second.empty()) run_apply(second);
  return results_of(first, second);
}

}  // namespace
}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CPU, m) {
  m.impl("bn_statistics", SEWSNN_BOX(sewsnn::bn_statistics));
  m.impl("bn_update", SEWSNN_BOX(sewsnn::bn_update));
  m.impl("bn_neuron_forward", SEWSNN_BOX(sewsnn::bn_neuron_forward));
  m.impl("bn_neuron_reduce", SEWSNN_BOX(sewsnn::bn_neuron_reduce));
  m.impl("bn_neuron_apply", SEWSNN_BOX(sewsnn::bn_neuron_apply));
  m.impl("bn_neuron_train", SEWSNN_BOX(sewsnn::bn_neuron_train));
  m.impl("bn_neuron_backward", SEWSNN_BOX(sewsnn::bn_neuron_backward));
}
