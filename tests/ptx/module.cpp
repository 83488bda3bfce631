// The PTX machine for Python: assemble.py gives programs as arrays of integers, and reads how often each instruction
// was executed.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "programs.h"

namespace py = pybind11;

void add_ptx(py::module_&);

namespace {

using Integers = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using Slots = py::array_t<uint64_t, py::array::c_style | py::array::forcecast>;

std::vector<std::string> names() {
  std::vector<std::string> found;
  for (const auto& [name, operation] : ptx::operations()) found.push_back(name);
  return found;
}

// code: [instructions, 13], in the order of ptx::Instruction's members; the operation is its place in names().
std::unique_ptr<ptx::Program> program(const py::dict& given) {
  std::vector<ptx::Operation> table;
  for (const auto& [name, operation] : ptx::operations()) table.push_back(operation);
  auto made = std::make_unique<ptx::Program>();
  const auto code = given["code"].cast<Integers>();
  for (py::ssize_t row = 0; row < code.shape(0); ++row) {
    const int32_t* const c = code.data(row, 0);
    ptx::Instruction i = {};
    i.run = table.at(size_t(c[0]));
    for (int k = 0; k < 6; ++k) i.x[k] = uint16_t(c[1 + k]);
    i.guard = uint16_t(c[7]), i.negated = uint8_t(c[8]), i.bytes = uint8_t(c[9]), i.count = uint8_t(c[10]);
    i.is_signed = uint8_t(c[11]), i.offset = c[12];
    made->code.push_back(i);
  }
  const auto slots = given["slots"].cast<Slots>();
  made->slots.assign(slots.data(), slots.data() + slots.size());
  for (const auto& [offset, bytes] : given["parameters"].cast<std::vector<std::pair<size_t, size_t>>>())
    made->parameters.push_back({offset, bytes});
  made->shared_bytes = given["shared_bytes"].cast<size_t>();
  made->local_bytes = given["local_bytes"].cast<size_t>();
  made->reached.assign(made->code.size(), 0);
  return made;
}

void execute(const py::object& assembler, unsigned every) {
  host_device::device().every = every;
  if (assembler.is_none()) return ptx::execute_ptx(nullptr);
  ptx::execute_ptx([assembler](const std::string& kernel) {
    const py::object given = assembler(kernel);
    return given.is_none() ? nullptr : program(given);
  });
}

// kernel -> (threads, how many of them reached each instruction)
py::dict executed() {
  py::dict found;
  for (const auto& [kernel, made] : ptx::executed())
    if (made)
      found[py::str(kernel)] =
          py::make_tuple(made->threads, py::array_t<uint64_t>(py::ssize_t(made->reached.size()), made->reached.data()));
  return found;
}

}  // namespace

void add_ptx(py::module_& m) {
  m.def("ptx_operations", names);
  m.def("ptx_execute", execute, py::arg("assembler"), py::arg("every") = 1);
  m.def("ptx_executed", executed);
  m.attr("ptx_bases") = py::dict(py::arg("shared") = ptx::kSharedBase, py::arg("local") = ptx::kLocalBase,
                                 py::arg("param") = ptx::kParamBase);
}
