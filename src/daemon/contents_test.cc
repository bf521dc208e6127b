#include "daemon/contents.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "daemon/test_file_calls.h"
#include "tier/test_model.h"

namespace trims {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// How many descriptors of this process lead to the file, be it deleted meanwhile.
size_t DescriptorsOf(const std::string& given) {
  const std::string path = fs::path(given).lexically_normal();
  size_t count = 0;
  for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const std::string target = fs::read_symlink(entry.path(), gone).string();
    if (target == path || target == path + " (deleted)") ++count;
  }
  return count;
}

// Contents over a catalogue and real files, with one thread for each kind of work and a loop that
// turns when the test says so.
class ContentsTest : public ::testing::Test {
 protected:
  ContentsTest() : reactor_(Reactor::Create().value()) {
    for (const char* folder : {"state", "base", "models"}) fs::create_directories(root_ / folder);
    Make();
  }
  ~ContentsTest() override { End(); }

  void Make(std::unique_ptr<SidecarStore> sidecars = nullptr) {
    End();
    loaders_ = std::make_unique<Loaders>(1, std::vector<store::TierIndex>());
    Contents::Options options;
    options.catalogue = Catalogue::Open(root_ / "state", root_ / "base").value();
    options.sidecars = std::move(sidecars);
    options.bytes_max = kBytesMax;
    options.on_names_changed = [this](const auto& contents) {
      changed_.push_back(contents->digest());
      shown_[contents->digest()] = contents->is_public();
    };
    options.on_look_progress = [](const LookKey&, uint64_t, uint64_t) {};
    options.on_looked = [this](const LookKey& key, const Contents::Looked& looked) {
      EXPECT_FALSE(is_asking_) << "a callback from inside a call";
      looked_.emplace_back(key, looked);
    };
    contents_ = std::make_unique<Contents>(reactor_.get(), loaders_.get(), std::move(options));
  }
  void End() {
    if (contents_ == nullptr) return;
    contents_->CheckInvariants();
    contents_->CancelLooks();
    loaders_.reset();
    contents_.reset();
    // What loaders have posted meanwhile is nobody's.
    reactor_ = Reactor::Create().value();
    looked_.clear();
    changed_.clear();
  }

  bool RunUntil(const std::function<bool()>& is_done) {
    const Time deadline = Now() + std::chrono::seconds(60);
    while (!is_done()) {
      if (Now() > deadline) {
        ADD_FAILURE() << "what the test waits for has not happened in a minute";
        return false;
      }
      reactor_->RunOnce(std::chrono::milliseconds(1));
    }
    return true;
  }

  static std::vector<format::TestTensor> Tensors(uint64_t seed) {
    return {NoiseTensor("w", 1000, seed)};
  }
  static std::string BytesOf(uint64_t seed) { return format::WriteSafetensors(Tensors(seed)); }
  // A directory with one weights file.
  std::string WriteModel(const std::string& directory, uint64_t seed) {
    const std::string path = root_.Write(directory + "/model.safetensors", BytesOf(seed));
    MakeOld(path);
    return path;
  }
  std::string AddModel(const std::string& name, uint64_t seed) {
    const std::string path = WriteModel("models/" + name, seed);
    EXPECT_TRUE(contents_->catalogue().Add(name, root_ / ("models/" + name), true).ok());
    return path;
  }
  // Another file takes its place in one step.
  void Replace(const std::string& path, uint64_t seed) {
    const std::string beside = root_.Write("beside", BytesOf(seed));
    fs::rename(beside, path);
  }
  // Of what is in the file of this seed.
  Digest DigestOf(uint64_t seed) {
    const std::string path = root_.Write("digests/model.safetensors", BytesOf(seed));
    return IngestTestModel(path, Tensors(seed)).manifest->digest;
  }

  template <typename Ask>
  Contents::Looked Wait(Ask ask) {
    looked_.clear();
    is_asking_ = true;
    const LookKey key = ask();
    is_asking_ = false;
    RunUntil([&] { return !looked_.empty(); });
    if (looked_.empty()) return {};
    EXPECT_EQ(looked_[0].first, key);
    EXPECT_EQ(looked_.size(), 1u);
    return looked_[0].second;
  }
  Contents::Looked Look(const std::string& name) {
    return Wait([&] { return contents_->LookAtName(name); });
  }
  std::shared_ptr<const Source> Passed(const std::string& path) {
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    return std::make_shared<const Source>(Source::FromDescriptor(std::move(fd), "passed").value());
  }
  Contents::Looked LookAtFile(const std::string& path, store::OpenId open = 1) {
    return Wait([&] { return contents_->LookAtFiles(Passed(path), open); });
  }
  // Jobs of this pool wait until the returned gate is dropped.
  class Gate final {
   public:
    explicit Gate(LoaderPool& pool) {
      pool.Run(
          [open = std::make_shared<std::future<void>>(opened_.get_future())] { open->wait(); });
    }
    ~Gate() { opened_.set_value(); }
    Gate(const Gate&) = delete;
    Gate& operator=(const Gate&) = delete;

