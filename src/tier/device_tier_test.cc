#include "tier/device_tier.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <thread>

#include "cuda/test_process.h"
#include "tier/direct_read.h"
#include "tier/test_cuda.h"
#include "tier/tier_conformance.h"

namespace trims {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

DeviceTierOptions Options(const cuda::Device& device, HostPins* pins = nullptr) {
  return {.device = device,
          .key = TestKey(),
          .io_threads = 3,
          .pinned_pool_bytes = 6 * kChunkBytes,
          .pins = pins};
}

// Nothing goes on in the background of what it returns, so that tests can count.
std::unique_ptr<Tier> MakePrepared(const DeviceTierOptions& options) {
  std::unique_ptr<Tier> tier = Must(MakeDeviceTier(options));
  const Status prepared = WaitUntilPrepared(*tier);
  EXPECT_TRUE(prepared.ok()) << prepared.ToString();
  return tier;
}

std::unique_ptr<Tier> MakeTier(int io_threads, uint64_t pool_bytes) {
  DeviceTierOptions options = Options(VisibleDevices().front());
  options.io_threads = io_threads;
  options.pinned_pool_bytes = pool_bytes;
  return MakePrepared(options);
}

std::string ReadFromFirstDevice(const ResidentExtent& extent) {
  return ReadAsClient(VisibleDevices().front(), extent);
}

const auto kTiers = ::testing::Values(
    TierFactory([] { return MakeTier(3, 6 * kChunkBytes); }, ReadFromFirstDevice),
    TierFactory([] { return MakeTier(1, 0); }, ReadFromFirstDevice),
    TierFactory([] { return MakeTier(0, kDefaultPinnedPoolBytes); }, ReadFromFirstDevice));
std::string NameOf(const ::testing::TestParamInfo<TierFactory>& tested) {
  constexpr const char* kNames[] = {"ThreeThreads", "OneThreadWithoutPool", "Default"};
  return kNames[tested.index];
}
INSTANTIATE_TEST_SUITE_P(Device, TierConformance, kTiers, NameOf);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(MappableTierConformance);

// False where the file system does not do it.
bool DropFromPageCache(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(::fsync(fd.get()), 0);
  EXPECT_EQ(::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
  return !IsInPageCache(fd.get(), 5 * kChunkBytes);
}

// A model in a file, its extents in host memory, and a tier for each of two devices.
class DeviceTierTest : public ::testing::Test {
 protected:
  DeviceTierTest() {
    tensors_ = {NoiseTensor("a.odd", 4099, 1), NoiseTensor("b.large", 2 * kChunkBytes + 777, 2),
                NoiseTensor("c.empty", 0, 3)};
    for (uint64_t i = 0; i < 300; ++i) {
      tensors_.push_back(NoiseTensor("d.small." + std::to_string(1000 + i), 1000 + 3 * i, 10 + i));
    }
    path_ = directory_.Write("weights", format::WriteSafetensors(tensors_));
    MakeOld(path_);
    model_ = IngestTestModel(path_, tensors_);
    layout_ = MakeLayout(*model_.manifest, store::Granularity::kSlab, 2 * kMiB).value();
    for (const cuda::Device& device : VisibleDevices()) devices_.push_back(device);
    if (!OnRealGpu()) FAKE(fake_cuda_fail)("");
    objects_before_ = HeldMemoryObjects();
    fds_before_ = OpenDescriptors();
    if (devices_.front().supports_read_only_registration()) {
      pins_ = Must(HostPins::Make(devices_.front()));
    }
    tier_ = MakePrepared(Options(devices_.front(), pins_.get()));
    host_tier_ = MakeHostTier({});
  }
  void TearDown() override {
    host_.clear();
    tier_.reset();
    pins_.reset();
    EXPECT_EQ(HeldMemoryObjects(), objects_before_) << "memory leaked";
    EXPECT_EQ(OpenDescriptors(), fds_before_) << "a descriptor leaked";
  }

  const cuda::Device& device() const { return devices_.front(); }

  std::unique_ptr<Tier> MakePeerTier() const {
    return MakePrepared(Options(devices_.at(1), pins_.get()));
  }

  // The extents of the layout, in host memory.
  const std::vector<std::shared_ptr<const ResidentExtent>>& Host() {
    if (host_.empty()) {
      LoadControl control;
      for (ResidentExtent& extent : Must(host_tier_->Load(model_.Job(layout_), control))) {
        host_.push_back(std::make_shared<const ResidentExtent>(std::move(extent)));
      }
    }
    return host_;
  }
  void PinHost() {
    ASSERT_NE(pins_, nullptr);
    for (const auto& extent : Host()) tier_->HostExtentReady(extent);
    pins_->WaitUntilIdle();
    ASSERT_TRUE(pins_->status().ok()) << pins_->status().ToString();
  }

  LoadJob Job() const { return model_.Job(layout_); }

  std::vector<ResidentExtent> Load(Tier& tier, const LoadJob& job) {
    std::vector<uint64_t> seen;
    LoadControl control;
    control.on_progress = [&](uint64_t done, uint64_t total) {
      EXPECT_EQ(total, model_.manifest->weight_bytes);
      seen.push_back(done);
    };
    std::vector<ResidentExtent> resident = Must(tier.Load(job, control));
    EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
    EXPECT_EQ(seen.back(), model_.manifest->weight_bytes);
    return resident;
  }

  // The bytes that a client sees, and the proofs, are those of a load from the file.
  void ExpectSame(const std::vector<ResidentExtent>& resident, const cuda::Device& where) {
    ASSERT_EQ(resident.size(), layout_.extents.size());
    std::vector<std::string> extents;
    for (const ResidentExtent& extent : resident) extents.push_back(ReadAsClient(where, extent));
    for (size_t i = 0; i < model_.manifest->tensors.size(); ++i) {
      const ManifestTensor& tensor = model_.manifest->tensors[i];
      const Placement& placement = layout_.placements[i];
      EXPECT_EQ(extents[placement.extent].compare(placement.offset, tensor.size_bytes,
                                                  model_.bytes.at(tensor.name)),
                0)
          << tensor.name;
    }
    const std::shared_ptr<const UniversalHashKey> key = TestKey();
    for (size_t i = 0; i < resident.size(); ++i) {
      const std::string bytes = extents[i].substr(0, layout_.extents[i].bytes);
      const HashValue value = HashBytes(*key, std::as_bytes(std::span(bytes)));
      std::array<char, 64> text{};
      std::snprintf(text.data(), text.size(), "uh1:%016lx%016lx",
                    static_cast<unsigned long>(value.hi), static_cast<unsigned long>(value.lo));
      EXPECT_EQ(resident[i].integrity, text.data());
      EXPECT_EQ(resident[i].bytes, tier_->AllocationBytes(layout_.extents[i].bytes));
    }
  }

  uint64_t FreeBytes() const {
    return Must(Must(cuda::Context::Retain(device())).GetMemory()).free_bytes;
  }

  void WriteByte(uint64_t file_offset) const {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(file_offset));
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(static_cast<std::streamoff>(file_offset));
    file.put(byte);
  }

  const TemporaryDirectory directory_;
  std::vector<format::TestTensor> tensors_;
  std::string path_;
  IngestedModel model_;
  Layout layout_;
  std::vector<cuda::Device> devices_;
  uint64_t objects_before_ = 0;
  size_t fds_before_ = 0;
  std::unique_ptr<HostPins> pins_;
  std::unique_ptr<Tier> tier_;
  std::unique_ptr<Tier> host_tier_;
  std::vector<std::shared_ptr<const ResidentExtent>> host_;
};

// --- Sources ----------------------------------------------------------------------------

TEST_F(DeviceTierTest, IsNamedAfterTheDevice) {
  EXPECT_EQ(tier_->name(), "gpu:" + device().uuid());
}

TEST_F(DeviceTierTest, LoadsFromTheFile) {
  ASSERT_GT(layout_.extents.size(), 1U);
  ExpectSame(Load(*tier_, Job()), device());
}

TEST_F(DeviceTierTest, LoadsFromPinnedHostMemoryWithoutReadingAnything) {
  if (pins_ == nullptr) GTEST_SKIP() << "this device can not pin read-only memory";
  PinHost();
  LoadJob job = Job();
  job.host = Host();
  job.source = nullptr;
  ExpectSame(Load(*tier_, job), device());
}

TEST_F(DeviceTierTest, LoadsFromHostMemoryThatIsNotPinned) {
  LoadJob job = Job();
  job.host = Host();
  job.source = nullptr;
  ExpectSame(Load(*tier_, job), device());
}

TEST_F(DeviceTierTest, LoadsFromAnotherDevice) {
  if (devices_.size() < 2) GTEST_SKIP() << "one device only";
  const std::unique_ptr<Tier> other = MakePeerTier();
  LoadJob job = Job();
  for (ResidentExtent& extent : Load(*other, Job())) {
    job.peer.push_back(std::make_shared<const ResidentExtent>(std::move(extent)));
  }
  job.source = nullptr;
  ExpectSame(Load(*tier_, job), device());
}

TEST_F(DeviceTierTest, TakesEachExtentFromWhereItIs) {
  std::unique_ptr<Tier> other;
  LoadJob job = Job();
  job.host = Host();
  job.peer.resize(job.extents.size());
  job.host[0] = nullptr;
  if (pins_ != nullptr) {
    tier_->HostExtentReady(job.host[1]);
    pins_->WaitUntilIdle();
  }
  if (devices_.size() > 1) {
    other = MakePeerTier();
    std::vector<ResidentExtent> there = Load(*other, Job());
    job.peer.back() = std::make_shared<const ResidentExtent>(std::move(there.back()));
    job.host.back() = nullptr;
  }
  ExpectSame(Load(*tier_, job), device());
}

TEST_F(DeviceTierTest, LoadsWhatIsNotInThePageCache) {
  tensors_ = {NoiseTensor("a.small", 1000, 1), NoiseTensor("b.large", 9 * kChunkBytes + 777, 2),
              NoiseTensor("c.odd", 3 * kMiB + 1, 3), NoiseTensor("d.small", 10, 4)};
  path_ = directory_.Write("cold", format::WriteSafetensors(tensors_));
  model_ = IngestTestModel(path_, tensors_);
  layout_ = MakeLayout(*model_.manifest, store::Granularity::kModel).value();
  if (!DropFromPageCache(path_)) GTEST_SKIP() << "this file system keeps its pages";
  // The file ends within the last block of the disk, and tensors begin anywhere.
  ExpectSame(Load(*tier_, Job()), device());
  const UniqueFd fd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(IsInPageCache(
      fd.get(), model_.manifest->tensors[1].offset + 5 * kChunkBytes + kChunkBytes / 2))
      << "it was read through the page cache";
}

TEST_F(DeviceTierTest, DamageInWhatIsNotInThePageCacheIsFound) {
  tensors_ = {NoiseTensor("large", 9 * kChunkBytes, 2)};
  path_ = directory_.Write("cold", format::WriteSafetensors(tensors_));
  model_ = IngestTestModel(path_, tensors_);
  layout_ = MakeLayout(*model_.manifest, store::Granularity::kModel).value();
  WriteByte(model_.manifest->tensors[0].offset + 4 * kChunkBytes + 5);
  model_.source = std::make_unique<Source>(Source::OpenPath(path_, "test").value());
  ModelManifest manifest = *model_.manifest;
  manifest.file_identities = model_.source->Identities();
  model_.manifest = std::make_shared<const ModelManifest>(std::move(manifest));
  if (!DropFromPageCache(path_)) GTEST_SKIP() << "this file system keeps its pages";
  LoadControl control;
  const Status status = tier_->Load(Job(), control).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.ToString();
  EXPECT_THAT(status.message(), HasSubstr("chunk 4 of 9"));
}

TEST_F(DeviceTierTest, SmallTensorsTravelTogether) {
  SKIP_ON_REAL_GPU("counts calls");
  FAKE(fake_cuda_fail)("");
  Load(*tier_, Job());
  // 303 tensors; the large one takes three.
  EXPECT_LE(FAKE(fake_cuda_calls)("cuMemcpyHtoDAsync"), 2 * layout_.extents.size() + 3);
  EXPECT_GT(FAKE(fake_cuda_calls)("cuMemcpyHtoDAsync"), 0U);
}

TEST_F(DeviceTierTest, CopiesThatAreNotOfTheExtentAreRefused) {
  LoadControl control;
  LoadJob job = Job();
  job.host = Host();
  std::swap(job.host[0], job.host[1]);
  EXPECT_EQ(tier_->Load(job, control).status().code(), StatusCode::kInvalidArgument);
  job.host.pop_back();
  EXPECT_EQ(tier_->Load(job, control).status().code(), StatusCode::kInvalidArgument);
  job.host.clear();
  job.peer = Host();  // Not of a device.
  job.source = nullptr;
  EXPECT_FALSE(tier_->Load(job, control).ok());
}

TEST_F(DeviceTierTest, NeedsTheFileOfWhatIsResidentNowhere) {
  LoadJob job = Job();
  job.host = Host();
  job.host[0] = nullptr;
  job.source = nullptr;
  LoadControl control;
  EXPECT_EQ(tier_->Load(job, control).status().code(), StatusCode::kFailedPrecondition);
}

TEST_F(DeviceTierTest, WrongBytesInHostMemoryAreDataLoss) {
  const ExtentSpec& spec = layout_.extents[0];
  WritableRegion region = WritableRegion::Create("wrong", spec.bytes, PageKind::kPlain).value();
  ResidentExtent wrong;
  wrong.key = spec.key;
  wrong.bytes = wrong.map_bytes = region.size();
  wrong.fd = std::move(region).Seal().value().TakeFd();
  LoadJob job = Job();
  job.host.resize(job.extents.size());
  job.host[0] = std::make_shared<const ResidentExtent>(std::move(wrong));
  LoadControl control;
  const Status status = tier_->Load(job, control).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("resident host memory"));
}

