// Random histories of a PathWatch, judged by what the files really hold.
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/path_watch.h"
#include "base/test_path_watch.h"

namespace trims {
namespace {

// --- Random histories --------------------------------------------------------------------------

// A small tree in which everything may become something else, and names that lead through it.
// Every text written is written once, so equal texts are the same bytes.
class World final {
 public:
  explicit World(const fs::path& root) : root_(root) {
    for (const char* directory : {"v1", "v2", "hub/blobs", "hub/snap"}) {
      fs::create_directories(root_ / directory);
    }
    for (const char* file : kFiles) Write(root_ / file, NewText());
    fs::create_symlink("v1", root_ / "current");
    fs::create_symlink((root_ / "current").string(), root_ / "absolute");
    fs::create_symlink("../blobs/a", root_ / "hub/snap/file");
  }

  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const char* name : {"current/file", "absolute/file", "v1/file", "v2/file", "hub/snap/file",
                             "hub/../v1/../current/file", "hub/snap/../blobs/b"}) {
      names.push_back((root_ / name).string());
    }
    return names;
  }

  // What a look at `name` gives.
  static std::string Look(const std::string& name) {
    return ::access(name.c_str(), R_OK) == 0 ? Read(name) : "absent";
  }

  void Step(std::mt19937& random) {
    const auto pick = [&](int n) { return static_cast<int>(random() % n); };
    std::error_code ignored;  // Much of what is picked is just not there.
    const fs::path file = root_ / kFiles[pick(4)];
    switch (pick(12)) {
      case 0:
        Write(file, NewText());
        break;
      case 1:
        Write(root_ / "beside", NewText());
        fs::rename(root_ / "beside", file, ignored);
        break;
      case 2:
        fs::remove(file, ignored);
        break;
      case 3:
        Relink(pick(2) == 0 ? "v1" : "v2", root_ / "current");
        break;
      case 4:
        Relink((root_ / (pick(2) == 0 ? "v2" : "current")).string(), root_ / "absolute");
        break;
      case 5:
        Relink(pick(2) == 0 ? "../blobs/a" : "../blobs/b", root_ / "hub/snap/file");
        break;
      case 6:
        ::renameat2(AT_FDCWD, (root_ / "v1").c_str(), AT_FDCWD, (root_ / "v2").c_str(),
                    RENAME_EXCHANGE);
        break;
      case 7:
        fs::remove_all(root_ / "v2", ignored);
        fs::create_directory(root_ / "v2", ignored);
        Write(root_ / "v2/file", NewText());
        break;
      case 8:
        fs::rename(root_ / "hub", root_ / "away", ignored);
        break;
      case 9:
        fs::rename(root_ / "away", root_ / "hub", ignored);
        break;
      case 10:
        fs::rename(root_ / "hub/blobs/a", root_ / "hub/blobs/b", ignored);
        break;
      case 11:
        Noise(root_, pick(5));
        break;
    }
  }

 private:
  static constexpr const char* kFiles[] = {"v1/file", "v2/file", "hub/blobs/a", "hub/blobs/b"};

  std::string NewText() { return "text " + std::to_string(++texts_); }
  void Relink(const std::string& target, const fs::path& path) {
    std::error_code ignored;
    fs::remove(root_ / "link", ignored);
    fs::create_symlink(target, root_ / "link", ignored);
    fs::rename(root_ / "link", path, ignored);
  }

  const fs::path root_;
  int texts_ = 0;
};

TEST_F(PathWatchTest, InRandomHistoriesNoLookThatIsTrustedIsWrong) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  World world(folder_.path());
  struct Trusted {
    WatchedPtr watched;
    std::string look;
  };
  const std::vector<std::string> names = world.Names();
  std::vector<Trusted> trusted(names.size());
  int kept = 0;
  int changed = 0;
  for (int step = 0; step < 2000; ++step) {
    world.Step(random);
    watch_->Drain();
    for (size_t i = 0; i < names.size(); ++i) {
      const std::string look = World::Look(names[i]);
      if (trusted[i].watched && !trusted[i].watched->changed()) {
        ++kept;
        ASSERT_EQ(look, trusted[i].look) << names[i] << " in step " << step;
        continue;
      }
      ++changed;
      const PathWatch::Asked asked = look == "absent" ? PathWatch::Asked{.absent = {names[i]}}
                                                      : PathWatch::Asked{.files = {names[i]}};
      trusted[i] = {Add(asked), look};
      ASSERT_NE(trusted[i].watched, nullptr);
      ASSERT_FALSE(trusted[i].watched->changed());
    }
    ASSERT_EQ(kernel_watches(), watch_->watches()) << "in step " << step;
  }
  // Neither is rare, or nothing was tried.
  EXPECT_GT(kept, 1000);
  EXPECT_GT(changed, 1000);
  trusted.clear();
  EXPECT_EQ(kernel_watches(), 0u);
}

TEST_F(PathWatchTest, WithManyThreadsNoLookThatIsTrustedIsWrong) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  World world(folder_.path());
  const std::vector<std::string> names = world.Names();
  std::mutex world_mutex;  // Held for each step, and to stop the world.
  std::mutex drain_mutex;  // One thread drains at a time.
  std::atomic<bool> done = false;
  std::atomic<int> kept = 0;
  std::atomic<int> wrong = 0;

  std::thread changes([&] {
    std::mt19937 random(seed);
    while (!done) {
      const std::lock_guard lock(world_mutex);
      world.Step(random);
    }
  });
  std::thread drains([&] {
    while (!done) {
      const std::lock_guard lock(drain_mutex);
      watch_->Drain();
    }
  });
  std::vector<std::thread> callers;
  for (unsigned caller = 1; caller <= 3; ++caller) {
    callers.emplace_back([&, caller] {
      std::mt19937 random(seed + caller);
      for (int round = 0; round < 1500; ++round) {
        const std::string& name = names[random() % names.size()];
        const bool absent = random() % 4 == 0;
        const auto watched =
            absent ? watch_->Add({.absent = {name}}) : watch_->Add({.files = {name}});
        if (!watched.ok()) continue;  // It vanished meanwhile.
        const std::string look = World::Look(name);
        if (random() % 2 == 0) continue;  // Dropped while all others go on.
        const std::lock_guard stopped(world_mutex);
        const std::lock_guard draining(drain_mutex);
        watch_->Drain();
        if ((*watched)->changed()) continue;
        ++kept;
        if (World::Look(name) != look) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  done = true;
  changes.join();
  drains.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(kept, 20);
  watch_->Drain();
  EXPECT_EQ(kernel_watches(), 0u);
  EXPECT_EQ(watch_->watches(), 0u);
}

}  // namespace
}  // namespace trims
