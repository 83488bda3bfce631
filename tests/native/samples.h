#pragma once

#include <cuda_runtime.h>

#include <string>

namespace samples {

// Runs the sample of that name on 64 numbers in and as many out as it writes.
cudaError_t run(const std::string& name, float* in, float* out);

}  // namespace samples