TEST_F(DeviceTierTest, AnExtentThatWasWrittenOnTheOtherDeviceIsLoadedFromTheFile) {
  if (devices_.size() < 2) GTEST_SKIP() << "one device only";
  const std::unique_ptr<Tier> other = MakePeerTier();
  LoadJob job = Job();
  for (ResidentExtent& extent : Load(*other, Job())) {
    job.peer.push_back(std::make_shared<const ResidentExtent>(std::move(extent)));
  }
  FlipByteAsClient(devices_[1], *job.peer[0], 100);
  ExpectSame(Load(*tier_, job), device());
  job.source = nullptr;
  LoadControl control;
  EXPECT_FALSE(tier_->Load(job, control).ok());
}

// --- Failures ---------------------------------------------------------------------------

TEST_F(DeviceTierTest, ADamagedFileLeavesNoMemoryBehind) {
  // The first load makes streams, for which a real driver takes memory of the device.
  LoadControl first;
  EXPECT_TRUE(tier_->Load(Job(), first).ok());
  const uint64_t free = FreeBytes();
  const uint64_t objects = HeldMemoryObjects();
  WriteByte(model_.manifest->tensors[1].offset + kChunkBytes + 5);
  model_.source = std::make_unique<Source>(Source::OpenPath(path_, "test").value());
  ModelManifest manifest = *model_.manifest;
  manifest.file_identities = model_.source->Identities();
  model_.manifest = std::make_shared<const ModelManifest>(std::move(manifest));
  LoadControl control;
  const Status status = tier_->Load(Job(), control).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("b.large"));
  EXPECT_EQ(HeldMemoryObjects(), objects);
  EXPECT_GE(FreeBytes(), free);
  EXPECT_TRUE(tier_->health().ok());
}

