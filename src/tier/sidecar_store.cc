#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <filesystem>
#include <memory>
#include <random>
#include <span>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>

#include "base/files.h"
#include "base/hash.h"
#include "base/limits.h"
#include "tier/ingest.h"

namespace trims {
namespace {

constexpr std::string_view kEntrySuffix = ".manifest";
constexpr std::string_view kTemporaryPrefix = "tmp-";
constexpr uint64_t kMaxEntryBytes = 2 * kGiB;
constexpr int64_t kQuietNanoseconds = 2'000'000'000;

std::string EntryName(const std::vector<FileIdentity>& identities) {
  Sha256 hash;
  hash.UpdateU64(identities.size());
  for (const FileIdentity& identity : identities) {
    hash.UpdateU64(identity.device);
    hash.UpdateU64(identity.inode);
    hash.UpdateU64(identity.size);
    hash.UpdateU64(static_cast<uint64_t>(identity.mtime_ns));
    hash.UpdateU64(static_cast<uint64_t>(identity.ctime_ns));
  }
  return hash.Finish().ToHex().append(kEntrySuffix);
}

bool IsEntryName(std::string_view name) {
  return name.size() == 64 + kEntrySuffix.size() && name.ends_with(kEntrySuffix);
}

struct Entry {
  std::string name;
  int64_t mtime_ns = 0;
};

}  // namespace

Result<std::unique_ptr<SidecarStore>> SidecarStore::Open(const std::string& directory) {
  std::string path = directory;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  if (path.empty()) return InvalidArgumentError("the directory for sidecars has an empty name");
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  std::error_code error;
  if (!parent.empty()) std::filesystem::create_directories(parent, error);
  if (error) return ErrnoStatus(error.value(), "creating " + parent.string());
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, "creating " + path);
  }
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, "opening the sidecar directory " + path);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "reading the state of " + path);
  if (info.st_uid != ::geteuid()) {
    return PermissionDeniedError("the sidecar directory " + path + " belongs to uid " +
                                 std::to_string(info.st_uid) + "; expected this process's uid " +
                                 std::to_string(::geteuid()) +
                                 ": remove it, or name another state directory");
  }
  if ((info.st_mode & 07777) != 0700 && ::fchmod(fd.get(), 0700) != 0) {
    return ErrnoStatus(errno, "closing " + path + " to other users");
  }
  std::random_device random;
  const std::string run = std::to_string(random()) + "-" + std::to_string(random());
  return std::unique_ptr<SidecarStore>(new SidecarStore(path, std::move(fd), run));
}

std::shared_ptr<const ModelManifest> SidecarStore::Find(
    const std::vector<FileIdentity>& identities) {
  const std::string name = EntryName(identities);
  const UniqueFd fd(::openat(fd_.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return nullptr;
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return nullptr;
  const auto size = static_cast<uint64_t>(info.st_size);
  if (S_ISREG(info.st_mode) && size <= kMaxEntryBytes) {
    std::unique_ptr<std::byte[]> bytes(new (std::nothrow) std::byte[size]);
    if (bytes == nullptr) return nullptr;
    size_t have = 0;
    while (have < size) {
      const ssize_t done =
          ::pread(fd.get(), bytes.get() + have, size - have, static_cast<off_t>(have));
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) return nullptr;  // A failing disk: nothing learned about the entry.
      if (done == 0) break;
      have += static_cast<size_t>(done);
    }
    Result<ModelManifest> manifest = DeserializeManifest({bytes.get(), have});
    if (manifest.ok() && manifest->file_identities == identities) {
      return std::make_shared<const ModelManifest>(std::move(manifest).value());
    }
  }
  // Damaged, of another version or of other files: it will be written again.
  ::unlinkat(fd_.get(), name.c_str(), 0);
  return nullptr;
}

Status SidecarStore::Put(const ModelManifest& manifest) {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const int64_t now_ns = now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
  for (const FileIdentity& identity : manifest.file_identities) {
    // Written so recently that one more write could leave the same time behind.
    if (identity.mtime_ns > now_ns - kQuietNanoseconds) return OkStatus();
  }
  const std::string temporary =
      std::string(kTemporaryPrefix) + run_ + "-" + std::to_string(temporaries_.fetch_add(1));
  return ReplaceFileAt(
      fd_.get(), directory_,
      {.name = EntryName(manifest.file_identities), .temporary = temporary, .mode = 0600},
      SerializeManifest(manifest));
}

Status SidecarStore::Collect(size_t entries_max) {
  UniqueFd fd(::openat(fd_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, "listing " + directory_);
  DIR* const opened = ::fdopendir(fd.get());
  if (opened == nullptr) return ErrnoStatus(errno, "listing " + directory_);
  static_cast<void>(fd.Take());  // closedir closes it.
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(opened, &::closedir);
  const std::string own_prefix = std::string(kTemporaryPrefix) + run_ + "-";
  std::vector<Entry> entries;
  Status status;
  const auto remove = [&](const std::string& name) {
    if (::unlinkat(fd_.get(), name.c_str(), 0) != 0 && errno != ENOENT && status.ok()) {
      status = ErrnoStatus(errno, "removing " + directory_ + "/" + name);
    }
  };
  errno = 0;
  while (const dirent* item = ::readdir(stream.get())) {
    const std::string name = item->d_name;
    struct stat info {};
    if (name.starts_with(kTemporaryPrefix)) {
      if (!name.starts_with(own_prefix)) remove(name);
    } else if (IsEntryName(name) &&
               ::fstatat(fd_.get(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0) {
      entries.push_back(
          {name, info.st_mtim.tv_sec * int64_t{1'000'000'000} + info.st_mtim.tv_nsec});
    }
    errno = 0;
  }
  if (errno != 0 && status.ok()) status = ErrnoStatus(errno, "listing " + directory_);
  if (entries.size() > entries_max) {
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::tie(a.mtime_ns, a.name) < std::tie(b.mtime_ns, b.name);
    });
    entries.resize(entries.size() - entries_max);
    for (const Entry& entry : entries) remove(entry.name);
  }
  return status;
}

}  // namespace trims
