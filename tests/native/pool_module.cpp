// The stem's kernels, CPU and CUDA, as Python functions over NumPy arrays.
#include "arrays.h"
#include "kernels/cpu_pool_kernels.h"
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_pool_kernels.h"

namespace sewsnn {
extern const CpuPoolKernels kGenericPoolKernels;
#if defined(__x86_64__)
extern const CpuPoolKernels kAvx2PoolKernels, kAvx512PoolKernels;
#endif
}  // namespace sewsnn

using namespace host_module;

namespace {

const CpuPoolKernels& cpu_table(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx2") return kAvx2PoolKernels;
  if (isa == "avx512") return kAvx512PoolKernels;
#endif
  return kGenericPoolKernels;
}

// The kernels that this processor can run.
std::vector<std::string> cpu_isas() {
  std::vector<std::string> isas = {"generic"};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas.push_back("avx2");
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    isas.push_back("avx512");
#endif
  return isas;
}

// The order of blocks: 0 runs all in one call, any other value one by one in descending order.
template <class F>
void in_blocks(int64_t blocks, unsigned schedule, const F& f) {
  if (schedule == 0) return f(0, blocks);
  for (int64_t b = blocks - 1; b >= 0; --b) f(b, b + 1);
}

struct Call {
  bool cuda;
  const CpuPoolKernels& cpu;
  unsigned schedule;
  PoolParams params;

  Call(const std::string& kernels, unsigned schedule_, const py::dict& given)
      : cuda(kernels == "cuda"), cpu(cpu_table(kernels)), schedule(schedule_) {
    begin(schedule);
    const auto number = [&](const char* name) { return given[name].cast<int64_t>(); };
    const auto real = [&](const char* name) { return given[name].cast<double>(); };
    const auto array = [&](const char* name) { return given[name].cast<Array>(); };
    params.neuron = neuron(given["numbers"].cast<std::vector<double>>(), array("leak"), 1);
    params.norm = {input("mean", array("mean")), input("var", array("var")), input("weight", array("weight")),
                   input("bias", array("bias")), real("eps")};
    const Array z = array("z");
    params.dtype = dtype_of(*z);
    params.z = input("z", z);
    params.T = number("T"), params.images = number("images"), params.channels = number("channels");
    params.height = number("height"), params.width = number("width");
    params.channels_last = given["channels_last"].cast<bool>();
  }
};

py::dict pool_forward(const std::string& kernels, unsigned schedule, const py::dict& given, Array out) {
  const Call call(kernels, schedule, given);
  PoolForwardParams p{call.params};
  p.out = output("out", out);
  if (call.cuda) {
    check(cuda_pool_forward(p, nullptr));
    return report();
  }
  in_blocks(call.cpu.blocks(p), schedule, [&](int64_t first, int64_t last) { call.cpu.forward(p, first, last); });
  return {};
}

py::dict pool_reduce(const std::string& kernels, unsigned schedule, const py::dict& given, const Array& grad_out,
                     Array sums, Array grad_leak) {
  const Call call(kernels, schedule, given);
  PoolReduceParams p;
  static_cast<PoolParams&>(p) = call.params;
  p.grad_out = input("grad_out", grad_out);
  const int64_t bytes = call.cuda ? cuda_pool_workspace(p) : cpu_pool_workspace(p);
  Array partials = py::array_t<double>(bytes / int64_t(sizeof(double))), leaks;
  p.partials = output("partials", partials);
  p.sums = output("sums", sums);
  const int64_t leak_count = call.cuda ? cuda_pool_learnt_partials(p) : call.cpu.blocks(p);
  if (grad_leak) {
    leaks = py::array_t<double>(leak_count);
    p.learnt_partials = static_cast<double*>(output("leak_partials", leaks));
  }
  void* const sum = output("grad_leak", grad_leak);
  if (call.cuda) {
    check(cuda_pool_reduce(p, nullptr));
    if (sum) check(cuda_sum_partials(p.learnt_partials, leak_count, p.dtype, sum, nullptr));
    return report();
  }
  in_blocks(leak_count, schedule, [&](int64_t first, int64_t last) { call.cpu.reduce(p, first, last); });
  call.cpu.add(p);
  if (!sum) return {};
  double total = 0;
  for (int64_t i = 0; i < leak_count; ++i) total += p.learnt_partials[i];
  if (p.dtype == DType::Float64) *static_cast<double*>(sum) = total;
  else *static_cast<float*>(sum) = float(total);
  return {};
}

py::dict pool_apply(const std::string& kernels, unsigned schedule, const py::dict& given, const Array& grad_out,
                    const Array& sums, double count, Array grad_z) {
  const Call call(kernels, schedule, given);
  PoolApplyParams p;
  static_cast<PoolParams&>(p) = call.params;
  p.grad_out = input("grad_out", grad_out);
  p.sums = input("sums", sums);
  p.count = count;
  p.grad_z = output("grad_z", grad_z);
  if (call.cuda) {
    check(cuda_pool_apply(p, nullptr));
    return report();
  }
  in_blocks(call.cpu.blocks(p), schedule, [&](int64_t first, int64_t last) { call.cpu.apply(p, first, last); });
  return {};
}

}  // namespace

void add_pool(py::module_& m) {
  m.def("cpu_isas", cpu_isas);
  m.def("pool_forward", pool_forward);
  m.def("pool_reduce", pool_reduce);
  m.def("pool_apply", pool_apply);
}
