#include "tier/manifest.h"

#include <fcntl.h>
#include <flatbuffers/flatbuffers.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tier/test_model.h"
#include "trims/v1/index_generated.h"
#include "trims/v1/sidecar_generated.h"

namespace trims {
namespace {

using ::testing::HasSubstr;

// A U8 tensor whose content is `content` bytes of the letter `letter`.
ManifestTensor Tensor(std::string name, uint64_t size, char letter) {
  ManifestTensor tensor;
  tensor.name = std::move(name);
  tensor.dtype = DType::kU8;
  tensor.shape = {static_cast<int64_t>(size)};
  tensor.offset = 64;
  tensor.size_bytes = size;
  tensor.content = Sha256::Of(format::AsBytes(std::string(1, letter) + std::to_string(size)));
  for (uint64_t at = 0; at < size; at += kChunkBytes) {
    tensor.chunks.push_back({at + 1, static_cast<uint64_t>(letter)});
  }
  return tensor;
}

ModelManifest Manifest(std::vector<ManifestTensor> tensors) {
  ModelManifest manifest;
  manifest.tensors = std::move(tensors);
  manifest.file_identities = {{1, 2, uint64_t{1} << 40, 4, 5}};
  FinishManifest(manifest);
  return manifest;
}

ModelManifest SmallManifest() {
  ModelManifest manifest = Manifest({Tensor("a", 100, 'a'), Tensor("b", 3 * kChunkBytes + 1, 'b'),
                                     Tensor("c", 0, 'c'), Tensor("d", 5000, 'd')});
  manifest.metadata = {{"format", "pt"}, {"license", "none"}};
  manifest.file_identities.push_back({6, 7, 8, -9, 10});
  return manifest;
}

std::vector<uint64_t> PieceOffsets(const ExtentSpec& extent) {
  std::vector<uint64_t> offsets;
  for (const Piece& piece : extent.pieces) offsets.push_back(piece.extent_offset);
  return offsets;
}

void ExpectEqual(const ModelManifest& a, const ModelManifest& b) {
  EXPECT_EQ(a.digest, b.digest);
  EXPECT_EQ(a.metadata, b.metadata);
  EXPECT_EQ(a.file_identities, b.file_identities);
  EXPECT_EQ(a.weight_bytes, b.weight_bytes);
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    EXPECT_EQ(a.tensors[i].name, b.tensors[i].name);
    EXPECT_EQ(a.tensors[i].dtype, b.tensors[i].dtype);
    EXPECT_EQ(a.tensors[i].shape, b.tensors[i].shape);
    EXPECT_EQ(a.tensors[i].file, b.tensors[i].file);
    EXPECT_EQ(a.tensors[i].offset, b.tensors[i].offset);
    EXPECT_EQ(a.tensors[i].size_bytes, b.tensors[i].size_bytes);
    EXPECT_EQ(a.tensors[i].content, b.tensors[i].content);
    EXPECT_EQ(a.tensors[i].chunks, b.tensors[i].chunks);
  }
}

// --- Identity -----------------------------------------------------------------

// The numbers are from an independent computation over the definition in
// manifest.h, with Python's hashlib:
//   t = lambda n, d, s, b: struct.pack("<Q", len(n)) + n + struct.pack("<QQ", d, len(s)) +
//       struct.pack("<%dQ" % len(s), *s) + hashlib.sha256(b).digest()
//   body = t(b"bias", 9, [2], b"\0" * 8) + t(b"weight", 6, [2, 3], b"\1" * 12)
//   hashlib.sha256(b"trims-model-v1\n" + struct.pack("<Q", 2) + body)
TEST(ManifestDigestTest, FollowsItsDefinition) {
  ModelManifest manifest;
  ManifestTensor bias;
  bias.name = "bias";
  bias.dtype = DType::kF32;
  bias.shape = {2};
  bias.size_bytes = 8;
  bias.content = Sha256::Of(format::AsBytes(std::string(8, '\0')));
  ManifestTensor weight;
  weight.name = "weight";
  weight.dtype = DType::kBF16;
  weight.shape = {2, 3};
  weight.size_bytes = 12;
  weight.content = Sha256::Of(format::AsBytes(std::string(12, '\1')));
  manifest.tensors = {bias, weight};
  FinishManifest(manifest);
  EXPECT_EQ(manifest.digest.ToHex(),
            "f8dbc6d7f23cf80f975cfaae6cc5b9c69de24c8b8ecbec10ad3fc46b47be2fd0");
  EXPECT_EQ(manifest.weight_bytes, 20U);

  // hashlib.sha256(b"trims-extent-v1\n" + struct.pack("<QQ", 4096, 2) +
  //     sha(bias) + struct.pack("<QQ", 8, 0) + sha(weight) + struct.pack("<QQ", 12, 256))
  const Result<Layout> layout = MakeLayout(manifest, store::Granularity::kModel);
  ASSERT_TRUE(layout.ok());
  EXPECT_EQ(layout->extents.at(0).key.ToHex(),
            "1c1bf154558c9337420f129e62e6ea09cc0c3ffa3ffb0fab8811611a08b6de94");
}

TEST(ManifestDigestTest, DependsOnEveryPartOfATensor) {
  const auto digest = [](const auto& change) {
    ManifestTensor tensor = Tensor("a", 6, 'a');
    tensor.shape = {2, 3};
    change(tensor);
    return Manifest({tensor}).digest;
  };
  std::set<Digest> digests = {
      digest([](ManifestTensor&) {}),
      digest([](ManifestTensor& t) { t.name = "b"; }),
      digest([](ManifestTensor& t) { t.dtype = DType::kI8; }),
      digest([](ManifestTensor& t) {
        t.shape = {3, 2};
      }),
      digest([](ManifestTensor& t) { t.shape = {6}; }),
      digest([](ManifestTensor& t) { t.content.bytes[31] ^= 1; }),
  };
  EXPECT_EQ(digests.size(), 6U);
}

TEST(ManifestDigestTest, DoesNotDependOnWhereTheBytesLie) {
  ManifestTensor here = Tensor("a", 6, 'a');
  ManifestTensor there = here;
  there.offset = 4711;
  EXPECT_EQ(Manifest({here}).digest, Manifest({there}).digest);
}

TEST(IdentifyFileTest, RefusesWhatIsNoRegularFile) {
  const UniqueFd directory(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const Status status = IdentifyFile(directory.get(), "the root").status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("the root"));
}

// --- Stored form --------------------------------------------------------------

TEST(StoredManifestTest, ComesBackAsItWas) {
  const ModelManifest manifest = SmallManifest();
  const std::string bytes = SerializeManifest(manifest);
  const Result<ModelManifest> back = DeserializeManifest(format::AsBytes(bytes));
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  ExpectEqual(manifest, *back);
}

TEST(StoredManifestTest, AModelWithoutTensorsComesBackToo) {
  const ModelManifest manifest = Manifest({});
  const Result<ModelManifest> back =
      DeserializeManifest(format::AsBytes(SerializeManifest(manifest)));
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  ExpectEqual(manifest, *back);
}

TEST(StoredManifestTest, MayLieAtAnyAddress) {
  const std::string bytes = SerializeManifest(SmallManifest());
  for (size_t shift = 0; shift < 9; ++shift) {
    const std::string shifted = std::string(shift, 'x') + bytes;
    EXPECT_TRUE(DeserializeManifest(format::AsBytes(shifted).subspan(shift)).ok()) << shift;
  }
}

TEST(StoredManifestTest, EveryFlippedBitIsNoticed) {
  const std::string bytes = SerializeManifest(SmallManifest());
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      ASSERT_EQ(DeserializeManifest(format::AsBytes(damaged)).status().code(),
                StatusCode::kDataLoss)
          << "byte " << i << ", bit " << bit;
    }
  }
}

