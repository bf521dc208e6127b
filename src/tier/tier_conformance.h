// What every Tier must do: include this in an implementation's test and
// instantiate the suite with a function that makes the tier.
//
//   INSTANTIATE_TEST_SUITE_P(Host, TierConformance, ::testing::Values(TierFactory([] { … })));
//
// A tier whose descriptors a CPU can not map brings its own way of looking at the
// bytes. The others instantiate MappableTierConformance too.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "base/limits.h"
#include "ipc/region.h"
#include "tier/manifest.h"
#include "tier/source.h"
#include "tier/test_model.h"
#include "tier/tier.h"

namespace trims {

// The bytes of an extent, as a client gets them through its descriptor.
using ExtentReader = std::function<std::string(const ResidentExtent&)>;

inline std::string ReadMappedExtent(const ResidentExtent& extent) {
  Result<ReadOnlyRegion> region = ReadOnlyRegion::Adopt(extent.fd.Dup().value(), extent.map_bytes);
  EXPECT_TRUE(region.ok()) << region.status().ToString();
  const ReadOnlyMapping mapping = region->Map().value();
  return std::string(reinterpret_cast<const char*>(mapping.data()), mapping.size());
}

struct TierFactory {
  explicit TierFactory(std::function<std::unique_ptr<Tier>()> make_tier,
                       ExtentReader reader = ReadMappedExtent)
      : make(std::move(make_tier)), read(std::move(reader)) {}

  std::function<std::unique_ptr<Tier>()> make;
  ExtentReader read;
};

class TierConformance : public ::testing::TestWithParam<TierFactory> {
 protected:
  void SetUp() override {
    fds_before_ = OpenFdCount();
    tier_ = GetParam().make();
    // Odd sizes and offsets, an empty one, one of several chunks, equal contents.
    tensors_ = {NoiseTensor("a.odd", 4099, 1),  NoiseTensor("b.large", 2 * kChunkBytes + 777, 2),
                NoiseTensor("c.empty", 0, 3),   NoiseTensor("d.twin", 5000, 4),
                NoiseTensor("e.twin", 5000, 4), NoiseTensor("f.page", kHostPageBytes, 5)};
    path_ = directory_.Write("weights", format::WriteSafetensors(tensors_));
    model_ = IngestTestModel(path_, tensors_);
  }
  void TearDown() override {
    tier_.reset();
    model_ = {};
    EXPECT_EQ(OpenFdCount(), fds_before_) << "a descriptor leaked";
  }

  Layout LayoutOf(const ModelManifest& manifest, store::Granularity granularity) const {
    return MakeLayout(manifest, granularity, 64 * kKiB).value();
  }

  static void ExpectServes(const IngestedModel& model, const Layout& layout,
                           const std::vector<ResidentExtent>& resident) {
    ASSERT_EQ(resident.size(), layout.extents.size());
    std::vector<std::string> extents;
    for (const ResidentExtent& extent : resident) extents.push_back(GetParam().read(extent));
    for (size_t i = 0; i < model.manifest->tensors.size(); ++i) {
      const ManifestTensor& tensor = model.manifest->tensors[i];
      const Placement& placement = layout.placements[i];
      const std::string& bytes = extents[placement.extent];
      ASSERT_LE(placement.offset + tensor.size_bytes, bytes.size());
      EXPECT_EQ(bytes.compare(placement.offset, tensor.size_bytes, model.bytes.at(tensor.name)), 0)
          << tensor.name;
    }
  }

  // The model as it would be had its file been damaged without a trace: `change`
  // writes the file, the manifest keeps the old checksums.
  template <typename Change>
  IngestedModel DamagedModel(const Change& change) const {
    change();
    IngestedModel damaged;
    damaged.source = std::make_unique<Source>(Source::OpenPath(path_, "test").value());
    ModelManifest manifest = *model_.manifest;
    manifest.file_identities = damaged.source->Identities();
    damaged.manifest = std::make_shared<const ModelManifest>(std::move(manifest));
    return damaged;
  }

