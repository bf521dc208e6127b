// PathWatch tells whether any of some paths may lead to other bytes than when they were looked
// at, without looking again: the kernel reports changes (inotify), and reading its reports is no
// call that a file system can hold up. It knows nothing of what lies in the files.
//
// The rule of use: Add first, then look (stat, open, read), then trust the look for as long as
// changed() is false after a Drain(). A change that happens while Add runs is either seen in
// changed() or happened before that look. A look from before Add proves nothing.
//
// changed() may also be true when nothing is different (somebody opened the file for writing and
// wrote nothing, a report was older than the Add, too many reports came at once): it stands for
// "look again". Once true it stays true; Add again for a new one.
//
// What the kernel does not report, and what a caller who cares therefore looks at now and then by
// other means: bytes written through a shared mapping (reported when the last writer closes the
// file, if then), another file system mounted over a directory on the way or taken away from it
// while it stays mounted elsewhere, changes below the layers of an overlay, writes to the disk past
// the file system, and names in another spelling on an XFS or ZFS that was made not to tell upper
// case from lower. File systems on which other machines or processes can change files without
// this kernel's knowing are refused.
//
// Costs: an inotify watch, about 1 KiB of kernel memory, for each file and each directory on the
// way to it; directories that paths share are watched once.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/limits.h"
#include "base/status.h"

namespace trims {

struct PathWatchLimits final {
  size_t watches = kMaxPathWatches;           // Files and directories watched in all.
  size_t interests = kMaxPathWatchInterests;  // Pairs of a Watched and a name or file it is about.
  size_t drain_bytes = kMaxPathWatchDrainBytes;  // Of reports that one Drain() takes in.
};

class PathWatch final {
  class Tables;
  class Walk;

 public:
  // RESOURCE_EXHAUSTED when the user or the process has no inotify instance left, UNAVAILABLE
  // when the system has no inotify for us; both say what to do.
  static Result<std::unique_ptr<PathWatch>> Create(const PathWatchLimits& limits = {});
  // Everything still watched is changed from now on. May block, as ~Watched.
  ~PathWatch();
  PathWatch(const PathWatch&) = delete;
  PathWatch& operator=(const PathWatch&) = delete;

  struct Asked final {
    std::vector<std::string> files;        // Followed through symbolic links. No directories.
    std::vector<std::string> directories;  // Any entry that comes, goes or is renamed is a change.
    std::vector<std::string> absent;       // Must go on not existing; existing is a change.
  };

  // What one Add watches. Dropping it ends its interest, and the kernel's watches that nobody
  // else needs. That may block in the kernel, which gives up a deleted file's blocks with its
  // last watch: not for a thread that must not wait. May outlive its PathWatch. Thread-safe.
  class Watched final {
   public:
    ~Watched();
    Watched(const Watched&) = delete;
    Watched& operator=(const Watched&) = delete;

    // As far as Drain() has taken reports in. Never blocks, takes no lock.
    bool changed() const;

   private:
    friend class PathWatch;
    // A report about `name` in the directory that `wd` stands for; empty: about wd's own inode,
    // and for a directory about all that comes and goes in it.
    struct Interest final {
      int wd;
      std::string name;
    };

    explicit Watched(std::shared_ptr<Tables> tables);

    const std::shared_ptr<Tables> tables_;
    const uint64_t epoch_;  // The tables' epoch when Add began.
    std::atomic<bool> changed_{false};
    std::vector<Interest> interests_;  // Of Add's thread, then of the destructor's.
  };

  // Watches all of `asked`, whose paths are absolute: each file and directory, and on the way to
  // it, for the one name that the way goes through, every directory from the root on, also those
  // that symbolic links lead through. The daemon's user must be able to read them all (not only to
  // search them).
  //
  // NOT_FOUND, PERMISSION_DENIED and so on as a look would say it; INVALID_ARGUMENT for a path
  // that is not absolute, a directory among the files, something else among the directories, and
  // more than kMaxLinksPerPath links; FAILED_PRECONDITION when part of a way lies on a file system
  // that does not report every change; RESOURCE_EXHAUSTED when the kernel's watches or our own
  // limits are used up. After an error nothing is watched.
  //
  // Blocks for path lookups. Thread-safe.
  Result<std::shared_ptr<const Watched>> Add(const Asked& asked);

  // Takes in what the kernel has reported so far and marks what it is about; returns whether
  // anything was marked that was not. When there is more than the limit, or the kernel itself has
  // lost count, everything watched is marked and the rest is left for the next call.
  //
  // Only reads the inotify descriptor, so no file system can hold it up; waits for other threads
  // only while they change a table. One thread at a time.
  bool Drain();

  // Readable while Drain() has something to do. Borrowed; for epoll and poll only.
  int PeekFd() const;

  // Files and directories that are watched just now. Thread-safe.
  size_t watches() const;

 private:
  explicit PathWatch(std::shared_ptr<Tables> tables);

  const std::shared_ptr<Tables> tables_;
  const std::unique_ptr<char[]> buffer_;  // Of Drain().
};

}  // namespace trims
