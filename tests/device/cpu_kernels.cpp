// Instead of csrc/inst/cpu_select.cpp: one instruction set of the CPU kernels is enough here.
#include "kernels/cpu_kernels.h"

namespace sewsnn {
const CpuKernels& cpu_kernels() { return kGenericKernels; }
const char* cpu_problem() { return nullptr; }
}  // namespace sewsnn
