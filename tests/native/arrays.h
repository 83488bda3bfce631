// Common code of the module's functions: NumPy arrays as operands of kernels, and the report of accesses. float32,
// float64 and float16 arrays have these types; uint16 stands for bfloat16.
#pragma once

#include <cuda_runtime.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <set>

#include "core/neuron_numbers.h"
#include "device.h"
#include "kernels/cuda_bn_kernels.h"
#include "neurons/kinds.h"

namespace py = pybind11;

namespace host_module {

using namespace sewsnn;
using Array = std::optional<py::array>;

inline DType dtype_of(const py::array& a) {
  const char kind = a.dtype().kind();
  const auto bytes = a.itemsize();
  if (kind == 'f' && bytes == 4) return DType::Float32;
  if (kind == 'f' && bytes == 8) return DType::Float64;
  if (kind == 'f' && bytes == 2) return DType::Float16;
  if (kind == 'u' && bytes == 2) return DType::BFloat16;
  throw py::type_error("arrays must be float32, float64, float16 or uint16 (bfloat16)");
}

// The bytes that an array spans. A kernel may access only these.
inline void expose(const char* name, const py::array& a, bool filled) {
  py::ssize_t span = a.itemsize();
  for (py::ssize_t d = 0; d < a.ndim(); ++d) {
    if (a.shape(d) == 0) return;
    span += (a.shape(d) - 1) * a.strides(d);
  }
  host_device::device().add(name, a.data(), size_t(span), filled);
}

inline const void* input(const char* name, const Array& a) {
  if (!a) return nullptr;
  expose(name, *a, true);
  return a->data();
}

inline void* output(const char* name, Array& a) {
  if (!a) return nullptr;
  expose(name, *a, false);
  return a->mutable_data();
}

// An array that a kernel reads and overwrites.
inline void* updated(const char* name, Array& a) {
  if (!a) return nullptr;
  expose(name, *a, true);
  host_device::device().buffers.back().updated = true;
  return a->mutable_data();
}

// [rows, M] with any distance between rows; or [rows, kBroadcast], where each row is one number for all neurons.
inline Rows rows(const char* name, const Array& a, bool broadcast) {
  if (!a) return {};
  return {input(name, a), a->strides(0) / a->itemsize(), broadcast ? 0 : 1};
}

// Reads the list of numbers that sewsnn/ops/spec.py makes of a neuron.
struct NumberList {
  const std::vector<double>& numbers;
  size_t at = 0;
  double number(const char* = "") { return numbers.at(at++); }
  int64_t whole(const char* = "") { return int64_t(number()); }
  bool flag(const char* = "") { return number() != 0; }
  std::optional<double> maybe_number(const char* = "") {
    const bool given = flag();
    const double x = number();
    return given ? std::optional<double>(x) : std::nullopt;
  }
};

// learnt: [parameters, channels]; inner: see Channels.
inline NeuronParams neuron(const std::vector<double>& numbers, const Array& learnt, int64_t inner) {
  NumberList list{numbers};
  const NeuronNumbers n = read_neuron(list);
  NeuronParams p = n.rest;
  p.kind = place_of_kind(n.kind), p.surrogate = int(n.surrogate);
  const int64_t extra = list.whole();
  for (int64_t i = 0; i < extra; ++i) p.extra[i] = list.number();
  p.learnt.data = input("leak", learnt);
  if (learnt && learnt->ndim() == 2) p.learnt.channels = {learnt->shape(1), inner};
  return p;
}

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

inline void begin(unsigned schedule) {
  auto& device = host_device::device();
  device.buffers.clear();
  device.launches.clear();
  device.schedule = schedule;
}

// The workspace of a kernel, of exactly the size that it asks for. The counters are zeros, and must be zeros again when
// the kernel has ended.
struct Workspace {
  Array memory;
  py::array_t<unsigned> counting;
  void* partials;
  unsigned* counters;

  explicit Workspace(const BnWorkspace& need)
      : memory(py::array_t<uint8_t>(need.bytes)), counting(py::array_t<unsigned>(need.counters)) {
    std::fill_n(counting.mutable_data(), counting.size(), 0u);
    partials = output("partials", memory);
    Array filled = counting;
    counters = static_cast<unsigned*>(updated("counters", filled));
  }
  void check_counters() const {
    for (py::ssize_t i = 0; i < counting.size(); ++i)
      if (counting.data()[i]) throw std::runtime_error("counter " + std::to_string(i) + " is not 0 after the kernel");
  }
};

// The report: the launched kernels, and for each buffer the number of accesses by their size in bytes. Kernels need not
// write all of the buffers that `spare` names.
inline py::dict report(const std::set<std::string>& spare = {}) {
  py::list launches;
  for (const auto& l : host_device::device().launches) launches.append(py::make_tuple(l.kernel, l.grid.x, l.block.x));
  py::dict loads, stores;
  for (const auto& b : host_device::device().buffers) {
    loads[py::str(b.name)] = b.loads;
    stores[py::str(b.name)] = b.stores;
    if (!b.filled && !spare.count(b.name) && host_device::device().every == 1)
      for (size_t i = 0; i < b.written.size(); ++i)
        if (!b.written[i])
          throw std::runtime_error("byte " + std::to_string(i) + " of " + b.name + " was never written");
  }
  py::dict out;
  out["launches"] = launches, out["loads"] = loads, out["stores"] = stores;
  return out;
}

}  // namespace host_module