   private:
    std::promise<void> opened_;
  };
  // Until all jobs that were given to the pool have ended.
  static void Finish(LoaderPool& pool) {
    std::promise<void> reached;
    pool.Run([&reached] { reached.set_value(); });
    reached.get_future().wait();
  }

  static constexpr uint64_t kBytesMax = 1 << 20;
  const TemporaryDirectory root_;
  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<Loaders> loaders_;
  std::unique_ptr<Contents> contents_;
  std::vector<std::pair<LookKey, Contents::Looked>> looked_;
  std::vector<Digest> changed_;   // Models whose names have changed, in order.
  std::map<Digest, bool> shown_;  // And whether a name leads to them.
  bool is_asking_ = false;
  const FileCallsOfATest file_calls_;
};

// --- Names -------------------------------------------------------------------------

TEST_F(ContentsTest, ANameLeadsNowhereUntilItsFilesHaveBeenLookedAt) {
  AddModel("a", 1);
  EXPECT_EQ(contents_->Current("a"), nullptr);
  EXPECT_FALSE(contents_->DigestOfName("a").has_value());
  const Contents::Looked looked = Look("a");
  ASSERT_TRUE(looked.found.ok()) << looked.found.status().ToString();
  EXPECT_EQ(looked.found->contents->digest(), DigestOf(1));
  EXPECT_EQ(contents_->Current("a"), looked.found->contents);
  EXPECT_EQ(contents_->DigestOfName("a"), DigestOf(1));
  EXPECT_EQ(contents_->Find(DigestOf(1)), looked.found->contents);
  EXPECT_TRUE(looked.found->contents->is_public());
  EXPECT_THAT(changed_, ElementsAre(DigestOf(1)));
  const Readable readable = contents_->FilesOf(*looked.found->contents);
  ASSERT_NE(readable.source, nullptr);
  EXPECT_EQ(readable.manifest, looked.found->manifest);
  EXPECT_EQ(contents_->DirectoryOf(*looked.found->contents), root_ / "models/a");
  EXPECT_THAT(contents_->NamesOf(*looked.found->contents),
              ElementsAre(NamedFiles{"a", root_ / "models/a", root_ / "models/a"}));
}

TEST_F(ContentsTest, WhatIsKnownIsAnsweredWithoutAnyCallToAFileSystem) {
  AddModel("a", 1);
  const uint64_t before = FileCalls::Get().of_all();
  ASSERT_TRUE(Look("a").found.ok());
  EXPECT_GT(FileCalls::Get().of_all(), before) << "calls are not counted";
  const uint64_t own = FileCalls::of_this_thread();
  for (int i = 0; i < 10; ++i) {
    EXPECT_NE(contents_->Current("a"), nullptr);
    EXPECT_EQ(contents_->Current("unknown"), nullptr);
    reactor_->RunOnce(Duration::zero());
  }
  EXPECT_EQ(FileCalls::of_this_thread(), own);
}

// A look itself may hang, so none of it is on the loop's thread.
TEST_F(ContentsTest, LooksMakeNoCallToAFileSystemOnTheLoopsThread) {
  const std::string path = AddModel("a", 1);
  Replace(path, 2);
  const uint64_t own = FileCalls::of_this_thread();
  is_asking_ = true;
  contents_->LookAtName("a");
  is_asking_ = false;
  RunUntil([&] { return !looked_.empty(); });
  contents_->ForgetName("a");
  EXPECT_EQ(FileCalls::of_this_thread(), own);
}

