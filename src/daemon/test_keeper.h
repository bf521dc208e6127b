// A keeper for tests: the other end of the link, in this process. A thread of its own takes what
// the worker puts and drops, so that a worker's blocking send never waits. Header only, never
// part of the product. Thread-safe.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/unique_fd.h"
#include "daemon/ledger_link.h"

namespace trims {

class TestKeeper final {
 public:
  TestKeeper() {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    worker_end_ = UniqueFd(fds[0]);
    own_end_ = UniqueFd(fds[1]);
    thread_ = std::thread([this] { Take(); });
  }
  ~TestKeeper() {
    (void)::shutdown(worker_end_.get(), SHUT_RDWR);
    thread_.join();
  }
  TestKeeper(const TestKeeper&) = delete;
  TestKeeper& operator=(const TestKeeper&) = delete;

  int link() const { return worker_end_.get(); }

  struct Entry {
    std::string body;
    bool has_descriptor = false;
    friend bool operator==(const Entry&, const Entry&) = default;
  };
  // The ledger, with everything that has been sent so far.
  std::map<std::string, Entry> Ledger() {
    Sync();
    const MutexLock lock(mutex_);
    std::map<std::string, Entry> ledger;
    for (const auto& [key, message] : ledger_) ledger[key] = {message.body, message.fd.valid()};
    return ledger;
  }
  // As the next worker gets it: copies of the descriptors.
  std::vector<LinkMessage> EntriesForNextWorker() {
    Sync();
    const MutexLock lock(mutex_);
    std::vector<LinkMessage> entries;
    for (const auto& [key, message] : ledger_) {
      LinkMessage& entry = entries.emplace_back();
      entry.type = LinkType::kEntry;
      entry.key = key;
      entry.body = message.body;
      if (message.fd.valid()) entry.fd = message.fd.Dup().value();
    }
    return entries;
  }

 private:
  static constexpr char kSync[] = "test/sync";

  void Sync() {
    const uint64_t number = ++syncs_;
    EXPECT_TRUE(SendLink(link(), LinkType::kPut, kSync, std::to_string(number)).ok());
    const MutexLock lock(mutex_);
    while (last_sync_ < number) synced_.Wait(mutex_);
  }

  void Take() {
    for (;;) {
      Result<LinkMessage> message = ReceiveLink(own_end_.get());
      if (!message.ok()) return;
      const MutexLock lock(mutex_);
      if (message->key == kSync) {
        last_sync_ = std::stoull(message->body);
        synced_.NotifyAll();
      } else if (message->type == LinkType::kDrop) {
        ledger_.erase(message->key);
      } else {
        const std::string key = message->key;
        ledger_[key] = *std::move(message);
      }
    }
  }

  UniqueFd worker_end_, own_end_;
  std::thread thread_;
  uint64_t syncs_ = 0;
  Mutex mutex_;
  CondVar synced_;
  uint64_t last_sync_ TRIMS_GUARDED_BY(mutex_) = 0;
  std::map<std::string, LinkMessage> ledger_ TRIMS_GUARDED_BY(mutex_);
};

}  // namespace trims