TEST(StoredManifestTest, EveryTruncationIsNoticed) {
  const std::string bytes = SerializeManifest(SmallManifest());
  for (size_t size = 0; size < bytes.size(); ++size) {
    ASSERT_EQ(DeserializeManifest(format::AsBytes(bytes.substr(0, size))).status().code(),
              StatusCode::kDataLoss)
        << size;
  }
  EXPECT_EQ(DeserializeManifest(format::AsBytes(bytes + "x")).status().code(),
            StatusCode::kDataLoss);
}

// A frame with a right checksum around wrong contents: what a bug of an older
// version, and not a bad disk, would leave behind.
class InconsistentManifestTest : public ::testing::Test {
 protected:
  static void ExpectRefused(const ModelManifest& manifest, const std::string& why) {
    const Status status =
        DeserializeManifest(format::AsBytes(SerializeManifest(manifest))).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << why;
    EXPECT_THAT(status.message(), HasSubstr(why));
  }
  template <typename Change>
  static void ExpectTensorRefused(const Change& change, const std::string& why) {
    ModelManifest manifest = SmallManifest();
    change(manifest.tensors[1]);
    FinishManifest(manifest);
    ExpectRefused(manifest, why);
  }
};

TEST_F(InconsistentManifestTest, IsRefused) {
  ExpectTensorRefused([](ManifestTensor& t) { t.dtype = static_cast<DType>(kDTypeCount); },
                      "unknown type");
  ExpectTensorRefused([](ManifestTensor& t) { t.shape = {-1}; }, "does not follow from its type");
  ExpectTensorRefused([](ManifestTensor& t) { t.shape = {7}; }, "does not follow from its type");
  ExpectTensorRefused(
      [](ManifestTensor& t) {
        t.shape = {INT64_MAX, INT64_MAX};
      },
      "does not follow from its type");
  ExpectTensorRefused([](ManifestTensor& t) { t.shape.assign(kMaxTensorRank + 1, 1); }, "rank");
  ExpectTensorRefused([](ManifestTensor& t) { t.file = 2; }, "not listed");
  ExpectTensorRefused([](ManifestTensor& t) { t.file = 1; }, "outside its file");
  ExpectTensorRefused([](ManifestTensor& t) { t.offset = UINT64_MAX; }, "outside its file");
  ExpectTensorRefused([](ManifestTensor& t) { t.chunks.pop_back(); }, "chunk checksums");
  ExpectTensorRefused([](ManifestTensor& t) { t.name = "a"; }, "not sorted");
  ExpectTensorRefused([](ManifestTensor& t) { t.name = "z"; }, "not sorted");
  ExpectTensorRefused([](ManifestTensor& t) { t.name.assign(kMaxTensorNameBytes + 1, 'a'); },
                      "tensor name");
  ModelManifest manifest = SmallManifest();
  manifest.digest.bytes[0] ^= 1;
  ExpectRefused(manifest, "digest");
}

