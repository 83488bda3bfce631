#pragma once

#include <cuda_runtime.h>

#include <string>

namespace samples {

// Runs the sample of that name with 64 numbers as input; returns all numbers that it writes.
cudaError_t run(const std::string& name, float* in, float* out);

}  // namespace samples