TEST_F(DeviceTierTest, TooLittleMemoryIsResourceExhausted) {
  SKIP_ON_REAL_GPU("fills the device");
  const uint64_t free = FreeBytes();
  const cuda::PhysicalMemory ballast =
      Must(cuda::PhysicalMemory::Create(device(), free - 4 * kMiB));
  const uint64_t objects = HeldMemoryObjects();
  LoadControl control;
  const Status status = tier_->Load(Job(), control).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status.ToString();
  EXPECT_THAT(status.message(), HasSubstr(device().uuid()));
  EXPECT_EQ(HeldMemoryObjects(), objects);
  EXPECT_EQ(FreeBytes(), 4 * kMiB);
  EXPECT_TRUE(tier_->health().ok());
}

TEST_F(DeviceTierTest, AnyCallMayFailOnceAndNothingStaysBehind) {
  SKIP_ON_REAL_GPU("plans failures");
  PinHost();
  const std::unique_ptr<Tier> other = MakePeerTier();
  LoadJob here = Job();  // From the file and from host memory.
  here.host = Host();
  here.host[0] = nullptr;
  LoadJob both = here;
  both.peer.resize(both.extents.size());
  std::vector<ResidentExtent> there = Load(*other, Job());
  both.peer.back() = std::make_shared<const ResidentExtent>(std::move(there.back()));
  there.clear();
  ExpectSame(Load(*tier_, both), device());  // Lanes exist from here on.
  const uint64_t objects = HeldMemoryObjects();
  const size_t fds = OpenDescriptors();
  for (const LoadJob& job : {here, both}) {
    uint64_t failures = 0;
    for (uint64_t call = 1;; ++call) {
      // CUDA_ERROR_UNKNOWN does not break a context.
      FAKE(fake_cuda_fail)(("*:" + std::to_string(call) + "=999").c_str());
      Status status;
      {
        LoadControl control;
        const Result<std::vector<ResidentExtent>> resident = tier_->Load(job, control);
        status = resident.status();
        for (size_t i = 0; resident.ok() && status.ok() && i < resident->size(); ++i) {
          status = tier_->Verify((*resident)[i], layout_.extents[i], *model_.manifest, control);
        }
      }
      const bool was_reached = FAKE(fake_cuda_calls)("*") >= call;
      FAKE(fake_cuda_fail)("");
      ASSERT_EQ(HeldMemoryObjects(), objects) << "call " << call;
      ASSERT_EQ(OpenDescriptors(), fds) << "call " << call;
      ASSERT_TRUE(tier_->health().ok()) << tier_->health().ToString();
      EXPECT_NE(status.code(), StatusCode::kDataLoss) << "call " << call << status.ToString();
      if (!status.ok()) ++failures;
      if (!was_reached) break;
    }
    EXPECT_GT(failures, 10U);
  }
  ExpectSame(Load(*tier_, both), device());
}