// --- Layouts ------------------------------------------------------------------

TEST(LayoutTest, ModelGranularityPacksOneExtentInNameOrder) {
  const ModelManifest manifest =
      Manifest({Tensor("a", 100, 'a'), Tensor("b", 256, 'b'), Tensor("c", 5000, 'c')});
  const Result<Layout> layout = MakeLayout(manifest, store::Granularity::kModel);
  ASSERT_TRUE(layout.ok());
  ASSERT_EQ(layout->extents.size(), 1U);
  EXPECT_EQ(PieceOffsets(layout->extents[0]), (std::vector<uint64_t>{0, 256, 512}));
  EXPECT_EQ(layout->extents[0].bytes, 8192U);  // 5512 rounded up.
  ASSERT_EQ(layout->placements.size(), 3U);
  EXPECT_EQ(layout->placements[2].extent, 0U);
  EXPECT_EQ(layout->placements[2].offset, 512U);
}

TEST(LayoutTest, SlabGranularityNeverSplitsATensor) {
  const ModelManifest manifest =
      Manifest({Tensor("a", 5000, 'a'), Tensor("b", 3000, 'b'), Tensor("c", 200, 'c'),
                Tensor("d", 20000, 'd'), Tensor("e", 10, 'e')});
  const Result<Layout> layout = MakeLayout(manifest, store::Granularity::kSlab, 8192);
  ASSERT_TRUE(layout.ok());
  // a and b fit (5120 + 3000 = 8120), c does not, d is larger than a slab, e is left.
  ASSERT_EQ(layout->extents.size(), 4U);
  EXPECT_EQ(PieceOffsets(layout->extents[0]), (std::vector<uint64_t>{0, 5120}));
  EXPECT_EQ(layout->extents[0].bytes, 8192U);
  EXPECT_EQ(layout->extents[1].bytes, 4096U);
  EXPECT_EQ(layout->extents[2].bytes, 20480U);
  EXPECT_EQ(layout->extents[3].bytes, 4096U);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(layout->placements[i].offset % kTensorAlignment, 0U);
  }
  EXPECT_EQ(layout->placements[4].extent, 3U);
}

