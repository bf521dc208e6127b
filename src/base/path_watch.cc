// How no change is missed
//
// The kernel names a watched inode by a number, the wd, and reports (wd, what, name). Reports are
// queued within the system call that makes the change, so whoever reads the queue after a change
// finds it there.
//
// A way is walked by hand, one name after the other, and each step is: watch the directory, enter
// (wd, name) into the table, and only then look what the name is. So a name that comes to mean
// something else after we looked is reported while the table knows whom to tell; and when it
// changed before, we looked at the new one. The same holds for the file at the end: the caller
// looks at it when it has been entered. Later steps name the directory by its whole path, which
// the kernel walks again; should it end up elsewhere, a name that we had entered has changed.
//
// The kernel's table and ours can not change in one go, and the lock is never held around a call
// that a file system can hold up. Two things can therefore happen between inotify_add_watch,
// which says that an inode's wd is 5, and our entering of 5:
//
//   * Another thread drops the last interest in 5 and removes it from the kernel.
//   * The kernel drops 5 by itself (file deleted, file system unmounted).
//
// Either way nothing would ever be reported about 5 again. So an unknown wd is entered only when
// nothing was removed since before inotify_add_watch was called (`removals_`) and it is not among
// those that are just being removed (`leaving_`); else the step is done again. What the kernel
// dropped by itself counts from when its IN_IGNORED is read: one that is still queued finds 5
// in the table and marks its users. A wd that is in the table is alive or has its IN_IGNORED
// queued, and may be joined.
//
// Reports about a wd that the table does not know are of one that was removed, or of one that is
// not entered yet: they are dropped. The kernel gives numbers in rising order and uses none
// again before two thousand million watches. Even then, a report or an interest that is so old
// would only mark what did not change, or find nothing to remove.
//
// Masks: an inode has one mask per inotify instance, whatever path it was reached by. All
// directories get one, all other files another, and IN_MASK_ADD keeps a race between the two
// kinds from taking anything away.
//
// "Everything has changed" is one counter (`epoch_`) that every Watched compares with: the thread
// that drains may have no time for a walk over all of them.
#include "base/path_watch.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/mutex.h"
#include "base/unique_fd.h"

