// Max pooling, alone and as the end of batch norm + neuron + connection, as Python functions over NumPy arrays.
#include "bn_given.h"
#include "kernels/cpu_max_pool_kernels.h"
#include "kernels/cuda_bn_pooled_kernels.h"
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_max_pool_kernels.h"

namespace sewsnn {
extern const CpuMaxPoolKernels kGenericMaxPoolKernels;
#if defined(__x86_64__)
extern const CpuMaxPoolKernels kAvx2MaxPoolKernels, kAvx512MaxPoolKernels;
#endif
}  // namespace sewsnn

using namespace host_module;

namespace {

const CpuMaxPoolKernels& cpu_table(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx2") return kAvx2MaxPoolKernels;
  if (isa == "avx512") return kAvx512MaxPoolKernels;
#endif
  return kGenericMaxPoolKernels;
}

// Images [images, C, H, W] and their windows.
void fill(MaxPoolParams& p, const Given& given, DType dtype) {
  p.dtype = dtype;
  p.window = {given.number<int64_t>("kernel"), given.number<int64_t>("stride"), given.number<int64_t>("padding")};
  p.images = given.number<int64_t>("images"), p.channels = given.number<int64_t>("channels");
  p.height = given.number<int64_t>("height"), p.width = given.number<int64_t>("width");
  p.out_height = p.window.count(p.height), p.out_width = p.window.count(p.width);
  p.channels_last = given.number<bool>("channels_last");
}

// One after the other, in descending order unless `schedule` is 0.
template <class F>
void in_units(int64_t units, unsigned schedule, const F& f) {
  if (schedule == 0) return f(0, units);
  for (int64_t u = units - 1; u >= 0; --u) f(u, u + 1);
}

py::dict forward(const std::string& kernels, const py::dict& arguments, unsigned schedule) {
  begin(schedule);
  const Given given{arguments};
  MaxPoolForwardParams p;
  fill(p, given, dtype_of(*given.array("x")));
  p.x = given.read("x");
  p.weight = given.read("weight");
  p.out = given.written("out");
  p.positions = static_cast<uint8_t*>(given.written("positions"));
  if (kernels == "cuda") {
    check(cuda_max_pool(p, nullptr));
    return report();
  }
  const CpuMaxPoolKernels& cpu = cpu_table(kernels);
  in_units(cpu.forward_units(p), schedule, [&](int64_t first, int64_t last) { cpu.forward(p, first, last); });
  return {};
}

py::dict backward(const std::string& kernels, const py::dict& arguments, unsigned schedule) {
  begin(schedule);
  const Given given{arguments};
  MaxPoolBackwardParams p;
  fill(p, given, dtype_of(*given.array("grad_out")));
  p.grad_out = given.read("grad_out");
  p.positions = static_cast<const uint8_t*>(given.read("positions"));
  p.x = given.read("x");
  p.affine = given.read("affine");
  p.grad_x = given.written("grad_x");
  if (kernels == "cuda") {
    check(cuda_max_pool_backward(p, nullptr));
    return report();
  }
  const CpuMaxPoolKernels& cpu = cpu_table(kernels);
  in_units(cpu.backward_units(p), schedule, [&](int64_t first, int64_t last) {
    std::vector<double> scratch(size_t(cpu.backward_scratch(p) + 7) / 8);
    cpu.backward(p, first, last, scratch.data());
  });
  return {};
}

py::dict with_statistics(const py::dict& arguments, unsigned schedule) {
  begin(schedule);
  const Given given{arguments};
  PoolStatisticsParams p;
  fill(p.pool, given, dtype_of(*given.array("x")));
  p.pool.x = given.read("x");
  p.pool.weight = given.read("weight");
  p.pool.out = given.written("out");
  p.pool.positions = static_cast<uint8_t*>(given.written("positions"));
  BnStatisticsParams& b = p.statistics;
  b.dtype = p.pool.dtype;
  b.channels = {p.pool.channels, p.pool.channels_last ? 1 : p.pool.height * p.pool.width};
  b.z.data = p.pool.x;
  b.statistics = given.written("statistics");
  Array mean = given.array("running_mean"), var = given.array("running_var");
  b.running_mean = updated("running_mean", mean);
  b.running_var = updated("running_var", var);
  b.momentum = given.number<double>("momentum");
  if (!cuda_max_pool_statistics_serves(p)) throw std::runtime_error("no kernel serves these params");
  const Workspace workspace(cuda_max_pool_statistics_workspace(p));
  b.partials = workspace.partials, b.counters = workspace.counters;
  check(cuda_max_pool_statistics(p, nullptr));
  workspace.check_counters();
  return report({"partials"});
}

// ---- as the end of batch norm + neuron + connection

py::dict pooled_forward(const py::dict& arguments, unsigned schedule) {
  begin(schedule);
  const Given given{arguments};
  BnPooledForwardParams p;
  fill(static_cast<BnParams&>(p), given);
  fill(p.pool, given, p.dtype);
  p.out = given.written("out");
  p.positions = static_cast<uint8_t*>(given.written("positions"));
  if (!cuda_bn_pooled_forward_serves(p)) throw std::runtime_error("no kernel serves these params");
  check(cuda_bn_pooled_forward(p, nullptr));
  return report();
}

template <class P>
void fill_backward(P& p, const Given& given) {
  fill(static_cast<BnParams&>(p), given);
  fill(p.pool, given, p.dtype);
  p.checkpoints = given.read("checkpoints");
  p.grad_out = {given.read("grad_out"), 0, 1};
  p.grad_out.row_stride = p.pool.images * p.pool.channels * p.pool.out_height * p.pool.out_width;
  p.positions = static_cast<const uint8_t*>(given.read("positions"));
  if (!cuda_bn_pooled_backward_serves(p)) throw std::runtime_error("no kernel serves these params");
}

py::dict pooled_reduce(const py::dict& arguments, unsigned schedule) {
  begin(schedule);
  const Given given{arguments};
  BnPooledReduceParams p;
  fill_backward(p, given);
  p.sums = given.written("sums");
  Array grad_leak = given.array("grad_leak"), leak_partials;
  void* const sum = output("grad_leak", grad_leak);
  if (sum) {
    leak_partials = py::array_t<double>(cuda_bn_pooled_learnt_partials(p));
    p.learnt_partials = static_cast<double*>(output("leak_partials", leak_partials));
  }
  const Workspace workspace(cuda_bn_workspace(p.T, p.M, p.channels, p.dtype));
  p.partials = workspace.partials, p.counters = workspace.counters;
  check(cuda_bn_pooled_reduce(p, nullptr));
  workspace.check_counters();
  if (sum) check(cuda_sum_partials(p.learnt_partials, leak_partials->size(), p.dtype, sum, nullptr));
  return report({"partials"});
}

py::dict pooled_apply(const py::dict& arguments, unsigned schedule) {
  begin(schedule);
  const Given given{arguments};
  BnPooledApplyParams p;
  fill_backward(p, given);
  p.sums = given.read("sums");
  p.count = given.number<double>("count");
  p.grad_z = given.written("grad_z");
  p.grad_shortcut = given.written("grad_shortcut");
  check(cuda_bn_pooled_apply(p, nullptr));
  return report();
}

}  // namespace

void add_max_pool(py::module_& m) {
  for (const auto& [name, function] : {std::pair{"max_pool", forward}, std::pair{"max_pool_backward", backward}})
    m.def(name, function, py::arg("kernels"), py::arg("arguments"), py::arg("schedule") = 0);
  for (const auto& [name, function] :
       {std::pair{"max_pool_statistics", with_statistics}, std::pair{"bn_pooled_forward", pooled_forward},
        std::pair{"bn_pooled_reduce", pooled_reduce}, std::pair{"bn_pooled_apply", pooled_apply}})
    m.def(name, function, py::arg("arguments"), py::arg("schedule") = 0);
}
