// What sewsnn/ops/load.py asks the library itself, through ctypes.
#include <string>

#include "kernels/cpu_kernels.h"
#include "ops/memory.h"

extern "C" {

// Which sources the library was built from: the hash of csrc (cmake/csrc_hash.py), so that results measured with a
// library built elsewhere carry its name and not that of the sources beside it.
extern __attribute__((visibility("default"))) const char sewsnn_csrc[];
const char sewsnn_csrc[] = SEWSNN_CSRC_HASH;

// Reads what the environment asks for. 0, and in text (of so many bytes) the instruction set of the CPU kernels; or 1,
// and what is wrong.
__attribute__((visibility("default"))) int sewsnn_settings(char* text, int size) {
  try {
    const char* const cpu = sewsnn::cpu_problem();
    const std::string problem = cpu ? cpu : sewsnn::keep_problem();
    const std::string said = problem.empty() ? sewsnn::cpu_kernels().isa : problem;
    if (size > 0) text[said.copy(text, size_t(size - 1))] = 0;
    return !problem.empty();
  } catch (...) {  // no memory for these few bytes
    if (size > 0) text[0] = 0;
    return 1;
  }
}
}