namespace trims {
namespace {

constexpr uint32_t kEntryComesOrGoes = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO;
constexpr uint32_t kDirectoryMask =
    kEntryComesOrGoes | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR;
constexpr uint32_t kFileMask =
    IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE | IN_DELETE_SELF | IN_MOVE_SELF;

constexpr size_t kBufferBytes = 64 * kKiB;
constexpr size_t kLongestReport = sizeof(inotify_event) + NAME_MAX + 1;
// Interests that one turn of the lock removes: the thread that drains may be waiting for it.
constexpr size_t kRemovedPerTurn = 256;

// File systems that only this kernel changes, so that it can report every change. Not listed, and
// so refused: those of the network (NFS, CIFS, Ceph, Lustre, 9p), of other processes (FUSE,
// virtiofs), of several machines (OCFS2, GFS2), those that make their files up (proc, sysfs),
// those where one file answers to many spellings of its name, of which a report has only one (FAT,
// exFAT, NTFS), and any that we do not know.
constexpr std::array<uint32_t, 17> kReportingFileSystems = {
    0xEF53,      // ext2, ext3, ext4
    0x58465342,  // XFS
    0x9123683E,  // Btrfs
    0x2FC12FC1,  // ZFS
    0xCA451A4E,  // bcachefs
    0xF2F52010,  // F2FS
    0x01021994,  // tmpfs, devtmpfs
    0x858458F6,  // ramfs
    0x794C7630,  // overlayfs
    0x73717368,  // SquashFS
    0xE0F5E1E2,  // EROFS
    0x28CD3D45,  // cramfs
    0x9660,      // ISO 9660
    0x15013346,  // UDF
    0x3153464A,  // JFS
    0x52654973,  // ReiserFS
    0x3434,      // NILFS2
};

// Of `path`, whose file system is `about`.
Status CheckReports(const std::string& path, const struct statfs& about) {
  const auto type = static_cast<uint32_t>(about.f_type);
  if (std::find(kReportingFileSystems.begin(), kReportingFileSystems.end(), type) !=
      kReportingFileSystems.end()) {
    return OkStatus();
  }
  char number[16];
  std::snprintf(number, sizeof number, "0x%x", type);
  return FailedPreconditionError(path + " lies on a file system (type " + number +
                                 ") that is not known to report every change; look at the file "
                                 "again each time instead");
}

// Whether all that happens to `path`, which has no links, would be reported. Blocks.
Status CheckFile(const std::string& path) {
  struct statfs about;
  if (::statfs(path.c_str(), &about) != 0) {
    return ErrnoStatus(errno, "asking for the file system of " + path);
  }
  RETURN_IF_ERROR(CheckReports(path, about));
  struct stat type;
  if (::lstat(path.c_str(), &type) != 0) return ErrnoStatus(errno, "looking at " + path);
  if (!S_ISDIR(type.st_mode)) return OkStatus();
  return InvalidArgumentError(path + " is a directory, where a file was to be watched");
}

// The same for the names in a directory; false when `path` is none. Blocks.
Result<bool> CheckDirectory(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid() && errno == ENOTDIR) return false;
  if (!fd.valid()) return ErrnoStatus(errno, "opening " + path);
  struct statfs about;
  if (::fstatfs(fd.get(), &about) != 0) {
    return ErrnoStatus(errno, "asking for the file system of " + path);
  }
  RETURN_IF_ERROR(CheckReports(path, about));
  // ext4, F2FS and tmpfs have such directories. The kernel writes an int, whatever the number of
  // the call says; what has no flags is an error and no such directory.
  int flags = 0;
  if (::ioctl(fd.get(), FS_IOC_GETFLAGS, &flags) == 0 && (flags & FS_CASEFOLD_FL) != 0) {
    return FailedPreconditionError(path +
                                   " does not tell upper case from lower, so that a change may be "
                                   "reported under another name; look at the file again each time "
                                   "instead");
  }
  return true;
}

Status InitError(int errnum) {
  if (errnum == EMFILE || errnum == ENFILE || errnum == ENOMEM) {
    return ResourceExhaustedError(
        ErrnoStatus(errnum, "making an inotify instance").message() +
        "; raise fs.inotify.max_user_instances, or the limit of open files (ulimit -n)");
  }
  return UnavailableError(ErrnoStatus(errnum, "making an inotify instance").message() +
                          "; the kernel must have CONFIG_INOTIFY_USER and a system call filter, "
                          "if any, must allow inotify_init1");
}

Status AddWatchError(int errnum, const std::string& path) {
  if (errnum == ENOSPC) {
    return ResourceExhaustedError("no inotify watch is left for " + path +
                                  "; raise fs.inotify.max_user_watches");
  }
  return ErrnoStatus(errnum, "watching " + path);
}

}  // namespace

// Our side of the kernel's table: who is to be told of what. Shared by the PathWatch and each
// Watched. Thread-safe.
class PathWatch::Tables final {
 public:
  Tables(UniqueFd fd, const PathWatchLimits& limits) : fd_(std::move(fd)), limits_(limits) {}

  int fd() const { return fd_.get(); }
  const PathWatchLimits& limits() const { return limits_; }
  uint64_t epoch() const { return epoch_.load(std::memory_order_acquire); }
  void MarkEverything() { epoch_.fetch_add(1, std::memory_order_acq_rel); }

  // Watches `path` for `watched` and gives its wd. `name` as in Interest. Blocks.
  Result<int> Watch(Watched& watched, const std::string& path, uint32_t mask,
                    std::string_view name);
  // The same for an inode that `watched` itself already watches. Does not block.
  Status AlsoName(Watched& watched, int wd, std::string_view name);
  // Ends all interests of `watched`. Blocks.
  void Remove(Watched& watched);
  // Marks what whole reports are about; whether anything was marked. Does not block.
  bool TakeIn(std::span<const char> reports);

  size_t watches() const {
    const MutexLock lock(mu_);
    return inodes_.size();
  }

