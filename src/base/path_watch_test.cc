#include "base/path_watch.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <poll.h>
#include <sched.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/test_path_watch.h"
#include "base/unique_fd.h"

namespace {

// What is to happen just after the kernel has watched a path, or just before it forgets a wd, and
// before PathWatch knows: such moments do not come by themselves when a test wants them. Set while
// one thread runs.
std::function<void(const std::string& path)> after_add_watch;
std::function<void()> before_rm_watch;

}  // namespace

// In the place of the C library's.
extern "C" int inotify_add_watch(int fd, const char* path, uint32_t mask) noexcept {
  const auto wd = static_cast<int>(::syscall(SYS_inotify_add_watch, fd, path, mask));
  const int saved = errno;
  if (after_add_watch) after_add_watch(path);
  errno = saved;
  return wd;
}

extern "C" int inotify_rm_watch(int fd, int wd) noexcept {
  if (before_rm_watch) before_rm_watch();
  return static_cast<int>(::syscall(SYS_inotify_rm_watch, fd, wd));
}
namespace trims {
namespace {

// --- Files: what marks ------------------------------------------------------------------------

// On a/b/file, whose bytes are "old", in `root`.
struct Change final {
  const char* name;
  std::function<void(const fs::path& root)> make;
};

class EveryChange : public PathWatchTest, public testing::WithParamInterface<Change> {};

TEST_P(EveryChange, MarksTheFile) {
  fs::create_directories(*this / "a/b");
  Write(*this / "a/b/file", "old");
  const WatchedPtr watched = AddFile(*this / "a/b/file");
  EXPECT_FALSE(watch_->Drain());
  ASSERT_FALSE(watched->changed());
  GetParam().make(folder_.path());
  EXPECT_FALSE(watched->changed()) << "only Drain takes reports in";
  EXPECT_TRUE(watch_->Drain());
  EXPECT_TRUE(watched->changed());
  EXPECT_FALSE(watch_->Drain());
  EXPECT_TRUE(watched->changed()) << "sticky";
}

void Open(const fs::path& path, int flags, const std::function<void(int)>& use) {
  const UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC));
  ASSERT_TRUE(fd.valid());
  use(fd.get());
}

INSTANTIATE_TEST_SUITE_P(
    PathWatch, EveryChange,
    testing::Values(
        Change{"Write",
               [](const fs::path& root) {
                 Open(root / "a/b/file", O_WRONLY,
                      [](int fd) { EXPECT_EQ(::write(fd, "n", 1), 1); });
               }},
        Change{"Append",
               [](const fs::path& root) {
                 Open(root / "a/b/file", O_WRONLY | O_APPEND,
                      [](int fd) { EXPECT_EQ(::write(fd, "n", 1), 1); });
               }},
        Change{"Truncate", [](const fs::path& root) { fs::resize_file(root / "a/b/file", 1); }},
        Change{"Grow", [](const fs::path& root) { fs::resize_file(root / "a/b/file", 9); }},
        Change{"Times",
               [](const fs::path& root) {
                 fs::last_write_time(root / "a/b/file", fs::file_time_type::min());
               }},
        Change{"Mode",
               [](const fs::path& root) {
                 fs::permissions(root / "a/b/file", fs::perms::owner_read);
               }},
        Change{"WriteThroughAnotherName",
               [](const fs::path& root) {
                 fs::create_hard_link(root / "a/b/file", root / "other");
                 Write(root / "other", "new");
               }},
        Change{"ReplaceByRename", [](const fs::path& root) { Replace(root / "a/b/file", "new"); }},
        Change{"Exchange",
               [](const fs::path& root) {
                 Write(root / "other", "new");
                 ASSERT_EQ(::renameat2(AT_FDCWD, (root / "other").c_str(), AT_FDCWD,
                                       (root / "a/b/file").c_str(), RENAME_EXCHANGE),
                           0);
               }},
        Change{"Unlink", [](const fs::path& root) { fs::remove(root / "a/b/file"); }},
        Change{"UnlinkWhileOpenAndCreate",
               [](const fs::path& root) {
                 Open(root / "a/b/file", O_RDONLY, [&](int) {
                   fs::remove(root / "a/b/file");
                   Write(root / "a/b/file", "new");
                 });
               }},
        Change{"RenameAway",
               [](const fs::path& root) { fs::rename(root / "a/b/file", root / "a/b/else"); }},
        Change{"DirectoryReplaced",
               [](const fs::path& root) {
                 fs::create_directory(root / "a/new");
                 Write(root / "a/new/file", "new");
                 fs::rename(root / "a/b", root / "a/old");
                 fs::rename(root / "a/new", root / "a/b");
               }},
        Change{"DirectoryExchanged",
               [](const fs::path& root) {
                 fs::create_directory(root / "a/new");
                 ASSERT_EQ(::renameat2(AT_FDCWD, (root / "a/new").c_str(), AT_FDCWD,
                                       (root / "a/b").c_str(), RENAME_EXCHANGE),
                           0);
               }},
        Change{"DirectoryReplacedByALink",
               [](const fs::path& root) {
                 fs::rename(root / "a/b", root / "a/old");
                 fs::create_symlink("old", root / "a/b");
               }},
        Change{"AncestorRenamed",
               [](const fs::path& root) { fs::rename(root / "a", root / "else"); }},
        Change{"AncestorMode",
               [](const fs::path& root) { fs::permissions(root / "a", fs::perms::owner_all); }},
        Change{"AllRemoved", [](const fs::path& root) { fs::remove_all(root / "a"); }}),
    [](const testing::TestParamInfo<Change>& change) { return change.param.name; });

