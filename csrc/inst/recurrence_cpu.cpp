// The neurons' loops in the types of the states, for the kernels of all three families. Compiled once per instruction
// set, with SEWSNN_ISA and SEWSNN_NAME naming it (CMakeLists.txt).
#include "kernels/recurrence_cpu.h"

namespace sewsnn {

template class Recurrence<float>;
template class Recurrence<double>;

}  // namespace sewsnn
