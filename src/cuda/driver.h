// The CUDA driver of this machine, loaded at run time.
//
// Nothing links against CUDA: libcuda.so.1 comes with the NVIDIA driver, and one
// binary must run on machines with and without it. No header of this folder
// includes cuda.h; handles are plain integers and pointers outside it.
//
// Loading is lazy, happens at most once per process and is never undone:
// unloading a driver that other libraries of the process may use is not safe, so
// the Driver is deliberately leaked and process exit calls nothing of CUDA.
// Everything else in this folder is reached through a Driver, so holding a Device
// or a Context proves that it is loaded. Thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "cuda/device.h"

namespace trims::cuda {

class Driver final {
 public:
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  // The driver of this process. Opens libcuda.so.1 (or the file that the
  // environment variable TRIMS_CUDA_LIBRARY names, for tests and unusual
  // installations), resolves every function that we call and runs cuInit (10 to
  // 100 ms, the first time). UNAVAILABLE tells a user why there is no GPU to use
  // and what to do. A failure is not remembered: the next call tries again.
  // Also UNAVAILABLE in a child that was forked after a successful load, because
  // the driver does not survive fork().
  static Result<const Driver*> Load();

  // What the driver supports, as CUDA counts: 13000 is CUDA 13.0.
  int version() const { return version_; }
  // "13.0".
  std::string VersionText() const;
  // The file that was opened: "libcuda.so.1".
  const std::string& library() const { return library_; }

  // The devices that this process may see, in the order of its ordinals. Empty is
  // not possible: without devices Load() fails.
  Result<std::vector<Device>> Devices() const;

  // The device with this UUID ("GPU-…" or "MIG-…"; case does not matter), whatever
  // ordinal CUDA_VISIBLE_DEVICES gives it here. NOT_FOUND says what is visible.
  Result<Device> FindDevice(std::string_view uuid) const;

 private:
  Driver() = default;

  int version_ = 0;
  std::string library_;
};

}  // namespace trims::cuda