TEST_F(PathWatchTest, AChangeAfterTheDirectoryCameBackMarksTheNewOne) {
  fs::create_directories(*this / "a");
  Write(*this / "a/file", "old");
  const WatchedPtr first = AddFile(*this / "a/file");
  fs::rename(*this / "a", *this / "old");
  fs::create_directory(*this / "a");
  Write(*this / "a/file", "new");
  EXPECT_TRUE(Changed(first));
  const WatchedPtr second = AddFile(*this / "a/file");
  EXPECT_FALSE(Changed(second));
  Write(*this / "old/file", "nobody's any more");
  EXPECT_FALSE(Changed(second));
  Write(*this / "a/file", "newer");
  EXPECT_TRUE(Changed(second));
}

// --- Files: what does not mark --------------------------------------------------------------

TEST_F(PathWatchTest, NothingAboutNeighboursMarks) {
  fs::create_directories(*this / "a/b");
  Write(*this / "a/b/file", "old");
  const WatchedPtr watched = Add({.files = {*this / "a/b/file"}, .absent = {*this / "a/b/absent"}});
  for (const char* directory : {"", "a", "a/b"}) {
    const fs::path at = *this / directory;
    Write(at / "fil", "a shorter name");
    Write(at / "file2", "a longer name");
    Write(at / "FILE", "another case");
    Replace(at / "file2", "replaced");
    fs::permissions(at / "file2", fs::perms::owner_all);
    fs::create_directory(at / "neighbour");
    Write(at / "neighbour/file", "the same name elsewhere");
    Write(at / "neighbour/absent", "the same name elsewhere");
    fs::rename(at / "neighbour", at / "moved");
    fs::remove_all(at / "moved");
    fs::remove(at / "file2");
    fs::create_symlink("b", at / "link");
  }
  Write(*this / "file", "the name of the file in another directory of its way");
  EXPECT_FALSE(watch_->Drain());
  EXPECT_FALSE(watched->changed());
}

TEST_F(PathWatchTest, ReadingDoesNotMark) {
  Write(*this / "file", "old");
  const WatchedPtr watched =
      Add({.files = {*this / "file"}, .directories = {folder_.path().string()}});
  EXPECT_EQ(Read(*this / "file"), "old");
  EXPECT_TRUE(fs::is_regular_file(*this / "file"));
  EXPECT_EQ(fs::directory_iterator(folder_.path())->path(), *this / "file");
  EXPECT_FALSE(Changed(watched));
}

// --- Links ---------------------------------------------------------------------------------

TEST_F(PathWatchTest, ALinkThatIsSwitchedMarks) {
  for (const bool absolute : {false, true}) {
    const std::string before = absolute ? folder_.path().string() + "/" : "";
    Write(*this / "one", "1");
    Write(*this / "two", "2");
    Link(before + "one", *this / "link");
    const WatchedPtr watched = AddFile(*this / "link");
    EXPECT_FALSE(Changed(watched));
    Link(before + "two", *this / "link");
    EXPECT_TRUE(Changed(watched));
  }
}

TEST_F(PathWatchTest, ALinkTwoLevelsUpThatIsSwitchedMarks) {
  for (const bool absolute : {false, true}) {
    const std::string before = absolute ? folder_.path().string() + "/m/" : "";
    fs::create_directories(*this / "m/v1/weights");
    fs::create_directories(*this / "m/v2/weights");
    Write(*this / "m/v1/weights/file", "1");
    Write(*this / "m/v2/weights/file", "2");
    Link(before + "v1", *this / "m/current");
    const WatchedPtr watched = AddFile(*this / "m/current/weights/file");
    Write(*this / "m/v2/weights/file", "not yet");
    EXPECT_FALSE(Changed(watched));
    Link(before + "v2", *this / "m/current");
    EXPECT_TRUE(Changed(watched));
  }
}

