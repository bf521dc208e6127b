// Clients of tests that open models on devices: this program again, in processes of their
// own, told what to do over a socket. A forked child can not use CUDA, so each begins
// with exec. The program's main() must call RunDeviceClient when it is started as one.
//
// They use libtrims by its C interface, and kernels of src/cuda/test_kernels.h on the
// pointers that it gives. One can also be hostile: speak to the daemon itself, and map what
// it is lent with write access. Thread-compatible.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "base/unique_fd.h"

namespace trims::testing_support {

// TRIMS_TEST_REAL_GPU=1: against the driver and GPUs of the machine, not the fake one.
bool OnRealGpu();

#define SKIP_ON_REAL_GPU(reason) \
  if (OnRealGpu()) GTEST_SKIP() << "fake driver only: " reason

// A machine of the fake driver, in a directory of its own; nothing on a real GPU.
// `library` is the fake driver's file.
class DeviceMachine final {
 public:
  using Environment = std::map<std::string, std::string>;

  // `settings` are those of fake_cuda.h; 2 devices of 256 MiB unless they say otherwise.
  explicit DeviceMachine(const std::string& library, const Environment& settings = {});
  ~DeviceMachine();
  DeviceMachine(const DeviceMachine&) = delete;
  DeviceMachine& operator=(const DeviceMachine&) = delete;

  // What daemons and clients on this machine have in their environment.
  const Environment& environment() const { return environment_; }
  // Breaks a device for every process: calls return the CUresult.
  void BreakDevice(int index, int result) const;
  void MendDevice(int index) const;

 private:
  Environment environment_;
  std::string directory_;  // Empty on a real GPU.
};

// Writes model.safetensors into `directory`: `tensors` of `bytes_each` (a multiple of 4),
// whose words all depend on `seed`. Returns what clients that compute on it must get.
uint64_t WriteDeviceModel(const std::string& directory, uint64_t seed, int tensors,
                          uint64_t bytes_each);

// What a client lives in beside a process of its own.
enum class Isolation {
  kNone,
  kOtherUid,         // Another uid, without capabilities.
  kUserNamespace,    // The same, in its own user, pid, mount, ipc, net and uts namespaces.
  kOtherNamespaces,  // Without the user namespace, where the machine forbids those.
  kWithoutProc,      // Nothing is mounted on /proc.
};
inline constexpr uid_t kIsolatedUid = 4003;

// What a client answered.
struct ClientReply {
  Status status;
  std::map<std::string, std::string> facts;
  bool closed = false;  // The client is gone: `status` is UNAVAILABLE.

  bool ok() const { return status.ok(); }
  uint64_t Number(const std::string& name) const;
  const std::string& Text(const std::string& name) const;
};

class DeviceClient final {
 public:
  explicit DeviceClient(const DeviceMachine::Environment& environment,
                        Isolation isolation = Isolation::kNone);
  ~DeviceClient() { Kill(); }
  DeviceClient(const DeviceClient&) = delete;
  DeviceClient& operator=(const DeviceClient&) = delete;

  // Why it could not be started as asked; empty: it was.
  const std::string& trouble() const { return trouble_; }
  pid_t pid() const { return pid_; }

  // One command, and its answer; waits for two minutes at most. Leases are known by names
  // of the caller's ("slots").
  //   connect DIR                      to the daemon with this runtime directory
  //   open SLOT MODEL [KEY=VALUE…]     uuid=, ordinal=, host=1, granularity=NUMBER. Facts:
  //                                    loaded, generation, uuid, ordinal, bytes, attached;
  //                                    failed: need, free, evictable
  //   facts SLOT                       the same again
  //   sum SLOT                         sum: computed by a kernel
  //   write SLOT                       a kernel that writes the weights; its failure
  //   copy SLOT                        a copy onto the weights; its failure
  //   close SLOT, disconnect, ping
  //   memory                           free-UUID: of each device
  //   hog UUID BYTES, unhog            takes device memory, and gives it back
  //   raw-open DIR MODEL UUID          over the bare protocol: for raw-flip
  //   raw-flip OFFSET                  maps the first extent writable and flips a bit
  //   raw-close                        ends that connection
  ClientReply Ask(const std::string& command);

  // Computes on a lease with kernels that read the weights `rounds` times each, until
  // StopComputing. Returns when it has begun; wrong sums and errors are the status of the
  // next answer.
  ClientReply StartComputing(const std::string& slot, uint64_t sum, int rounds);
  // Waits until one more kernel has ended. Fact: times.
  ClientReply ComputeOnce() { return Ask("tick"); }
  ClientReply StopComputing() { return Ask("stop"); }

  // Opens models at random on devices at random, checks their sums and closes them.
  struct Roaming {
    uint64_t seed = 0;
    std::map<std::string, uint64_t> models;  // Their sums by name.
    std::string uuids;                       // Separated by commas.
    uint64_t opens = 0;                      // How many; 0: until StopRoaming.
    bool may_be_full = false;                // RESOURCE_EXHAUSTED, if it says enough, is no error.
  };
  void StartRoaming(const Roaming& roaming);
  // Waits for the end. Facts: opens, exhausted, loads, longest-us.
  ClientReply FinishRoaming() { return Receive(); }
  ClientReply StopRoaming() { return Ask("stop"); }

  void Kill();
  // Exit status, or 1000 + signal; -1 when it was waited for before.
  int Wait();

 private:
  ClientReply Receive();

  UniqueFd socket_;
  pid_t pid_ = -1;
  std::string trouble_;
};

// For main(): runs the client when the arguments say that this process is one, and
// returns its exit status.
std::optional<int> RunDeviceClient(int argc, char** argv);

}  // namespace trims::testing_support
