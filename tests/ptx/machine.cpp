// Executes programs: the memory of threads and blocks, and loads and stores.
#include "machine.h"

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "programs.h"

namespace ptx {

std::vector<unsigned char>& shared() {
  static std::vector<unsigned char> bytes;
  return bytes;
}
std::vector<unsigned char>& arguments() {
  static std::vector<unsigned char> bytes;
  return bytes;
}

namespace {

struct Frame {
  std::vector<uint64_t> slots;
  std::vector<unsigned char> local;
};

class Running : public host_device::Body {
 public:
  explicit Running(Program& program) : program_(program) {}

  void begin_block() override {
    shared().assign(program_.shared_bytes, 0xff);  // NaN
  }

  void thread() override {
    // The frames are kept, because an error ends threads without their destructors.
    const size_t index = threadIdx.x + size_t(blockDim.x) * (threadIdx.y + size_t(blockDim.y) * threadIdx.z);
    if (frames_.size() <= index) frames_.resize(index + 1);
    if (!frames_[index]) frames_[index] = std::make_unique<Frame>();
    Frame& frame = *frames_[index];
    frame.slots = program_.slots;
    frame.local.assign(program_.local_bytes, 0xff);
    const unsigned special[kSpecials] = {threadIdx.x,
                                         threadIdx.y,
                                         threadIdx.z,
                                         blockDim.x,
                                         blockDim.y,
                                         blockDim.z,
                                         blockIdx.x,
                                         blockIdx.y,
                                         blockIdx.z,
                                         gridDim.x,
                                         gridDim.y,
                                         gridDim.z,
                                         unsigned(host_device::lane())};
    std::copy(special, special + kSpecials, frame.slots.begin());
    Thread t{program_, frame.slots.data(), frame.local.data()};
    ++program_.threads;
    const size_t end = program_.code.size();
    while (t.next < end) {
      const size_t at = t.next++;
      const Instruction& i = program_.code[at];
      ++program_.reached[at];
      if (i.guard == kAlways || bool(t.slots[i.guard] & 1) != bool(i.negated)) i.run(t, i);
    }
  }

 private:
  Program& program_;
  static std::vector<std::unique_ptr<Frame>> frames_;
};
std::vector<std::unique_ptr<Frame>> Running::frames_;

std::map<std::string, std::unique_ptr<Program>> programs;
std::unique_ptr<Running> running;
std::function<std::unique_ptr<Program>(const std::string&)> assemble;

// Copies the arguments to where the program expects them.
void give(const std::string& kernel, const Program& program, std::initializer_list<host_device::Argument> given) {
  if (given.size() != program.parameters.size()) throw std::runtime_error(kernel + " has another number of parameters");
  arguments().clear();
  auto parameter = program.parameters.begin();
  for (const auto& argument : given) {
    if (argument.bytes != parameter->bytes)
      throw std::runtime_error(kernel + " has a parameter of " + std::to_string(parameter->bytes) +
                               " bytes, but the launch gives " + std::to_string(argument.bytes));
    arguments().resize(parameter->offset + parameter->bytes, 0xff);
    memcpy(arguments().data() + parameter->offset, argument.value, argument.bytes);
    ++parameter;
  }
}

host_device::Body* body_of(const std::string& kernel, std::initializer_list<host_device::Argument> given) {
  auto found = programs.find(kernel);
  if (found == programs.end()) found = programs.emplace(kernel, assemble(kernel)).first;
  if (!found->second) return nullptr;
  give(kernel, *found->second, given);
  running = std::make_unique<Running>(*found->second);
  return running.get();
}

}  // namespace

void execute_ptx(std::function<std::unique_ptr<Program>(const std::string&)> assembler) {
  programs.clear();
  assemble = std::move(assembler);
  host_device::device().other_body = assemble ? body_of : decltype(host_device::Device::other_body)();
}

const std::map<std::string, std::unique_ptr<Program>>& executed() { return programs; }

}  // namespace ptx
