# Compiles the CUDA code. This needs nvcc, but neither a GPU nor a CUDA build of torch. The CUDA runtime is linked
# statically, so that the library loads with any torch.
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)

file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/inst/*.cu)
target_sources(sewsnn PRIVATE ${cuda_sources} csrc/ops/cuda.cpp csrc/ops/counters.cpp csrc/ops/neuron_cuda.cpp
  csrc/ops/bn_cuda.cpp csrc/ops/stem_cuda.cpp csrc/ops/spikes_cuda.cpp csrc/ops/max_pool_cuda.cpp
  csrc/ops/bn_pooled_cuda.cpp)
set_target_properties(sewsnn PROPERTIES CUDA_RUNTIME_LIBRARY Static)
target_include_directories(sewsnn SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
# No contraction, as on the host, so that a GPU rounds like the reference.
set(cuda_options --fmad=false)
if(SEWSNN_WERROR)
  list(APPEND cuda_options --Werror=all-warnings)
endif()
target_compile_options(sewsnn PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_options}>")
