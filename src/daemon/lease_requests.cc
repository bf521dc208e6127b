#include "daemon/lease_requests.h"

#include <algorithm>
#include <string>

#include "base/device_names.h"
#include "daemon/devices.h"

namespace trims {
namespace {

static_assert(static_cast<uint8_t>(v1::Granularity::Model) ==
              static_cast<uint8_t>(store::Granularity::kModel));
static_assert(static_cast<uint8_t>(v1::Granularity::Slab) ==
              static_cast<uint8_t>(store::Granularity::kSlab));
static_assert(static_cast<uint8_t>(v1::Granularity::Layer) ==
              static_cast<uint8_t>(store::Granularity::kLayer));

// Longer than a year is for ever, and no sum with it overflows.
constexpr int64_t kForeverMs = int64_t{366} * 24 * 3600 * 1000;
// keep_alive_ms of who leaves it to the daemon.
constexpr int64_t kDaemonsKeepAlive = -2;
// Of a client's own text in an answer.
constexpr size_t kQuotedUuidMax = 64;

std::string_view TextOf(const flatbuffers::String* text) {
  return text == nullptr ? std::string_view() : text->string_view();
}

// nullopt: auto.
Result<std::optional<store::Granularity>> GranularityOf(v1::Granularity granularity) {
  switch (granularity) {
    case v1::Granularity::Auto:
      return std::optional<store::Granularity>();
    case v1::Granularity::Model:
    case v1::Granularity::Slab:
    case v1::Granularity::Layer:
      return std::optional(static_cast<store::Granularity>(granularity));
  }
  return InvalidArgumentError("unknown sharing granularity " +
                              std::to_string(static_cast<int>(granularity)));
}

Result<store::TierIndex> TierOf(v1::TierKind kind, std::string_view uuid,
                                const Registry& registry) {
  switch (kind) {
    case v1::TierKind::Host:
      return registry.tiers().host();
    case v1::TierKind::Device: {
      if (const auto tier = registry.TierByName(DeviceTierName(uuid))) return *tier;
      const std::string why = registry.devices() == nullptr
                                  ? "it serves none"
                                  : registry.devices()->WhyNotServed(std::string(uuid));
      return FailedPreconditionError("this daemon serves no device \"" +
                                     std::string(uuid.substr(0, kQuotedUuidMax)) + "\": " + why +
                                     "; open on the host tier, or see `trims doctor`");
    }
  }
  return InvalidArgumentError("unknown kind of tier " + std::to_string(static_cast<int>(kind)));
}

}  // namespace

Result<OpenRequest> ReadOpen(const v1::Open& open, const Registry& registry) {
  OpenRequest request;
  request.model = TextOf(open.model());
  ASSIGN_OR_RETURN(request.tier, TierOf(open.tier(), TextOf(open.device_uuid()), registry));
  ASSIGN_OR_RETURN(request.granularity, GranularityOf(open.granularity()));
  if (open.expected_digest() != nullptr) {
    Result<Digest> digest =
        Digest::FromBytes(open.expected_digest()->data(), open.expected_digest()->size());
    if (!digest.ok()) return InvalidArgumentError("expected " + digest.status().message());
    request.expected = *digest;
  }
  if (const int64_t ms = open.keep_alive_ms(); ms != kDaemonsKeepAlive) {
    const bool is_forever = ms < 0 || ms > kForeverMs;
    request.keep_alive = is_forever ? std::optional<Duration>()
                                    : std::optional<Duration>(std::chrono::milliseconds(ms));
  }
  return request;
}

std::optional<Duration> DeadlineOf(const v1::Open& open) {
  if (open.deadline_ms() == 0) return std::nullopt;
  return std::chrono::milliseconds(std::min<uint64_t>(open.deadline_ms(), kForeverMs));
}

Result<store::ReplicaKey> ReadReattach(const v1::Reattach& reattach, const Registry& registry) {
  const Result<Digest> digest =
      Digest::FromBytes(reattach.digest()->data(), reattach.digest()->size());
  const auto granularity = GranularityOf(reattach.granularity());
  const auto tier = TierOf(reattach.tier(), TextOf(reattach.device_uuid()), registry);
  if (!digest.ok() || !tier.ok() || !granularity.ok() || !granularity->has_value()) {
    return InvalidArgumentError("Reattach names no replica");
  }
  return store::ReplicaKey{*digest, *tier, **granularity};
}

}  // namespace trims