 private:
  // Some Watched, each once, in the order of their addresses. Most often one; for the root
  // directory, all there are.
  class Users final {
   public:
    bool Insert(Watched* watched) {
      const auto at = std::lower_bound(all_.begin(), all_.end(), watched, std::less<>());
      if (at != all_.end() && *at == watched) return false;
      all_.insert(at, watched);
      return true;
    }
    bool Erase(Watched* watched) {
      const auto at = std::lower_bound(all_.begin(), all_.end(), watched, std::less<>());
      if (at == all_.end() || *at != watched) return false;
      all_.erase(at);
      return true;
    }
    bool Mark() const {
      bool marked = false;
      for (Watched* watched : all_) {
        marked |= !watched->changed_.exchange(true, std::memory_order_acq_rel);
      }
      return marked;
    }
    bool empty() const { return all_.empty(); }
    size_t size() const { return all_.size(); }

   private:
    std::vector<Watched*> all_;
  };

  // Finds by a name inside a report without making a string of it.
  struct NameHash final {
    using is_transparent = void;
    size_t operator()(std::string_view name) const { return std::hash<std::string_view>()(name); }
  };

  struct Inode final {
    Users whole;
    std::unordered_map<std::string, Users, NameHash, std::equal_to<>> names;

    bool MarkAll() const {
      bool marked = whole.Mark();
      for (const auto& [name, users] : names) marked |= users.Mark();
      return marked;
    }
    size_t interests() const {
      size_t all = whole.size();
      for (const auto& [name, users] : names) all += users.size();
      return all;
    }
    bool empty() const { return whole.empty() && names.empty(); }
  };

  Status Enter(Watched& watched, int wd, Inode& inode, std::string_view name) TRIMS_REQUIRES(mu_);
  bool EraseInterest(Watched& watched, const Watched::Interest& interest) TRIMS_REQUIRES(mu_);
  bool TakeInOne(const inotify_event& report, std::string_view name) TRIMS_REQUIRES(mu_);

  // Takes from the kernel what EraseInterest or Watch put among leaving_. Blocks.
  void RemoveFromKernel(std::span<const int> wds) TRIMS_EXCLUDES(mu_);

  const UniqueFd fd_;
  const PathWatchLimits limits_;
  std::atomic<uint64_t> epoch_{0};  // Raised whenever all that is watched counts as changed.

  mutable Mutex mu_;
  CondVar left_;  // Something is no longer in leaving_.
  // By wd; none without users.
  std::unordered_map<int, Inode> inodes_ TRIMS_GUARDED_BY(mu_);
  // Between out of inodes_ and out of the kernel.
  std::unordered_set<int> leaving_ TRIMS_GUARDED_BY(mu_);
  uint64_t removals_ TRIMS_GUARDED_BY(mu_) = 0;  // Ended ones, by us and by the kernel.
  size_t interests_ TRIMS_GUARDED_BY(mu_) = 0;   // In inodes_.
};

Status PathWatch::Tables::Enter(Watched& watched, int wd, Inode& inode, std::string_view name) {
  if (interests_ >= limits_.interests) {
    return ResourceExhaustedError("all " + std::to_string(limits_.interests) +
                                  " interests in paths are in use (kMaxPathWatchInterests)");
  }
  Users* users = &inode.whole;
  if (!name.empty()) {
    auto found = inode.names.find(name);
    if (found == inode.names.end()) found = inode.names.try_emplace(std::string(name)).first;
    users = &found->second;
  }
  if (!users->Insert(&watched)) return OkStatus();
  ++interests_;
  watched.interests_.push_back({wd, std::string(name)});
  return OkStatus();
}

Result<int> PathWatch::Tables::Watch(Watched& watched, const std::string& path, uint32_t mask,
                                     std::string_view name) {
  for (;;) {
    uint64_t removals_before;
    {
      const MutexLock lock(mu_);
      removals_before = removals_;
    }
    const int wd =
        ::inotify_add_watch(fd_.get(), path.c_str(), mask | IN_MASK_ADD | IN_DONT_FOLLOW);
    if (wd < 0) return AddWatchError(errno, path);

    const MutexLock lock(mu_);
    auto found = inodes_.find(wd);
    if (found == inodes_.end()) {
      if (leaving_.contains(wd)) {
        while (leaving_.contains(wd)) left_.Wait(mu_);
        continue;
      }
      if (removals_ != removals_before) continue;
      found = inodes_.try_emplace(wd).first;
    }
    Status entered;
    if (inodes_.size() > limits_.watches) {
      entered = ResourceExhaustedError("all " + std::to_string(limits_.watches) +
                                       " watches of paths are in use (kMaxPathWatches)");
    } else {
      entered = Enter(watched, wd, found->second, name);
    }
    if (entered.ok()) return wd;
    if (found->second.empty()) {
      inodes_.erase(found);
      leaving_.insert(wd);
      const MutexUnlock unlock(mu_);
      RemoveFromKernel({&wd, 1});
    }
    return entered;
  }
}

