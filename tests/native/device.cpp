// The scheduler. The threads of a block are fibers (ucontext), which run in turn until each has ended or waits for
// others. Errors are exceptions that name kernel, block and thread.
#include <cuda_runtime.h>

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>

#include "device.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace host_device {
namespace {

constexpr size_t kStack = 256 << 10;

enum class State { Ready, Waiting, Done };

struct Fiber {
  ucontext_t context;
  void* stack = nullptr;
  State state = State::Ready;
  Meeting meeting = Meeting::Block;
  unsigned mask = 0;
  uint3 index = {};
  Slot given = {}, got[32] = {};  // values that warp operations exchange
  void* fake_stack = nullptr;     // AddressSanitizer's
};

std::string kernel_name;
std::vector<Fiber> fibers;
size_t threads = 0, current = 0;
const std::function<void()>* body = nullptr;
std::exception_ptr failure;
ucontext_t scheduler;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;

[[noreturn]] void fail(const std::string& what) {
  std::ostringstream text;
  text << what << " (" << kernel_name << ", block " << blockIdx.x << ", thread " << threadIdx.x << ")";
  throw std::runtime_error(text.str());
}

void before_switch([[maybe_unused]] void** fake, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake, stack, bytes);
#endif
}
void after_switch([[maybe_unused]] void* fake, [[maybe_unused]] const void** stack, [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, stack, bytes);
#endif
}

void enter() {
  after_switch(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  try {
    (*body)();
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  fibers[current].state = State::Done;
  before_switch(nullptr, scheduler_stack, scheduler_stack_bytes);  // null: the stack of this fiber is no longer needed
  swapcontext(&fibers[current].context, &scheduler);
}

void resume(size_t i) {
  current = i;
  threadIdx = fibers[i].index;
  before_switch(&scheduler_fake_stack, fibers[i].stack, kStack);
  swapcontext(&scheduler, &fibers[i].context);
  after_switch(scheduler_fake_stack, nullptr, nullptr);
}

void wait() {
  Fiber& self = fibers[current];
  self.state = State::Waiting;
  before_switch(&self.fake_stack, scheduler_stack, scheduler_stack_bytes);
  swapcontext(&self.context, &scheduler);
  after_switch(self.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}

void start(size_t i, dim3 block) {
  Fiber& f = fibers[i];
  if (!f.stack) {
    f.stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f.stack == MAP_FAILED) throw std::bad_alloc();
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(f.stack, kStack);  // an error may have stopped the fiber in its middle
#endif
  f.state = State::Ready;
  f.index = {unsigned(i % block.x), unsigned(i / block.x % block.y), unsigned(i / block.x / block.y)};
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack;
  f.context.uc_stack.ss_size = kStack;
  f.context.uc_link = nullptr;
  makecontext(&f.context, enter, 0);
}

// Returns 0 .. n - 1 in the order of the schedule.
std::vector<size_t> turns(size_t n) {
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t(0));
  if (device().schedule == 1) std::reverse(order.begin(), order.end());
  if (device().schedule > 1) std::shuffle(order.begin(), order.end(), std::mt19937(device().schedule));
  return order;
}

// Whether every lane of f's mask waits where f does. `first`: lane 0 of its warp.
bool warp_has_met(const Fiber& f, size_t first) {
  for (size_t i = 0; i < 32; ++i) {
    if (!(f.mask >> i & 1)) continue;
    if (first + i >= threads) return false;
    const Fiber& other = fibers[first + i];
    if (other.state != State::Waiting || other.meeting != f.meeting || other.mask != f.mask) return false;
  }
  return true;
}

void exchange(unsigned mask, size_t first) {
  for (size_t i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    fibers[first + i].state = State::Ready;
    for (size_t from = 0; from < 32; ++from)
      if (mask >> from & 1) fibers[first + i].got[from] = fibers[first + from].given;
  }
}

// Lets groups of threads continue that have all arrived. Returns false if no thread can continue.
bool release() {
  bool any = false, block = true;
  for (size_t i = 0; i < threads; ++i) {
    Fiber& f = fibers[i];
    if (f.state == State::Waiting && f.meeting != Meeting::Block && warp_has_met(f, i / 32 * 32)) {
      exchange(f.mask, i / 32 * 32);
      any = true;
    }
    block = block && f.state == State::Waiting && f.meeting == Meeting::Block;
  }
  if (block)
    for (size_t i = 0; i < threads; ++i) fibers[i].state = State::Ready;
  return any || block;
}

void run_block(const std::vector<size_t>& order, dim3 block) {
  for (size_t i = 0; i < threads; ++i) start(i, block);
  for (;;) {
    bool done = true;
    for (const size_t i : order) {
      if (fibers[i].state == State::Ready) resume(i);
      done = done && fibers[i].state == State::Done;
    }
    if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
    if (done) return;
    if (!release()) {
      const auto stuck = std::find_if(fibers.begin(), fibers.end(), [](auto& f) { return f.state == State::Waiting; });
      threadIdx = stuck->index;
      fail(stuck->meeting == Meeting::Block ? "__syncthreads that not every thread of the block reaches"
                                            : "a warp operation that not every lane of its mask reaches");
    }
  }
}

// Shared memory is the thread-local data of this library. Before a block begins, it is filled with garbage.
int spoil_shared(dl_phdr_info* info, size_t, void* here) {
  const auto address = reinterpret_cast<uintptr_t>(here);
  bool ours = false;
  size_t bytes = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
    if (segment.p_type == PT_LOAD) ours = ours || (address >= begin && address < begin + segment.p_memsz);
    if (segment.p_type == PT_TLS) bytes = segment.p_memsz;
  }
  if (!ours) return 0;
  if (bytes && info->dlpi_tls_data) memset(info->dlpi_tls_data, 0xff, bytes);  // NaN
  return 1;
}

std::string name_of(const void* kernel) {
  Dl_info info;
  return dladdr(kernel, &info) && info.dli_sname ? info.dli_sname : "an unnamed kernel";
}

Buffer& buffer_at(uintptr_t p, size_t bytes, const char* what) {
  for (Buffer& b : device().buffers) {
    if (p < b.begin || p >= b.begin + b.bytes) continue;
    if (p + bytes <= b.begin + b.bytes) return b;
  }
  std::ostringstream text;
  text << what << " of " << bytes << " bytes outside all buffers";
  for (const Buffer& b : device().buffers)
    text << "; " << b.name << " has " << b.bytes << " bytes, this is at " << intptr_t(p - b.begin);
  fail(text.str());
}

void check_alignment(const Buffer& b, uintptr_t p, size_t bytes) {
  const size_t access = std::min<size_t>(bytes, 16);  // wider packs count as several accesses
  if (p % access)
    fail("an access of " + std::to_string(access) + " bytes to " + b.name + " that is not aligned to them");
}

}  // namespace

