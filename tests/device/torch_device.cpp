// Tells a CPU build of torch that it has two CUDA devices: the allocator, the device guard with streams and events, and
// the hooks. aten.cpp has the operations.
//
// This is torch's internal C++ API, which changes without notice: it is compiled against the torch under test, and the
// tests are skipped, with the compiler's message, where that fails.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <chrono>
#include <set>

#include "torch_device.h"

namespace pretended {
namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using Lock = std::lock_guard<std::recursive_mutex>;

Device device_of(int index) { return Device(DeviceType::CUDA, DeviceIndex(index)); }
Stream from_torch(const c10::Stream& s) { return {s.device_index(), s.id()}; }
c10::Stream to_torch(const Stream& s) { return c10::Stream(c10::Stream::UNSAFE, device_of(s.device), s.number); }

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const Device device = device_of(current_device());
    if (bytes == 0) return {nullptr, device};
    void* const p = pretended::allocate(bytes);
    return {p, p, &pretended::release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &pretended::release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { memcpy(to, from, bytes); }
};

// Pinned memory of the host.
struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* const p = bytes ? malloc(bytes) : nullptr;
    const Lock lock(mutex());
    pinned().insert({reinterpret_cast<uintptr_t>(p), bytes});
    return {p, p, &release, Device(DeviceType::CPU)};
  }
  static void release(void* p) {
    const Lock lock(mutex());
    pinned().erase(reinterpret_cast<uintptr_t>(p));
    free(p);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { memcpy(to, from, bytes); }
  static std::map<uintptr_t, size_t>& pinned() {
    static std::map<uintptr_t, size_t>& instance = *new std::map<uintptr_t, size_t>;
    return instance;
  }
};

Allocator the_allocator;
PinnedAllocator the_pinned_allocator;

// An event remembers what its stream knew when it was recorded.
struct Event {
  Clock clock;
  std::chrono::steady_clock::time_point time;
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr DeviceType static_type = DeviceType::CUDA;
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device d) const override {
    const Device before = getDevice();
    setDevice(d);
    return before;
  }
  Device getDevice() const override { return device_of(current_device()); }
  void setDevice(Device d) const override {
    TORCH_CHECK(d.index() >= 0 && d.index() < kDevices, "CUDA error: invalid device ordinal (", d, ")");
    set_device(d.index());
  }
  void uncheckedSetDevice(Device d) const noexcept override { set_device(d.index()); }
  c10::Stream getStream(Device d) const override { return to_torch(current_stream(d.index())); }
  c10::Stream getDefaultStream(Device d) const override { return to_torch({d.index(), 0}); }
  c10::Stream getStreamFromGlobalPool(Device d, bool) const override { return getNewStream(d); }
  c10::Stream getNewStream(Device d, int = 0) const override {
    return to_torch(new_stream(d.has_index() ? d.index() : current_device()));
  }
  c10::Stream exchangeStream(c10::Stream s) const override {
    const c10::Stream before = getStream(s.device());
    set_stream(from_torch(s));
    return before;
  }
  void* getStreamNativeHandle(const c10::Stream s) const override { return from_torch(s).handle(); }
  DeviceIndex deviceCount() const noexcept override { return kDevices; }

  void record(void** event, const c10::Stream& s, const DeviceIndex, const c10::EventFlag) const override {
    const Lock lock(mutex());
    if (!*event) *event = new Event;
    *static_cast<Event*>(*event) = {memory().clocks[from_torch(s)], std::chrono::steady_clock::now()};
  }
  void block(void* event, const c10::Stream& s) const override {
    const Lock lock(mutex());
    if (event) memory().wait(from_torch(s), static_cast<Event*>(event)->clock);
  }
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  double elapsedTime(void* first, void* second, const DeviceIndex) const override {
    const auto time = static_cast<Event*>(second)->time - static_cast<Event*>(first)->time;
    return std::chrono::duration<double, std::milli>(time).count();
  }
  void synchronizeEvent(void* event) const override {
    const Lock lock(mutex());
    memory().synchronized();
    if (event) join(memory().host, static_cast<Event*>(event)->clock);
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream& s) const override {
    const Lock lock(mutex());
    memory().synchronize(from_torch(s));
  }
  void synchronizeDevice(const DeviceIndex index) const override {
    const Lock lock(mutex());
    memory().synchronize_device(index < 0 ? current_device() : index);
  }
  void recordDataPtrOnStream(const c10::DataPtr& p, const c10::Stream& s) const override { record_stream(p.get(), s); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct Hooks : at::CUDAHooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return kDevices; }
  int getNumGPUs() const override { return kDevices; }
  DeviceIndex current_device() const override { return DeviceIndex(pretended::current_device()); }
  DeviceIndex getCurrentDevice() const override { return current_device(); }
  void setCurrentDevice(DeviceIndex d) const override { set_device(d); }
  DeviceIndex exchangeDevice(DeviceIndex d) const override {
    const DeviceIndex before = current_device();
    if (d >= 0) set_device(d);
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex d) const override { return exchangeDevice(d); }
  Device getDeviceFromPtr(void* p) const override {
    const Lock lock(mutex());
    const auto* const found = memory().find(p, 1);
    return device_of(found ? found->second.stream.device : pretended::current_device());
  }
  void deviceSynchronize(DeviceIndex d) const override { Guard().synchronizeDevice(d); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &the_allocator; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &the_pinned_allocator; }
  bool isPinnedPtr(const void* p) const override {
    const Lock lock(mutex());
    const auto& all = PinnedAllocator::pinned();
    auto it = all.upper_bound(reinterpret_cast<uintptr_t>(p));
    return it != all.begin() && (--it, reinterpret_cast<uintptr_t>(p) < it->first + it->second);
  }
};

const bool registered = (c10::SetAllocator(DeviceType::CUDA, &the_allocator, 1), true);

}  // namespace

c10::Allocator& allocator() { return the_allocator; }

void record_stream(const void* p, const c10::Stream& s) {
  const Lock lock(mutex());
  if (auto* const found = memory().find(p, 1)) found->second.recorded.insert(from_torch(s));
}

}  // namespace pretended

// torch looks the hooks up by the name of their class.
namespace at {
namespace {
struct CUDAHooks final : pretended::Hooks {
  explicit CUDAHooks(CUDAHooksArgs) {}
};
}  // namespace
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

#define EXPORT extern "C" __attribute__((visibility("default")))
using pretended::memory;

// The symbol of a torch with CUDA that csrc/ops/cuda.cpp asks for the current stream.
EXPORT int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  *stream = pretended::current_stream(device).handle();
  return 0;
}

// ---- for the Python half (pretend.py)

EXPORT int pretended_device() { return pretended::current_device(); }
EXPORT void pretended_set_device(int device) { pretended::set_device(device); }
EXPORT int64_t pretended_allocated(int maximum) { return int64_t(maximum ? memory().most : memory().allocated); }
EXPORT void pretended_reset_maximum() { memory().most = memory().allocated; }
EXPORT void pretended_forbid_waiting(int forbid) { memory().waiting_is_an_error = forbid != 0; }
// The problems since the last call, one per line.
EXPORT const char* pretended_problems() {
  static std::string text;
  const std::lock_guard<std::recursive_mutex> lock(pretended::mutex());
  text.clear();
  for (const std::string& problem : memory().problems) text += problem + "\n";
  memory().problems.clear();
  return text.c_str();
}
