#include "ops/counters.h"

#include <map>
#include <mutex>
#include <utility>

namespace sewsnn {
namespace {

constexpr int64_t kPerStream = int64_t(1) << 13, kForGraphs = int64_t(1) << 18;
constexpr int64_t kLine = 32;  // counters of two kernels do not share a line of the cache

// The counters of a device that no kernel has got yet, for kernels that are captured into CUDA graphs. They are filled
// by the first call that is not captured, because a fill during the capture would run only in the replay.
struct Reserve {
  Tensor zeros;
  int64_t taken = 0;
};

struct State {
  std::mutex mutex;
  std::map<int32_t, Reserve> reserves;
  std::map<std::pair<int32_t, cudaStream_t>, Tensor> streams;
};

// This object is never destroyed: CUDA may end before static objects do.
State& state() {
  static State& instance = *new State;
  return instance;
}

Tensor zeros(const Tensor& like, int64_t count) { return torch::stable::new_zeros(like, {count}, ScalarType::Int); }

unsigned* address_of(const Tensor& t, int64_t first = 0) {
  return static_cast<unsigned*>(t.mutable_data_ptr()) + first;
}

}  // namespace

Counters::Counters(const Tensor& like, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(stream, &status);
  const int32_t device = like.get_device_index();
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const auto reserve = s.reserves.find(device);
  if (status != cudaStreamCaptureStatusNone) {
    if (reserve != s.reserves.end() && reserve->second.taken + count <= kForGraphs) {
      data = address_of(reserve->second.zeros, reserve->second.taken);
      reserve->second.taken += (count + kLine - 1) / kLine * kLine;
    } else {
      holder = zeros(like, count);  // the fill becomes a part of the graph
      data = address_of(holder);
    }
    return;
  }
  if (reserve == s.reserves.end()) s.reserves[device].zeros = zeros(like, kForGraphs);
  Tensor& own = s.streams[{device, stream}];
  if (!own.defined() || own.numel() < count) own = zeros(like, count > kPerStream ? count : kPerStream);
  data = address_of(own);
}

}  // namespace sewsnn