TEST_F(DeviceTierTest, AnyCallMayFailOnceWhileATierIsMade) {
  SKIP_ON_REAL_GPU("plans failures");
  tier_.reset();
  pins_.reset();
  const uint64_t objects = HeldMemoryObjects();
  const size_t fds = OpenDescriptors();
  for (uint64_t call = 1;; ++call) {
    FAKE(fake_cuda_fail)(("*:" + std::to_string(call) + "=999").c_str());
    {
      const Result<std::unique_ptr<HostPins>> pins = HostPins::Make(device());
      DeviceTierOptions options = Options(device(), pins.ok() ? pins->get() : nullptr);
      options.pinned_pool_bytes = 0;
      const Result<std::unique_ptr<Tier>> tier = MakeDeviceTier(options);
    }
    const bool was_reached = FAKE(fake_cuda_calls)("*") >= call;
    FAKE(fake_cuda_fail)("");
    ASSERT_EQ(HeldMemoryObjects(), objects) << "call " << call;
    ASSERT_EQ(OpenDescriptors(), fds) << "call " << call;
    if (!was_reached) break;
  }
}

TEST_F(DeviceTierTest, CancellingEndsACopyFromHostMemoryOrADevice) {
  const std::unique_ptr<Tier> other = devices_.size() > 1 ? MakePeerTier() : nullptr;
  if (pins_ != nullptr) PinHost();
  LoadJob from_host = Job();
  from_host.host = Host();
  std::vector<LoadJob> jobs = {from_host};
  if (other != nullptr) {
    LoadJob from_peer = Job();
    for (ResidentExtent& extent : Load(*other, Job())) {
      from_peer.peer.push_back(std::make_shared<const ResidentExtent>(std::move(extent)));
    }
    jobs.push_back(from_peer);
    // The first one makes a buffer for sums of hashes, which stays.
    LoadControl first;
    EXPECT_TRUE(tier_->Load(from_peer, first).ok());
  }
  const uint64_t objects = HeldMemoryObjects();
  for (const LoadJob& job : jobs) {
    LoadControl control;
    control.on_progress = [&](uint64_t done, uint64_t) {
      if (done > 0) control.cancelled = true;
    };
    EXPECT_EQ(tier_->Load(job, control).status().code(), StatusCode::kCancelled);
    EXPECT_EQ(HeldMemoryObjects(), objects);
  }
}

