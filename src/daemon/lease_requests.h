// What a client asks for: from a verified message of lease.fbs to the registry's words, or to
// the words that refuse it. The message is well-formed and no more: every number and every
// text in it is still the client's.
//
// Pure functions; the registry is asked for its tiers only.
#pragma once

#include "base/status.h"
#include "daemon/registry.h"
#include "trims/v1/lease_generated.h"

namespace trims {

// Of Open and of OpenFile's options. The model's name is as it came; the session, who it
// belongs to and the file are the caller's to add. INVALID_ARGUMENT for a tier, a granularity
// or a digest that there is none of; FAILED_PRECONDITION for a device that is not served.
Result<OpenRequest> ReadOpen(const v1::Open& open, const Registry& registry);

// How long an open may take; nullopt: for ever.
std::optional<Duration> DeadlineOf(const v1::Open& open);

// INVALID_ARGUMENT when it names nothing that could be a replica of this daemon.
Result<store::ReplicaKey> ReadReattach(const v1::Reattach& reattach, const Registry& registry);

}  // namespace trims
