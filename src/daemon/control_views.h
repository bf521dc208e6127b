// What the control plane shows: values in, protocol buffers out. Pure functions, no
// threads, nothing asked of anybody; control.proto says what each field means.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/digest.h"
#include "daemon/catalogue.h"
#include "daemon/config_layers.h"
#include "daemon/devices.h"
#include "daemon/snapshot.h"
#include "format/model_file.h"
#include "store/types.h"
#include "trims/v1/control.pb.h"

namespace trims {

v1::SharingGranularity ToProto(store::Granularity granularity);
v1::ReplicaState ToProto(store::ReplicaState state);
// UNSPECIFIED for what watchers are not told.
v1::EventKind ToProto(store::Notify::Kind kind);
void SetTimestamp(const Moment& now, Time when, google::protobuf::Timestamp* out);
void SetDuration(Duration duration, google::protobuf::Duration* out);

void FillReplica(const Moment& now, const std::vector<std::string>& tier_names,
                 const store::ReplicaSummary& replica, v1::ReplicaView* out);
// `entry` is null for a model without a catalogue name, `digest` for one whose contents
// nobody knows yet.
void FillModel(const Snapshot& snapshot, const CatalogueEntry* entry, const Digest* digest,
               v1::ModelView* out);
// Every entry, and what is resident beside.
void FillList(const Snapshot& snapshot, const std::vector<CatalogueEntry>& entries,
              bool resident_only, v1::ListResponse* out);

// What the headers of weights files say, read by whoever may block.
struct ModelHeaders {
  uint64_t weight_bytes = 0;
  std::map<std::string, std::string> metadata;
  std::map<std::string, format::TensorEntry> tensors;
};
void FillHeaders(const ModelHeaders& headers, v1::ModelView* out);
void FillContents(const ModelHeaders& headers, bool with_tensors, v1::InfoResponse* out);
void FillContents(const ModelManifest& manifest, bool with_tensors, v1::InfoResponse* out);

// By pid: /proc/<pid>/comm.
using Commands = std::map<int32_t, std::string>;
// Of this model and in this tier, where given.
void FillLeases(const Snapshot& snapshot, const Commands& commands,
                const std::optional<Digest>& model, std::optional<store::TierIndex> tier,
                google::protobuf::RepeatedPtrField<v1::LeaseView>* out);

// Something that happened, as the reactor's thread notes it down for watchers.
struct Happening {
  Time at{};
  v1::EventKind kind = v1::EVENT_KIND_UNSPECIFIED;
  std::string model;
  std::optional<Digest> digest;              // nullopt while unknown.
  std::optional<store::ReplicaKey> replica;  // nullopt: of the catalogue.
  uint64_t bytes = 0;
  std::string detail;
  uint64_t dropped = 0;
};
void FillEvent(const Moment& now, const std::vector<std::string>& tier_names,
               const Happening& happening, v1::Event* out);

// Of what the snapshot knows; processes, places and devices come from elsewhere.
void FillStatus(const Snapshot& snapshot, v1::GetStatusResponse* out);
void FillDevices(const std::vector<DeviceFacts>& devices, const std::string& why_none,
                 v1::GetStatusResponse* out);
void FillConfig(const std::vector<ConfigEntry>& entries, v1::GetConfigResponse* out);

// "m in tier host: 2 leases (held by pid 7 uid 1000, pid 8 uid 0)"; `pids` by session.
std::string DescribeKept(const store::EvictResult::Kept& kept,
                         const std::vector<std::string>& tier_names,
                         const std::map<store::SessionId, int32_t>& pids);

}  // namespace trims