TEST_F(DeviceTierTest, AThousandLoadsUseTheSameBuffersAndStreams) {
  SKIP_ON_REAL_GPU("counts objects");
  const auto streams = [] {
    fake_cuda_objects held{};
    FAKE(fake_cuda_count)(&held);
    return held.streams;
  };
  const std::unique_ptr<Tier> tier = MakeTier(1, 2 * kChunkBytes);
  Load(*tier, Job());
  const uint64_t before = streams();
  for (int i = 0; i < 10; ++i) Load(*tier, Job());
  EXPECT_EQ(streams(), before);
}

TEST_F(DeviceTierTest, WhatAClientMapsOutlivesTheTier) {
  std::vector<ResidentExtent> resident = Load(*tier_, Job());
  ResidentExtent held;
  held.fd = resident[0].fd.Dup().value();
  held.map_bytes = resident[0].map_bytes;
  const std::string before = ReadAsClient(device(), resident[0]);
  resident.clear();
  tier_.reset();
  EXPECT_EQ(ReadAsClient(device(), held), before);
}

// --- Verifying and adopting -------------------------------------------------------------

TEST_F(DeviceTierTest, VerifyFindsAByteThatAClientFlipped) {
  const std::vector<ResidentExtent> resident = Load(*tier_, Job());
  const Placement& large = layout_.placements[1];
  const ResidentExtent& extent = resident[large.extent];
  const ExtentSpec& spec = layout_.extents[large.extent];
  LoadControl control;
  EXPECT_TRUE(tier_->Verify(extent, spec, *model_.manifest, control).ok());
  FlipByteAsClient(device(), extent, large.offset + kChunkBytes + 3);
  const Status status = tier_->Verify(extent, spec, *model_.manifest, control);
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("b.large"));
  EXPECT_THAT(status.message(), HasSubstr("chunk 1 of 3"));
  EXPECT_THAT(status.message(), Not(HasSubstr(extent.integrity)));
  FlipByteAsClient(device(), extent, large.offset + kChunkBytes + 3);
  EXPECT_TRUE(tier_->Verify(extent, spec, *model_.manifest, control).ok());
}

