// Distributes work over torch's threads, and adds what the CPU kernels have left to add.
#pragma once

#include <algorithm>
#include <exception>
#include <mutex>

#include "core/params.h"
#include "ops/torch.h"

namespace sewsnn {

// Calls f(first, last) for ranges of [begin, end) on torch's threads. Rethrows the first exception of f in this thread,
// whatever torch does with exceptions.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  std::exception_ptr thrown;
  std::mutex mutex;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    try {
      f(first, last);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!thrown) thrown = std::current_exception();
    }
  });
  if (thrown) std::rethrow_exception(thrown);
}

// The number of units per task, if a unit has this many neurons and time-steps: enough work to be worth waking a
// thread.
inline int64_t grain(int64_t neurons, int64_t T) {
  constexpr int64_t enough = 1 << 15;  // neurons times time-steps: about ten microseconds
  const auto within = [](int64_t n) { return n < 1 ? 1 : n < enough ? n : enough; };  // no product overflows
  const int64_t each = within(neurons) * within(T);
  return (enough + each - 1) / each;
}

// Calls f with a zero of the state's type.
template <class F>
void with_state(DType dtype, const F& f) {
  if (dtype == DType::Float64) f(double());
  else f(float());
}

// Adds each row of [rows, count] in order and rounds the sum once.
inline void sum_partials(const double* partials, int64_t rows, int64_t count, DType dtype, void* out) {
  with_state(dtype, [&](auto zero) {
    for (int64_t row = 0; row < rows; ++row) {
      double sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += partials[row * count + i];
      static_cast<decltype(zero)*>(out)[row] = decltype(zero)(sum);
    }
  });
}

}  // namespace sewsnn
