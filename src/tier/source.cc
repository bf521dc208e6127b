#include "tier/source.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>
#include <utility>

#include "format/model_files.h"

#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif

namespace trims {
namespace {

int64_t Nanoseconds(const timespec& time) {
  return time.tv_sec * int64_t{1'000'000'000} + time.tv_nsec;
}

FileIdentity IdentityOf(const struct stat& info) {
  return {info.st_dev, info.st_ino, static_cast<uint64_t>(info.st_size), Nanoseconds(info.st_mtim),
          Nanoseconds(info.st_ctim)};
}

// Magic links (/proc/PID/fd/N) are refused: they would open whatever the daemon
// itself has open. Never blocks on a FIFO, never becomes a controlling terminal.
int OpenAt(int directory, const std::string& path, int flags) {
  const int all_flags = flags | O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  struct open_how how {};
  how.flags = static_cast<uint64_t>(all_flags);
  how.resolve = RESOLVE_NO_MAGICLINKS;
  const long fd = ::syscall(SYS_openat2, directory, path.c_str(), &how, sizeof how);
  if (fd >= 0) return static_cast<int>(fd);
  // Linux before 5.6, or a sandbox that knows no openat2.
  if (errno == ENOSYS || errno == EPERM) return ::openat(directory, path.c_str(), all_flags);
  return -1;
}

std::string WithoutSlashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == path.npos) return ".";
  return slash == 0 ? "/" : WithoutSlashes(path.substr(0, slash));
}

std::string Join(const std::string& directory, std::string_view name) {
  std::string path = directory;
  if (path.empty() || path.back() != '/') path += '/';
  return path.append(name);
}

Result<SourceFile> OpenWeightsFile(int directory, const std::string& name, std::string path) {
  UniqueFd fd(OpenAt(directory, name, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "opening " + path);
  ASSIGN_OR_RETURN(const FileIdentity identity, IdentifyFile(fd.get(), path));
  return SourceFile{std::move(path), std::move(fd), identity};
}

// The shards that an index names, in its order, and then the index file itself.
Result<std::vector<SourceFile>> OpenShards(int directory, const std::string& path,
                                           SourceFile index_file, format::ShardIndex& index) {
  ASSIGN_OR_RETURN(const format::FileSource bytes,
                   format::FileSource::Open(index_file.fd.get(), index_file.path));
  ASSIGN_OR_RETURN(index, format::ParseSafetensorsShardIndex(bytes));
  // The index is content, not the operator's word: its parser lets through names of
  // files beside it and nothing else.
  std::vector<SourceFile> files;
  files.reserve(index.files.size() + 1);
  for (const std::string& name : index.files) {
    Result<SourceFile> file = OpenWeightsFile(directory, name, Join(path, name));
    if (!file.ok()) {
      return Status(file.status().code(),
                    file.status().message() + " (a shard that " + index_file.path + " names)");
    }
    files.push_back(std::move(file).value());
  }
  files.push_back(std::move(index_file));
  return files;
}

}  // namespace

Result<Source> Source::OpenPath(const std::string& given_path, const std::string& name) {
  if (given_path.empty() || given_path.find('\0') != given_path.npos) {
    return InvalidArgumentError("opening a model: the path is empty or contains a NUL byte");
  }
  const std::string path = WithoutSlashes(given_path);
  UniqueFd fd(OpenAt(AT_FDCWD, path, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "opening the model at " + path);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "opening the model at " + path);

  Source source;
  source.description_ = path;
  if (!S_ISDIR(info.st_mode)) {
    ASSIGN_OR_RETURN(const FileIdentity identity, IdentifyFile(fd.get(), path));
    source.directory_ = DirectoryOf(path);
    SourceFile file{path, std::move(fd), identity};
    if (!format::IsShardIndexName(path)) {
      source.files_.push_back(std::move(file));
      return source;
    }
    const UniqueFd directory(OpenAt(AT_FDCWD, source.directory_, O_DIRECTORY));
    if (!directory.valid()) return ErrnoStatus(errno, "opening " + source.directory_);
    ASSIGN_OR_RETURN(source.files_, OpenShards(directory.get(), source.directory_, std::move(file),
                                               source.shard_index_.emplace()));
    return source;
  }

  source.directory_ = path;
  source.is_directory_ = true;
  source.directory_device_ = info.st_dev;
  source.directory_inode_ = info.st_ino;
  source.directory_mtime_ns_ = Nanoseconds(info.st_mtim);

  ASSIGN_OR_RETURN(const std::string weights, format::FindWeights({fd.get(), path, name}));
  ASSIGN_OR_RETURN(SourceFile file, OpenWeightsFile(fd.get(), weights, Join(path, weights)));
  if (!format::IsShardIndexName(weights)) {
    source.files_.push_back(std::move(file));
    return source;
  }
  ASSIGN_OR_RETURN(source.files_,
                   OpenShards(fd.get(), path, std::move(file), source.shard_index_.emplace()));
  return source;
}

Result<Source> Source::FromDescriptor(UniqueFd fd, const std::string& label) {
  const std::string description =
      label.empty() ? "the descriptor passed" : "the descriptor passed for \"" + label + "\"";
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0) return InvalidArgumentError(description + " is not open");
  if ((flags & O_PATH) != 0 || (flags & O_ACCMODE) == O_WRONLY) {
    return InvalidArgumentError(description +
                                " is not readable: expected a regular file opened for reading");
  }
  if ((flags & O_DIRECT) != 0) {
    return InvalidArgumentError(description +
                                " was opened with O_DIRECT: expected one opened without it");
  }
  ASSIGN_OR_RETURN(const FileIdentity identity, IdentifyFile(fd.get(), description));
  struct statfs system {};
  if (::fstatfs(fd.get(), &system) != 0) {
    return ErrnoStatus(errno, "reading the file system of " + description);
  }
  Source source;
  source.description_ = description;
  source.has_forgeable_identity_ =
      static_cast<uint64_t>(system.f_type) == uint64_t{FUSE_SUPER_MAGIC};
  source.files_.push_back(SourceFile{"", std::move(fd), identity});
  return source;
}