TEST_F(PathWatchTest, BothEndsOfACacheOfBlobsMark) {
  fs::create_directories(*this / "hub/blobs");
  fs::create_directories(*this / "hub/snapshots/x");
  Write(*this / "hub/blobs/y", "1");
  Write(*this / "hub/blobs/z", "2");
  const fs::path name = *this / "hub/snapshots/x/file";
  Link("../../blobs/y", name);
  WatchedPtr watched = AddFile(name);
  Write(*this / "hub/blobs/z", "another blob");
  EXPECT_FALSE(Changed(watched));
  Write(*this / "hub/blobs/y", "3");
  EXPECT_TRUE(Changed(watched));

  watched = AddFile(name);
  Replace(*this / "hub/blobs/y", "4");
  EXPECT_TRUE(Changed(watched));

  watched = AddFile(name);
  Link("../../blobs/z", name);
  EXPECT_TRUE(Changed(watched));

  watched = AddFile(name);
  fs::rename(*this / "hub/blobs", *this / "hub/elsewhere");
  EXPECT_TRUE(Changed(watched));
}

TEST_F(PathWatchTest, EveryLinkOfAChainMarks) {
  fs::create_directories(*this / "d0");
  Write(*this / "d0/file", "1");
  for (int i = 1; i <= 3; ++i) {
    const std::string directory = "d" + std::to_string(i);
    fs::create_directories(*this / directory);
    Link("../d" + std::to_string(i - 1) + "/file", *this / (directory + "/file"));
  }
  Write(*this / "other", "2");
  for (int i = 3; i >= 0; --i) {
    const WatchedPtr watched = AddFile(*this / "d3/file");
    EXPECT_FALSE(Changed(watched));
    Link("../other", *this / ("d" + std::to_string(i) + "/file"));
    EXPECT_TRUE(Changed(watched)) << i;
    if (i > 0)
      Link("../d" + std::to_string(i - 1) + "/file", *this / ("d" + std::to_string(i) + "/file"));
  }
}

TEST_F(PathWatchTest, DotsAndSlashesLeadWhereTheKernelLeads) {
  fs::create_directories(*this / "a/b/c");
  fs::create_directories(*this / "x");
  Write(*this / "a/file", "the right one");
  Write(*this / "x/file", "where the text of the path without the link would lead");
  fs::create_symlink("../a/b", *this / "x/link");
  const std::string root = folder_.path().string();
  for (const std::string& path :
       {root + "//x/./link///..//file", root + "/x/../x/link/c/../../file",
        "/../.." + root + "/./a/file", "//" + root + "/a//b/../file"}) {
    const WatchedPtr watched = AddFile(path);
    ASSERT_NE(watched, nullptr) << path;
    Write(*this / "x/file", "wrong one");
    EXPECT_FALSE(Changed(watched)) << path;
    Write(*this / "a/file", "right one");
    EXPECT_TRUE(Changed(watched)) << path;
  }
}

TEST_F(PathWatchTest, FollowsAsManyLinksAsTheKernelAndNoMore) {
  Write(*this / "link0", "1");
  for (int i = 1; i <= kMaxLinksPerPath + 1; ++i) {
    fs::create_symlink("link" + std::to_string(i - 1), *this / ("link" + std::to_string(i)));
  }
  const fs::path longest = *this / ("link" + std::to_string(kMaxLinksPerPath));
  const fs::path too_long = *this / ("link" + std::to_string(kMaxLinksPerPath + 1));
  EXPECT_EQ(::access(longest.c_str(), R_OK), 0);
  EXPECT_NE(AddFile(longest), nullptr);
  EXPECT_NE(::access(too_long.c_str(), R_OK), 0);
  EXPECT_EQ(watch_->Add({.files = {too_long}}).status().code(), StatusCode::kInvalidArgument);
  fs::create_symlink("round", *this / "round");
  EXPECT_EQ(watch_->Add({.files = {*this / "round"}}).status().code(),
            StatusCode::kInvalidArgument);
}

// --- Directories and absent paths -------------------------------------------------------------

TEST_F(PathWatchTest, WhatComesGoesOrIsRenamedInADirectoryMarksIt) {
  const std::vector<std::function<void()>> changes = {
      [&] { Write(*this / "d/new", ""); },
      [&] { fs::rename(*this / "d/new", *this / "d/newer"); },
      [&] { fs::rename(*this / "d/newer", *this / "outside"); },
      [&] { fs::rename(*this / "outside", *this / "d/inside"); },
      [&] { fs::create_hard_link(*this / "d/inside", *this / "d/link"); },
      [&] { fs::remove(*this / "d/inside"); },
      [&] { fs::create_directory(*this / "d/sub"); },
      [&] { fs::create_symlink("nowhere", *this / "d/dangling"); },
      [&] { fs::rename(*this / "d", *this / "e"); },
  };
  fs::create_directory(*this / "d");
  for (size_t i = 0; i < changes.size(); ++i) {
    const WatchedPtr watched = AddDirectory(*this / "d");
    EXPECT_FALSE(Changed(watched));
    changes[i]();
    EXPECT_TRUE(Changed(watched)) << i;
  }
}

