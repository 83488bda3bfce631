// Chooses the instruction set at the first request, which is the import of the package. The choice does not change.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cpu_kernels.h"

namespace sewsnn {
namespace {

struct Isa {
  std::string name;
  const CpuKernels* kernels;
  bool runs;  // this processor has it
};

// The best first.
std::vector<Isa> instruction_sets() {
  std::vector<Isa> sets;
#if defined(__x86_64__) && !defined(SEWSNN_GENERIC)  // an option of CMakeLists.txt
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  // This does not ask for F16C: not every compiler's builtin knows it, and every processor with AVX2 has it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  sets = {{"avx512", &kAvx512Kernels, avx512}, {"avx2", &kAvx2Kernels, avx2}};
#else
  sets = {{"avx512", nullptr, false}, {"avx2", nullptr, false}};
#endif
  sets.push_back({"generic", &kGenericKernels, true});
  return sets;
}

struct Choice {
  const CpuKernels* kernels = nullptr;
  std::string problem;
};

Choice choose() {
  const char* const variable = std::getenv("SEWSNN_CPU");
  const std::string asked = variable ? variable : "";
  std::string allowed;
  bool known = false;
  for (const Isa& isa : instruction_sets()) {
    if (isa.runs && (asked.empty() || asked == isa.name)) return {isa.kernels, ""};
    known = known || asked == isa.name;
    if (isa.runs) allowed += (allowed.empty() ? "" : ", ") + isa.name;
  }
  return {nullptr, "SEWSNN_CPU must be one of the instruction sets that this processor has, " + allowed +
                       ", or unset for the best of them; got '" + asked.substr(0, 60) + "'" +
                       (known ? ", which this processor does not have" : "")};
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

const CpuKernels& cpu_kernels() {
  const Choice& c = choice();
  if (!c.kernels) throw std::runtime_error(c.problem);
  return *c.kernels;
}

const char* cpu_problem() { return choice().kernels ? nullptr : choice().problem.c_str(); }

}  // namespace sewsnn
