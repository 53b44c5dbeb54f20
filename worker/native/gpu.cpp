// Streams, pinned memory and the cache of GPUs, by libtorch's interfaces for any device: nothing here is linked to CUDA, so that it builds
// against libtorch's CPU part and finds a GPU wherever CUDA's part is loaded.

#include <ATen/Context.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "guarded.h"

namespace {

c10::Device numbered(int gpu) { return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(gpu)); }

} // namespace

extern "C" {

// From now on what the calling thread has run on `gpu` goes to a stream of its own. libtorch has 32 for each GPU and hands them out in turn.
void sluice_own_stream(int gpu, char **error) {
  guarded(error, [&]() -> int {
    const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
    guard.exchangeStream(guard.getStreamFromGlobalPool(numbered(gpu)));
    return 0;
  });
}

// Waits for all that the calling thread has had run on `gpu`.
void sluice_wait_for(int gpu, char **error) {
  guarded(error, [&]() -> int {
    const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
    guard.synchronizeStream(guard.getStream(numbered(gpu)));
    return 0;
  });
}

// An unfilled tensor of the same shape in memory of the host that a GPU can read by itself.
void *sluice_pinned_like(void *tensor, char **error) {
  return guarded(error, [&]() -> void * {
    const auto &like = *static_cast<at::Tensor *>(tensor);
    return new at::Tensor(at::empty_like(like, like.options().pinned_memory(true)));
  });
}

// Gives back to the driver what libtorch keeps of GPUs' memory to use again, and pinned memory to the system.
void sluice_empty_cache(char **error) {
  guarded(error, [&]() -> int {
    if (!at::globalContext().hasCUDA()) {
      return 0;
    }
    auto *allocator = c10::getDeviceAllocator(c10::kCUDA);
    if (allocator->initialized()) {
      allocator->emptyCache();
      at::getHostAllocator(c10::kCUDA)->empty_cache();
    }
    return 0;
  });
}
}