TEST_F(ContentsTest, EveryKindOfReplacementIsNoticedBeforeTheNextAnswer) {
  using Change = std::function<void(const std::string& directory, const std::string& path)>;
  const std::map<std::string, Change> changes = {
      {"another file renamed over it",
       [&](const std::string&, const std::string& path) { Replace(path, 2); }},
      {"written in place",
       [&](const std::string&, const std::string& path) {
         const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
         EXPECT_EQ(::pwrite(fd.get(), "x", 1, 200), 1);
       }},
      {"cut", [](const std::string&, const std::string& path) { fs::resize_file(path, 100); }},
      {"removed", [](const std::string&, const std::string& path) { fs::remove(path); }},
      {"its directory removed",
       [](const std::string& directory, const std::string&) { fs::remove_all(directory); }},
      {"another directory in the place of its own",
       [&](const std::string& directory, const std::string&) {
         WriteModel("others", 2);
         fs::rename(directory, directory + ".old");
         fs::rename(root_ / "others", directory);
       }},
      {"a directory further up renamed",
       [&](const std::string&, const std::string&) {
         fs::rename(root_ / "models", root_ / "elsewhere");
       }},
      {"a file that comes first beside it",
       [&](const std::string& directory, const std::string&) {
         fs::rename(root_.Write("beside", "x"), directory + "/model.params");
       }},
  };
  for (const auto& [how, change] : changes) {
    Make();
    const std::string path = AddModel("a", 1);
    ASSERT_TRUE(Look("a").found.ok()) << how;
    ASSERT_NE(contents_->Current("a"), nullptr) << how;
    change(root_ / "models/a", path);
    EXPECT_EQ(contents_->Current("a"), nullptr) << how;
    fs::remove_all(root_ / "models");
    fs::remove_all(root_ / "elsewhere");
  }
}

TEST_F(ContentsTest, ALinkThatIsSwitchedIsNoticedBeforeTheNextAnswer) {
  WriteModel("models/old", 1);
  WriteModel("models/new", 2);
  fs::create_directory_symlink("old", root_ / "models/link");
  ASSERT_TRUE(contents_->catalogue().Add("a", root_ / "models/link", true).ok());
  ASSERT_TRUE(Look("a").found.ok());
  ASSERT_NE(contents_->Current("a"), nullptr);
  fs::create_directory_symlink("new", root_ / "models/link2");
  fs::rename(root_ / "models/link2", root_ / "models/link");
  EXPECT_EQ(contents_->Current("a"), nullptr);
  EXPECT_EQ(Look("a").found->contents->digest(), DigestOf(2));
}

