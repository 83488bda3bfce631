// Batch norm + neuron + connection on the CPU: distributes blocks and slabs over torch's thread pool, and does the work
// that is needed once per channel.
#include <cmath>
#include <numeric>

#include "core/dtype.h"
#include "kernels/cpu_kernels.h"
#include "ops/bn_ops.h"
#include "ops/parallel.h"

namespace sewsnn {
namespace {

const CpuBnKernels& kernels() { return *cpu_kernels().bn; }

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

// Calls the kernel f for all blocks.
template <class Call, class F>
void run_blocks(const Call& call, const void* sums, double count, const F& f) {
  with_state(call.params.dtype, [&](auto zero) {
    const auto table = channel_table<decltype(zero)>(call.params, sums, count);
    parallel_blocks(call.layout, [&](int64_t first, int64_t last) { f(call.params, table.data(), first, last); });
  });
}

// Writes the gradients of the learnt parameters of each channel, and their sums if all neurons share them.
template <class S>
void add_learnt(const BnReduceCall& call, const std::vector<double>& workspace, int64_t slabs) {
  const int64_t C = call.params.channels.count;
  const std::vector<double> added = add_slabs(workspace, slabs, C);
  S* const grad = static_cast<S*>(call.grad_leak->mutable_data_ptr());
  for (int64_t row = 0; row < call.kind().learnt; ++row) {
    const double* const from = added.data() + row * C;
    if (call.channel_sums) grad[row] = S(std::accumulate(from, from + C, 0.0));
    else std::transform(from, from + C, grad + row * C, [](double sum) { return S(sum); });
  }
}

}  // namespace

template <>
void run(const Cpu&, BnStatisticsCall& call) {
  BnStatisticsParams& p = call.params;
  const int64_t C = p.channels.count, slabs = slab_count(call.layout, C);
  std::vector<double> partials(size_t(slabs * 2 * C));
  p.partials = partials.data();
  with_state(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    const std::vector<S> k = first_numbers<S>(call);
    parallel_slabs(call.layout, slabs,
                   [&](int64_t first, int64_t last) { kernels().statistics(p, k.data(), slabs, first, last); });
    const std::vector<double> sums = add_slabs(partials, slabs, C);
    S* const mean = static_cast<S*>(p.statistics);
    const double n = double(call.count());
    for (int64_t c = 0; c < C; ++c) {
      const double d = sums[size_t(c)] / n, variance = sums[size_t(C + c)] / n - d * d;
      mean[c] = S(double(k[size_t(c)]) + d);
      mean[C + c] = S(variance < 0 ? 0 : variance);  // NaN stays
      STD_TORCH_CHECK(!call.check || (std::isfinite(mean[c]) && std::isfinite(mean[C + c])),
                      "z_seq has values that are not finite, or overflow, in channel ", c,
                      ": its batch statistics are not finite");
    }
    if (!p.running_mean) return;
    if (p.tracked) ++*p.tracked;
    update_running(mean, C, p.momentum, n, static_cast<S*>(p.running_mean), static_cast<S*>(p.running_var));
  });
}

template <>
void run(const Cpu&, BnUpdateCall& call) {
  with_state(dtype_of(call.statistics), [&](auto zero) {
    using S = decltype(zero);
    update_running(static_cast<const S*>(call.statistics.const_data_ptr()), call.statistics.size(1), call.momentum,
                   call.count, static_cast<S*>(call.mean.mutable_data_ptr()),
                   static_cast<S*>(call.var.mutable_data_ptr()));
  });
}

template <>
void run(const Cpu&, BnForwardCall& call) {
  run_blocks(call, nullptr, 1, kernels().forward);
}

template <>
void run(const Cpu&, BnApplyCall& call) {
  run_blocks(call, call.params.sums, call.params.count, kernels().apply);
}

template <>
void run(const Cpu&, BnReduceCall& call) {
  BnReduceParams& p = call.params;
  const int64_t C = p.channels.count, slabs = slab_count(call.layout, C);
  std::vector<double> partials(size_t(slabs * 2 * C));
  std::vector<double> learnt(p.learnt_sums ? partials.size() : 0);
  p.partials = partials.data();
  p.learnt_workspace = p.learnt_sums ? learnt.data() : nullptr;
  if (call.wants_shared()) call.set_learnt_partials(slabs);
  with_state(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    const auto table = channel_table<S>(p, nullptr, 1);
    parallel_slabs(call.layout, slabs,
                   [&](int64_t first, int64_t last) { kernels().reduce(p, table.data(), slabs, first, last); });
    const std::vector<double> added = add_slabs(partials, slabs, C);
    const auto* const var = static_cast<const S*>(p.norm.var);
    S* const sums = static_cast<S*>(p.sums);
    for (int64_t c = 0; c < C; ++c) {
      sums[c] = S(added[size_t(c)]);
      const S inverse_std = var ? S(1) / std::sqrt(var[c] + S(p.norm.eps)) : S(1);
      sums[C + c] = S(added[size_t(C + c)] * double(inverse_std));
    }
    if (p.learnt_sums) add_learnt<S>(call, learnt, slabs);
  });
  if (call.wants_shared()) sum_partials(p.learnt_partials, 1, slabs, p.dtype, data(call.grad_leak));
}

}  // namespace sewsnn

STABLE_TORCH_LIBRARY_IMPL(sewsnn, CPU, m) { sewsnn::add_bn_ops<sewsnn::Cpu>(m); }