std::vector<FileIdentity> Source::Identities() const {
  std::vector<FileIdentity> identities;
  identities.reserve(files_.size());
  for (const SourceFile& file : files_) identities.push_back(file.identity);
  return identities;
}

bool Source::StillCurrent() const {
  struct stat info {};
  if (is_directory_ &&
      (::stat(directory_.c_str(), &info) != 0 || info.st_dev != directory_device_ ||
       info.st_ino != directory_inode_ || Nanoseconds(info.st_mtim) != directory_mtime_ns_)) {
    return false;
  }
  for (const SourceFile& file : files_) {
    const int failed =
        file.path.empty() ? ::fstat(file.fd.get(), &info) : ::stat(file.path.c_str(), &info);
    if (failed != 0 || IdentityOf(info) != file.identity) return false;
  }
  return true;
}

Status Source::CheckUnchanged() const {
  for (size_t i = 0; i < files_.size(); ++i) {
    ASSIGN_OR_RETURN(const FileIdentity now, IdentifyFile(files_[i].fd.get(), DescribeFile(i)));
    const FileIdentity& before = files_[i].identity;
    // The change time alone also moves when a file is linked, renamed or given
    // another mode, none of which touches its bytes: then the bytes' own times
    // decide.
    if (now.device != before.device || now.inode != before.inode || now.size != before.size ||
        now.mtime_ns != before.mtime_ns) {
      return AbortedError(DescribeFile(i) +
                          " changed while it was being read: open the model again once nothing "
                          "writes it any more");
    }
  }
  return OkStatus();
}

uint64_t Source::total_bytes() const {
  uint64_t total = 0;
  for (size_t i = 0; i < weight_file_count(); ++i) total += files_[i].identity.size;
  return total;
}

std::string Source::DescribeFile(size_t index) const {
  return files_[index].path.empty() ? description_ : files_[index].path;
}

}  // namespace trims