TEST_F(ContentsTest, AChangeOfTheCatalogueIsNoticedBeforeTheNextAnswer) {
  AddModel("a", 1);
  ASSERT_TRUE(Look("a").found.ok());
  ASSERT_NE(contents_->Current("a"), nullptr);
  ASSERT_TRUE(contents_->catalogue().Remove("a").ok());
  EXPECT_EQ(contents_->Current("a"), nullptr);
  EXPECT_EQ(Look("a").found.status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(contents_->DigestOfName("a").has_value());
}

// Of the spellings of a name below base_dir the better one wins whenever it comes.
TEST_F(ContentsTest, ADirectoryThatWinsIsNoticedBeforeTheNextAnswer) {
  WriteModel("base/a_b", 1);
  ASSERT_TRUE(Look("A-b").found.ok());
  ASSERT_NE(contents_->Current("A-b"), nullptr);
  WriteModel("others", 2);
  fs::rename(root_ / "others", root_ / "base/A-b");
  EXPECT_EQ(contents_->Current("A-b"), nullptr);
  EXPECT_EQ(Look("A-b").found->contents->digest(), DigestOf(2));
  // A file in the way is passed over, until it is none any more.
  fs::remove_all(root_ / "base/A-b");
  root_.Write("base/A-b", "no directory");
  EXPECT_EQ(Look("A-b").found->contents->digest(), DigestOf(1));
  EXPECT_NE(contents_->Current("A-b"), nullptr);
  fs::remove(root_ / "base/A-b");
  WriteModel("base/A-b", 2);
  EXPECT_EQ(contents_->Current("A-b"), nullptr);
}

// What the kernel does not tell is found by a look in the background.
TEST_F(ContentsTest, StoresIntoAMappedFileAreNoticedInTheBackground) {
  const std::string path = AddModel("a", 1);
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  void* const mapped = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  ASSERT_TRUE(Look("a").found.ok());
  ASSERT_NE(contents_->Current("a"), nullptr);
  struct stat before {
  }, after{};
  ASSERT_EQ(::fstat(fd.get(), &before), 0);
  static_cast<volatile char*>(mapped)[300] = 'x';
  ASSERT_EQ(::fstat(fd.get(), &after), 0);
  if (before.st_mtim.tv_sec == after.st_mtim.tv_sec &&
      before.st_mtim.tv_nsec == after.st_mtim.tv_nsec) {
    ::munmap(mapped, 4096);
    GTEST_SKIP() << "this file system gives files that are written through a mapping no new time";
  }
  RunUntil([&] { return contents_->Current("a") == nullptr; });
  EXPECT_FALSE(contents_->DigestOfName("a").has_value());
  ::munmap(mapped, 4096);
  EXPECT_NE(Look("a").found->contents->digest(), DigestOf(1));
}

// Nobody asks, and yet it leads nowhere soon: who is not public must not be listed as such.
TEST_F(ContentsTest, ANameWhoseFilesAreGoneIsForgottenWithoutAnOpen) {
  const std::string path = AddModel("a", 1);
  const std::shared_ptr<ModelContents> contents = Look("a").found->contents;
  fs::remove(path);
  RunUntil([&] { return !contents->is_public(); });
  EXPECT_FALSE(contents_->DigestOfName("a").has_value());
  EXPECT_FALSE(shown_.at(DigestOf(1)));
}

TEST_F(ContentsTest, FilesThatCanNotBeWatchedAreLookedAtForEachOpenOnALoaderThread) {
  for (const bool is_all : {true, false}) {
    (is_all ? FileCalls::Get().fail_inotify : FileCalls::Get().fail_watches) = true;
    Make();
    const std::string path = AddModel("a", 1);
    const Contents::Looked first = Look("a");
    ASSERT_TRUE(first.found.ok()) << first.found.status().ToString();
    const uint64_t own = FileCalls::of_this_thread();
    EXPECT_EQ(contents_->Current("a"), nullptr);
    // Known files are not hashed again.
    const Contents::Looked second = Look("a");
    EXPECT_EQ(second.found->manifest, first.found->manifest);
    EXPECT_EQ(FileCalls::of_this_thread(), own);
    Replace(path, 2);
    EXPECT_EQ(Look("a").found->contents->digest(), DigestOf(2));
    (is_all ? FileCalls::Get().fail_inotify : FileCalls::Get().fail_watches) = false;
    // Once there are watches again, one look is enough.
    ASSERT_TRUE(Look("a").found.ok());
    EXPECT_EQ(contents_->Current("a") != nullptr, !is_all);
  }
}

TEST_F(ContentsTest, ADoubtedNameIsLookedAtAgain) {
  AddModel("a", 1);
  const Contents::Looked first = Look("a");
  contents_->Doubt("a");
  contents_->Doubt("unknown");
  EXPECT_EQ(contents_->Current("a"), nullptr);
  EXPECT_TRUE(first.found->contents->is_public()) << "doubt is no removal";
  EXPECT_EQ(Look("a").found->manifest, first.found->manifest);
  EXPECT_NE(contents_->Current("a"), nullptr);
}

TEST_F(ContentsTest, AForgottenNameIsHiddenAtOnceAndItsFilesAreClosed) {
  const std::string path = AddModel("a", 1);
  const std::shared_ptr<ModelContents> contents = Look("a").found->contents;
  ASSERT_EQ(DescriptorsOf(path), 1u);
  contents_->ForgetName("a");
  contents_->ForgetName("a");
  EXPECT_FALSE(contents->is_public());
  EXPECT_FALSE(shown_.at(contents->digest()));
  EXPECT_EQ(contents_->Current("a"), nullptr);
  EXPECT_FALSE(contents_->DigestOfName("a").has_value());
  EXPECT_EQ(contents_->FilesOf(*contents).source, nullptr);
  looked_.clear();
  Finish(loaders_->named);  // Which may still have been at the end of its look.
  Finish(loaders_->files);
  EXPECT_EQ(DescriptorsOf(path), 0u);
}

TEST_F(ContentsTest, FilesThatAreReplacedAreClosed) {
  const std::string path = AddModel("a", 1);
  const std::shared_ptr<ModelContents> old = Look("a").found->contents;
  Replace(path, 2);
  const std::shared_ptr<ModelContents> found = Look("a").found->contents;
  EXPECT_FALSE(old->is_public());
  EXPECT_TRUE(found->is_public());
  EXPECT_THAT(changed_, ElementsAre(old->digest(), old->digest(), found->digest()));
  looked_.clear();
  RunUntil([&] { return DescriptorsOf(path) == 1; });
  EXPECT_NE(contents_->FilesOf(*found).source, nullptr);
}

TEST_F(ContentsTest, AFileThatIsGoneTakesItsNameAlong) {
  const std::string path = AddModel("a", 1);
  ASSERT_TRUE(Look("a").found.ok());
  fs::remove(path);
  const Contents::Looked looked = Look("a");
  EXPECT_EQ(looked.found.status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(contents_->DigestOfName("a").has_value());
}

TEST_F(ContentsTest, ABrokenFileInThePlaceOfAGoodOneTakesItsNameAlong) {
  const std::string path = AddModel("a", 1);
  ASSERT_TRUE(Look("a").found.ok());
  fs::rename(root_.Write("beside", "no weights"), path);
  EXPECT_EQ(Look("a").found.status().code(), StatusCode::kInvalidArgument);
  EXPECT_FALSE(contents_->DigestOfName("a").has_value());
}

TEST_F(ContentsTest, FilesLargerThanAnyBudgetAreNotHashedAndSayWhatTheyNeed) {
  const std::string path = AddModel("a", 1);
  fs::resize_file(path, kBytesMax + 1);
  const Contents::Looked looked = Look("a");
  EXPECT_EQ(looked.found.status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(looked.need_bytes, kBytesMax + 1);
  // Other failures need nothing.
  EXPECT_EQ(Look("unknown").need_bytes, 0u);
}

// --- Looks -------------------------------------------------------------------------

TEST_F(ContentsTest, ManyThatAskForTheSameFilesShareOneLook) {
  AddModel("a", 1);
  AddModel("b", 1);
  auto gate = std::make_unique<Gate>(loaders_->named);
  const LookKey key = contents_->LookAtName("a");
  EXPECT_EQ(contents_->LookAtName("a"), key);
  EXPECT_NE(contents_->LookAtName("b"), key);
  EXPECT_EQ(contents_->looks_running(), 2u);
  gate.reset();
  RunUntil([&] { return looked_.size() == 2; });
  EXPECT_EQ(contents_->looks_running(), 0u);
  Finish(loaders_->named);
  reactor_->RunOnce(Duration::zero());
  EXPECT_EQ(looked_.size(), 2u);
  // One model by two names.
  EXPECT_EQ(looked_[0].second.found->contents, looked_[1].second.found->contents);
}

TEST_F(ContentsTest, ALookSaysUntilWhenItIsTrue) {
  AddModel("a", 1);
  auto gate = std::make_unique<Gate>(loaders_->named);
  contents_->LookAtName("a");
  const Time before = Now();
  gate.reset();
  RunUntil([&] { return !looked_.empty(); });
  EXPECT_GE(looked_[0].second.current_at, before);
  EXPECT_LE(looked_[0].second.current_at, Now());
}

TEST_F(ContentsTest, ALookThatNobodyWaitsForIsStopped) {
  Make(SidecarStore::Open(root_ / "sidecars").value());
  AddModel("a", 1);
  auto gate = std::make_unique<Gate>(loaders_->named);
  const LookKey key = contents_->LookAtName("a");
  contents_->CancelLook(key);
  contents_->CancelLook(key);
  contents_->CancelLook("unknown");
  EXPECT_EQ(contents_->looks_running(), 0u);
  gate.reset();
  Finish(loaders_->named);
  reactor_->RunOnce(Duration::zero());
  EXPECT_THAT(looked_, IsEmpty());
  EXPECT_FALSE(contents_->DigestOfName("a").has_value());
  const auto sidecars = [this] {
    return std::distance(fs::directory_iterator(root_ / "sidecars"), fs::directory_iterator());
  };
  EXPECT_EQ(sidecars(), 0) << "hashed to the end";
  // The next one is not stopped with it, and does leave a sidecar.
  ASSERT_TRUE(Look("a").found.ok());
  EXPECT_EQ(sidecars(), 1);
}

TEST_F(ContentsTest, TheEndOfACancelledLookIsNotTakenForThatOfTheNextOne) {
  const std::string path = AddModel("a", 1);
  ASSERT_TRUE(Look("a").found.ok());
  looked_.clear();
  contents_->Doubt("a");
  // Ends on its thread before the loop turns.
  const LookKey key = contents_->LookAtName("a");
  Finish(loaders_->named);
  contents_->CancelLook(key);
  auto gate = std::make_unique<Gate>(loaders_->named);
  EXPECT_EQ(contents_->LookAtName("a"), key);
  reactor_->RunOnce(Duration::zero());
  EXPECT_THAT(looked_, IsEmpty());
  gate.reset();
  RunUntil([&] { return !looked_.empty(); });
  EXPECT_EQ(looked_.size(), 1u);
}

TEST_F(ContentsTest, FilesThatChangeWhileTheyAreLookedAtAreLookedAtAgain) {
  const std::string path = AddModel("a", 1);
  std::atomic<int> left{1};
  FileCalls::Get().AfterStat([&](const std::string& asked) {
    if (asked == path && left.fetch_sub(1) == 1) Replace(path, 2);
  });
  const Contents::Looked looked = Look("a");
  ASSERT_TRUE(looked.found.ok()) << looked.found.status().ToString();
  EXPECT_EQ(looked.found->contents->digest(), DigestOf(2));
  EXPECT_EQ(contents_->Find(DigestOf(1)), nullptr);
}

// Whoever may write a directory on the way can make more reports than are ever read.
TEST_F(ContentsTest, ReportsWithoutEndFailNoLookAndHideNoName) {
  AddModel("flooded", 1);
  AddModel("other", 2);
  ASSERT_TRUE(Look("flooded").found.ok());
  ASSERT_TRUE(Look("other").found.ok());
  const std::string long_names[] = {root_ / std::string(240, 'a'), root_ / std::string(240, 'b')};
  root_.Write(std::string(240, 'a'), "");
  for (int i = 0; i < 20'000; ++i)
    ASSERT_EQ(::rename(long_names[i % 2].c_str(), long_names[(i + 1) % 2].c_str()), 0);
  EXPECT_EQ(contents_->Current("other"), nullptr);  // Nothing is certain without a look.
  for (const char* name : {"other", "flooded"}) {
    const Contents::Looked looked = Look(name);
    ASSERT_TRUE(looked.found.ok()) << looked.found.status().ToString();
    EXPECT_EQ(contents_->DigestOfName(name), looked.found->contents->digest());
    EXPECT_TRUE(looked.found->contents->is_public());
  }
}

TEST_F(ContentsTest, AModelIsKnownByABoundedNumberOfNames) {
  const std::string path = WriteModel("models/one", 1);
  for (int i = 0; i < 80; ++i) {
    const std::string name = "n" + std::to_string(i);
    ASSERT_TRUE(contents_->catalogue().Add(name, root_ / "models/one", false).ok());
  }
  std::shared_ptr<ModelContents> contents;
  for (int i = 0; i < 80; ++i) {
    const Contents::Looked looked = Look("n" + std::to_string(i));
    ASSERT_TRUE(looked.found.ok()) << looked.found.status().ToString();
    contents = looked.found->contents;
  }
  EXPECT_EQ(contents->names.size(), 64u);
  EXPECT_EQ(contents->names.back(), "n79");
  EXPECT_FALSE(contents_->DigestOfName("n0").has_value());
  EXPECT_TRUE(contents->is_public());
  EXPECT_TRUE(Look("n0").found.ok());
}

TEST_F(ContentsTest, ALookEndsThoughTheCatalogueGoesOnChanging) {
  const std::string path = AddModel("a", 1);
  ASSERT_TRUE(Look("a").found.ok());
  std::atomic<int> changes{0};
  FileCalls::Get().AfterStat([&](const std::string& asked) {
    if (asked != path) return;
    EXPECT_TRUE(
        contents_->catalogue().Add("x" + std::to_string(++changes % 2), "/nowhere", true).ok());
  });
  contents_->Doubt("a");
  const Contents::Looked looked = Look("a");
  EXPECT_EQ(looked.found.status().code(), StatusCode::kAborted);
  EXPECT_THAT(looked.found.status().message(), HasSubstr("goes on changing"));
  EXPECT_GE(changes, 3);  // It was looked at more than once, and not for ever.
  EXPECT_LT(changes, 20);
  EXPECT_FALSE(contents_->DigestOfName("a").has_value());
  FileCalls::Get().AfterStat(nullptr);
  EXPECT_TRUE(Look("a").found.ok());
}

// --- Passed files --------------------------------------------------------------------

TEST_F(ContentsTest, APassedFileIsKnownWhenItComesAgainButIsNotPublic) {
  const std::string path = WriteModel("passed", 1);
  EXPECT_FALSE(contents_->KnownFiles(*Passed(path)).has_value());
  const Contents::Looked looked = LookAtFile(path);
  ASSERT_TRUE(looked.found.ok()) << looked.found.status().ToString();
  EXPECT_FALSE(looked.found->contents->is_public());
  const std::optional<Contents::Found> known = contents_->KnownFiles(*Passed(path));
  ASSERT_TRUE(known.has_value());
  EXPECT_EQ(known->contents, looked.found->contents);
  EXPECT_EQ(known->manifest, looked.found->manifest);
  EXPECT_EQ(contents_->FilesOf(*known->contents).source, nullptr) << "held open";
  // Written to, it is another one.
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
  ASSERT_EQ(::write(fd.get(), "x", 1), 1);
  EXPECT_FALSE(contents_->KnownFiles(*Passed(path)).has_value());
}

TEST_F(ContentsTest, IdentitiesThatMayBeMadeUpAreNeverShared) {
  const std::string path = WriteModel("passed", 1);
  ASSERT_TRUE(LookAtFile(path).found.ok());
  FileCalls::Get().is_fuse = true;
  // Not what an honest file of this identity was found to hold.
  EXPECT_FALSE(contents_->KnownFiles(*Passed(path)).has_value());
  auto gate = std::make_unique<Gate>(loaders_->foreign);
  looked_.clear();
  const LookKey one = contents_->LookAtFiles(Passed(path), 1);
  const LookKey two = contents_->LookAtFiles(Passed(path), 2);
  EXPECT_NE(one, two);
  EXPECT_EQ(contents_->looks_running(), 2u);
  // Nor does it hold up those who pass honest ones.
  FileCalls::Get().is_fuse = false;
  const std::string honest = WriteModel("honest", 2);
  const LookKey key = contents_->LookAtFiles(Passed(honest), 3);
  RunUntil([&] { return !looked_.empty(); });
  EXPECT_EQ(looked_[0].first, key);
  gate.reset();
  RunUntil([&] { return looked_.size() == 3; });
  EXPECT_TRUE(looked_[1].second.found.ok());
  EXPECT_NE(looked_[1].second.found->manifest, looked_[2].second.found->manifest);
  FileCalls::Get().is_fuse = true;
  EXPECT_FALSE(contents_->KnownFiles(*Passed(path)).has_value());
}

TEST_F(ContentsTest, ContentsThatNobodyUsesAreDroppedBeyondALimit) {
  constexpr uint64_t kMany = 1100;
  const std::string first = WriteModel("passed/0", 0);
  const Digest first_digest = LookAtFile(first).found->contents->digest();
  const std::string held_path = WriteModel("passed/held", kMany + 1);
  const std::shared_ptr<ModelContents> held = LookAtFile(held_path).found->contents;
  AddModel("named", kMany + 2);
  const Digest named = Look("named").found->contents->digest();
  looked_.clear();
  ASSERT_NE(contents_->Find(first_digest), nullptr);
  for (uint64_t i = 1; i < kMany; ++i) {
    const std::string path = root_.Write("passed/file", BytesOf(i));
    ASSERT_TRUE(LookAtFile(path).found.ok()) << i;
  }
  looked_.clear();
  EXPECT_EQ(contents_->Find(first_digest), nullptr);
  EXPECT_FALSE(contents_->KnownFiles(*Passed(first)).has_value());
  EXPECT_EQ(contents_->Find(held->digest()), held);
  EXPECT_TRUE(contents_->KnownFiles(*Passed(held_path)).has_value());
  EXPECT_NE(contents_->Find(named), nullptr);
}

// --- Words -------------------------------------------------------------------------

TEST_F(ContentsTest, AModelIsCalledByItsNewestNameElseItsLabelElseItsDigest) {
  AddModel("a", 1);
  AddModel("b", 1);
  const std::string path = WriteModel("passed", 1);
  const std::shared_ptr<ModelContents> contents = LookAtFile(path).found->contents;
  const std::string digest = "@" + contents->digest().ToString();
  EXPECT_EQ(contents->DisplayName(), digest);
  contents->label = "somebody's";
  EXPECT_EQ(contents->DisplayName(), "somebody's");
  ASSERT_TRUE(Look("a").found.ok());
  EXPECT_EQ(contents->DisplayName(), "a");
  ASSERT_TRUE(Look("b").found.ok());
  EXPECT_EQ(contents->DisplayName(), "b");
  EXPECT_EQ(contents_->NameOf(contents->digest()), "b");
  EXPECT_EQ(contents_->DirectoryOf(*contents), root_ / "models/b");
  // Looking at the first again makes it no newer.
  contents_->Doubt("a");
  ASSERT_TRUE(Look("a").found.ok());
  EXPECT_EQ(contents->DisplayName(), "b");
  contents_->ForgetName("b");
  EXPECT_EQ(contents->DisplayName(), "a");
  EXPECT_EQ(contents_->DirectoryOf(*contents), root_ / "models/a");
  contents_->ForgetName("a");
  EXPECT_EQ(contents->DisplayName(), "somebody's");
  EXPECT_EQ(contents_->DirectoryOf(*contents), "");
  EXPECT_EQ(contents_->NameOf(DigestOf(9)), "@" + DigestOf(9).ToString());
}

TEST_F(ContentsTest, LayoutsAreMadeOnceForEachGranularity) {
  AddModel("a", 1);
  const std::shared_ptr<ModelContents> contents = Look("a").found->contents;
  const auto model = contents->LayoutAt(store::Granularity::kModel, 4096).value();
  const auto layer = contents->LayoutAt(store::Granularity::kLayer, 4096).value();
  EXPECT_EQ(model->granularity, store::Granularity::kModel);
  EXPECT_EQ(layer->granularity, store::Granularity::kLayer);
  EXPECT_EQ(contents->LayoutAt(store::Granularity::kModel, 4096).value(), model);
}

// --- After a crash -------------------------------------------------------------------

TEST_F(ContentsTest, AdoptedNamesLeadToTheModelUntilTheirFilesAreFoundToBeOthers) {
  const std::string good = AddModel("good", 1);
  const std::string other = AddModel("other", 1);
  AddModel("moved", 1);
  const auto manifest = Look("good").found->manifest;
  ReplicaEntry entry;
  for (const char* name : {"good", "other", "moved", "removed"}) {
    const std::string directory = root_ / (std::string("models/") + name);
    entry.names.push_back({name, directory, directory});
  }
  entry.label = "somebody's";
  entry.manifest_bytes = 123;
  Make();
  ASSERT_TRUE(contents_->catalogue().Add("moved", "/elsewhere", true).ok());
  Replace(other, 2);

  const std::shared_ptr<ModelContents> contents = contents_->Adopt(entry, manifest, nullptr);
  EXPECT_EQ(contents, contents_->Find(DigestOf(1)));
  EXPECT_EQ(contents->label, "somebody's");
  // What the catalogue says no longer, at once; what the files are, after a look that has begun.
  EXPECT_TRUE(contents->is_public());
  EXPECT_THAT(contents->names, ElementsAre("good", "other"));
  EXPECT_EQ(contents_->looks_running(), 2u);
  EXPECT_EQ(contents_->Current("good"), nullptr) << "trusted without a look";
  EXPECT_EQ(contents_->FilesOf(*contents).source, nullptr);
  RunUntil([&] { return contents_->looks_running() == 0; });
  EXPECT_THAT(contents->names, ElementsAre("good"));
  EXPECT_EQ(contents_->Current("good"), contents);
  EXPECT_NE(contents_->FilesOf(*contents).source, nullptr);
  EXPECT_EQ(contents_->Find(DigestOf(2)), nullptr) << "hashed, though nobody asked";
}

TEST_F(ContentsTest, AdoptingTwiceChangesNothing) {
  AddModel("a", 1);
  const auto manifest = Look("a").found->manifest;
  Make();
  ReplicaEntry entry;
  entry.names = {{"a", root_ / "models/a", root_ / "models/a"}};
  const std::shared_ptr<ModelContents> first = contents_->Adopt(entry, manifest, nullptr);
  entry.label = "later";
  EXPECT_EQ(contents_->Adopt(entry, manifest, nullptr), first);
  EXPECT_THAT(first->names, ElementsAre("a"));
  EXPECT_EQ(first->label, "later");
  EXPECT_EQ(contents_->looks_running(), 1u);
}

// --- Contradictions ------------------------------------------------------------------

using ContentsDeathTest = ContentsTest;

TEST_F(ContentsDeathTest, AContradictionEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  AddModel("a", 1);
  const std::shared_ptr<ModelContents> contents = Look("a").found->contents;
  contents_->CheckInvariants();
  EXPECT_DEATH(
      {
        contents->names.push_back("b");
        contents_->CheckInvariants();
      },
      "names_");
  EXPECT_DEATH(
      {
        contents->names.clear();
        contents_->CheckInvariants();
      },
      "names");
}

}  // namespace
}  // namespace trims