  const TemporaryDirectory directory_;
  std::vector<format::TestTensor> tensors_;
  std::string path_;
  IngestedModel model_;
  std::unique_ptr<Tier> tier_;
  size_t fds_before_ = 0;
};

TEST_P(TierConformance, HasAName) { EXPECT_FALSE(tier_->name().empty()); }

TEST_P(TierConformance, AllocationRoundsUpAndNeverShrinks) {
  uint64_t last = 0;
  for (const uint64_t bytes : {uint64_t{1}, kHostPageBytes, kHostPageBytes + 1, kHugePageBytes,
                               16 * kMiB, 16 * kMiB + 1, uint64_t{100} * kGiB}) {
    const uint64_t allocated = tier_->AllocationBytes(bytes);
    EXPECT_GE(allocated, bytes);
    EXPECT_GE(allocated, last);
    EXPECT_EQ(tier_->AllocationBytes(allocated), allocated);
    last = allocated;
  }
}

TEST_P(TierConformance, ServesTheFilesBytesAtEveryGranularity) {
  for (const store::Granularity granularity :
       {store::Granularity::kModel, store::Granularity::kSlab, store::Granularity::kLayer}) {
    const Layout layout = LayoutOf(*model_.manifest, granularity);
    LoadControl control;
    const Result<std::vector<ResidentExtent>> resident = tier_->Load(model_.Job(layout), control);
    ASSERT_TRUE(resident.ok()) << resident.status().ToString();
    ExpectServes(model_, layout, *resident);
    for (size_t i = 0; i < resident->size(); ++i) {
      EXPECT_EQ((*resident)[i].key, layout.extents[i].key);
      EXPECT_EQ((*resident)[i].bytes, tier_->AllocationBytes(layout.extents[i].bytes));
      EXPECT_GE((*resident)[i].map_bytes, layout.extents[i].bytes);
    }
  }
}

TEST_P(TierConformance, ServesTheSameBytesFromAnyFormat) {
  const std::string params = directory_.Write("w.params", format::WriteMxnetParams(tensors_));
  std::filesystem::create_directory(directory_ / "sharded");
  const std::map<std::string, std::vector<format::TestTensor>> shards = {
      {"1.safetensors", {tensors_[0], tensors_[1], tensors_[2]}},
      {"2.safetensors", {tensors_[3], tensors_[4], tensors_[5]}}};
  for (const auto& [name, part] : shards) {
    directory_.Write("sharded/" + name, format::WriteSafetensors(part));
  }
  directory_.Write("sharded/model.safetensors.index.json", WriteShardIndex(shards));
  for (const std::string& path : {params, directory_ / "sharded"}) {
    const IngestedModel model = IngestTestModel(path, tensors_);
    EXPECT_EQ(model.manifest->digest, model_.manifest->digest);
    const Layout layout = LayoutOf(*model.manifest, store::Granularity::kModel);
    LoadControl control;
    const Result<std::vector<ResidentExtent>> resident = tier_->Load(model.Job(layout), control);
    ASSERT_TRUE(resident.ok()) << resident.status().ToString();
    ExpectServes(model, layout, *resident);
  }
}

TEST_P(TierConformance, GapsBetweenTensorsAreZero) {
  const Layout layout = LayoutOf(*model_.manifest, store::Granularity::kModel);
  LoadControl control;
  const Result<std::vector<ResidentExtent>> resident = tier_->Load(model_.Job(layout), control);
  ASSERT_TRUE(resident.ok());
  const std::string bytes = GetParam().read((*resident)[0]);
  uint64_t at = 0;
  const auto expect_zero = [&](uint64_t begin, uint64_t end) {
    for (uint64_t i = begin; i < end; ++i) ASSERT_EQ(bytes[i], '\0') << i;
  };
  for (const Piece& piece : layout.extents[0].pieces) {
    expect_zero(at, piece.extent_offset);
    at = piece.extent_offset + model_.manifest->tensors[piece.tensor].size_bytes;
  }
  expect_zero(at, bytes.size());
}

TEST_P(TierConformance, LoadsOnlyTheExtentsAskedFor) {
  const Layout layout = LayoutOf(*model_.manifest, store::Granularity::kLayer);
  LoadJob job = model_.Job(layout);
  job.extents = {&layout.extents[2], &layout.extents[0]};
  LoadControl control;
  uint64_t total_seen = 0;
  control.on_progress = [&](uint64_t, uint64_t total) { total_seen = total; };
  const Result<std::vector<ResidentExtent>> resident = tier_->Load(job, control);
  ASSERT_TRUE(resident.ok());
  ASSERT_EQ(resident->size(), 2U);
  EXPECT_EQ((*resident)[0].key, layout.extents[2].key);
  EXPECT_EQ((*resident)[1].key, layout.extents[0].key);
  EXPECT_EQ(total_seen, 5000U + 4099U);
}

TEST_P(TierConformance, AModelWithoutBytesHasOnePage) {
  const std::vector<format::TestTensor> none = {NoiseTensor("nothing", 0, 1)};
  const IngestedModel model =
      IngestTestModel(directory_.Write("empty", format::WriteSafetensors(none)), none);
  const Layout layout = LayoutOf(*model.manifest, store::Granularity::kModel);
  LoadControl control;
  const Result<std::vector<ResidentExtent>> resident = tier_->Load(model.Job(layout), control);
  ASSERT_TRUE(resident.ok()) << resident.status().ToString();
  ASSERT_EQ(resident->size(), 1U);
  EXPECT_EQ((*resident)[0].map_bytes, tier_->AllocationBytes(kHostPageBytes));
  EXPECT_TRUE(tier_->Verify((*resident)[0], layout.extents[0], *model.manifest, control).ok());
}

// --- Failures -----------------------------------------------------------------

TEST_P(TierConformance, DamageOnDiskIsDataLossNamingThePlace) {
  const uint64_t offset =
      model_.manifest->tensors[1].offset + kChunkBytes + 5;  // Second chunk of b.large.
  const IngestedModel damaged = DamagedModel([&] {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(byte);
  });
  const Layout layout = LayoutOf(*damaged.manifest, store::Granularity::kModel);
  const size_t fds = OpenFdCount();
  LoadControl control;
  const Status status = tier_->Load(damaged.Job(layout), control).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), ::testing::HasSubstr(path_));
  EXPECT_THAT(status.message(), ::testing::HasSubstr("b.large"));
  EXPECT_THAT(status.message(), ::testing::HasSubstr("chunk 1 of 3"));
  EXPECT_EQ(OpenFdCount(), fds);
}

