#include "fake_cuda/machine.h"

#include <dirent.h>
#include <fcntl.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string_view>

namespace fake_cuda {
namespace {

constexpr uint64_t kTrailerBytes = 4096;
constexpr char kMagic[16] = "fake CUDA alloc";

// The last page of an allocation's file: what an importer must know.
struct Trailer {
  char magic[16];
  uint64_t bytes;
  int32_t device;
  char file[128];
};
static_assert(sizeof(Trailer) <= kTrailerBytes);

std::string Setting(const char* name, const char* fallback) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : fallback;
}

[[noreturn]] void BadSetting(const char* name, const std::string& value) {
  std::fprintf(stderr, "fake_cuda: %s=%s makes no sense\n", name, value.c_str());
  std::abort();
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

uint64_t ParseBytes(const char* name, const std::string& text) {
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  const std::string unit = end;
  double scale = 1;
  if (unit == "KiB") {
    scale = 1024;
  } else if (unit == "MiB") {
    scale = 1024.0 * 1024;
  } else if (unit == "GiB") {
    scale = 1024.0 * 1024 * 1024;
  } else if (!unit.empty()) {
    BadSetting(name, text);
  }
  if (end == text.c_str() || number <= 0) BadSetting(name, text);
  return static_cast<uint64_t>(number * scale) / kGranularity * kGranularity;
}

double ParseRate(const char* name) {
  const std::string text = Setting(name, "0");
  char* end = nullptr;
  const double rate = std::strtod(text.c_str(), &end);
  if (*end != '\0' || rate < 0) BadSetting(name, text);
  return rate * 1e9;
}

std::string UuidText(const MachineDevice& device) {
  std::string text = "GPU-";
  for (size_t i = 0; i < device.uuid.size(); ++i) {
    char digits[4];
    std::snprintf(digits, sizeof digits, "%02x", device.uuid[i]);
    if (i == 4 || i == 6 || i == 8 || i == 10) text.push_back('-');
    text.append(digits);
  }
  return text;
}

// As the real driver reads CUDA_VISIBLE_DEVICES: ordinals or beginnings of UUIDs, up
// to the first that names nothing; none at all when one is named twice.
std::vector<MachineDevice> Visible(const std::vector<MachineDevice>& all) {
  const char* setting = std::getenv("CUDA_VISIBLE_DEVICES");
  if (setting == nullptr) return all;
  std::vector<MachineDevice> visible;
  for (const std::string& part : Split(setting)) {
    std::optional<MachineDevice> found;
    if (::strncasecmp(part.c_str(), "GPU-", 4) == 0) {
      for (const MachineDevice& device : all) {
        if (::strncasecmp(UuidText(device).c_str(), part.c_str(), part.size()) != 0) continue;
        if (found.has_value()) return visible;  // Two begin so: it names nothing.
        found = device;
      }
    } else {
      char* end = nullptr;
      const long ordinal = std::strtol(part.c_str(), &end, 10);
      const bool number = end != part.c_str() && *end == '\0';
      if (number && ordinal >= 0 && ordinal < static_cast<long>(all.size())) {
        found = all[static_cast<size_t>(ordinal)];
      }
    }
    if (!found.has_value()) return visible;
    for (const MachineDevice& device : visible) {
      if (device.index == found->index) return {};
    }
    visible.push_back(*found);
  }
  return visible;
}

std::string FilePrefix(int device) { return "memory-" + std::to_string(device) + "-"; }

}  // namespace

Machine& Machine::Get() {
  static Machine& machine = *new Machine;
  return machine;
}

Machine::Machine() {
  const bool shm = ::access("/dev/shm", W_OK) == 0;
  const std::string fallback =
      (shm ? "/dev/shm/fake_cuda." : "/tmp/fake_cuda.") + std::to_string(::geteuid());
  directory_ = Setting("FAKE_CUDA_DIR", fallback.c_str());
  // Open to all: processes of other users are on the same machine.
  if (::mkdir(directory_.c_str(), 0777) == 0) static_cast<void>(::chmod(directory_.c_str(), 0777));

  const std::string count = Setting("FAKE_CUDA_DEVICES", "1");
  char* end = nullptr;
  const long devices = std::strtol(count.c_str(), &end, 10);
  if (*end != '\0' || devices < 0 || devices > 16) BadSetting("FAKE_CUDA_DEVICES", count);
  const std::vector<std::string> memory = Split(Setting("FAKE_CUDA_MEMORY", "1GiB"));
  std::vector<MachineDevice> all;
  for (int index = 0; index < devices; ++index) {
    MachineDevice device{
        .index = index,
        .uuid = {0xfa, 0x4e, 0xc0, 0xda, 0, 0, 0x40, 0, 0x80},
        .bytes =
            ParseBytes("FAKE_CUDA_MEMORY",
                       memory[std::min<size_t>(static_cast<size_t>(index), memory.size() - 1)])};
    device.uuid.back() = static_cast<unsigned char>(index);
    all.push_back(device);
  }
  visible_ = Visible(all);

  if (const std::string lacks = Setting("FAKE_CUDA_LACKS", ""); !lacks.empty()) {
    for (const std::string& part : Split(lacks)) {
      if (part == "vmm") {
        lacks_vmm_ = true;
      } else if (part == "posix_fd") {
        lacks_posix_fd_ = true;
      } else if (part == "peer") {
        lacks_peer_ = true;
      } else if (part == "read_only_registration") {
        lacks_read_only_registration_ = true;
      } else {
        BadSetting("FAKE_CUDA_LACKS", lacks);
      }
    }
  }
  copy_bytes_per_second_ = ParseRate("FAKE_CUDA_COPY_GBPS");
  peer_bytes_per_second_ = ParseRate("FAKE_CUDA_PEER_GBPS");
  const std::string version = Setting("FAKE_CUDA_VERSION", "13000");
  version_ = static_cast<int>(std::strtol(version.c_str(), &end, 10));
  if (*end != '\0') BadSetting("FAKE_CUDA_VERSION", version);
}

UniqueFd Machine::Lock() const {
  const std::string path = directory_ + "/lock";
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (!fd.valid()) BadSetting("FAKE_CUDA_DIR", directory_ + " (no lock file can be made in it)");
  static_cast<void>(::fchmod(fd.get(), 0666));
  while (::flock(fd.get(), LOCK_EX) != 0 && errno == EINTR) {
  }
  return fd;
}

bool Machine::FreeIfDead(const std::string& path) const {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return errno == ENOENT;
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) return false;
  static_cast<void>(::unlink(path.c_str()));
  return true;
}

