#include "daemon/control_requests.h"

#include <cstdint>
#include <limits>

#include "trims/v1/control.pb.h"

namespace trims {

Result<std::optional<store::Granularity>> GranularityOf(const v1::LoadRequest& request) {
  switch (request.granularity()) {
    case v1::SHARING_GRANULARITY_AUTO:
      return std::optional<store::Granularity>();
    case v1::SHARING_GRANULARITY_UNSPECIFIED:
    case v1::SHARING_GRANULARITY_MODEL:
      return std::optional(store::Granularity::kModel);
    case v1::SHARING_GRANULARITY_SLAB:
      return std::optional(store::Granularity::kSlab);
    case v1::SHARING_GRANULARITY_LAYER:
      return std::optional(store::Granularity::kLayer);
    default:
      return InvalidArgumentError("granularity " + std::to_string(request.granularity()) +
                                  " is not known to this daemon; expected auto, model, slab or "
                                  "layer (1 to 4)");
  }
}

Result<std::optional<std::optional<Duration>>> KeepAliveOf(const v1::LoadRequest& request) {
  using KeepAlive = std::optional<Duration>;
  constexpr int64_t kSecond = 1'000'000'000;
  if (!request.has_keep_alive()) return std::optional<KeepAlive>();
  const int64_t seconds = request.keep_alive().seconds();
  const int64_t nanos = request.keep_alive().nanos();
  if (nanos <= -kSecond || nanos >= kSecond || (seconds > 0 && nanos < 0) ||
      (seconds < 0 && nanos > 0)) {
    return InvalidArgumentError("keep_alive of " + std::to_string(seconds) + " seconds and " +
                                std::to_string(nanos) +
                                " nanos is not a duration: nanos have the sign of seconds and "
                                "at most nine digits");
  }
  if (seconds < 0 || nanos < 0) return std::optional<KeepAlive>(KeepAlive());
  if (seconds > (std::numeric_limits<int64_t>::max() - nanos) / kSecond) {
    return InvalidArgumentError("keep_alive of " + std::to_string(seconds) +
                                " seconds is longer than 292 years; a negative one is for ever");
  }
  return std::optional<KeepAlive>(Duration(seconds * kSecond + nanos));
}

Result<std::set<int>> EventKindsOf(const v1::WatchRequest& request) {
  std::set<int> kinds;
  for (const int kind : request.kinds()) {
    // What is never said would be waited for in vain.
    if (kind == v1::EVENT_KIND_UNSPECIFIED || !v1::EventKind_IsValid(kind)) {
      return InvalidArgumentError("event kind " + std::to_string(kind) +
                                  " is not known to this daemon; expected 1 to " +
                                  std::to_string(v1::EventKind_MAX));
    }
    kinds.insert(kind);
  }
  return kinds;
}

Status CheckModelPath(const std::string& path) {
  if (path.find('\0') != std::string::npos) {
    return InvalidArgumentError("path \"" + path.substr(0, path.find('\0')) +
                                "\" goes on behind a NUL character");
  }
  if (path.empty() || path[0] != '/')
    return InvalidArgumentError("path \"" + path + "\" is not absolute");
  return OkStatus();
}

}  // namespace trims