TEST_P(TierConformance, AFileThatEndsEarlyIsDataLoss) {
  const IngestedModel damaged = DamagedModel(
      [&] { std::filesystem::resize_file(path_, std::filesystem::file_size(path_) - 1); });
  const Layout layout = LayoutOf(*damaged.manifest, store::Granularity::kModel);
  LoadControl control;
  const Status status = tier_->Load(damaged.Job(layout), control).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.ToString();
  EXPECT_THAT(status.message(), ::testing::HasSubstr(path_));
}

TEST_P(TierConformance, AFileThatIsAnotherByNowIsAborted) {
  std::ofstream(path_, std::ios::app) << "more";
  const Source source = Source::OpenPath(path_, "test").value();
  const Layout layout = LayoutOf(*model_.manifest, store::Granularity::kModel);
  LoadJob job = model_.Job(layout);
  job.source = &source;
  LoadControl control;
  EXPECT_EQ(tier_->Load(job, control).status().code(), StatusCode::kAborted);
}

TEST_P(TierConformance, AFileWrittenWhileItIsReadIsAborted) {
  MakeOld(path_);
  model_ = IngestTestModel(path_, tensors_);
  const Layout layout = LayoutOf(*model_.manifest, store::Granularity::kModel);
  LoadControl control;
  std::string junk(64 * kKiB, 'x');
  control.on_progress = [&](uint64_t done, uint64_t) {
    // Before anything is read: most of the file, not its header.
    if (done != 0) return;
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    for (uint64_t at = 4096; at < kChunkBytes; at += junk.size()) {
      file.seekp(static_cast<std::streamoff>(at));
      file.write(junk.data(), static_cast<std::streamsize>(junk.size()));
    }
  };
  EXPECT_EQ(tier_->Load(model_.Job(layout), control).status().code(), StatusCode::kAborted);
}

