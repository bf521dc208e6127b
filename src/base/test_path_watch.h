// Folders that change, and a PathWatch that looks at them: for the tests of path_watch.h. Header
// only, never part of the product.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <utility>

#include "base/path_watch.h"
#include "base/unique_fd.h"

namespace trims {
namespace fs = std::filesystem;
using WatchedPtr = std::shared_ptr<const PathWatch::Watched>;

inline void Write(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::trunc) << text;
}

inline std::string Read(const fs::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Puts a link at `path`, in one step also where one was.
inline void Link(const std::string& target, const fs::path& path) {
  const fs::path beside = path.string() + ".new";
  fs::create_symlink(target, beside);
  fs::rename(beside, path);
}

inline void Replace(const fs::path& path, const std::string& text) {
  const fs::path beside = path.string() + ".new";
  Write(beside, text);
  fs::rename(beside, path);
}

// Two reports that are not merged with others, under a name of their own.
inline void Noise(const fs::path& directory, int i) {
  const fs::path path = directory / ("noise" + std::to_string(i));
  const UniqueFd fd(::open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  ASSERT_TRUE(fd.valid());
  ASSERT_EQ(::unlink(path.c_str()), 0);
}

// As the kernel counts them.
inline size_t KernelWatches(int inotify_fd) {
  std::ifstream about("/proc/self/fdinfo/" + std::to_string(inotify_fd));
  size_t watches = 0;
  for (std::string line; std::getline(about, line);) {
    watches += line.rfind("inotify wd:", 0) == 0 ? 1 : 0;
  }
  return watches;
}

class Folder final {
 public:
  Folder() {
    std::string name = fs::canonical(testing::TempDir()).string() + "/path_watch_XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

class PathWatchTest : public testing::Test {
 protected:
  PathWatchTest() { Limit({}); }
  ~PathWatchTest() override {
    if (!watch_) return;
    watch_->Drain();
    EXPECT_EQ(KernelWatches(watch_->PeekFd()), watch_->watches()) << "the tables disagree";
  }

  void Limit(const PathWatchLimits& limits) {
    Result<std::unique_ptr<PathWatch>> watch = PathWatch::Create(limits);
    ASSERT_TRUE(watch.ok()) << watch.status().ToString();
    watch_ = std::move(watch).value();
  }

  WatchedPtr Add(const PathWatch::Asked& asked) {
    Result<WatchedPtr> watched = watch_->Add(asked);
    EXPECT_TRUE(watched.ok()) << watched.status().ToString();
    return watched.ok() ? std::move(watched).value() : nullptr;
  }
  WatchedPtr AddFile(const fs::path& path) { return Add({.files = {path.string()}}); }
  WatchedPtr AddDirectory(const fs::path& path) { return Add({.directories = {path.string()}}); }
  WatchedPtr AddAbsent(const fs::path& path) { return Add({.absent = {path.string()}}); }

  bool Changed(const WatchedPtr& watched) {
    watch_->Drain();
    return watched->changed();
  }

  size_t kernel_watches() const { return KernelWatches(watch_->PeekFd()); }
  fs::path operator/(const std::string& name) const { return folder_.path() / name; }

  Folder folder_;
  std::unique_ptr<PathWatch> watch_;
};

}  // namespace trims
