// How the C functions of the library return a text.
#pragma once

#include <string>

namespace sewsnn {

// Calls f(said), writes `said` to `text` (of `size` bytes) as far as it fits, and returns what f returned; `failed` if
// no memory is left.
template <class F>
int tell(char* text, int size, int failed, const F& f) {
  try {
    std::string said;
    const int result = f(said);
    if (size > 0) text[said.copy(text, size_t(size - 1))] = 0;
    return result;
  } catch (...) {
    if (size > 0) text[0] = 0;
    return failed;
  }
}

}  // namespace sewsnn