TEST_P(TierConformance, CancellingEndsALoadAndLeavesNothing) {
  const Layout layout = LayoutOf(*model_.manifest, store::Granularity::kLayer);
  const size_t fds = OpenFdCount();
  LoadControl before;
  before.cancelled = true;
  EXPECT_EQ(tier_->Load(model_.Job(layout), before).status().code(), StatusCode::kCancelled);
  LoadControl midway;
  midway.on_progress = [&](uint64_t done, uint64_t) {
    if (done > 0) midway.cancelled = true;
  };
  EXPECT_EQ(tier_->Load(model_.Job(layout), midway).status().code(), StatusCode::kCancelled);
  EXPECT_EQ(OpenFdCount(), fds);
}

TEST_P(TierConformance, ProgressRisesToTheTotal) {
  const Layout layout = LayoutOf(*model_.manifest, store::Granularity::kModel);
  std::vector<uint64_t> seen;
  LoadControl control;
  control.on_progress = [&](uint64_t done, uint64_t total) {
    EXPECT_EQ(total, model_.manifest->weight_bytes);
    seen.push_back(done);
  };
  ASSERT_TRUE(tier_->Load(model_.Job(layout), control).ok());
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(seen.back(), model_.manifest->weight_bytes);
}

TEST_P(TierConformance, ASpecOfAnotherModelIsRefused) {
  const Layout layout = LayoutOf(*model_.manifest, store::Granularity::kModel);
  ExtentSpec wrong_tensor = layout.extents[0];
  wrong_tensor.pieces[0].tensor = 1000;
  ExtentSpec wrong_place = layout.extents[0];
  wrong_place.pieces.back().extent_offset = wrong_place.bytes - 1;
  for (const ExtentSpec* spec : {&wrong_tensor, &wrong_place}) {
    LoadJob job = model_.Job(layout);
    job.extents = {spec};
    LoadControl control;
    EXPECT_EQ(tier_->Load(job, control).status().code(), StatusCode::kInvalidArgument);
  }
}

// --- Adopting and verifying ---------------------------------------------------

TEST_P(TierConformance, AdoptsAndVerifiesWhatAnEarlierWorkerLoaded) {
  const Layout layout = LayoutOf(*model_.manifest, store::Granularity::kLayer);
  LoadControl control;
  Result<std::vector<ResidentExtent>> resident = tier_->Load(model_.Job(layout), control);
  ASSERT_TRUE(resident.ok());
  const std::unique_ptr<Tier> next = GetParam().make();
  for (size_t i = 0; i < resident->size(); ++i) {
    const uint64_t bytes = (*resident)[i].bytes;
    const Result<ResidentExtent> adopted =
        next->Adopt(layout.extents[i], std::move((*resident)[i].fd), (*resident)[i].integrity);
    ASSERT_TRUE(adopted.ok()) << adopted.status().ToString();
    EXPECT_EQ(adopted->key, layout.extents[i].key);
    EXPECT_EQ(adopted->bytes, bytes);
    EXPECT_EQ(adopted->map_bytes, (*resident)[i].map_bytes);
    const Status verified = next->Verify(*adopted, layout.extents[i], *model_.manifest, control);
    EXPECT_TRUE(verified.ok()) << verified.ToString();
  }
}

TEST_P(TierConformance, VerifyCanBeCancelled) {
  const Layout layout = LayoutOf(*model_.manifest, store::Granularity::kModel);
  LoadControl control;
  const Result<std::vector<ResidentExtent>> resident = tier_->Load(model_.Job(layout), control);
  ASSERT_TRUE(resident.ok());
  control.cancelled = true;
  EXPECT_EQ(tier_->Verify((*resident)[0], layout.extents[0], *model_.manifest, control).code(),
            StatusCode::kCancelled);
}

