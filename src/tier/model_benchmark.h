// A model on disk for the benchmarks of this folder: noise in tensors of 32 MiB, in a
// safetensors file that is removed at the end. Header only, never part of the product.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/unique_fd.h"
#include "tier/ingest.h"
#include "tier/manifest.h"
#include "tier/source.h"
#include "tier/tier.h"

namespace trims {

[[noreturn]] inline void Die(const std::string& what) {
  std::fprintf(stderr, "benchmark: %s\n", what.c_str());
  std::exit(1);
}

template <typename T>
T OrDie(Result<T> result) {
  if (!result.ok()) Die(result.status().ToString());
  return std::move(result).value();
}

class BenchmarkModel final {
 public:
  static constexpr uint64_t kTensorBytes = 32 * kMiB;

  explicit BenchmarkModel(uint64_t tensors) {
    const char* const tmp = std::getenv("TMPDIR");
    path_ = std::string(tmp != nullptr ? tmp : "/tmp") + "/trims-benchmark-XXXXXX";
    const UniqueFd fd(::mkostemp(path_.data(), O_CLOEXEC));
    if (!fd.valid()) Die("can not create " + path_);
    std::string header = "{";
    for (uint64_t i = 0; i < tensors; ++i) {
      header += (i == 0 ? "\"t" : ",\"t") + std::to_string(i) + "\":{\"dtype\":\"U8\",\"shape\":[" +
                std::to_string(kTensorBytes) + "],\"data_offsets\":[" +
                std::to_string(i * kTensorBytes) + "," + std::to_string((i + 1) * kTensorBytes) +
                "]}";
    }
    header += "}";
    header.append((8 - header.size() % 8) % 8, ' ');
    const uint64_t header_bytes = header.size();
    Write(fd.get(), &header_bytes, sizeof header_bytes);
    Write(fd.get(), header.data(), header.size());
    std::vector<uint64_t> words(kTensorBytes / sizeof(uint64_t));
    uint64_t state = 1;
    for (uint64_t i = 0; i < tensors; ++i) {
      for (uint64_t& word : words) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word = state;
      }
      Write(fd.get(), words.data(), kTensorBytes);
    }
    if (::fsync(fd.get()) != 0) Die("can not write " + path_);
    source_ = std::make_unique<Source>(OrDie(Source::OpenPath(path_, "benchmark")));
    LoadControl control;
    manifest_ = OrDie(Ingest(*source_, nullptr, control)).manifest;
    layout_ = OrDie(MakeLayout(*manifest_, store::Granularity::kModel));
  }
  ~BenchmarkModel() { std::filesystem::remove(path_); }
  BenchmarkModel(const BenchmarkModel&) = delete;
  BenchmarkModel& operator=(const BenchmarkModel&) = delete;

  const std::string& path() const { return path_; }
  const ModelManifest& manifest() const { return *manifest_; }
  const Layout& layout() const { return layout_; }
  uint64_t bytes() const { return manifest_->weight_bytes; }
  LoadJob Job() const {
    LoadJob job;
    job.manifest = manifest_.get();
    job.source = source_.get();
    for (const ExtentSpec& extent : layout_.extents) job.extents.push_back(&extent);
    return job;
  }

 private:
  static void Write(int fd, const void* from, size_t size) {
    const char* at = static_cast<const char*>(from);
    while (size > 0) {
      const ssize_t done = ::write(fd, at, size);
      if (done <= 0) Die("can not write the model");
      at += done;
      size -= static_cast<size_t>(done);
    }
  }

  std::string path_;
  std::unique_ptr<Source> source_;
  std::shared_ptr<const ModelManifest> manifest_;
  Layout layout_;
};

}  // namespace trims
