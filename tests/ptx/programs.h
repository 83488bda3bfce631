// What module.cpp and the operations need of machine.cpp.
#pragma once

#include <functional>
#include <memory>

#include "machine.h"

namespace ptx {

// From now on, launches execute the program that `assembler` returns for a kernel; where it returns null, and if there
// is no assembler, they run what the C++ compiler made. Forgets all programs.
void execute_ptx(std::function<std::unique_ptr<Program>(const std::string& kernel)> assembler);

// The programs that have been executed, by kernel.
const std::map<std::string, std::unique_ptr<Program>>& executed();

}  // namespace ptx