Status PathWatch::Tables::AlsoName(Watched& watched, int wd, std::string_view name) {
  const MutexLock lock(mu_);
  const auto found = inodes_.find(wd);
  // The kernel dropped it after `watched` had entered it, which marked `watched`.
  if (found == inodes_.end()) return OkStatus();
  return Enter(watched, wd, found->second, name);
}

bool PathWatch::Tables::EraseInterest(Watched& watched, const Watched::Interest& interest) {
  const auto inode = inodes_.find(interest.wd);
  if (inode == inodes_.end()) return false;  // The kernel dropped it first.
  if (interest.name.empty()) {
    if (inode->second.whole.Erase(&watched)) --interests_;
  } else if (const auto name = inode->second.names.find(interest.name);
             name != inode->second.names.end()) {
    if (name->second.Erase(&watched)) --interests_;
    if (name->second.empty()) inode->second.names.erase(name);
  }
  if (!inode->second.empty()) return false;
  inodes_.erase(inode);
  leaving_.insert(interest.wd);
  return true;
}

void PathWatch::Tables::Remove(Watched& watched) {
  std::span<const Watched::Interest> rest(watched.interests_);
  std::vector<int> unused;
  while (!rest.empty()) {
    const auto turn = rest.first(std::min(rest.size(), kRemovedPerTurn));
    rest = rest.subspan(turn.size());
    {
      const MutexLock lock(mu_);
      for (const Watched::Interest& interest : turn) {
        if (EraseInterest(watched, interest)) unused.push_back(interest.wd);
      }
    }
    RemoveFromKernel(unused);
    unused.clear();
  }
  watched.interests_.clear();
}

void PathWatch::Tables::RemoveFromKernel(std::span<const int> wds) {
  if (wds.empty()) return;
  // EINVAL: the kernel was faster, and its IN_IGNORED is queued or was lost with an overflow.
  for (const int wd : wds) ::inotify_rm_watch(fd_.get(), wd);
  {
    const MutexLock lock(mu_);
    for (const int wd : wds) leaving_.erase(wd);
    ++removals_;
  }
  left_.NotifyAll();
}

bool PathWatch::Tables::TakeIn(std::span<const char> reports) {
  bool marked = false;
  const MutexLock lock(mu_);
  while (!reports.empty()) {
    inotify_event report;
    std::memcpy(&report, reports.data(), sizeof report);
    const char* name = reports.data() + sizeof report;  // Filled up with zeros.
    marked |= TakeInOne(report, std::string_view(name, ::strnlen(name, report.len)));
    reports = reports.subspan(sizeof report + report.len);
  }
  return marked;
}

bool PathWatch::Tables::TakeInOne(const inotify_event& report, std::string_view name) {
  if ((report.mask & IN_Q_OVERFLOW) != 0) {
    MarkEverything();
    return true;
  }
  if ((report.mask & IN_IGNORED) != 0) ++removals_;
  const auto found = inodes_.find(report.wd);
  if (found == inodes_.end()) return false;
  Inode& inode = found->second;

  if ((report.mask & IN_IGNORED) != 0) {
    const bool marked = inode.MarkAll();
    interests_ -= inode.interests();
    inodes_.erase(found);
    return marked;
  }
  // Reports without a name are about the inode itself: its bytes if it is a file, whether it may be
  // searched if it is a directory, and that it moved, was deleted or unmounted.
  if (name.empty()) return inode.MarkAll();
  bool marked = false;
  if ((report.mask & kEntryComesOrGoes) != 0) marked = inode.whole.Mark();
  if (const auto users = inode.names.find(name); users != inode.names.end()) {
    marked |= users->second.Mark();
  }
  return marked;
}

