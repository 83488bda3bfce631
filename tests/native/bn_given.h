// The arguments of the functions for batch norm + neuron + connection: a dictionary of numbers, and of arrays or None.
#pragma once

#include "arrays.h"
#include "kernels/cuda_bn_kernels.h"

namespace host_module {

// Reads the common params of forward and backward from a dictionary of numbers, and arrays or None.
struct Given {
  py::dict at;

  Array array(const char* name) const { return at.contains(name) ? at[name].cast<Array>() : std::nullopt; }
  template <class T>
  T number(const char* name) const {
    return at[name].cast<T>();
  }
  const void* read(const char* name) const { return input(name, array(name)); }
  void* written(const char* name) const {
    Array a = array(name);
    return output(name, a);
  }
  // Rows with one number for all neurons contain it kBroadcast times.
  Rows read_rows(const char* name, int64_t M) const {
    const Array a = array(name);
    return rows(name, a, a && M != kBroadcast && a->shape(1) == kBroadcast);
  }
  Channels channels() const { return {number<int64_t>("channels"), number<int64_t>("inner")}; }
};

inline void fill(BnParams& p, const Given& given) {
  p.neuron = neuron(given.number<std::vector<double>>("numbers"), given.array("leak"), given.number<int64_t>("inner"));
  p.spiking = given.number<bool>("spiking");
  p.norm = {given.read("mean"), given.read("var"), given.read("weight"), given.read("bias"),
            given.number<double>("eps")};
  p.channels = given.channels();
  p.connect = Connect(given.number<int>("connect"));
  const Array z = given.array("z");
  p.dtype = dtype_of(*z);
  p.M = z->shape(1);
  p.T = given.number<int64_t>("T");
  p.still = given.number<bool>("still");
  p.z = given.read_rows("z", p.M);
  p.shortcut = given.read_rows("shortcut", p.M);
}

inline void fill(BnBackwardParams& p, const Given& given) {
  fill(static_cast<BnParams&>(p), given);
  p.checkpoints = given.read("checkpoints");
  p.grad_out = given.read_rows("grad_out", p.M);
}

}  // namespace host_module