TEST_F(PathWatchTest, BytesInsideADirectoryDoNotMarkIt) {
  fs::create_directories(*this / "d/sub");
  Write(*this / "d/file", "old");
  const WatchedPtr directory = AddDirectory(*this / "d");
  // On the same inode for other reasons.
  const WatchedPtr file = AddFile(*this / "d/file");
  const WatchedPtr absent = AddAbsent(*this / "d/absent");
  Write(*this / "d/file", "new");
  fs::permissions(*this / "d/file", fs::perms::owner_all);
  Write(*this / "d/sub/deeper", "new");
  EXPECT_TRUE(Changed(file));
  EXPECT_FALSE(directory->changed());
  EXPECT_FALSE(absent->changed());
  Write(*this / "d/new", "new");
  EXPECT_TRUE(Changed(directory));
  EXPECT_FALSE(absent->changed());
}

TEST_F(PathWatchTest, AnAbsentPathThatAppearsMarks) {
  const std::vector<std::function<void()>> changes = {
      [&] { Write(*this / "absent", ""); },
      [&] { fs::create_directory(*this / "absent"); },
      [&] { fs::create_symlink("present", *this / "absent"); },
      [&] { fs::rename(*this / "present", *this / "absent"); },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    Write(*this / "present", "");
    const WatchedPtr watched = AddAbsent(*this / "absent");
    EXPECT_FALSE(Changed(watched)) << i;
    changes[i]();
    EXPECT_TRUE(Changed(watched)) << i;
    fs::remove_all(*this / "absent");
  }
}

TEST_F(PathWatchTest, AMissingParentOfAnAbsentPathThatAppearsMarks) {
  WatchedPtr watched = AddAbsent(*this / "a/b/c");
  Write(*this / "b", "not on the way");
  EXPECT_FALSE(Changed(watched));
  fs::create_directory(*this / "a");
  EXPECT_TRUE(Changed(watched));
  watched = AddAbsent(*this / "a/b/c");
  Write(*this / "a/b", "a file where a directory would be");
  EXPECT_TRUE(Changed(watched));
  watched = AddAbsent(*this / "a/b/c");
  EXPECT_FALSE(Changed(watched));
  fs::remove(*this / "a/b");
  EXPECT_TRUE(Changed(watched));
}

TEST_F(PathWatchTest, WhereADanglingLinkLeadsIsWatched) {
  fs::create_symlink("nowhere/file", *this / "link");
  const WatchedPtr watched = AddAbsent(*this / "link");
  EXPECT_FALSE(Changed(watched));
  fs::create_directory(*this / "nowhere");
  EXPECT_TRUE(Changed(watched));
}

TEST_F(PathWatchTest, AnAbsentPathThatExistsIsChangedFromTheStart) {
  Write(*this / "file", "");
  EXPECT_TRUE(AddAbsent(*this / "file")->changed());
  EXPECT_FALSE(AddAbsent(*this / "file2")->changed());
}

// --- Many callers -----------------------------------------------------------------------------

TEST_F(PathWatchTest, TwoCallersOfOneFileAreIndependent) {
  Write(*this / "file", "1");
  Write(*this / "other", "1");
  WatchedPtr first = AddFile(*this / "file");
  const size_t watches = kernel_watches();
  const WatchedPtr second = AddFile(*this / "file");
  const WatchedPtr other = AddFile(*this / "other");
  EXPECT_EQ(kernel_watches(), watches + 1) << "only the other file is new";
  Write(*this / "file", "2");
  EXPECT_TRUE(Changed(first));
  EXPECT_TRUE(second->changed());
  EXPECT_FALSE(other->changed());

  const WatchedPtr third = AddFile(*this / "file");
  EXPECT_FALSE(third->changed()) << "what one has seen is not the other's";
  first.reset();
  EXPECT_EQ(kernel_watches(), watches + 1);
  Replace(*this / "file", "3");
  EXPECT_TRUE(Changed(third)) << "dropping one keeps the other's watches";
  EXPECT_FALSE(other->changed());
}

TEST_F(PathWatchTest, DroppedInterestTakesItsWatchesFromTheKernel) {
  EXPECT_EQ(kernel_watches(), 0u);
  fs::create_directories(*this / "a/b");
  Write(*this / "a/b/file", "");
  WatchedPtr way = AddAbsent(*this / "absent");
  const size_t directories = kernel_watches();
  WatchedPtr file = AddFile(*this / "a/b/file");
  EXPECT_EQ(kernel_watches(), directories + 3);  // a, b, file.
  file.reset();
  EXPECT_EQ(kernel_watches(), directories);
  Write(*this / "a/b/file", "a report about a watch that is gone");
  EXPECT_FALSE(watch_->Drain());
  way.reset();
  EXPECT_EQ(kernel_watches(), 0u);
}

TEST_F(PathWatchTest, ReportsThatWereQueuedWhenInterestWasDroppedMarkNobody) {
  Write(*this / "file", "1");
  WatchedPtr dropped = AddFile(*this / "file");
  Write(*this / "file", "2");
  dropped.reset();
  const WatchedPtr later = AddFile(*this / "file");  // Another wd of the same inode.
  EXPECT_FALSE(watch_->Drain());
  EXPECT_FALSE(later->changed());
  Write(*this / "file", "3");
  EXPECT_TRUE(Changed(later));
}

