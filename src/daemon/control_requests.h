// What callers write into control requests, checked: enums, durations, paths. Pure
// functions; INVALID_ARGUMENT names the field and what was found in it.
#pragma once

#include <optional>
#include <set>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "store/types.h"

namespace trims {

namespace v1 {
class LoadRequest;
class WatchRequest;
}  // namespace v1

// nullopt: auto. Not given is model.
Result<std::optional<store::Granularity>> GranularityOf(const v1::LoadRequest& request);
// nullopt: the daemon's setting; a nullopt in it: for ever.
Result<std::optional<std::optional<Duration>>> KeepAliveOf(const v1::LoadRequest& request);
// Numbers of v1::EventKind; empty: all.
Result<std::set<int>> EventKindsOf(const v1::WatchRequest& request);
// Absolute, and a path at all.
Status CheckModelPath(const std::string& path);

}  // namespace trims