// Walks the ways of one Add. What it has walked once it remembers: had that changed since, its
// Watched would be marked.
class PathWatch::Walk final {
 public:
  Walk(Tables& tables, Watched& watched) : tables_(tables), watched_(watched) {}

  Status File(const std::string& path);
  Status Directory(const std::string& path);
  Status Absent(const std::string& path);

 private:
  // Where `path` leads: a path without links, or nothing when a part of it does not exist. Every
  // name on the way is watched.
  Result<std::optional<std::string>> Follow(const std::string& path);
  // What `name` in `directory`, a path without links, is: a link's target, empty for anything
  // else, nothing when it does not exist. Watched before it is looked at.
  Result<std::optional<std::string>> Step(const std::string& directory, const std::string& name);
  // Enters (directory, name) and gives the directory's wd; nothing when it is no directory.
  Result<std::optional<int>> EnterName(const std::string& directory, const std::string& name);

  Tables& tables_;
  Watched& watched_;
  std::unordered_map<std::string, int> directories_;    // Path without links, wd.
  std::unordered_map<std::string, std::string> steps_;  // Existing names: as Step gives them.
};

namespace {

std::string Join(const std::string& directory, const std::string& name) {
  return directory == "/" ? directory + name : directory + "/" + name;
}

// Puts the names of `path` onto `names`, the first on top.
void PushNames(std::string_view path, std::vector<std::string>* names) {
  size_t end = path.size();
  while (end > 0) {
    const size_t slash = path.rfind('/', end - 1);
    const size_t begin = slash == std::string_view::npos ? 0 : slash + 1;
    const std::string_view name = path.substr(begin, end - begin);
    if (!name.empty() && name != ".") names->emplace_back(name);
    end = begin == 0 ? 0 : slash;
  }
}

}  // namespace

Result<std::optional<int>> PathWatch::Walk::EnterName(const std::string& directory,
                                                      const std::string& name) {
  if (const auto known = directories_.find(directory); known != directories_.end()) {
    RETURN_IF_ERROR(tables_.AlsoName(watched_, known->second, name));
    return std::optional(known->second);
  }
  ASSIGN_OR_RETURN(const bool is_directory, CheckDirectory(directory));
  if (!is_directory) return std::optional<int>();
  ASSIGN_OR_RETURN(const int wd, tables_.Watch(watched_, directory, kDirectoryMask, name));
  directories_.emplace(directory, wd);
  return std::optional(wd);
}

Result<std::optional<std::string>> PathWatch::Walk::Step(const std::string& directory,
                                                         const std::string& name) {
  const std::string path = Join(directory, name);
  if (const auto known = steps_.find(path); known != steps_.end()) {
    return std::optional(known->second);
  }
  ASSIGN_OR_RETURN(const std::optional<int> entered, EnterName(directory, name));
  if (!entered) return std::optional<std::string>();
  char target[PATH_MAX];
  const ssize_t bytes = ::readlink(path.c_str(), target, sizeof target);
  if (bytes < 0 && errno == ENOENT) return std::optional<std::string>();
  if (bytes < 0 && errno != EINVAL) return ErrnoStatus(errno, "looking at " + path);
  if (bytes == sizeof target) return ErrnoStatus(ENAMETOOLONG, "reading the link " + path);
  std::string found(target, bytes < 0 ? 0 : static_cast<size_t>(bytes));
  steps_.emplace(path, found);
  return std::optional(std::move(found));
}

Result<std::optional<std::string>> PathWatch::Walk::Follow(const std::string& path) {
  if (path.empty() || path.front() != '/' || path.find('\0') != std::string::npos) {
    return InvalidArgumentError("only an absolute path can be watched, and this is none: \"" +
                                path + "\"");
  }
  std::string here = "/";
  std::vector<std::string> names;
  PushNames(path, &names);
  for (int links = 0; !names.empty();) {
    const std::string name = std::move(names.back());
    names.pop_back();
    if (name == "..") {
      // `here` has no links, so its parent is the path without the last name.
      here.resize(std::max<size_t>(here.rfind('/'), 1));
      continue;
    }
    ASSIGN_OR_RETURN(const std::optional<std::string> link, Step(here, name));
    if (!link) return std::optional<std::string>();
    if (link->empty()) {
      here = Join(here, name);
      continue;
    }
    if (++links > kMaxLinksPerPath) return ErrnoStatus(ELOOP, "following " + path);
    if (link->front() == '/') here = "/";
    PushNames(*link, &names);
  }
  return std::optional(std::move(here));
}

