// What aten.cpp needs of torch_device.cpp.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Stream.h>

#include "memory.h"

namespace pretended {

c10::Allocator& allocator();
// Tensor.record_stream: the block at p may be used on this stream when it is freed.
void record_stream(const void* p, const c10::Stream&);

}  // namespace pretended