TEST_F(PathWatchTest, AWatchThatTheKernelDroppedCanBeDroppedAndAddedAgain) {
  Write(*this / "file", "1");
  WatchedPtr drained = AddFile(*this / "file");
  fs::remove(*this / "file");
  EXPECT_TRUE(Changed(drained));
  Write(*this / "file", "2");
  WatchedPtr queued = AddFile(*this / "file");
  fs::remove(*this / "file");
  queued.reset();
  EXPECT_FALSE(watch_->Drain()) << "nobody is left to be marked";
  Write(*this / "file", "3");
  watch_->Drain();
  const WatchedPtr last = AddFile(*this / "file");
  drained.reset();
  EXPECT_FALSE(Changed(last));
  Write(*this / "file", "4");
  EXPECT_TRUE(Changed(last));
}

TEST_F(PathWatchTest, WhatIsStillWatchedWhenThePathWatchEndsIsChanged) {
  Write(*this / "file", "1");
  const WatchedPtr watched = AddFile(*this / "file");
  EXPECT_FALSE(watched->changed());
  watch_.reset();
  EXPECT_TRUE(watched->changed());
}

TEST_F(PathWatchTest, ThousandsOfFilesAreWatchedOneByOne) {
  constexpr int kFiles = 5000;
  PathWatch::Asked all;
  std::vector<WatchedPtr> each;
  for (int i = 0; i < kFiles; ++i) {
    all.files.push_back(*this / std::to_string(i));
    Write(all.files.back(), "old");
  }
  WatchedPtr together = Add(all);
  const size_t watches = kernel_watches();
  for (const std::string& file : all.files) each.push_back(AddFile(file));
  EXPECT_EQ(kernel_watches(), watches);
  for (int i = 0; i < kFiles; i += 1000) Replace(all.files[i], "new");
  EXPECT_TRUE(Changed(together));
  for (int i = 0; i < kFiles; ++i) EXPECT_EQ(each[i]->changed(), i % 1000 == 0) << i;
  together.reset();
  each.clear();
  EXPECT_EQ(kernel_watches(), 0u);
  EXPECT_EQ(watch_->watches(), 0u);
}

// --- Too much at once -------------------------------------------------------------------------

TEST_F(PathWatchTest, TheDescriptorIsReadableWhileThereIsSomethingToDrain) {
  Write(*this / "file", "1");
  const WatchedPtr watched = AddFile(*this / "file");
  pollfd poll = {.fd = watch_->PeekFd(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&poll, 1, 0), 0);
  Write(*this / "file", "2");
  EXPECT_EQ(::poll(&poll, 1, 0), 1);
  EXPECT_TRUE(watch_->Drain());
  EXPECT_EQ(::poll(&poll, 1, 0), 0);
}

