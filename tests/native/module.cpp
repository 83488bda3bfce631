// The CUDA kernels, compiled for the host, as Python functions over NumPy arrays.
#include "arrays.h"
#include "kernels/cuda_bn_kernels.h"
#include "kernels/cuda_kernels.h"
#include "samples.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes)
#endif

using namespace host_module;

namespace {

py::dict forward(const std::vector<double>& numbers, const Array& leak, int64_t inner, const Array& x, const Array& v0,
                 Array s, Array v, bool v_seq, Array checkpoints, unsigned schedule) {
  begin(schedule);
  ForwardParams p;
  p.neuron = neuron(numbers, leak, inner);
  p.dtype = dtype_of(*x);
  p.T = x->shape(0), p.M = x->shape(1);
  p.x = rows("x", x, false);
  p.v0 = rows("v0", v0, false);
  p.s = output("s", s);
  p.v = output("v", v);
  p.v_seq = v_seq;
  p.checkpoints = output("checkpoints", checkpoints);
  check(cuda_forward(p, nullptr));
  return report();
}

py::dict backward(const std::vector<double>& numbers, const Array& leak, int64_t inner, const Array& x, const Array& v0,
                  const Array& checkpoints, const Array& grad_s, bool broadcast_s, const std::vector<Array>& grad_v,
                  bool broadcast_v, bool v_seq, Array grad_x, Array grad_v0, Array grad_leak, unsigned schedule) {
  begin(schedule);
  BackwardParams p;
  p.neuron = neuron(numbers, leak, inner);
  p.dtype = dtype_of(*x);
  p.T = x->shape(0), p.M = x->shape(1);
  p.x = rows("x", x, false);
  p.v0 = rows("v0", v0, false);
  p.checkpoints = input("checkpoints", checkpoints);
  p.grad_s = rows("grad_s", grad_s, broadcast_s);
  for (size_t n = 0; n < grad_v.size(); ++n)
    p.grad_v[n] = rows(n == 0 ? "grad_v" : "grad_v of the second state", grad_v[n], broadcast_v);
  p.v_seq = v_seq;
  p.grad_x = output("grad_x", grad_x);
  p.grad_v0 = output("grad_v0", grad_v0);
  if (!grad_leak) {
    check(cuda_backward(p, nullptr));
    return report();
  }
  const int64_t parameters = grad_leak->shape(0);
  const Channels& channels = p.neuron.learnt.channels;
  if (channels.count > 1) {
    Array elements = grad_leak->dtype().itemsize() == 8 ? py::array(py::array_t<double>({parameters, p.M}))
                                                        : py::array(py::array_t<float>({parameters, p.M}));
    p.learnt_elements = output("elements", elements);
    check(cuda_backward(p, nullptr));
    const Workspace workspace(cuda_bn_workspace(1, p.M, channels, dtype_of(*elements)));
    check(cuda_channel_sums(p.learnt_elements, parameters, p.M, channels, dtype_of(*elements), workspace.partials,
                            workspace.counters, output("grad_leak", grad_leak), nullptr));
    workspace.check_counters();
    return report({"partials"});
  }
  const int64_t blocks = cuda_backward_blocks(p);
  Array partials = py::array_t<double>({parameters, blocks});
  p.learnt_partials = static_cast<double*>(output("partials", partials));
  auto* const sum = static_cast<char*>(output("grad_leak", grad_leak));
  check(cuda_backward(p, nullptr));
  for (int64_t q = 0; q < parameters; ++q)
    check(cuda_sum_partials(p.learnt_partials + q * blocks, blocks, p.dtype, sum + q * grad_leak->itemsize(), nullptr));
  return report();
}

// Sums each row of [rows, n] numbers into [rows].
py::dict sum_rows(const Array& numbers, Array out, unsigned schedule) {
  begin(schedule);
  const void* const from = input("numbers", numbers);
  check(cuda_sum_rows(from, numbers->shape(0), numbers->shape(1), dtype_of(*numbers), output("out", out), nullptr));
  return report();
}

py::dict sample(const std::string& name, Array in, Array out, unsigned schedule) {
  begin(schedule);
  auto* const from = static_cast<float*>(const_cast<void*>(input("in", in)));
  check(samples::run(name, from, static_cast<float*>(output("out", out))));
  return report();
}

// Forbids access to a byte array outside [begin, end), if this is compiled with AddressSanitizer.
void guard([[maybe_unused]] py::array_t<uint8_t> a, [[maybe_unused]] py::ssize_t begin,
           [[maybe_unused]] py::ssize_t end) {
  ASAN_POISON_MEMORY_REGION(a.data(), begin);
  ASAN_POISON_MEMORY_REGION(a.data() + end, a.nbytes() - end);
}
void unguard([[maybe_unused]] uintptr_t address, [[maybe_unused]] size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(reinterpret_cast<void*>(address), bytes);
}

}  // namespace

void add_bn(py::module_&);        // bn_module.cpp
void add_pool(py::module_&);      // pool_module.cpp
void add_max_pool(py::module_&);  // max_pool_module.cpp
void add_ptx(py::module_&);       // tests/ptx/module.cpp

PYBIND11_MODULE(sewsnn_host, m) {
  const auto none = py::none();
  add_pool(m);
  add_max_pool(m);
  add_ptx(m);
  m.attr("checkpoint_every") = kChunk;
  m.attr("broadcast") = kBroadcast;
  m.attr("sanitized") =
#if defined(__SANITIZE_ADDRESS__)
      true;
#else
      false;
#endif
  m.def("sample", sample, py::arg("name"), py::arg("in"), py::arg("out"), py::arg("schedule") = 0);
  m.def("sum_rows", sum_rows, py::arg("numbers"), py::arg("out"), py::arg("schedule") = 0);
  m.def("guard", guard);
  m.def("unguard", unguard);
  m.def("forward", forward, py::kw_only(), py::arg("numbers"), py::arg("leak") = none, py::arg("inner") = 1,
        py::arg("x"), py::arg("v0") = none, py::arg("s"), py::arg("v") = none, py::arg("v_seq") = false,
        py::arg("checkpoints") = none, py::arg("schedule") = 0);
  m.def("backward", backward, py::kw_only(), py::arg("numbers"), py::arg("leak") = none, py::arg("inner") = 1,
        py::arg("x"), py::arg("v0") = none, py::arg("checkpoints") = none, py::arg("grad_s"), py::arg("broadcast_s"),
        py::arg("grad_v") = std::vector<Array>(), py::arg("broadcast_v") = false, py::arg("v_seq") = false,
        py::arg("grad_x"), py::arg("grad_v0") = none, py::arg("grad_leak") = none, py::arg("schedule") = 0);
  add_bn(m);
}
