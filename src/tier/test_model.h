// Models on disk for the tests of this folder and of those above it: a temporary
// directory, files with known tensors, and the bytes to expect. Header only, never
// part of the product.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "format/test_files.h"
#include "ipc/region.h"
#include "tier/ingest.h"
#include "tier/manifest.h"
#include "tier/source.h"
#include "tier/tier.h"

namespace trims {

inline size_t OpenFdCount() {
  return static_cast<size_t>(
      std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

// Removed with everything in it.
class TemporaryDirectory final {
 public:
  TemporaryDirectory() {
    std::string pattern = ::testing::TempDir() + "/trims-XXXXXX";
    const char* const made = ::mkdtemp(pattern.data());
    EXPECT_NE(made, nullptr);
    path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  // Returns the path.
  std::string Write(const std::string& name, const std::string& bytes) const {
    const std::string path = *this / name;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    EXPECT_TRUE(out.good()) << path;
    return path;
  }

 private:
  std::string path_;
};

inline std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
}

// As if last written an hour ago: such a file's manifest may be recorded.
inline void MakeOld(const std::string& path) {
  timespec times[2] = {};
  ::clock_gettime(CLOCK_REALTIME, &times[0]);
  times[0].tv_sec -= 3600;
  times[1] = times[0];
  EXPECT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0) << path;
}

// `size` bytes that depend on `seed`.
inline std::string NoiseBytes(size_t size, uint64_t seed) {
  std::string bytes(size, '\0');
  uint64_t state = seed * 0x9e3779b97f4a7c15 + 1;
  for (char& byte : bytes) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    byte = static_cast<char>(state);
  }
  return bytes;
}

inline format::TestTensor NoiseTensor(std::string name, size_t size, uint64_t seed) {
  return {std::move(name), DType::kU8, {static_cast<int64_t>(size)}, NoiseBytes(size, seed)};
}

// A model.safetensors.index.json for these shards.
inline std::string WriteShardIndex(
    const std::map<std::string, std::vector<format::TestTensor>>& shards) {
  std::string json = "{\"metadata\":{\"total_size\":1},\"weight_map\":{";
  bool is_first = true;
  for (const auto& [file, tensors] : shards) {
    for (const format::TestTensor& tensor : tensors) {
      if (!is_first) json += ',';
      is_first = false;
      json += format::JsonQuoted(tensor.name) + ":" + format::JsonQuoted(file);
    }
  }
  return json + "}}";
}

// A source and what Ingest made of it.
struct IngestedModel {
  std::unique_ptr<Source> source;
  std::shared_ptr<const ModelManifest> manifest;
  std::map<std::string, std::string> bytes;  // By tensor name: what is to be served.

  LoadJob Job(const Layout& layout) const {
    LoadJob job;
    job.manifest = manifest.get();
    job.source = source.get();
    for (const ExtentSpec& extent : layout.extents) job.extents.push_back(&extent);
    return job;
  }
};

inline IngestedModel IngestTestModel(const std::string& path,
                                     const std::vector<format::TestTensor>& tensors) {
  IngestedModel model;
  Result<Source> source = Source::OpenPath(path, "test");
  EXPECT_TRUE(source.ok()) << source.status().ToString();
  model.source = std::make_unique<Source>(std::move(source).value());
  LoadControl control;
  const Result<IngestResult> ingested = Ingest(*model.source, nullptr, control);
  EXPECT_TRUE(ingested.ok()) << ingested.status().ToString();
  model.manifest = ingested->manifest;
  for (const format::TestTensor& tensor : tensors) model.bytes[tensor.name] = tensor.bytes;
  return model;
}

}  // namespace trims
