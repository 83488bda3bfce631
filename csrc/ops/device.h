// The devices on which an op runs. An op has one body, a template over the device.
#pragma once

#include "ops/torch.h"

namespace sewsnn {

struct Cpu {
  Cpu(const Tensor& /*x*/, const char* /*op*/) {}
};
class Cuda;  // ops/cuda.h

// Runs the kernels of a call. Each call has a specialisation for each device.
template <class Device, class Call>
void run(const Device&, Call&);

}  // namespace sewsnn
