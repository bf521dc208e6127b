#include "bench/weights_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace trims::bench {
namespace {

constexpr uint64_t kBlockBytes = 8 * kMiB;
constexpr unsigned kWritersMax = 8;

Status WriteAt(int fd, const void* from, size_t size, uint64_t offset, const std::string& path) {
  const auto* at = static_cast<const char*>(from);
  while (size > 0) {
    const ssize_t done = ::pwrite(fd, at, size, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return ErrnoStatus(errno, "writing " + path);
    at += done;
    offset += static_cast<uint64_t>(done);
    size -= static_cast<size_t>(done);
  }
  return OkStatus();
}

uint64_t TensorBytes(const WeightsFileSpec& spec) {
  return spec.bytes / spec.tensors / kTensorAlignment * kTensorAlignment;
}

// The header of a safetensors file, its length in front. Tensors but the last are equal and
// aligned as they will lie in memory, so that weights in memory are as large as the file.
std::string Header(const WeightsFileSpec& spec) {
  const uint64_t each = TensorBytes(spec);
  std::string json = "{\"__metadata__\":{\"made_by\":\"trims bench\"}";
  for (uint32_t i = 0; i < spec.tensors; ++i) {
    const uint64_t begin = i * each;
    const uint64_t end = i + 1 == spec.tensors ? spec.bytes : begin + each;
    std::string name = std::to_string(i);
    name.insert(0, 6 - std::min<size_t>(6, name.size()), '0');
    json += ",\"t" + name + "\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(end - begin) +
            "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
  }
  json += "}";
  // Weights begin on a page, so that they can be read past the page cache as they lie.
  const size_t length = json.size() + sizeof(uint64_t);
  json.append((kHostPageBytes - length % kHostPageBytes) % kHostPageBytes, ' ');
  const uint64_t size = json.size();
  std::string header(sizeof size, '\0');
  std::memcpy(header.data(), &size, sizeof size);
  return header + json;
}

// A few words in each tensor: different in every file, so that no two are one model.
Status WriteWords(int fd, const WeightsFileSpec& spec, uint64_t data_offset, uint64_t seed,
                  const std::string& path) {
  std::mt19937_64 random(seed);
  const uint64_t each = TensorBytes(spec);
  for (uint32_t i = 0; i < spec.tensors; ++i) {
    for (const uint64_t at : {uint64_t{0}, each / 2}) {
      const uint64_t word = random();
      RETURN_IF_ERROR(WriteAt(fd, &word, sizeof word, data_offset + i * each + at, path));
    }
  }
  return OkStatus();
}

void FillWithNoise(std::vector<uint64_t>& words, uint64_t seed) {
  uint64_t state = seed | 1;
  for (uint64_t& word : words) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    word = state;
  }
}

// Several threads write blocks; the calling one looks after them.
class NoiseWriter final {
 public:
  NoiseWriter(int fd, uint64_t bytes, uint64_t data_offset, uint64_t seed, std::string path)
      : fd_(fd), bytes_(bytes), data_offset_(data_offset), seed_(seed), path_(std::move(path)) {}

  Status Run(const Interrupts& interrupts, const WeightsFile::OnProgress& on_progress) {
    const unsigned count = std::clamp(std::thread::hardware_concurrency(), 1U, kWritersMax);
    {
      const MutexLock lock(mu_);
      running_ = count;
    }
    std::vector<std::thread> writers;
    for (unsigned i = 0; i < count; ++i) {
      writers.emplace_back([this] { WriteBlocks(); });
    }
    while (true) {
      on_progress(std::min(bytes_, next_.load()));
      const MutexLock lock(mu_);
      const Time again_at = Now() + std::chrono::milliseconds(100);
      while (running_ > 0 && ended_.WaitUntil(mu_, again_at)) {
      }
      if (running_ == 0) break;
      if (status_.ok()) status_ = interrupts.Check();
      if (!status_.ok()) next_ = bytes_;  // Nothing is left to write.
    }
    for (std::thread& writer : writers) writer.join();
    const MutexLock lock(mu_);
    return status_;
  }

 private:
  void WriteBlocks() {
    std::vector<uint64_t> words(kBlockBytes / sizeof(uint64_t));
    Status status;
    while (status.ok()) {
      const uint64_t at = next_.fetch_add(kBlockBytes);
      if (at >= bytes_) break;
      FillWithNoise(words, seed_ + (at / kBlockBytes + 1) * 0x9E3779B97F4A7C15);
      status =
          WriteAt(fd_, words.data(), std::min(kBlockBytes, bytes_ - at), data_offset_ + at, path_);
    }
    const MutexLock lock(mu_);
    if (status_.ok()) status_ = status;
    --running_;
    ended_.NotifyAll();
  }

  const int fd_;
  const uint64_t bytes_;
  const uint64_t data_offset_;
  const uint64_t seed_;
  const std::string path_;
  std::atomic<uint64_t> next_{0};
  Mutex mu_;
  CondVar ended_;
  unsigned running_ TRIMS_GUARDED_BY(mu_) = 0;
  Status status_ TRIMS_GUARDED_BY(mu_);
};

Status CheckRoom(const WeightsFileSpec& spec) {
  struct statvfs room {};
  if (::statvfs(spec.directory.c_str(), &room) != 0) {
    return ErrnoStatus(errno, "--dir " + spec.directory);
  }
  const uint64_t free = static_cast<uint64_t>(room.f_bavail) * room.f_frsize;
  if (!spec.sparse && free < spec.bytes + spec.bytes / 64) {
    return ResourceExhaustedError("a file of " + FormatSize(spec.bytes) + " does not fit into " +
                                  spec.directory + ", which has " + FormatSize(free) +
                                  " left: give --dir, or smaller --size");
  }
  return OkStatus();
}

}  // namespace

WeightsFile::~WeightsFile() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

Result<WeightsFile> WeightsFile::Write(const WeightsFileSpec& spec, const Interrupts& interrupts,
                                       const OnProgress& on_progress) {
  RETURN_IF_ERROR(CheckRoom(spec));
  std::string path = std::filesystem::absolute(spec.directory).lexically_normal().string();
  if (!path.ends_with('/')) path += '/';
  path += "trims-bench-XXXXXX.safetensors";
  const UniqueFd fd(::mkostemps(path.data(), 12, O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, "making a file in " + spec.directory);
  const std::string header = Header(spec);
  WeightsFile file(path, header.size() + spec.bytes);
  // The daemon may be another user.
  if (::fchmod(fd.get(), 0644) != 0) return ErrnoStatus(errno, "chmod of " + path);
  if (::ftruncate(fd.get(), static_cast<off_t>(file.bytes_)) != 0) {
    return ErrnoStatus(errno, "making " + path + " " + FormatSize(file.bytes_) + " long");
  }
  RETURN_IF_ERROR(WriteAt(fd.get(), header.data(), header.size(), 0, path));
  std::random_device device;
  const uint64_t seed = (uint64_t{device()} << 32) | device();
  if (spec.sparse) {
    RETURN_IF_ERROR(WriteWords(fd.get(), spec, header.size(), seed, path));
    return file;
  }
  NoiseWriter writer(fd.get(), spec.bytes, header.size(), seed, path);
  RETURN_IF_ERROR(writer.Run(interrupts, on_progress));
  if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, "writing " + path);
  return file;
}

}  // namespace trims::bench
