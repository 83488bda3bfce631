// The functions of the library that sewsnn/ops/load.py calls through ctypes.
#include <string>

#include "kernels/cpu_kernels.h"
#include "ops/memory.h"

extern "C" {

// The hash of the csrc from which the library was built (cmake/csrc_hash.py). Results that are measured with a library
// built elsewhere thus carry the hash of that library's sources, not of the sources in the checkout.
extern __attribute__((visibility("default"))) const char sewsnn_csrc[];
const char sewsnn_csrc[] = SEWSNN_CSRC_HASH;

// Checks the environment variables. Returns 0 and writes the instruction set of the CPU kernels to `text` (of `size`
// bytes), or returns 1 and writes what is wrong.
__attribute__((visibility("default"))) int sewsnn_settings(char* text, int size) {
  try {
    const char* const cpu = sewsnn::cpu_problem();
    const std::string problem = cpu ? cpu : sewsnn::keep_problem();
    const std::string said = problem.empty() ? sewsnn::cpu_kernels().isa : problem;
    if (size > 0) text[said.copy(text, size_t(size - 1))] = 0;
    return !problem.empty();
  } catch (...) {  // no memory is left for the text
    if (size > 0) text[0] = 0;
    return 1;
  }
}
}