uint64_t Machine::Used(int index) const {
  const std::string prefix = FilePrefix(index);
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(directory_.c_str()), &::closedir);
  if (directory == nullptr) return 0;
  uint64_t used = 0;
  while (const dirent* entry = ::readdir(directory.get())) {
    if (std::strncmp(entry->d_name, prefix.c_str(), prefix.size()) != 0) continue;
    const std::string path = directory_ + "/" + entry->d_name;
    if (FreeIfDead(path)) continue;
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0) {
      used += static_cast<uint64_t>(status.st_size) - kTrailerBytes;
    }
  }
  return used;
}

CUresult Machine::Allocate(const MachineDevice& device, uint64_t bytes, Backing* backing) {
  const UniqueFd lock = Lock();
  // The lock file holds, by device, no less than what is in use: a scan of all files is
  // due only when that says the device is full.
  uint64_t bound = 0;
  const auto at = static_cast<off_t>(sizeof bound * static_cast<size_t>(device.index));
  if (::pread(lock.get(), &bound, sizeof bound, at) != sizeof bound) bound = 0;
  if (bytes > device.bytes || bound > device.bytes - bytes) {
    bound = Used(device.index);
    if (bytes > device.bytes || bound > device.bytes - bytes) return CUDA_ERROR_OUT_OF_MEMORY;
  }
  bound += bytes;
  // Before the file is there, because this process may be killed in between.
  if (::pwrite(lock.get(), &bound, sizeof bound, at) != sizeof bound) {
    return CUDA_ERROR_OPERATING_SYSTEM;
  }

  const std::string file = FilePrefix(device.index) + std::to_string(::getpid()) + "-" +
                           std::to_string(next_.fetch_add(1)) + "-" +
                           std::to_string(::time(nullptr));
  const std::string path = directory_ + "/" + file;
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!fd.valid()) return CUDA_ERROR_OPERATING_SYSTEM;
  static_cast<void>(::fchmod(fd.get(), 0666));
  Trailer trailer{};
  std::memcpy(trailer.magic, kMagic, sizeof kMagic);
  trailer.bytes = bytes;
  trailer.device = device.index;
  if (file.size() >= sizeof trailer.file) return CUDA_ERROR_OPERATING_SYSTEM;
  std::memcpy(trailer.file, file.c_str(), file.size());
  if (::flock(fd.get(), LOCK_SH | LOCK_NB) != 0 ||
      ::ftruncate(fd.get(), static_cast<off_t>(bytes + kTrailerBytes)) != 0 ||
      ::pwrite(fd.get(), &trailer, sizeof trailer, static_cast<off_t>(bytes)) != sizeof trailer) {
    static_cast<void>(::unlink(path.c_str()));
    return CUDA_ERROR_OPERATING_SYSTEM;
  }
  *backing = Backing{.fd = std::move(fd), .device = device.index, .bytes = bytes, .file = file};
  return CUDA_SUCCESS;
}

CUresult Machine::Open(int fd, Backing* backing) const {
  struct stat status {};
  if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) ||
      status.st_size <= static_cast<off_t>(kTrailerBytes)) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const uint64_t bytes = static_cast<uint64_t>(status.st_size) - kTrailerBytes;
  Trailer trailer{};
  if (::pread(fd, &trailer, sizeof trailer, static_cast<off_t>(bytes)) != sizeof trailer ||
      std::memcmp(trailer.magic, kMagic, sizeof kMagic) != 0 || trailer.bytes != bytes) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  UniqueFd share(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!share.valid()) return CUDA_ERROR_OPERATING_SYSTEM;
  trailer.file[sizeof trailer.file - 1] = '\0';
  *backing = Backing{
      .fd = std::move(share), .device = trailer.device, .bytes = bytes, .file = trailer.file};
  return CUDA_SUCCESS;
}

void Machine::Reap(const std::string& file) const {
  const UniqueFd lock = Lock();
  static_cast<void>(FreeIfDead(directory_ + "/" + file));
}

uint64_t Machine::FreeBytes(const MachineDevice& device) {
  const UniqueFd lock = Lock();
  const uint64_t used = Used(device.index);
  static_cast<void>(::pwrite(lock.get(), &used, sizeof used,
                             static_cast<off_t>(sizeof used * static_cast<size_t>(device.index))));
  return device.bytes - std::min(used, device.bytes);
}

CUresult Machine::Broken(int index) const {
  const std::string path = directory_ + "/device-" + std::to_string(index) + "-error";
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return CUDA_SUCCESS;
  char text[16] = {};
  if (::read(fd.get(), text, sizeof text - 1) <= 0) return CUDA_ERROR_UNKNOWN;
  return static_cast<CUresult>(std::strtol(text, nullptr, 10));
}

}  // namespace fake_cuda
