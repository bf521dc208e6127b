// Calls to the file system in the place of the C library's: counted, and made to go wrong or to
// take as long as a test wants. For one source of a test program. Header only, never part of the
// product. Thread-safe.
#pragma once

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "base/mutex.h"

namespace trims {

class FileCalls final {
 public:
  static FileCalls& Get() {
    static FileCalls calls;
    return calls;
  }

  // Called after each stat() of a path, on the thread that asked, which it may hold up.
  void AfterStat(std::function<void(const std::string& path)> after) {
    const MutexLock lock(mutex_);
    after_stat_ = std::move(after);
  }
  // The process has no inotify instance left, or the kernel no watch.
  std::atomic<bool> fail_inotify{false};
  std::atomic<bool> fail_watches{false};
  // Every descriptor is one of a FUSE file system.
  std::atomic<bool> is_fuse{false};

  // Calls of any kind by this thread, and by all.
  static uint64_t of_this_thread() { return of_this_thread_; }
  uint64_t of_all() const { return of_all_; }

  void Note() {
    ++of_this_thread_;
    ++of_all_;
  }
  void NoteStat(const std::string& path) {
    std::function<void(const std::string& path)> after;
    {
      const MutexLock lock(mutex_);
      after = after_stat_;
    }
    if (after) after(path);
  }

 private:
  static inline thread_local uint64_t of_this_thread_ = 0;
  std::atomic<uint64_t> of_all_{0};
  Mutex mutex_;
  std::function<void(const std::string& path)> after_stat_ TRIMS_GUARDED_BY(mutex_);
};

// Ends what a test arranged.
struct FileCallsOfATest final {
  FileCallsOfATest() = default;
  ~FileCallsOfATest() {
    FileCalls::Get().AfterStat(nullptr);
    FileCalls::Get().fail_inotify = false;
    FileCalls::Get().fail_watches = false;
    FileCalls::Get().is_fuse = false;
  }
  FileCallsOfATest(const FileCallsOfATest&) = delete;
  FileCallsOfATest& operator=(const FileCallsOfATest&) = delete;
};

}  // namespace trims

extern "C" {

inline mode_t TrimsModeOf(int flags, va_list arguments) {
  return (flags & (O_CREAT | __O_TMPFILE)) != 0 ? va_arg(arguments, mode_t) : 0;
}

int stat(const char* path, struct stat* info) noexcept {
  trims::FileCalls::Get().Note();
  const auto result = static_cast<int>(::syscall(SYS_newfstatat, AT_FDCWD, path, info, 0));
  const int error = errno;
  trims::FileCalls::Get().NoteStat(path);
  errno = error;
  return result;
}

int fstat(int fd, struct stat* info) noexcept {
  trims::FileCalls::Get().Note();
  return static_cast<int>(::syscall(SYS_newfstatat, fd, "", info, AT_EMPTY_PATH));
}

int access(const char* path, int mode) noexcept {
  trims::FileCalls::Get().Note();
  return static_cast<int>(::syscall(SYS_faccessat, AT_FDCWD, path, mode));
}

int open(const char* path, int flags, ...) {
  trims::FileCalls::Get().Note();
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = TrimsModeOf(flags, arguments);
  va_end(arguments);
  return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

int openat(int directory, const char* path, int flags, ...) {
  trims::FileCalls::Get().Note();
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = TrimsModeOf(flags, arguments);
  va_end(arguments);
  return static_cast<int>(::syscall(SYS_openat, directory, path, flags, mode));
}

int fstatfs(int fd, struct statfs* info) noexcept {
  trims::FileCalls::Get().Note();
  const auto result = static_cast<int>(::syscall(SYS_fstatfs, fd, info));
  if (result == 0 && trims::FileCalls::Get().is_fuse) info->f_type = FUSE_SUPER_MAGIC;
  return result;
}

int inotify_init1(int flags) noexcept {
  if (trims::FileCalls::Get().fail_inotify) {
    errno = EMFILE;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_inotify_init1, flags));
}

int inotify_add_watch(int fd, const char* path, uint32_t mask) noexcept {
  trims::FileCalls::Get().Note();
  if (trims::FileCalls::Get().fail_watches) {
    errno = ENOSPC;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_inotify_add_watch, fd, path, mask));
}

}  // extern "C"