TEST_F(PathWatchTest, WhenTheKernelLosesCountEverythingIsChanged) {
  int queue = 0;
  std::ifstream("/proc/sys/fs/inotify/max_queued_events") >> queue;
  if (queue == 0 || queue > 200'000) GTEST_SKIP() << "fs.inotify.max_queued_events is " << queue;
  Limit({.drain_bytes = size_t{1} << 30});
  fs::create_directory(*this / "elsewhere");
  Write(*this / "elsewhere/file", "1");
  const WatchedPtr first = AddFile(*this / "elsewhere/file");
  const WatchedPtr noisy = AddAbsent(*this / "absent");
  for (int i = 0; i <= queue / 2; ++i) Noise(folder_.path(), i);
  Write(*this / "elsewhere/file", "a report that found no room");
  EXPECT_TRUE(Changed(first));
  EXPECT_TRUE(noisy->changed());
  const WatchedPtr second = AddFile(*this / "elsewhere/file");
  EXPECT_FALSE(Changed(second));
  Write(*this / "elsewhere/file", "2");
  EXPECT_TRUE(Changed(second));
}

TEST_F(PathWatchTest, MoreThanOneDrainTakesInChangesEverythingAndTheRestIsTakenLater) {
  Limit({.drain_bytes = 4096});
  fs::create_directory(*this / "elsewhere");
  Write(*this / "elsewhere/file", "1");
  const WatchedPtr first = AddFile(*this / "elsewhere/file");
  for (int i = 0; i < 1000; ++i) Noise(folder_.path(), i);
  Write(*this / "elsewhere/file", "far behind in the queue");
  EXPECT_TRUE(watch_->Drain());
  EXPECT_TRUE(first->changed());

  pollfd poll = {.fd = watch_->PeekFd(), .events = POLLIN, .revents = 0};
  int drains = 1;
  for (; ::poll(&poll, 1, 0) == 1; ++drains) watch_->Drain();
  EXPECT_GT(drains, 4);
  const WatchedPtr second = AddFile(*this / "elsewhere/file");
  EXPECT_FALSE(Changed(second));
}

TEST_F(PathWatchTest, AsMuchAsOneDrainTakesInMarksOnlyWhatItIsAbout) {
  Limit({.drain_bytes = 64 * 1024});
  fs::create_directory(*this / "elsewhere");
  Write(*this / "elsewhere/file", "1");
  Write(*this / "elsewhere/last", "1");
  const WatchedPtr file = AddFile(*this / "elsewhere/file");
  const WatchedPtr last = AddFile(*this / "elsewhere/last");
  for (int i = 0; i < 500; ++i) Noise(folder_.path(), i);  // 32,000 bytes.
  Write(*this / "elsewhere/last", "2");
  EXPECT_TRUE(watch_->Drain());
  EXPECT_FALSE(file->changed());
  EXPECT_TRUE(last->changed());
}

// --- Errors ----------------------------------------------------------------------------------

TEST_F(PathWatchTest, WhatCanNotBeWatchedIsSaidAndLeavesNothing) {
  Write(*this / "file", "");
  const std::string file = *this / "file";
  const struct {
    PathWatch::Asked asked;
    StatusCode code;
    const char* says;
  } cases[] = {
      {{.files = {file, *this / "missing"}}, StatusCode::kNotFound, "missing"},
      {{.files = {file, *this / "missing/file"}}, StatusCode::kNotFound, "missing/file"},
      {{.files = {file, *this / "file/below"}}, StatusCode::kNotFound, "file/below"},
      {{.files = {file, folder_.path()}}, StatusCode::kInvalidArgument, "is a directory"},
      {{.files = {file, "/"}}, StatusCode::kInvalidArgument, "is a directory"},
      {{.files = {file, "relative"}}, StatusCode::kInvalidArgument, "absolute"},
      {{.files = {file, ""}}, StatusCode::kInvalidArgument, "absolute"},
      {{.files = {file, file + std::string("\0x", 2)}}, StatusCode::kInvalidArgument, "absolute"},
      {{.files = {file, "/" + std::string(300, 'x')}}, StatusCode::kInvalidArgument, "too long"},
      {{.files = {file}, .directories = {file}}, StatusCode::kInvalidArgument, "directory"},
      {{.files = {file}, .directories = {*this / "missing"}}, StatusCode::kNotFound, "missing"},
      {{.files = {file}, .absent = {"relative"}}, StatusCode::kInvalidArgument, "absolute"},
  };
  for (const auto& one : cases) {
    const Status status = watch_->Add(one.asked).status();
    EXPECT_EQ(status.code(), one.code) << status.ToString();
    EXPECT_THAT(status.message(), testing::HasSubstr(one.says));
    EXPECT_EQ(kernel_watches(), 0u);
    EXPECT_EQ(watch_->watches(), 0u);
  }
}

TEST_F(PathWatchTest, FileSystemsThatDoNotReportEveryChangeAreRefused) {
  fs::create_symlink("/proc/self", *this / "link");
  for (const std::string& path :
       {std::string("/proc/self/status"), (*this / "link/status").string(),
        std::string("/sys/kernel/mm/transparent_hugepage/enabled")}) {
    if (::access(path.c_str(), F_OK) != 0) continue;
    const Status status = watch_->Add({.files = {path}}).status();
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.ToString();
    EXPECT_THAT(status.message(), testing::HasSubstr("not known to report"));
    EXPECT_EQ(kernel_watches(), 0u);
  }
  EXPECT_EQ(watch_->Add({.directories = {"/proc"}}).status().code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(watch_->Add({.absent = {"/proc/self/absent"}}).status().code(),
            StatusCode::kFailedPrecondition);
}

TEST_F(PathWatchTest, OurLimitsAreErrorsAndLeaveWhatWasThere) {
  fs::create_directory(*this / "d");
  for (int i = 0; i < 10; ++i) Write(*this / ("d/" + std::to_string(i)), "");
  WatchedPtr way = AddFile(*this / "d/0");
  const size_t way_watches = kernel_watches();
  way.reset();

  PathWatch::Asked ten;
  for (int i = 0; i < 10; ++i) ten.files.push_back(*this / ("d/" + std::to_string(i)));
  for (const PathWatchLimits& limits : {PathWatchLimits{.watches = way_watches + 5},
                                        PathWatchLimits{.interests = way_watches + 9}}) {
    Limit(limits);
    const WatchedPtr before = AddFile(*this / "d/0");
    for (int round = 0; round < 3; ++round) {
      const Status status = watch_->Add(ten).status();
      EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
      EXPECT_THAT(status.message(), testing::HasSubstr("kMaxPathWatch"));
      EXPECT_EQ(kernel_watches(), way_watches);
      EXPECT_EQ(watch_->watches(), way_watches);
    }
    EXPECT_FALSE(Changed(before));
    EXPECT_NE(AddFile(*this / "d/1"), nullptr);
    Write(*this / "d/0", "new");
    EXPECT_TRUE(Changed(before));
  }
}

// --- With a kernel of its own settings --------------------------------------------------------

constexpr int kSkipped = 77;

// Runs `body` in a process of its own that is root in its own user and mount namespaces. It
// returns an empty string, or what is wrong. Skips where the system gives no namespaces.
void InNamespaces(const std::function<std::string()>& body) {
  const uid_t uid = ::geteuid();
  const gid_t gid = ::getegid();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) ::_exit(kSkipped);
    Write("/proc/self/setgroups", "deny");
    Write("/proc/self/uid_map", "0 " + std::to_string(uid) + " 1");
    Write("/proc/self/gid_map", "0 " + std::to_string(gid) + " 1");
    if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) ::_exit(kSkipped);
    const std::string wrong = body();
    if (wrong == "skip") ::_exit(kSkipped);
    if (!wrong.empty()) std::fprintf(stderr, "in namespaces: %s\n", wrong.c_str());
    ::_exit(wrong.empty() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kSkipped) GTEST_SKIP() << "this system gives tests no such namespaces";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

// Whether the limit could be set, for the namespace that we are in.
bool SetLimit(const char* name, int value) {
  const std::string path = std::string("/proc/sys/user/") + name;
  Write(path, std::to_string(value));
  return Read(path) == std::to_string(value) + "\n";
}

std::string Want(const Status& status, StatusCode code, const std::string& says) {
  if (status.code() == code && status.message().find(says) != std::string::npos) return "";
  return "got " + status.ToString();
}

TEST_F(PathWatchTest, WhenTheKernelHasNoWatchLeftItSaysWhatToRaise) {
  fs::create_directory(*this / "d");
  Write(*this / "d/file", "");
  InNamespaces([&]() -> std::string {
    Result<std::unique_ptr<PathWatch>> watch = PathWatch::Create();
    if (!watch.ok()) return watch.status().ToString();
    if (!SetLimit("max_inotify_watches", 2)) return "skip";
    const std::string wrong = Want((*watch)->Add({.files = {*this / "d/file"}}).status(),
                                   StatusCode::kResourceExhausted, "fs.inotify.max_user_watches");
    if (!wrong.empty()) return wrong;
    if (KernelWatches((*watch)->PeekFd()) != 0) return "watches stayed behind";
    if (!SetLimit("max_inotify_watches", 100)) return "skip";
    return (*watch)->Add({.files = {*this / "d/file"}}).ok() ? "" : "no watch after the limit rose";
  });
}

TEST_F(PathWatchTest, WhenTheKernelHasNoInstanceLeftItSaysWhatToRaise) {
  InNamespaces([&]() -> std::string {
    if (!SetLimit("max_inotify_instances", 1)) return "skip";
    const Result<std::unique_ptr<PathWatch>> first = PathWatch::Create();
    if (!first.ok()) return first.status().ToString();
    return Want(PathWatch::Create().status(), StatusCode::kResourceExhausted,
                "fs.inotify.max_user_instances");
  });
}

TEST_F(PathWatchTest, AFileSystemThatIsUnmountedMarks) {
  fs::create_directory(*this / "mount");
  InNamespaces([&]() -> std::string {
    const std::string at = *this / "mount";
    if (::mount("none", at.c_str(), "tmpfs", 0, nullptr) != 0) return "skip";
    Write(at + "/file", "1");
    auto watch = PathWatch::Create();
    if (!watch.ok()) return watch.status().ToString();
    const auto watched = (*watch)->Add({.files = {at + "/file"}});
    if (!watched.ok()) return watched.status().ToString();
    if ((*watch)->Drain() || (*watched)->changed()) return "changed too early";
    const size_t watches = (*watch)->watches();
    if (::umount(at.c_str()) != 0) return "umount failed";
    if (!(*watch)->Drain() || !(*watched)->changed()) return "not changed";
    return (*watch)->watches() == watches - 2 ? "" : "watches stayed behind";
  });
}

TEST_F(PathWatchTest, DirectoriesThatDoNotTellUpperCaseFromLowerAreRefused) {
  fs::create_directory(*this / "mount");
  InNamespaces([&]() -> std::string {
    const std::string at = *this / "mount";
    if (::mount("none", at.c_str(), "tmpfs", 0, "casefold") != 0) return "skip";
    fs::create_directories(at + "/folded");
    {
      const UniqueFd fd(::open((at + "/folded").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      int flags = 0;
      if (::ioctl(fd.get(), FS_IOC_GETFLAGS, &flags) != 0) return "skip";
      flags |= FS_CASEFOLD_FL;
      if (::ioctl(fd.get(), FS_IOC_SETFLAGS, &flags) != 0) return "skip";
    }
    Write(at + "/folded/file", "1");
    if (Read(at + "/folded/FILE") != "1") return "the directory is not folded";
    auto watch = PathWatch::Create();
    if (!watch.ok()) return watch.status().ToString();
    return Want((*watch)->Add({.files = {at + "/folded/FILE"}}).status(),
                StatusCode::kFailedPrecondition, "upper case");
  });
}

// --- Between the kernel's table and ours ------------------------------------------------------

// Does `act` once, when the kernel has just watched `path` and PathWatch does not know yet.
void OnceWatched(const fs::path& path, std::function<void()> act) {
  after_add_watch = [path = path.string(), act = std::move(act)](const std::string& watched) {
    if (watched != path) return;
    const std::function<void()> once = act;
    after_add_watch = nullptr;
    once();
  };
}

TEST_F(PathWatchTest, ALinkThatIsSwitchedBeforeItsDirectoryIsEnteredIsFollowedAsItIsNow) {
  for (const char* version : {"v1", "v2"}) {
    fs::create_directory(*this / version);
    Write(*this / (std::string(version) + "/file"), "old");
  }
  fs::create_symlink("v1", *this / "current");
  OnceWatched(folder_.path(), [&] {
    Link("v2", *this / "current");
    watch_->Drain();  // Takes the report away: nobody has entered the name yet.
  });
  const WatchedPtr watched = AddFile(*this / "current/file");
  ASSERT_EQ(after_add_watch, nullptr) << "the moment did not come";
  EXPECT_FALSE(Changed(watched));
  Write(*this / "v2/file", "new");
  EXPECT_TRUE(Changed(watched));
}

TEST_F(PathWatchTest, AWatchThatIsDroppedBeforeAnotherCallerEntersItIsMadeAgain) {
  Write(*this / "file", "old");
  const WatchedPtr way = AddAbsent(*this / "absent");
  for (const bool drained : {false, true}) {
    WatchedPtr last = AddFile(*this / "file");
    OnceWatched(*this / "file", [&] {
      last.reset();
      if (drained) watch_->Drain();
    });
    const WatchedPtr watched = AddFile(*this / "file");
    ASSERT_EQ(last, nullptr) << "the moment did not come";
    EXPECT_FALSE(Changed(watched));
    Write(*this / "file", "new");
    EXPECT_TRUE(Changed(watched));
  }
}

TEST_F(PathWatchTest, AWatchThatIsBeingDroppedIsNotEnteredByAnotherCaller) {
  Write(*this / "file", "old");
  const WatchedPtr way = AddAbsent(*this / "absent");
  WatchedPtr last = AddFile(*this / "file");
  WatchedPtr watched;
  std::atomic<bool> added = false;
  std::thread other;
  before_rm_watch = [&] {
    if (other.joinable()) return;
    other = std::thread([&] {
      watched = AddFile(*this / "file");
      added = true;
    });
    // It has to wait for us, so this only gives it every chance not to.
    for (int i = 0; i < 10'000 && !added; ++i) std::this_thread::yield();
    EXPECT_FALSE(added);
  };
  last.reset();
  ASSERT_TRUE(other.joinable());
  other.join();
  before_rm_watch = nullptr;
  Write(*this / "file", "new");
  EXPECT_TRUE(Changed(watched));
}

TEST_F(PathWatchTest, AFileSystemThatIsUnmountedBeforeItIsEnteredIsNotTakenForWatched) {
  fs::create_directories(*this / "mount");
  InNamespaces([&]() -> std::string {
    const std::string at = *this / "mount";
    if (::mount("none", at.c_str(), "tmpfs", 0, nullptr) != 0) return "skip";
    auto watch = PathWatch::Create();
    if (!watch.ok()) return watch.status().ToString();
    int unmounted = -1;
    OnceWatched(at, [&] {
      unmounted = ::umount(at.c_str());
      (*watch)->Drain();  // Takes the report away that the kernel watches no longer.
    });
    const auto watched = (*watch)->Add({.absent = {at + "/absent"}});
    if (unmounted != 0) return "the moment did not come";
    if (!watched.ok()) return watched.status().ToString();
    if ((*watched)->changed()) return "changed, though nothing was there";
    Write(at + "/absent", "on what was below the mount");
    (*watch)->Drain();
    return (*watched)->changed() ? "" : "not changed";
  });
}

TEST_F(PathWatchTest, AFileThatVanishesWhileItIsAddedIsAnErrorOrChanged) {
  Write(*this / "file", "");
  std::atomic<bool> done = false;
  std::thread flicker([&] {
    while (!done) {
      fs::remove(*this / "file");
      Write(*this / "file", "");
    }
    fs::remove(*this / "file");
  });
  std::vector<Result<WatchedPtr>> added;
  for (int round = 0; round < 2000; ++round) {
    added.push_back(watch_->Add({.files = {*this / "file"}}));
    if (round % 7 == 0) watch_->Drain();
  }
  done = true;
  flicker.join();
  watch_->Drain();
  for (const Result<WatchedPtr>& one : added) {
    if (one.ok()) {
      EXPECT_TRUE((*one)->changed());
    } else {
      EXPECT_EQ(one.status().code(), StatusCode::kNotFound) << one.status().ToString();
    }
  }
  added.clear();
  watch_->Drain();
  EXPECT_EQ(kernel_watches(), 0u);
}

}  // namespace
}  // namespace trims
