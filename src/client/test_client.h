// What the client library's tests share: a client against a daemon that does what each test
// tells it to, and counts of what must not leak. Header only.
#pragma once

#include <dirent.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/fake_daemon.h"
#include "trims/trims.h"

namespace trims::client {

inline int CountDescriptors() {
  DIR* directory = opendir("/proc/self/fd");
  int count = 0;
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count;
}

// Memory that this process has mapped from the fake daemon.
inline int CountMappings() {
  FILE* maps = fopen("/proc/self/maps", "re");
  char line[512];
  int count = 0;
  while (fgets(line, sizeof line, maps) != nullptr) {
    if (strstr(line, "memfd:fake") != nullptr) ++count;
  }
  fclose(maps);
  return count;
}

// Owns what a call reported.
struct CallError {
  trims_error* error = nullptr;
  ~CallError() { trims_error_free(error); }
  std::string message() const { return trims_error_message(error); }
};

class ClientTest : public testing::Test {
 protected:
  void TearDown() override {
    // Every test ends with what it began with.
    if (client_ != nullptr) trims_client_disconnect(client_);
    daemon_owner_.reset();
    EXPECT_EQ(CountDescriptors(), baseline_) << "descriptors leaked";
    EXPECT_EQ(CountMappings(), 0) << "mappings leaked";
  }

  trims_connect_options Options() {
    trims_connect_options options = TRIMS_CONNECT_OPTIONS_INIT;
    options.runtime_dir = daemon_.directory().c_str();
    return options;
  }
  void Connect(uint32_t flags = 0, uint32_t timeout_ms = 0) {
    trims_connect_options options = Options();
    options.flags = flags;
    options.connect_timeout_ms = timeout_ms;
    CallError error;
    ASSERT_EQ(trims_client_connect(&options, &client_, &error.error), TRIMS_OK) << error.message();
  }
  trims_lease* Open(const char* name = "m", const trims_open_options* options = nullptr) {
    trims_lease* lease = nullptr;
    CallError error;
    EXPECT_EQ(trims_lease_open(client_, name, options, &lease, &error.error), TRIMS_OK)
        << error.message();
    return lease;
  }
  trims_status OpenStatus(const char* name, const trims_open_options* options = nullptr,
                          std::string* message = nullptr) {
    trims_lease* lease = nullptr;
    CallError error;
    const trims_status status = trims_lease_open(client_, name, options, &lease, &error.error);
    if (message != nullptr) *message = error.message();
    EXPECT_EQ(status == TRIMS_OK, lease != nullptr);
    EXPECT_EQ(status == TRIMS_OK, error.error == nullptr);
    trims_lease_close(lease);
    return status;
  }
  void Ping() {
    CallError error;
    ASSERT_EQ(trims_client_ping(client_, &error.error), TRIMS_OK) << error.message();
  }
  // What the daemon has sent before a ping's answer has been taken.
  void Settle() { Ping(); }
  void Disconnect() {
    trims_client_disconnect(client_);
    client_ = nullptr;
  }

  const int baseline_ = CountDescriptors();  // Without the daemon's, which are of this process too.
  std::unique_ptr<FakeDaemon> daemon_owner_ = std::make_unique<FakeDaemon>();
  FakeDaemon& daemon_ = *daemon_owner_;
  trims_client* client_ = nullptr;
};

inline float FirstElement(const trims_lease* lease, const char* name = "t0000") {
  trims_tensor tensor;
  if (trims_lease_find_tensor(lease, name, &tensor) != TRIMS_OK) return -1;
  return *static_cast<const float*>(tensor.data);
}

// What a progress callback was told. Says that it wants no more when `cancel` does.
struct Reports {
  std::vector<std::pair<trims_phase, uint64_t>> seen;
  std::function<bool()> cancel;
  static int Call(void* user, trims_phase phase, uint64_t done, uint64_t) {
    auto* self = static_cast<Reports*>(user);
    self->seen.emplace_back(phase, done);
    return self->cancel && self->cancel() ? 1 : 0;
  }
};

}  // namespace trims::client