TEST_F(DeviceTierTest, VerifyFindsAByteBetweenTensors) {
  const std::vector<ResidentExtent> resident = Load(*tier_, Job());
  const Placement& first = layout_.placements[0];
  FlipByteAsClient(device(), resident[first.extent], first.offset + 4099);
  LoadControl control;
  const Status status = tier_->Verify(resident[first.extent], layout_.extents[first.extent],
                                      *model_.manifest, control);
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("between its tensors"));
}

TEST_F(DeviceTierTest, AnotherKeyDoesNotAcceptTheProof) {
  std::vector<ResidentExtent> resident = Load(*tier_, Job());
  DeviceTierOptions options = Options(device());
  options.key = std::make_shared<const UniversalHashKey>(Must(UniversalHashKey::Generate()));
  const std::unique_ptr<Tier> next = Must(MakeDeviceTier(options));
  const ResidentExtent adopted =
      Must(next->Adopt(layout_.extents[0], std::move(resident[0].fd), resident[0].integrity));
  LoadControl control;
  EXPECT_EQ(next->Verify(adopted, layout_.extents[0], *model_.manifest, control).code(),
            StatusCode::kDataLoss);
}

TEST_F(DeviceTierTest, AdoptRefusesWhatATierDidNotMake) {
  std::vector<ResidentExtent> resident = Load(*tier_, Job());
  const ExtentSpec& spec = layout_.extents[0];
  const std::string proof = resident[0].integrity;
  const size_t fds = OpenDescriptors();
  const uint64_t objects = HeldMemoryObjects();
  UniqueFd memfd(::memfd_create("other", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(memfd.get(), static_cast<off_t>(tier_->AllocationBytes(spec.bytes))), 0);
  EXPECT_FALSE(tier_->Adopt(spec, std::move(memfd), proof).ok());
  EXPECT_FALSE(
      tier_->Adopt(spec, UniqueFd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)), proof).ok());
  EXPECT_FALSE(tier_->Adopt(spec, UniqueFd(), proof).ok());
  for (const char* text :
       {"", "uh1:", "uh2:00000000000000000000000000000000", "uh1:0000000000000000000000000000000g",
        "uh1:0000000000000000000000000000000 ", "uh1:000000000000000000000000000000000"}) {
    EXPECT_EQ(tier_->Adopt(spec, resident[0].fd.Dup().value(), text).status().code(),
              StatusCode::kInvalidArgument)
        << text;
  }
  ExtentSpec longer = spec;
  longer.bytes = resident[0].map_bytes + 1;
  EXPECT_FALSE(tier_->Adopt(longer, resident[0].fd.Dup().value(), proof).ok());
  if (devices_.size() > 1) {
    const std::unique_ptr<Tier> other = MakePeerTier();
    EXPECT_FALSE(other->Adopt(spec, resident[0].fd.Dup().value(), proof).ok());
  }
  EXPECT_EQ(OpenDescriptors(), fds);
  EXPECT_EQ(HeldMemoryObjects(), objects);
}