Status PathWatch::Walk::File(const std::string& path) {
  ASSIGN_OR_RETURN(const std::optional<std::string> end, Follow(path));
  if (!end) return NotFoundError("watching " + path + ": it does not exist");
  RETURN_IF_ERROR(CheckFile(*end));
  return tables_.Watch(watched_, *end, kFileMask, {}).status();
}

Status PathWatch::Walk::Directory(const std::string& path) {
  ASSIGN_OR_RETURN(const std::optional<std::string> end, Follow(path));
  if (!end) return NotFoundError("watching " + path + ": it does not exist");
  ASSIGN_OR_RETURN(const bool is_directory, CheckDirectory(*end));
  if (!is_directory) return InvalidArgumentError("watching " + path + ": it is not a directory");
  ASSIGN_OR_RETURN(const int wd, tables_.Watch(watched_, *end, kDirectoryMask, {}));
  directories_.emplace(*end, wd);
  return OkStatus();
}

Status PathWatch::Walk::Absent(const std::string& path) {
  ASSIGN_OR_RETURN(const std::optional<std::string> end, Follow(path));
  if (end) watched_.changed_.store(true, std::memory_order_release);
  return OkStatus();
}

PathWatch::Watched::Watched(std::shared_ptr<Tables> tables)
    : tables_(std::move(tables)), epoch_(tables_->epoch()) {}

PathWatch::Watched::~Watched() { tables_->Remove(*this); }

bool PathWatch::Watched::changed() const {
  return changed_.load(std::memory_order_acquire) || tables_->epoch() != epoch_;
}

Result<std::unique_ptr<PathWatch>> PathWatch::Create(const PathWatchLimits& limits) {
  UniqueFd fd(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!fd.valid()) return InitError(errno);
  return std::unique_ptr<PathWatch>(new PathWatch(std::make_shared<Tables>(std::move(fd), limits)));
}

PathWatch::PathWatch(std::shared_ptr<Tables> tables)
    : tables_(std::move(tables)), buffer_(std::make_unique<char[]>(kBufferBytes)) {}

PathWatch::~PathWatch() { tables_->MarkEverything(); }

Result<std::shared_ptr<const PathWatch::Watched>> PathWatch::Add(const Asked& asked) {
  const std::shared_ptr<Watched> watched(new Watched(tables_));
  Walk walk(*tables_, *watched);
  for (const std::string& path : asked.files) RETURN_IF_ERROR(walk.File(path));
  for (const std::string& path : asked.directories) RETURN_IF_ERROR(walk.Directory(path));
  for (const std::string& path : asked.absent) RETURN_IF_ERROR(walk.Absent(path));
  return std::shared_ptr<const Watched>(watched);
}

bool PathWatch::Drain() {
  const size_t limit = tables_->limits().drain_bytes;
  bool marked = false;
  for (size_t taken = 0;;) {
    const size_t room = std::clamp(limit - taken, kLongestReport, kBufferBytes);
    const ssize_t bytes = ::read(tables_->fd(), buffer_.get(), room);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0 && errno == EAGAIN) return marked;
    if (bytes <= 0) {
      // Not known to happen; the report that could not be had is lost.
      tables_->MarkEverything();
      return true;
    }
    taken += static_cast<size_t>(bytes);
    marked |= tables_->TakeIn({buffer_.get(), static_cast<size_t>(bytes)});
    // The kernel fills the buffer with whole reports, so there was no other one to be had.
    if (static_cast<size_t>(bytes) + kLongestReport <= room) return marked;
    if (taken >= limit) {
      tables_->MarkEverything();
      return true;
    }
  }
}

int PathWatch::PeekFd() const { return tables_->fd(); }

size_t PathWatch::watches() const { return tables_->watches(); }

}  // namespace trims
