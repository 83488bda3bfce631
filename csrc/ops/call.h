// Wraps every op, so that no exception in it ends the process.
#pragma once

#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

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

// Calls the function of an op. If memory for a temporary is missing, it throws an error that says so. (memory.cpp does
// this for results.)
template <auto F>
struct Guarded;
template <class R, class... A, R (*F)(A...)>
struct Guarded<F> {
  static R call(A... arguments) {
    try {
      return F(std::move(arguments)...);
    } catch (const std::bad_alloc&) {
    } catch (const std::length_error&) {
    }
    throw std::runtime_error("sewsnn can't allocate memory for the work of an op");
  }
};

}  // namespace sewsnn

#define SEWSNN_BOX(f) TORCH_BOX(&::sewsnn::Guarded<&f>::call)