TEST_F(DeviceTierTest, ExtentsOfOtherTiersAreNotVerified) {
  LoadControl control;
  EXPECT_EQ(tier_->Verify(*Host()[0], layout_.extents[0], *model_.manifest, control).code(),
            StatusCode::kInvalidArgument);
}

// --- Other processes --------------------------------------------------------------------

// What a child is told of the model.
struct TestModel {
  explicit TestModel(const std::string& path)
      : model(IngestTestModel(path, {})),
        layout(MakeLayout(*model.manifest, store::Granularity::kSlab, 2 * kMiB).value()) {}
  IngestedModel model;
  Layout layout;
};

// A worker after a crash: adopts and verifies what another process loaded, and says how
// that went.
Status AdoptInChild(const TestModel& test, int socket) {
  cuda::Heard heard = cuda::Hear(socket);
  ASSIGN_OR_RETURN(const std::unique_ptr<Tier> tier,
                   MakeDeviceTier(Options(VisibleDevices().front())));
  ASSIGN_OR_RETURN(const ResidentExtent extent,
                   tier->Adopt(test.layout.extents[0], std::move(heard.fd), heard.message.text));
  LoadControl control;
  return tier->Verify(extent, test.layout.extents[0], *test.model.manifest, control);
}

// The device is lost in the middle of a load. In a process of its own, because what lies
// in a broken context can not be given back.
Status BreakInChild(const TestModel& test, int /*socket*/) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Tier> tier,
                   MakeDeviceTier(Options(VisibleDevices().front())));
  LoadControl control;
  ASSIGN_OR_RETURN(std::vector<ResidentExtent> resident,
                   tier->Load(test.model.Job(test.layout), control));
  LoadControl breaking;
  constexpr int kIllegalAddress = 700;
  breaking.on_progress = [&](uint64_t done, uint64_t) {
    if (done > 0) FAKE(fake_cuda_poison)(0, kIllegalAddress);
  };
  const Status first = tier->Load(test.model.Job(test.layout), breaking).status();
  if (first.code() != StatusCode::kUnavailable || tier->health() != first) {
    return InternalError("the load: " + first.ToString() +
                         ", health: " + tier->health().ToString());
  }
  fake_cuda_objects held{};
  FAKE(fake_cuda_count)(&held);
  if (held.handles != 0 || held.mappings != resident.size()) {
    return InternalError(std::to_string(held.mappings) + " mappings after a load that failed");
  }
  FAKE(fake_cuda_fail)("");
  const ExtentSpec& spec = test.layout.extents[0];
  const Status later[] = {
      tier->Load(test.model.Job(test.layout), control).status(),
      tier->Verify(resident[0], spec, *test.model.manifest, control),
      tier->Adopt(spec, std::move(resident[0].fd), resident[0].integrity).status()};
  for (const Status& status : later) {
    if (status != first) return InternalError("a later call: " + status.ToString());
  }
  if (FAKE(fake_cuda_calls)("*") != 0) return InternalError("calls to a lost device");
  return first;
}

