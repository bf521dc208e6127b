// The simulated machine that processes share: devices, their memory, their limits.
//
// An allocation is a file in the machine's directory that holds a shared flock on
// its one open file description. Everything that can hold device memory holds that
// description: handles, mappings, descriptors in any process, descriptors on their
// way through a socket. The kernel drops the lock with the last of them, however it went,
// so "can I lock this file exclusively?" asks whether its memory is free, and no
// process has to clean up after another. Thread-safe after construction; leaked.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "fake_cuda/driver_api.h"

namespace fake_cuda {

using trims::UniqueFd;

inline constexpr uint64_t kGranularity = uint64_t{2} << 20;

struct MachineDevice {
  int index = 0;  // On the machine; ordinals are a process's own.
  std::array<unsigned char, 16> uuid{};
  uint64_t bytes = 0;
};

// One allocation, open in this process.
struct Backing {
  UniqueFd fd;  // Shares the open file description with every other holder.
  int device = 0;
  uint64_t bytes = 0;
  std::string file;  // Its name in the directory.
};

class Machine final {
 public:
  static Machine& Get();

  // The devices that CUDA_VISIBLE_DEVICES leaves, by ordinal.
  const std::vector<MachineDevice>& visible() const { return visible_; }
  bool lacks_vmm() const { return lacks_vmm_; }
  bool lacks_posix_fd() const { return lacks_posix_fd_; }
  bool lacks_peer() const { return lacks_peer_; }
  bool lacks_read_only_registration() const { return lacks_read_only_registration_; }
  double copy_bytes_per_second() const { return copy_bytes_per_second_; }  // 0: no limit.
  double peer_bytes_per_second() const { return peer_bytes_per_second_; }
  int version() const { return version_; }

  CUresult Allocate(const MachineDevice& device, uint64_t bytes, Backing* backing);
  // Takes a share of what `fd` is, or says INVALID_VALUE.
  CUresult Open(int fd, Backing* backing) const;
  // After a share went: frees the file if it was the last.
  void Reap(const std::string& file) const;
  uint64_t FreeBytes(const MachineDevice& device);
  // What device-N-error says; success without the file.
  CUresult Broken(int index) const;

 private:
  Machine();
  UniqueFd Lock() const;           // Of the whole machine.
  uint64_t Used(int index) const;  // Needs the lock; frees dead files.
  bool FreeIfDead(const std::string& path) const;

  std::string directory_;
  std::vector<MachineDevice> visible_;
  bool lacks_vmm_ = false;
  bool lacks_posix_fd_ = false;
  bool lacks_peer_ = false;
  bool lacks_read_only_registration_ = false;
  double copy_bytes_per_second_ = 0;
  double peer_bytes_per_second_ = 0;
  int version_ = 13000;
  std::atomic<uint64_t> next_{0};
};

}  // namespace fake_cuda
