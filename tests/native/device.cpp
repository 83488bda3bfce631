// The scheduler. The threads of a block run on fibers (ucontext), which are switched where a thread waits for others.
// Errors are exceptions that name kernel, block and thread.
#undef _FORTIFY_SOURCE  // its longjmp refuses to change the stack
#include <cuda_runtime.h>

#include <dlfcn.h>
#include <link.h>
#include <setjmp.h>
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

enum class State { New, Ready, Waiting, Done };

// A stack on which threads run one after the other: the next one begins here if the one before has ended.
struct Fiber {
  ucontext_t context;
  jmp_buf place;  // where it has stopped
  void* stack = nullptr;
  bool begun = false;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

struct Thread {
  State state = State::New;
  bool begun = false;  // has waited for earlier kernels
  Fiber* fiber = nullptr;
  Meeting meeting = Meeting::Block;
  unsigned mask = 0;
  uint3 index = {};
  Slot given = {}, got[32] = {};  // values that warp operations exchange
};

std::string kernel_name;
std::vector<Thread> all;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;
std::vector<size_t> order;  // in which threads begin, and go on
size_t threads = 0, next = 0, current = 0;
bool early = false;  // the kernel may begin before earlier ones have ended
Fiber* running = nullptr;
const std::function<void()>* body = nullptr;
std::exception_ptr failure;
[[maybe_unused]] ucontext_t scheduler;
[[maybe_unused]] jmp_buf scheduler_place;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;

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

// swapcontext makes two system calls, _longjmp none. AddressSanitizer does not understand a _longjmp to another stack.
void to_scheduler(Fiber& self) {
  before_switch(&self.fake_stack, scheduler_stack, scheduler_stack_bytes);
#if defined(__SANITIZE_ADDRESS__)
  swapcontext(&self.context, &scheduler);
#else
  if (!_setjmp(self.place)) _longjmp(scheduler_place, 1);
#endif
  after_switch(self.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}

void to_fiber(Fiber& fiber) {
  running = &fiber;
  before_switch(&scheduler_fake_stack, fiber.stack, kStack);
#if defined(__SANITIZE_ADDRESS__)
  fiber.begun = true;
  swapcontext(&scheduler, &fiber.context);
#else
  if (!_setjmp(scheduler_place)) {
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
  }
#endif
  after_switch(scheduler_fake_stack, nullptr, nullptr);
}

void enter() {
  after_switch(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  for (;;) {
    while (next < threads && !failure) {
      current = order[next++];
      all[current].fiber = running;
      all[current].state = State::Ready;
      all[current].begun = false;
      threadIdx = all[current].index;
      try {
        (*body)();
      } catch (...) {
        if (!failure) failure = std::current_exception();
      }
      all[current].state = State::Done;
    }
    to_scheduler(*running);
  }
}

Fiber& idle_fiber() {
  if (idle.empty()) {
    fibers.push_back(std::make_unique<Fiber>());
    Fiber& f = *fibers.back();
    f.stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f.stack == MAP_FAILED) throw std::bad_alloc();
    idle.push_back(&f);
  }
  Fiber& f = *idle.back();
  idle.pop_back();
  if (f.begun) return f;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(f.stack, kStack);  // an error may have stopped the fiber in its middle
#endif
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack;
  f.context.uc_stack.ss_size = kStack;
  f.context.uc_link = nullptr;
  makecontext(&f.context, enter, 0);
  return f;
}

// Runs the fiber until its thread waits or no thread is left to begin.
void resume(Fiber& fiber) {
  to_fiber(fiber);
  if (all[current].state != State::Waiting || all[current].fiber != &fiber) idle.push_back(&fiber);
}

void wait() {
  const size_t self = current;
  all[self].state = State::Waiting;
  to_scheduler(*all[self].fiber);
  current = self;
  threadIdx = all[self].index;
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
bool warp_has_met(const Thread& f, size_t first) {
  for (size_t i = 0; i < 32; ++i) {
    if (!(f.mask >> i & 1)) continue;
    if (first + i >= threads) return false;
    const Thread& other = all[first + i];
    if (other.state != State::Waiting || other.meeting != f.meeting || other.mask != f.mask) return false;
  }
  return true;
}

void exchange(unsigned mask, size_t first) {
  for (size_t i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    all[first + i].state = State::Ready;
    for (size_t from = 0; from < 32; ++from)
      if (mask >> from & 1) all[first + i].got[from] = all[first + from].given;
  }
}

// Lets groups of threads continue that have all arrived. Returns false if no thread can continue.
bool release() {
  bool any = false, block = true;
  for (size_t i = 0; i < threads; ++i) {
    Thread& f = all[i];
    if (f.state == State::Waiting && f.meeting != Meeting::Block && warp_has_met(f, i / 32 * 32)) {
      exchange(f.mask, i / 32 * 32);
      any = true;
    }
    block = block && f.state == State::Waiting && f.meeting == Meeting::Block;
  }
  if (block)
    for (size_t i = 0; i < threads; ++i) all[i].state = State::Ready;
  return any || block;
}

// After an error, threads that wait will never go on: their fibers begin anew.
void abandon() {
  idle.clear();
  for (const auto& f : fibers) {
    f->begun = false;
    idle.push_back(f.get());
  }
}

void run_block(dim3 block) {
  for (size_t i = 0; i < threads; ++i) {
    all[i].state = State::New;
    all[i].index = {unsigned(i % block.x), unsigned(i / block.x % block.y), unsigned(i / block.x / block.y)};
  }
  next = 0;
  for (;;) {
    while (next < threads && !failure) resume(idle_fiber());
    bool done = true;
    for (const size_t i : order) {
      if (all[i].state == State::Ready && !failure) resume(*all[i].fiber);
      done = done && all[i].state == State::Done;
    }
    if (failure) {
      abandon();
      std::rethrow_exception(std::exchange(failure, nullptr));
    }
    if (done) return;
    if (!release()) {
      const auto stuck = std::find_if(all.begin(), all.begin() + ptrdiff_t(threads),
                                      [](const Thread& t) { return t.state == State::Waiting; });
      threadIdx = stuck->index;
      abandon();
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

}  // namespace

void fail(const std::string& what) {
  std::ostringstream text;
  text << what << " (" << kernel_name << ", block " << blockIdx.x << ", thread " << threadIdx.x << ")";
  throw std::runtime_error(text.str());
}

Device& device() {
  static Device instance;
  return instance;
}

void on_begin() { all[current].begun = true; }
void check_begun() {
  if (early && !all[current].begun) fail("an access before the kernel has waited for earlier ones");
}

int lane() { return int(current % 32); }

void meet_block() {
  all[current].meeting = Meeting::Block;
  wait();
}

const Slot* meet_warp(Meeting meeting, unsigned mask, const void* value, size_t bytes) {
  if (!(mask >> lane() & 1)) fail("a warp operation whose mask lacks the calling lane");
  Thread& self = all[current];
  if (value) memcpy(self.given.bytes, value, bytes);
  self.meeting = meeting;
  self.mask = mask;
  wait();
  return self.got;
}

void run(const void* kernel, dim3 grid, dim3 block, const LaunchSettings& settings,
         const std::function<void()>& thread) {
  const std::string name = name_of(kernel);
  const auto exclusive = on_launch(settings.stream, name);
  kernel_name = name;
  early = settings.early;
  if (settings.dynamic_shared)
    throw std::runtime_error("dynamic shared memory: " + kernel_name + " is the first to ask for it");
  device().launches.push_back({kernel_name, grid, block});
  gridDim = grid, blockDim = block;
  threads = size_t(block.x) * block.y * block.z;
  if (all.size() < threads) all.resize(threads);
  Body* const other = device().other_body ? device().other_body(kernel_name, settings.arguments) : nullptr;
  const std::function<void()> other_thread = [&] { other->thread(); };
  body = other ? &other_thread : &thread;
  order = turns(threads);
  for (const size_t i : turns(size_t(grid.x) * grid.y * grid.z)) {
    if (i % device().every) continue;
    blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
    dl_iterate_phdr(spoil_shared, reinterpret_cast<void*>(&run));
    if (other) other->begin_block();
    run_block(block);
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
