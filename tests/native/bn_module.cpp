// The kernels of batch norm + neuron + connection as Python functions over NumPy arrays.
#include "bn_given.h"
#include "kernels/cuda_kernels.h"

using namespace host_module;

void add_bn(py::module_&);

namespace {

py::dict statistics(const py::dict& arguments, unsigned schedule) {
  begin(schedule);
  const Given given{arguments};
  const Array z = given.array("z");
  BnStatisticsParams p;
  p.dtype = dtype_of(*z);
  p.T = z->shape(0), p.M = z->shape(1);
  p.channels = given.channels();
  p.z = given.read_rows("z", p.M);
  const Workspace workspace(cuda_bn_workspace(p.T, p.M, p.channels, p.dtype));
  p.partials = workspace.partials, p.counters = workspace.counters;
  p.statistics = given.written("statistics");
  Array mean = given.array("running_mean"), var = given.array("running_var");
  if (mean) {
    p.running_mean = updated("running_mean", mean);
    p.running_var = updated("running_var", var);
    p.momentum = given.number<double>("momentum");
  }
  check(cuda_bn_statistics(p, nullptr));
  workspace.check_counters();
  return report({"partials"});
}

py::dict update(const py::dict& arguments, unsigned schedule) {
  begin(schedule);
  const Given given{arguments};
  Array mean = given.array("running_mean"), var = given.array("running_var");
  const void* const statistics = given.read("statistics");
  void* const running_mean = updated("running_mean", mean);
  void* const running_var = updated("running_var", var);
  check(cuda_bn_update(statistics, mean->size(), given.number<double>("momentum"), given.number<double>("count"),
                       dtype_of(*mean), running_mean, running_var, nullptr));
  return report();
}

py::dict forward(const py::dict& arguments, unsigned schedule) {
  begin(schedule);
  const Given given{arguments};
  BnForwardParams p;
  fill(p, given);
  p.out = given.written("out");
  p.sum = given.written("sum");
  p.v = given.written("v");
  p.checkpoints = given.written("checkpoints");
  p.bits = given.written("bits");
  check(cuda_bn_forward(p, nullptr));
  return report();
}

py::dict reduce(const py::dict& arguments, unsigned schedule) {
  begin(schedule);
  const Given given{arguments};
  BnReduceParams p;
  fill(p, given);
  p.grad_skip = given.read_rows("grad_skip", p.M);
  p.grad_sum = given.written("grad_sum");
  p.sums = given.written("sums");
  Array grad_leak = given.array("grad_leak"), leak_partials;
  void* const sum = output("grad_leak", grad_leak);
  const BnWorkspace need = cuda_bn_workspace(p.T, p.M, p.channels, p.dtype);
  const bool per_channel = sum && kinds()[size_t(p.neuron.kind)].per_channel;
  Array learnt_workspace;
  if (per_channel) {
    learnt_workspace = py::array_t<uint8_t>(need.bytes);
    p.learnt_workspace = output("learnt_workspace", learnt_workspace);
    p.learnt_sums = sum;
  } else if (sum) {
    leak_partials = py::array_t<double>(cuda_bn_learnt_partials(p));
    p.learnt_partials = static_cast<double*>(output("leak_partials", leak_partials));
  }
  const Workspace workspace({need.bytes, need.counters * (per_channel ? 2 : 1)});
  p.partials = workspace.partials, p.counters = workspace.counters;
  check(cuda_bn_reduce(p, nullptr));
  workspace.check_counters();
  if (sum && !per_channel) check(cuda_sum_partials(p.learnt_partials, leak_partials->size(), p.dtype, sum, nullptr));
  return report({"partials", "learnt_workspace"});
}

py::dict apply(const py::dict& arguments, unsigned schedule) {
  begin(schedule);
  const Given given{arguments};
  BnApplyParams p;
  fill(p, given);
  p.sums = given.read("sums");
  p.count = given.number<double>("count");
  p.grad_z = given.written("grad_z");
  p.grad_shortcut = given.written("grad_shortcut");
  check(cuda_bn_apply(p, nullptr));
  return report();
}

py::dict unpack(Array bits, Array out, unsigned schedule) {
  begin(schedule);
  const auto* const from = static_cast<const uint8_t*>(input("bits", bits));
  void* const to = output("out", out);
  check(cuda_unpack(from, bits->size(), dtype_of(*out), to, nullptr));
  return report();
}

}  // namespace

void add_bn(py::module_& m) {
  for (const auto& [name, function] :
       {std::pair{"bn_statistics", statistics}, std::pair{"bn_update", update}, std::pair{"bn_forward", forward},
        std::pair{"bn_reduce", reduce}, std::pair{"bn_apply", apply}})
    m.def(name, function, py::arg("arguments"), py::arg("schedule") = 0);
  m.def("unpack", unpack, py::arg("bits"), py::arg("out"), py::arg("schedule") = 0);
}
