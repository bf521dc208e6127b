// Stored manifests are read back from a disk and from the keeper: any bytes must
// give a manifest or DATA_LOSS. A frame with the right checksum is put around every
// input as well, for a fuzzer can not guess that.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "base/hash.h"
#include "base/status.h"
#include "tier/manifest.h"

namespace {

void Check(std::span<const std::byte> bytes) {
  using namespace trims;  // NOLINT: one function.
  const Result<ModelManifest> manifest = DeserializeManifest(bytes);
  if (!manifest.ok()) {
    TRIMS_CHECK(manifest.status().code() == StatusCode::kDataLoss);
    return;
  }
  // What was accepted must survive the way there and back, and be usable.
  const std::string again = SerializeManifest(*manifest);
  const Result<ModelManifest> back = DeserializeManifest(std::as_bytes(std::span(again)));
  TRIMS_CHECK(back.ok() && back->digest == manifest->digest);
  for (const store::Granularity granularity :
       {store::Granularity::kModel, store::Granularity::kSlab, store::Granularity::kLayer}) {
    const Result<Layout> layout = MakeLayout(*manifest, granularity);
    if (!layout.ok()) continue;
    TRIMS_CHECK(layout->placements.size() == manifest->tensors.size());
    for (size_t i = 0; i < layout->placements.size(); ++i) {
      const Placement& placement = layout->placements[i];
      TRIMS_CHECK(placement.extent < layout->extents.size());
      TRIMS_CHECK(placement.offset % kTensorAlignment == 0);
      TRIMS_CHECK(placement.offset + manifest->tensors[i].size_bytes <=
                  layout->extents[placement.extent].bytes);
    }
    TRIMS_CHECK(!BuildTensorIndex(*manifest, *layout).empty());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> input = std::as_bytes(std::span(data, size));
  Check(input);
  constexpr size_t kFrameBytes = 32;
  if (size < kFrameBytes) return 0;
  // The frame of proto/trims/v1/sidecar.fbs around the rest of the input.
  std::string framed(reinterpret_cast<const char*>(data), size);
  const std::span<const std::byte> payload = input.subspan(kFrameBytes);
  const trims::Checksum checksum = trims::ChecksumOf(payload, payload.size());
  const uint64_t numbers[3] = {payload.size(), checksum.low, checksum.high};
  std::memcpy(framed.data(), "TRIMSMF1", 8);
  std::memcpy(framed.data() + 8, numbers, sizeof numbers);
  Check(std::as_bytes(std::span(framed)));
  return 0;
}