TEST(LayoutTest, EqualSlabsOfOneModelShareAnExtent) {
  const ModelManifest manifest =
      Manifest({Tensor("a", 4000, 'x'), Tensor("b", 4000, 'x'), Tensor("c", 4000, 'y')});
  const Result<Layout> layout = MakeLayout(manifest, store::Granularity::kSlab, 4096);
  ASSERT_TRUE(layout.ok());
  EXPECT_EQ(layout->extents.size(), 2U);
  EXPECT_EQ(layout->placements[0].extent, layout->placements[1].extent);
  EXPECT_EQ(layout->placements[2].extent, 1U);
}

TEST(LayoutTest, LayerGranularityGivesEveryDistinctContentItsExtent) {
  const ModelManifest manifest =
      Manifest({Tensor("a", 100, 'x'), Tensor("b", 100, 'y'), Tensor("c", 100, 'x')});
  const Result<Layout> layout = MakeLayout(manifest, store::Granularity::kLayer);
  ASSERT_TRUE(layout.ok());
  ASSERT_EQ(layout->extents.size(), 2U);
  EXPECT_EQ(layout->placements[0].extent, 0U);
  EXPECT_EQ(layout->placements[1].extent, 1U);
  EXPECT_EQ(layout->placements[2].extent, 0U);
  EXPECT_NE(layout->extents[0].key, layout->extents[1].key);
}

TEST(LayoutTest, ModelsWithOneLayerInCommonShareItsKey) {
  const Result<Layout> one =
      MakeLayout(Manifest({Tensor("backbone", 9000, 'x'), Tensor("head", 100, 'y')}),
                 store::Granularity::kLayer);
  const Result<Layout> other =
      MakeLayout(Manifest({Tensor("classifier", 100, 'z'), Tensor("features", 9000, 'x')}),
                 store::Granularity::kLayer);
  ASSERT_TRUE(one.ok() && other.ok());
  EXPECT_EQ(one->extents[0].key, other->extents[1].key);
  EXPECT_NE(one->extents[1].key, other->extents[0].key);
}

TEST(LayoutTest, EmptyTensorsTakeNoRoom) {
  for (const store::Granularity granularity :
       {store::Granularity::kModel, store::Granularity::kSlab, store::Granularity::kLayer}) {
    const Result<Layout> layout = MakeLayout(
        Manifest({Tensor("a", 0, 'a'), Tensor("b", 10, 'b'), Tensor("c", 0, 'c')}), granularity);
    ASSERT_TRUE(layout.ok());
    EXPECT_EQ(layout->extents.size(), 1U);
    EXPECT_EQ(layout->extents[0].pieces.size(), 1U);
    EXPECT_EQ(layout->placements[2].extent, 0U);
    EXPECT_EQ(layout->placements[2].offset, 0U);
  }
}

TEST(LayoutTest, AModelWithoutBytesHasOnePage) {
  for (const store::Granularity granularity :
       {store::Granularity::kModel, store::Granularity::kSlab, store::Granularity::kLayer}) {
    const Result<Layout> layout = MakeLayout(Manifest({Tensor("a", 0, 'a')}), granularity);
    ASSERT_TRUE(layout.ok());
    ASSERT_EQ(layout->extents.size(), 1U);
    EXPECT_EQ(layout->extents[0].bytes, kHostPageBytes);
  }
}