class ProcessesTest : public DeviceTierTest {
 protected:
  Status AdoptInAnotherProcess(std::vector<ResidentExtent> resident) {
    cuda::ChildProcess child("adopt");
    Introduce(child);
    cuda::Message extent;
    std::snprintf(extent.text, sizeof extent.text, "%s", resident[0].integrity.c_str());
    cuda::Say(child.socket(), extent, resident[0].fd.get());
    resident.clear();
    tier_.reset();  // As if this process had died: only the descriptor keeps the memory.
    return Answer(child);
  }
  void Introduce(cuda::ChildProcess& child) const {
    cuda::Message begin;
    std::snprintf(begin.text, sizeof begin.text, "%s", path_.c_str());
    cuda::Say(child.socket(), begin);
  }
  static Status Answer(cuda::ChildProcess& child) {
    const cuda::Heard answer = cuda::Hear(child.socket());
    EXPECT_FALSE(answer.closed);
    EXPECT_EQ(child.Wait(), 0);
    return Status(static_cast<StatusCode>(answer.message.code), answer.message.text);
  }
};

TEST_F(ProcessesTest, AnotherProcessAdoptsAndVerifies) {
  const Status status = AdoptInAnotherProcess(Load(*tier_, Job()));
  EXPECT_TRUE(status.ok()) << status.ToString();
}

TEST_F(ProcessesTest, AnotherProcessFindsWhatWasWrittenInBetween) {
  std::vector<ResidentExtent> resident = Load(*tier_, Job());
  FlipByteAsClient(device(), resident[0], 5);
  EXPECT_EQ(AdoptInAnotherProcess(std::move(resident)).code(), StatusCode::kDataLoss);
}

TEST_F(ProcessesTest, ABrokenContextFailsEveryLaterCallAtOnce) {
  SKIP_ON_REAL_GPU("breaks a context");
  cuda::ChildProcess child("break");
  Introduce(child);
  const Status status = Answer(child);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status.ToString();
  EXPECT_THAT(status.message(), HasSubstr(device().uuid()));
  EXPECT_THAT(status.message(), HasSubstr("worker is started again"));
}

int RunChild(const std::string& argument) {
  const size_t colon = argument.rfind(':');
  const UniqueFd socket(std::stoi(argument.substr(colon + 1)));
  ::fcntl(socket.get(), F_SETFD, FD_CLOEXEC);
  const TestModel test(cuda::Hear(socket.get()).message.text);
  const bool adopts = argument.substr(0, colon) == "adopt";
  cuda::SayStatus(socket.get(),
                  adopts ? AdoptInChild(test, socket.get()) : BreakInChild(test, socket.get()));
  return 0;
}

}  // namespace
}  // namespace trims

int main(int argc, char** argv) {
  const std::string_view argument = argc > 1 ? argv[1] : "";
  if (constexpr std::string_view kChild = "--child="; argument.starts_with(kChild)) {
    return trims::RunChild(std::string(argument.substr(kChild.size())));
  }
  ::testing::InitGoogleTest(&argc, argv);
  const trims::FakeMachine machine(FAKE_CUDA_LIBRARY);
  return RUN_ALL_TESTS();
}
