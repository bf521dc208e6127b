#include "tier/ingest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tier/test_model.h"

namespace trims {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Tensors = std::vector<format::TestTensor>;

Tensors FourTensors() {
  return {format::FloatTensor("arg:conv_weight", {4, 3}, 1),
          format::FloatTensor("arg:fc", {7}, 2),
          format::FloatTensor("aux:mean", {2, 2, 2}, 3),
          {"arg:bytes", DType::kU8, {5}, "hello"}};
}

class IngestTest : public ::testing::Test {
 protected:
  void SetUp() override { fds_before_ = OpenFdCount(); }
  void TearDown() override { EXPECT_EQ(OpenFdCount(), fds_before_) << "a descriptor leaked"; }

  static Result<IngestResult> IngestPath(const std::string& path, SidecarStore* store = nullptr) {
    ASSIGN_OR_RETURN(const Source source, Source::OpenPath(path, "m"));
    LoadControl control;
    return Ingest(source, store, control);
  }
  static Digest DigestOf(const std::string& path) {
    const Result<IngestResult> result = IngestPath(path);
    EXPECT_TRUE(result.ok()) << path << ": " << result.status().ToString();
    return result.ok() ? result->manifest->digest : Digest();
  }
  Status ShardError(const std::map<std::string, Tensors>& index,
                    const std::map<std::string, Tensors>& shards) const {
    directory_.Write("s/model.safetensors.index.json", WriteShardIndex(index));
    for (const auto& [name, tensors] : shards) {
      directory_.Write("s/" + name, format::WriteSafetensors(tensors));
    }
    return IngestPath(directory_ / "s").status();
  }

