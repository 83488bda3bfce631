// A machine that executes PTX, the assembly language that nvcc writes, in the threads of the host device
// (tests/native/device.h). assemble.py turns the text into instructions.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "device.h"

namespace ptx {

struct Program;
struct Instruction;

// A register is a slot of 64 bits, and so is a constant. A narrow value occupies the low bits of its slot.
struct Thread {
  const Program& program;
  uint64_t* slots;
  unsigned char* local;  // the thread's own memory (.local)
  size_t next = 0;       // the instruction to execute next

  template <class T>
  T get(int slot) const {
    T value;
    memcpy(&value, slots + slot, sizeof value);
    return value;
  }
  template <class T>
  void put(int slot, T value) {
    slots[slot] = 0;
    memcpy(slots + slot, &value, sizeof value);
  }
};

using Operation = void (*)(Thread&, const Instruction&);

struct Instruction {
  Operation run;
  uint16_t x[6];         // slots of operands: results first
  uint16_t guard;        // the slot of the predicate; kAlways executes the instruction always
  uint8_t negated;       // executes the instruction where the predicate is false
  uint8_t bytes, count;  // of each number, and numbers, that a load, store or move of a tuple moves
  uint8_t is_signed;     // extends the sign of what it loads
  int32_t offset;        // added to an address; the target of a branch
};
constexpr uint16_t kAlways = 0xffff;

// The slots that each thread finds filled.
enum Special {
  TidX,
  TidY,
  TidZ,
  NtidX,
  NtidY,
  NtidZ,
  CtaidX,
  CtaidY,
  CtaidZ,
  NctaidX,
  NctaidY,
  NctaidZ,
  Lane,
  kSpecials
};

struct Parameter {
  size_t offset, bytes;
};

struct Program {
  std::vector<Instruction> code;
  std::vector<uint64_t> slots;  // their first content: constants, and garbage in registers
  std::vector<Parameter> parameters;
  size_t shared_bytes = 0, local_bytes = 0;
  // For each instruction, how many threads have reached it, with or without its predicate.
  std::vector<uint64_t> reached;
  uint64_t threads = 0;
};

// All operations by the name that PTX gives them.
using Table = std::map<std::string, Operation>;
const Table& operations();
void add_arithmetic(Table&);   // arithmetic.cpp
void add_conversions(Table&);  // conversions.cpp
void add_memory(Table&);       // operations.cpp

// The memory of the block that runs, and the arguments of the launch.
std::vector<unsigned char>& shared();
std::vector<unsigned char>& arguments();

// Shared memory, the thread's own and arguments have addresses from here on, which are no addresses of the host.
constexpr uint64_t kSharedBase = 0x10000, kLocalBase = 0x1000000, kParamBase = 0x2000000, kEnd = 0x3000000;

}  // namespace ptx