TEST_P(TierConformance, ThreadsMayLoadAndVerifyAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      const Layout layout = LayoutOf(
          *model_.manifest, t % 2 == 0 ? store::Granularity::kModel : store::Granularity::kLayer);
      LoadControl control;
      const Result<std::vector<ResidentExtent>> resident = tier_->Load(model_.Job(layout), control);
      ASSERT_TRUE(resident.ok()) << resident.status().ToString();
      for (size_t i = 0; i < resident->size(); ++i) {
        EXPECT_TRUE(
            tier_->Verify((*resident)[i], layout.extents[i], *model_.manifest, control).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// --- Tiers whose descriptors a CPU can map --------------------------------------

class MappableTierConformance : public TierConformance {};

TEST_P(MappableTierConformance, WhatItLendsIsReadOnly) {
  const Layout layout = LayoutOf(*model_.manifest, store::Granularity::kModel);
  LoadControl control;
  const Result<std::vector<ResidentExtent>> resident = tier_->Load(model_.Job(layout), control);
  ASSERT_TRUE(resident.ok());
  const ResidentExtent& extent = (*resident)[0];
  EXPECT_EQ(
      ::mmap(nullptr, extent.map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, extent.fd.get(), 0),
      MAP_FAILED);
  EXPECT_LT(::pwrite(extent.fd.get(), "x", 1, 0), 0);
  EXPECT_NE(::ftruncate(extent.fd.get(), 0), 0);
}

TEST_P(MappableTierConformance, AClientsMappingOutlivesTheExtent) {
  const Layout layout = LayoutOf(*model_.manifest, store::Granularity::kModel);
  LoadControl control;
  Result<std::vector<ResidentExtent>> resident = tier_->Load(model_.Job(layout), control);
  ASSERT_TRUE(resident.ok());
  Result<ReadOnlyRegion> region =
      ReadOnlyRegion::Adopt((*resident)[0].fd.Dup().value(), (*resident)[0].map_bytes);
  ASSERT_TRUE(region.ok()) << region.status().ToString();
  const ReadOnlyMapping mapping = region->Map().value();
  resident->clear();
  tier_.reset();
  const std::string& expected = model_.bytes.at("a.odd");
  EXPECT_TRUE(
      std::equal(expected.begin(), expected.end(), reinterpret_cast<const char*>(mapping.data())));
}

TEST_P(MappableTierConformance, AdoptRefusesWhatItDidNotMake) {
  const Layout layout = LayoutOf(*model_.manifest, store::Granularity::kModel);
  const ExtentSpec& spec = layout.extents[0];
  const uint64_t bytes = tier_->AllocationBytes(spec.bytes);
  UniqueFd unsealed(::memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(unsealed.get(), static_cast<off_t>(bytes)), 0);
  EXPECT_EQ(tier_->Adopt(spec, std::move(unsealed), "").status().code(),
            StatusCode::kPermissionDenied);
  WritableRegion small = WritableRegion::Create("small", kHostPageBytes, PageKind::kPlain).value();
  EXPECT_EQ(tier_->Adopt(spec, std::move(small).Seal().value().TakeFd(), "").status().code(),
            StatusCode::kOutOfRange);
  EXPECT_FALSE(tier_->Adopt(spec, UniqueFd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)), "").ok());
  EXPECT_FALSE(tier_->Adopt(spec, UniqueFd(), "").ok());
}

TEST_P(MappableTierConformance, VerifyFindsWrongBytesAndNamesTheTensor) {
  const Layout layout = LayoutOf(*model_.manifest, store::Granularity::kModel);
  const ExtentSpec& spec = layout.extents[0];
  WritableRegion region = WritableRegion::Create("wrong", spec.bytes, PageKind::kPlain).value();
  for (const Piece& piece : spec.pieces) {
    const std::string& bytes = model_.bytes.at(model_.manifest->tensors[piece.tensor].name);
    std::copy_n(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size(),
                region.bytes().begin() + static_cast<ptrdiff_t>(piece.extent_offset));
  }
  const Piece& last = spec.pieces.back();
  region.bytes()[last.extent_offset + 17] ^= std::byte{4};
  const Result<ResidentExtent> adopted =
      tier_->Adopt(spec, std::move(region).Seal().value().TakeFd(), "");
  ASSERT_TRUE(adopted.ok()) << adopted.status().ToString();
  LoadControl control;
  const Status status = tier_->Verify(*adopted, spec, *model_.manifest, control);
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), ::testing::HasSubstr(model_.manifest->tensors[last.tensor].name));
}

}  // namespace trims