  const TemporaryDirectory directory_;
  size_t fds_before_ = 0;
};

// --- Identity -----------------------------------------------------------------

TEST_F(IngestTest, IdentityDoesNotDependOnFormatOrderNameOrSharding) {
  Tensors tensors = FourTensors();
  const Digest digest = DigestOf(directory_.Write("a", format::WriteSafetensors(tensors)));
  std::reverse(tensors.begin(), tensors.end());
  EXPECT_EQ(DigestOf(directory_.Write("b.safetensors", format::WriteSafetensors(tensors))), digest);
  for (const format::ParamsVersion version : format::kAllParamsVersions) {
    format::ParamsOptions options;
    options.version = version;
    EXPECT_EQ(DigestOf(directory_.Write("c.params", format::WriteMxnetParams(tensors, options))),
              digest)
        << static_cast<int>(version);
  }
  const std::map<std::string, Tensors> shards = {
      {"model-00001-of-00002.safetensors", {tensors[0], tensors[3]}},
      {"model-00002-of-00002.safetensors", {tensors[1], tensors[2]}}};
  for (const auto& [name, part] : shards) {
    directory_.Write("sharded/" + name, format::WriteSafetensors(part, {{"format", "pt"}}));
  }
  directory_.Write("sharded/model.safetensors.index.json", WriteShardIndex(shards));
  const Result<IngestResult> sharded = IngestPath(directory_ / "sharded");
  ASSERT_TRUE(sharded.ok()) << sharded.status().ToString();
  EXPECT_EQ(sharded->manifest->digest, digest);
  EXPECT_EQ(sharded->manifest->metadata.at("format"), "pt");
}

TEST_F(IngestTest, EveryByteOfATensorCounts) {
  const Digest digest = DigestOf(directory_.Write("a", format::WriteSafetensors(FourTensors())));
  for (size_t i = 0; i < 5; ++i) {
    Tensors changed = FourTensors();
    changed[3].bytes[i] = '!';
    EXPECT_NE(DigestOf(directory_.Write("b", format::WriteSafetensors(changed))), digest);
  }
}

TEST_F(IngestTest, ModelsWithACommonLayerShareItsExtentAtLayerGranularity) {
  const format::TestTensor common = NoiseTensor("features", 10'000, 1);
  format::TestTensor renamed = common;
  renamed.name = "encoder";
  const std::string a =
      directory_.Write("a", format::WriteSafetensors({common, NoiseTensor("head", 100, 2)}));
  const std::string b =
      directory_.Write("b", format::WriteMxnetParams({NoiseTensor("top", 100, 3), renamed}));
  const Layout layers_a = MakeLayout(*IngestPath(a)->manifest, store::Granularity::kLayer).value();
  const Layout layers_b = MakeLayout(*IngestPath(b)->manifest, store::Granularity::kLayer).value();
  int common_keys = 0;
  for (const ExtentSpec& one : layers_a.extents) {
    for (const ExtentSpec& other : layers_b.extents) common_keys += one.key == other.key;
  }
  EXPECT_EQ(common_keys, 1);
}

TEST_F(IngestTest, HashesChunksAndWholeTensors) {
  // Two chunks and a rest, beginning at an odd offset.
  const format::TestTensor odd = NoiseTensor("a", 3, 1);
  const format::TestTensor large = NoiseTensor("b", 2 * kChunkBytes + 12345, 2);
  const format::TestTensor empty = NoiseTensor("c", 0, 3);
  const std::string path = directory_.Write("w", format::WriteSafetensors({odd, large, empty}));
  const Result<IngestResult> result = IngestPath(path);
  ASSERT_TRUE(result.ok()) << result.status().ToString();
  const ModelManifest& manifest = *result->manifest;
  ASSERT_EQ(manifest.tensors.size(), 3U);
  EXPECT_EQ(manifest.weight_bytes, 3 + large.bytes.size());
  const ManifestTensor& tensor = manifest.tensors[1];
  EXPECT_EQ(tensor.name, "b");
  const std::span<const std::byte> bytes = format::AsBytes(large.bytes);
  EXPECT_EQ(tensor.content, Sha256::Of(bytes));
  EXPECT_THAT(tensor.chunks, ElementsAre(ChecksumOf(bytes.first(kChunkBytes)),
                                         ChecksumOf(bytes.subspan(kChunkBytes, kChunkBytes)),
                                         ChecksumOf(bytes.subspan(2 * kChunkBytes))));
  EXPECT_EQ(ReadFile(path).substr(tensor.offset, 100), large.bytes.substr(0, 100));
  EXPECT_EQ(manifest.tensors[2].content, Sha256::Of({}));
  EXPECT_TRUE(manifest.tensors[2].chunks.empty());
}

TEST_F(IngestTest, TheNumberOfThreadsChangesNothing) {
  Tensors tensors;
  for (int i = 0; i < 50; ++i) {
    tensors.push_back(NoiseTensor("t" + std::to_string(i), static_cast<size_t>(i) * 1000,
                                  static_cast<uint64_t>(i)));
  }
  const std::string path = directory_.Write("w", format::WriteSafetensors(tensors));
  const Result<Source> source = Source::OpenPath(path, "m");
  ASSERT_TRUE(source.ok());
  LoadControl control;
  const Result<IngestResult> one = Ingest(*source, nullptr, control, 1);
  const Result<IngestResult> many = Ingest(*source, nullptr, control, 7);
  ASSERT_TRUE(one.ok() && many.ok());
  EXPECT_EQ(SerializeManifest(*one->manifest), SerializeManifest(*many->manifest));
}

// --- Control ------------------------------------------------------------------

TEST_F(IngestTest, ProgressRisesToTheTotal) {
  Tensors tensors;
  for (int i = 0; i < 20; ++i) tensors.push_back(NoiseTensor("t" + std::to_string(i), 1000, 1));
  const Result<Source> source =
      Source::OpenPath(directory_.Write("w", format::WriteSafetensors(tensors)), "m");
  ASSERT_TRUE(source.ok());
  std::vector<uint64_t> seen;
  LoadControl control;
  control.on_progress = [&](uint64_t done, uint64_t total) {
    EXPECT_EQ(total, 20'000U);
    seen.push_back(done);
  };
  ASSERT_TRUE(Ingest(*source, nullptr, control, 4).ok());
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(seen.front(), 0U);
  EXPECT_EQ(seen.back(), 20'000U);
}

TEST_F(IngestTest, CancellingEndsIt) {
  Tensors tensors;
  for (int i = 0; i < 20; ++i) tensors.push_back(NoiseTensor("t" + std::to_string(i), 1000, 1));
  const Result<Source> source =
      Source::OpenPath(directory_.Write("w", format::WriteSafetensors(tensors)), "m");
  ASSERT_TRUE(source.ok());
  LoadControl before;
  before.cancelled = true;
  EXPECT_EQ(Ingest(*source, nullptr, before).status().code(), StatusCode::kCancelled);
  LoadControl midway;
  uint64_t last = 0;
  midway.on_progress = [&](uint64_t done, uint64_t) {
    last = done;
    if (done >= 5000) midway.cancelled = true;
  };
  EXPECT_EQ(Ingest(*source, nullptr, midway, 2).status().code(), StatusCode::kCancelled);
  EXPECT_LT(last, 20'000U);
}

TEST_F(IngestTest, AFileThatChangesMeanwhileIsAborted) {
  const std::string bytes =
      format::WriteSafetensors({NoiseTensor("a", 5000, 1), NoiseTensor("b", 4000, 2)});
  const auto ingest_with = [&](const auto& change) {
    const std::string path = directory_.Write("w", bytes);
    MakeOld(path);
    const Result<Source> source = Source::OpenPath(path, "m");
    EXPECT_TRUE(source.ok());
    LoadControl control;
    control.on_progress = [&](uint64_t done, uint64_t) {
      if (done == 5000) change(path);
    };
    return Ingest(*source, nullptr, control, 1).status().code();
  };
  EXPECT_EQ(ingest_with([](const std::string& path) { std::filesystem::resize_file(path, 100); }),
            StatusCode::kAborted);
  EXPECT_EQ(ingest_with([](const std::string& path) { std::ofstream(path, std::ios::app) << "x"; }),
            StatusCode::kAborted);
  EXPECT_EQ(ingest_with([&](const std::string& path) {
              std::fstream(path, std::ios::in | std::ios::out) << bytes.substr(0, 9);
            }),
            StatusCode::kAborted);
  EXPECT_EQ(ingest_with([](const std::string&) {}), StatusCode::kOk);
}

TEST_F(IngestTest, WhatIsNoWeightsFileIsRefused) {
  for (const std::string& content : {std::string(), std::string("<html>"), std::string(100, 'x')}) {
    const Status status = IngestPath(directory_.Write("w", content)).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.message(), HasSubstr(directory_ / "w"));
  }
}

// --- Shards -------------------------------------------------------------------

TEST_F(IngestTest, ShardsMustHoldWhatTheIndexSays) {
  const format::TestTensor a = NoiseTensor("a", 10, 1);
  const format::TestTensor b = NoiseTensor("b", 10, 2);
  const format::TestTensor c = NoiseTensor("c", 10, 3);
  const std::map<std::string, Tensors> index = {{"1.safetensors", {a}}, {"2.safetensors", {b}}};
  EXPECT_TRUE(ShardError(index, index).ok());

  Status status = ShardError(index, {{"1.safetensors", {a, c}}, {"2.safetensors", {b}}});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("\"c\""), HasSubstr("does not name")));

  status = ShardError(index, {{"1.safetensors", {a, b}}, {"2.safetensors", {b}}});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("\"b\""), HasSubstr("2.safetensors")));