TEST(LayoutTest, TooManyExtentsSaysWhatToUseInstead) {
  std::vector<ManifestTensor> tensors;
  for (size_t i = 0; i < kMaxExtentsPerModel + 1; ++i) {
    std::string number = std::to_string(i);
    number.insert(0, 6 - number.size(), '0');
    ManifestTensor tensor = Tensor("t" + number, 1, 'a');
    tensor.content = Sha256::Of(format::AsBytes(number));
    tensors.push_back(std::move(tensor));
  }
  const ModelManifest manifest = Manifest(std::move(tensors));
  const Status layers = MakeLayout(manifest, store::Granularity::kLayer).status();
  EXPECT_EQ(layers.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(layers.message(), HasSubstr("\"slab\""));
  EXPECT_TRUE(MakeLayout(manifest, store::Granularity::kSlab).ok());
  EXPECT_TRUE(MakeLayout(manifest, store::Granularity::kModel).ok());
}

TEST(LayoutTest, RefusesSlabsThatAreNoPages) {
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{100}, uint64_t{5000}}) {
    EXPECT_EQ(MakeLayout(Manifest({}), store::Granularity::kSlab, bytes).status().code(),
              StatusCode::kInvalidArgument)
        << bytes;
  }
}

TEST(PlanTest, ListsExtentsInLayoutOrder) {
  const ModelManifest manifest = SmallManifest();
  const Result<Layout> layout = MakeLayout(manifest, store::Granularity::kLayer);
  ASSERT_TRUE(layout.ok());
  const store::ModelPlan plan = MakePlan(manifest, *layout, "small");
  EXPECT_EQ(plan.model, manifest.digest);
  EXPECT_EQ(plan.name, "small");
  EXPECT_EQ(plan.weight_bytes, manifest.weight_bytes);
  ASSERT_EQ(plan.extents.size(), layout->extents.size());
  for (size_t i = 0; i < plan.extents.size(); ++i) {
    EXPECT_EQ(plan.extents[i].key, layout->extents[i].key);
    EXPECT_EQ(plan.extents[i].bytes, layout->extents[i].bytes);
  }
}

// --- The index that clients read ----------------------------------------------

TEST(TensorIndexTest, SaysWhereEveryTensorIs) {
  const ModelManifest manifest = SmallManifest();
  const Result<Layout> layout = MakeLayout(manifest, store::Granularity::kLayer);
  ASSERT_TRUE(layout.ok());
  const std::string bytes = BuildTensorIndex(manifest, *layout);
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  flatbuffers::Verifier verifier(data, bytes.size());
  ASSERT_TRUE(v1::VerifySizePrefixedTensorIndexBuffer(verifier));
  const v1::TensorIndex* const index = v1::GetSizePrefixedTensorIndex(data);
  ASSERT_EQ(index->tensors()->size(), manifest.tensors.size());
  for (uint32_t i = 0; i < manifest.tensors.size(); ++i) {
    const ManifestTensor& expected = manifest.tensors[i];
    const v1::Tensor* const found = index->tensors()->LookupByKey(expected.name.c_str());
    ASSERT_NE(found, nullptr) << expected.name;
    EXPECT_EQ(found, index->tensors()->Get(i));
    EXPECT_EQ(found->dtype(), static_cast<uint8_t>(expected.dtype));
    EXPECT_EQ(found->shape()->Get(0), expected.shape[0]);
    EXPECT_EQ(found->extent(), layout->placements[i].extent);
    EXPECT_EQ(found->offset(), layout->placements[i].offset);
    EXPECT_EQ(found->size_bytes(), expected.size_bytes);
  }
  EXPECT_EQ(index->metadata()->LookupByKey("format")->value()->str(), "pt");
}

TEST(TensorIndexTest, NamesBeyondAsciiAreFound) {
  ModelManifest manifest =
      Manifest({Tensor("A", 1, 'a'), Tensor("z", 1, 'b'), Tensor("\xc3\xa9", 1, 'c')});
  const Result<Layout> layout = MakeLayout(manifest, store::Granularity::kModel);
  ASSERT_TRUE(layout.ok());
  const std::string bytes = BuildTensorIndex(manifest, *layout);
  const v1::TensorIndex* const index = v1::GetSizePrefixedTensorIndex(bytes.data());
  EXPECT_NE(index->tensors()->LookupByKey("\xc3\xa9"), nullptr);
  EXPECT_NE(index->tensors()->LookupByKey("A"), nullptr);
  EXPECT_EQ(index->tensors()->LookupByKey("b"), nullptr);
}

}  // namespace
}  // namespace trims