Device& device() {
  static Device instance;
  return instance;
}

void Device::add(std::string name, const void* begin, size_t bytes, bool filled) {
  if (!begin || !bytes) return;
  Buffer b;
  b.name = std::move(name);
  b.begin = reinterpret_cast<uintptr_t>(begin);
  b.bytes = bytes;
  b.filled = filled;
  b.written.assign(filled ? 0 : bytes, 0);
  buffers.push_back(std::move(b));
}

int lane() { return int(current % 32); }

void meet_block() {
  fibers[current].meeting = Meeting::Block;
  wait();
}

const Slot* meet_warp(Meeting meeting, unsigned mask, const void* value, size_t bytes) {
  if (!(mask >> lane() & 1)) fail("a warp operation whose mask lacks the calling lane");
  Fiber& self = fibers[current];
  if (value) memcpy(self.given.bytes, value, bytes);
  self.meeting = meeting;
  self.mask = mask;
  wait();
  return self.got;
}

void on_load(const void* p, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  Buffer& b = buffer_at(address, bytes, "a read");
  check_alignment(b, address, bytes);
  ++b.loads[bytes];
  if (b.filled) return;
  const auto first = b.written.begin() + ptrdiff_t(address - b.begin);
  if (std::find(first, first + ptrdiff_t(bytes), 0) != first + ptrdiff_t(bytes))
    fail("a read of " + b.name + " where nothing has been written");
}

void on_store(const void* p, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  Buffer& b = buffer_at(address, bytes, "a write");
  check_alignment(b, address, bytes);
  if (b.filled && !b.updated) fail("a write to " + b.name + ", which is to be read only");
  ++b.stores[bytes];
  if (b.updated) b.written.resize(b.bytes);
  for (size_t i = address - b.begin; i < address - b.begin + bytes; ++i)
    if (b.written[i]++) fail("a second write to byte " + std::to_string(i) + " of " + b.name);
}

void run(const void* kernel, dim3 grid, dim3 block, size_t dynamic_shared, const std::function<void()>& thread) {
  kernel_name = name_of(kernel);
  if (dynamic_shared) throw std::runtime_error("dynamic shared memory: " + kernel_name + " is the first to ask for it");
  device().launches.push_back({kernel_name, grid, block});
  gridDim = grid, blockDim = block;
  threads = size_t(block.x) * block.y * block.z;
  if (fibers.size() < threads) fibers.resize(threads);
  body = &thread;
  const std::vector<size_t> order = turns(threads);
  for (const size_t i : turns(size_t(grid.x) * grid.y * grid.z)) {
    blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
    dl_iterate_phdr(spoil_shared, reinterpret_cast<void*>(&run));
    run_block(order, block);
  }
}

}  // namespace host_device

unsigned __ballot_sync(unsigned mask, int predicate) {
  using namespace host_device;
  const Slot* const slots = meet_warp(Meeting::Vote, mask, &predicate, sizeof predicate);
  unsigned votes = 0;
  for (int i = 0; i < warpSize; ++i) {
    int vote = 0;
    if (mask >> i & 1) memcpy(&vote, slots[i].bytes, sizeof vote);
    votes |= unsigned(vote != 0) << i;
  }
  return votes;
}