  status = ShardError({{"1.safetensors", {a}}, {"2.safetensors", {b, c}}}, index);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("\"c\""), HasSubstr("does not hold")));
}

// --- Sidecars -----------------------------------------------------------------

class SidecarTest : public IngestTest {
 protected:
  void SetUp() override {
    IngestTest::SetUp();
    Result<std::unique_ptr<SidecarStore>> store = SidecarStore::Open(sidecars_);
    ASSERT_TRUE(store.ok()) << store.status().ToString();
    store_ = std::move(store).value();
    path_ = directory_.Write("w", format::WriteSafetensors(FourTensors()));
    MakeOld(path_);
  }
  void TearDown() override {
    store_.reset();
    IngestTest::TearDown();
  }

  std::vector<std::string> Entries() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(sidecars_)) {
      names.push_back(entry.path().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  // The one entry there is, made by an ingest.
  std::string MakeEntry() {
    EXPECT_TRUE(IngestPath(path_, store_.get()).ok());
    const std::vector<std::string> entries = Entries();
    EXPECT_EQ(entries.size(), 1U);
    return entries.empty() ? "" : entries[0];
  }

  const std::string sidecars_ = directory_ / "state/sidecars";
  std::unique_ptr<SidecarStore> store_;
  std::string path_;
};

TEST_F(SidecarTest, TheSecondIngestReadsNoWeights) {
  const Result<IngestResult> first = IngestPath(path_, store_.get());
  ASSERT_TRUE(first.ok());
  EXPECT_FALSE(first->from_sidecar);
  EXPECT_TRUE(first->sidecar_status.ok()) << first->sidecar_status.ToString();
  const Result<IngestResult> second = IngestPath(path_, store_.get());
  ASSERT_TRUE(second.ok());
  EXPECT_TRUE(second->from_sidecar);
  EXPECT_EQ(SerializeManifest(*second->manifest), SerializeManifest(*first->manifest));
}

TEST_F(SidecarTest, AnotherRunFindsIt) {
  MakeEntry();
  store_ = SidecarStore::Open(sidecars_).value();
  EXPECT_TRUE(IngestPath(path_, store_.get())->from_sidecar);
}

TEST_F(SidecarTest, AFileWrittenJustNowIsNotRecorded) {
  path_ = directory_.Write("fresh", format::WriteSafetensors(FourTensors()));
  EXPECT_FALSE(IngestPath(path_, store_.get())->from_sidecar);
  EXPECT_FALSE(IngestPath(path_, store_.get())->from_sidecar);
  EXPECT_TRUE(Entries().empty());
}

TEST_F(SidecarTest, AChangedFileIsHashedAgain) {
  const Digest before = IngestPath(path_, store_.get())->manifest->digest;
  Tensors changed = FourTensors();
  changed[3].bytes = "jello";
  directory_.Write("w", format::WriteSafetensors(changed));
  MakeOld(path_);
  const Result<IngestResult> again = IngestPath(path_, store_.get());
  ASSERT_TRUE(again.ok());
  EXPECT_FALSE(again->from_sidecar);
  EXPECT_NE(again->manifest->digest, before);
}

TEST_F(SidecarTest, OthersCanNotReadThem) {
  const std::string entry = MakeEntry();
  struct stat info {};
  ASSERT_EQ(::stat(entry.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600U);
  ASSERT_EQ(::stat(sidecars_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0700U);
}

TEST_F(SidecarTest, AnOpenDirectoryIsClosedToOthers) {
  ASSERT_EQ(::chmod(sidecars_.c_str(), 0777), 0);
  ASSERT_TRUE(SidecarStore::Open(sidecars_).ok());
  struct stat info {};
  ASSERT_EQ(::stat(sidecars_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0700U);
}

TEST_F(SidecarTest, SomebodyElsesDirectoryIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "giving a directory away needs root";
  ASSERT_EQ(::chown(sidecars_.c_str(), 65534, 65534), 0);
  EXPECT_EQ(SidecarStore::Open(sidecars_).status().code(), StatusCode::kPermissionDenied);
  std::filesystem::create_directory_symlink(directory_.path(), directory_ / "link");
  EXPECT_FALSE(SidecarStore::Open(directory_ / "link").ok());
}

TEST_F(SidecarTest, AnyDamagedByteIsNoticedAndTheEntryRebuilt) {
  const std::string entry = MakeEntry();
  const std::string good = ReadFile(entry);
  const std::vector<FileIdentity> identities = Source::OpenPath(path_, "m")->Identities();
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x40);
    std::ofstream(entry, std::ios::binary | std::ios::trunc) << bad;
    ASSERT_EQ(store_->Find(identities), nullptr) << "byte " << i;
    ASSERT_FALSE(std::filesystem::exists(entry)) << "byte " << i;
  }
  const Result<IngestResult> rebuilt = IngestPath(path_, store_.get());
  ASSERT_TRUE(rebuilt.ok());
  EXPECT_FALSE(rebuilt->from_sidecar);
  EXPECT_EQ(ReadFile(entry), good);
}

TEST_F(SidecarTest, ATruncatedOrForeignEntryIsRemoved) {
  const std::string entry = MakeEntry();
  const std::string good = ReadFile(entry);
  const std::vector<FileIdentity> identities = Source::OpenPath(path_, "m")->Identities();
  const std::string old_version = "TRIMSMF0" + good.substr(8);
  for (const std::string& bad : {std::string(), good.substr(0, 31), good.substr(0, good.size() - 1),
                                 good + "x", old_version}) {
    std::ofstream(entry, std::ios::binary | std::ios::trunc) << bad;
    EXPECT_EQ(store_->Find(identities), nullptr);
    EXPECT_FALSE(std::filesystem::exists(entry));
  }
  // A whole entry under another file's name: what a rename by hand would do.
  const std::string other =
      directory_.Write("other", format::WriteSafetensors({format::FloatTensor("x", {1})}));
  MakeOld(other);
  const std::string other_entry = [&] {
    EXPECT_TRUE(IngestPath(other, store_.get()).ok());
    return Entries().at(0);
  }();
  std::ofstream(other_entry, std::ios::binary | std::ios::trunc) << good;
  EXPECT_EQ(store_->Find(Source::OpenPath(other, "m")->Identities()), nullptr);
  EXPECT_FALSE(std::filesystem::exists(other_entry));
}

TEST_F(SidecarTest, ALinkIsNotFollowed) {
  const std::string entry = MakeEntry();
  std::filesystem::rename(entry, directory_ / "elsewhere");
  std::filesystem::create_symlink(directory_ / "elsewhere", entry);
  EXPECT_FALSE(IngestPath(path_, store_.get())->from_sidecar);
}

TEST_F(SidecarTest, AModelIsUsableWhenItCanNotBeRecorded) {
  std::filesystem::remove_all(sidecars_);
  const Result<IngestResult> result = IngestPath(path_, store_.get());
  ASSERT_TRUE(result.ok()) << result.status().ToString();
  EXPECT_FALSE(result->sidecar_status.ok());
  EXPECT_THAT(result->sidecar_status.message(), HasSubstr(sidecars_));
}

TEST_F(SidecarTest, CollectRemovesWhatACrashLeft) {
  const std::string entry = MakeEntry();
  std::ofstream(sidecars_ + "/tmp-123-456-0") << "half";
  std::ofstream(sidecars_ + "/tmp-") << "";
  std::ofstream(sidecars_ + "/README") << "not ours";
  ASSERT_TRUE(store_->Collect().ok());
  EXPECT_THAT(Entries(), ::testing::UnorderedElementsAre(entry, sidecars_ + "/README"));
  EXPECT_TRUE(IngestPath(path_, store_.get())->from_sidecar);
}

TEST_F(SidecarTest, CollectRemovesTheOldestBeyondTheLimit) {
  std::vector<std::string> paths;
  for (int i = 0; i < 4; ++i) {
    paths.push_back(directory_.Write(
        "m" + std::to_string(i),
        format::WriteSafetensors({format::FloatTensor("x", {1}, static_cast<float>(i))})));
    MakeOld(paths.back());
    const std::vector<std::string> before = Entries();
    ASSERT_TRUE(IngestPath(paths.back(), store_.get()).ok());
    for (const std::string& entry : Entries()) {
      if (std::find(before.begin(), before.end(), entry) != before.end()) continue;
      // Later models have older entries, to tell age from order of making.
      const timespec times[2] = {{1000 - i, 0}, {1000 - i, 0}};
      ASSERT_EQ(::utimensat(AT_FDCWD, entry.c_str(), times, 0), 0);
    }
  }
  ASSERT_EQ(Entries().size(), 4U);
  ASSERT_TRUE(store_->Collect(2).ok());
  EXPECT_EQ(Entries().size(), 2U);
  for (int i = 0; i < 4; ++i) {
    const Result<Source> source = Source::OpenPath(paths[static_cast<size_t>(i)], "m");
    EXPECT_EQ(store_->Find(source->Identities()) != nullptr, i < 2) << i;
  }
}

TEST_F(SidecarTest, ThreadsMayPutFindAndCollectAtOnce) {
  const Result<IngestResult> result = IngestPath(path_, nullptr);
  ASSERT_TRUE(result.ok());
  const std::vector<FileIdentity> identities = result->manifest->file_identities;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        EXPECT_TRUE(store_->Put(*result->manifest).ok());
        const std::shared_ptr<const ModelManifest> found = store_->Find(identities);
        ASSERT_NE(found, nullptr);
        EXPECT_EQ(found->digest, result->manifest->digest);
        EXPECT_TRUE(store_->Collect().ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Entries().size(), 1U);
}

TEST_F(SidecarTest, APassedDescriptorSharesTheEntryOfItsFile) {
  MakeEntry();
  const Result<Source> source =
      Source::FromDescriptor(UniqueFd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)), "x");
  ASSERT_TRUE(source.ok());
  LoadControl control;
  EXPECT_TRUE(Ingest(*source, store_.get(), control)->from_sidecar);
}

}  // namespace
}  // namespace trims
