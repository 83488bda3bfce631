// The functions of the library that sewsnn/ops calls through ctypes. ops/cuda.cpp has those about GPUs.
#include <sstream>

#include "kernels/cpu_kernels.h"
#include "neurons/kinds.h"
#include "ops/memory.h"
#include "ops/text.h"

extern "C" {

// The hash of the csrc from which the library was built (cmake/csrc_hash.py). Results that are measured with a library
// built elsewhere thus carry the hash of that library's sources, not of the sources in the checkout.
extern __attribute__((visibility("default"))) const char sewsnn_csrc[];
const char sewsnn_csrc[] = SEWSNN_CSRC_HASH;

// Checks the environment variables. Returns 0 and writes the instruction set of the CPU kernels to `text` (of `size`
// bytes), or returns 1 and writes what is wrong.
__attribute__((visibility("default"))) int sewsnn_settings(char* text, int size) {
  return sewsnn::tell(text, size, 1, [](std::string& said) {
    const char* const cpu = sewsnn::cpu_problem();
    said = cpu ? cpu : sewsnn::keep_problem();
    if (!said.empty()) return 1;
    said = sewsnn::cpu_kernels().isa;
    return 0;
  });
}

// Writes the kinds of neurons and the surrogates. There is a line
// for each kind: its name, its number in the ops, the numbers of its states, learnt parameters and extra numbers, and 0
// or 1 for each of per_channel, binary, surrogate, uses_tau and in_stem (neurons/kinds.h). An empty line follows, then
// a line with the name of each surrogate. Returns 0, or 1 if `text` is too small.
__attribute__((visibility("default"))) int sewsnn_registry(char* text, int size) {
  return sewsnn::tell(text, size, 1, [&](std::string& said) {
    std::ostringstream out;
    int place = 0;
    for (const sewsnn::KindInfo& k : sewsnn::kinds())
      out << k.name << ' ' << sewsnn::number_of_kind(place++) << ' ' << k.states << ' ' << k.learnt << ' ' << k.extra
          << ' ' << k.per_channel << ' ' << k.binary << ' ' << k.surrogate << ' ' << k.uses_tau << ' ' << k.in_stem
          << '\n';
    out << '\n';
    for (const char* const name : sewsnn::surrogates()) out << name << '\n';
    said = out.str();
    return size > 0 && said.size() < size_t(size) ? 0 : 1;
  });
}
}
