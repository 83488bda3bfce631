// The kernels of max pooling, and the choice among them.
#include <cuda_runtime.h>

#include "kernels/cuda_max_pool_kernels.h"
#include "kernels/max_pool.cuh"
#include "kernels/multistep_launch.cuh"

namespace sewsnn {
namespace {

// The usual windows of channels_last images have kernels with 16 bytes (backward: 8) of channels per thread.
template <class Storage, int Bytes>
constexpr int kPoolPack = sizeof(Storage) == 8 ? 1 : Bytes / int(sizeof(Storage));

template <int N, class... Pointers>
bool packs_fit(const MaxPoolParams& p, int bytes, const Pointers*... pointers) {
  const auto fits = [&](const void* q, int size) { return reinterpret_cast<uintptr_t>(q) % uintptr_t(size * N) == 0; };
  return p.channels_last && p.channels % N == 0 && (... && fits(pointers, bytes));
}

// Launches a thread for each N channels of rows x columns of each image.
template <int N, class P>
cudaError_t launch_images(void (*kernel)(P, unsigned), const P& p, int64_t rows, int64_t columns, cudaStream_t stream) {
  const int64_t threads = rows * columns * (p.channels / N);
  if (threads > INT_MAX) return cudaErrorInvalidValue;  // counted with 32 bits
  const int64_t per_image = (threads + kPoolThreads - 1) / kPoolThreads;
  return launch<kPoolThreads>(kernel, p.images * per_image, stream, p, unsigned(per_image));
}

template <class F>
cudaError_t with_instance(const MaxPoolParams& p, F&& f) {
  return with_storage(
      p.dtype, [&](auto storage) { return with_window(p.window, [&](auto window) { return f(storage, window); }); });
}

}  // namespace

cudaError_t cuda_max_pool(const MaxPoolForwardParams& p, cudaStream_t stream) {
  return with_instance(p, [&](auto storage, auto window) {
    using Storage = typename decltype(storage)::type;
    using W = typename decltype(window)::type;
    constexpr int N = std::is_same_v<W, AnyWindow> ? 1 : kPoolPack<Storage, 16>;
    const int64_t rows = p.out_height, columns = p.out_width;
    if constexpr (N > 1) {
      if (packs_fit<N>(p, sizeof(Storage), p.x, p.out) && packs_fit<N>(p, 1, p.positions))
        return launch_images<N>(max_pool_kernel<Storage, N, W>, p, rows, columns, stream);
    }
    return launch_images<1>(max_pool_kernel<Storage, 1, W>, p, rows, columns, stream);
  });
}

cudaError_t cuda_max_pool_backward(const MaxPoolBackwardParams& p, cudaStream_t stream) {
  return with_instance(p, [&](auto storage, auto window) {
    using Storage = typename decltype(storage)::type;
    using W = typename decltype(window)::type;
    constexpr int N = std::is_same_v<W, AnyWindow> ? 1 : kPoolPack<Storage, 8>;
    if constexpr (N > 1) {
      if (packs_fit<N>(p, sizeof(Storage), p.x, p.grad_out, p.grad_x) && packs_fit<N>(p, 1, p.positions))
        return launch_images<N>(max_pool_backward_kernel<Storage, N, W>, p, p.height, p.width, stream);
    }
    return launch_images<1>(max_pool_backward_kernel<Storage, 1, W>, p, p.height, p.width, stream);
  });
}

}  // namespace sewsnn
