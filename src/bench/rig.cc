#include "bench/rig.h"

#include <poll.h>

#include <algorithm>
#include <utility>

#include "base/limits.h"
#include "client/error_status.h"

namespace trims::bench {
namespace {

// For an answer of the daemon to appear in what it reports, and for what it does by itself.
constexpr std::chrono::milliseconds kPoll(10);
constexpr int kCalmPolls = 5;
constexpr std::chrono::minutes kCalmDeadline(5);
constexpr std::chrono::seconds kCleanUpDeadline(5);

const char* PhaseText(trims_phase phase) {
  switch (phase) {
    case TRIMS_PHASE_QUEUED:
      return "waiting";
    case TRIMS_PHASE_RESOLVING:
      return "reading headers";
    case TRIMS_PHASE_HASHING:
      return "hashing (first sight of the file)";
    case TRIMS_PHASE_LOADING:
      return "loading";
    case TRIMS_PHASE_VERIFYING:
      return "verifying";
    default:
      return "working";
  }
}

// Refers to `place`.
OpenOptions OptionsFor(const Place& place) {
  OpenOptions options;
  if (!place.uuid.empty()) {
    options.c.tier = TRIMS_TIER_DEVICE;
    options.c.device_uuid = place.uuid.c_str();
  }
  return options;
}

}  // namespace

Rig::Rig(Control& control, Observer& observer, Place place)
    : control_(control), observer_(observer), place_(std::move(place)) {}

Result<std::unique_ptr<Rig>> Rig::Make(Control& control, Observer& observer, RigOptions options) {
  std::unique_ptr<Rig> rig(new Rig(control, observer, std::move(options.place)));
  if (!rig->place_.uuid.empty()) {
    Result<Device> opened = Device::Open(rig->place_.uuid);
    if (!opened.ok()) {
      return Status(opened.status().code(), "this process can not use " + rig->place_.text + ": " +
                                                opened.status().message());
    }
    rig->device_ = std::move(*opened);
  }
  trims_connect_options connect = TRIMS_CONNECT_OPTIONS_INIT;
  connect.runtime_dir = options.runtime_dir.c_str();
  connect.daemon_uid = options.daemon_uid;
  Expected<Client> connected = Client::Connect(connect);
  if (!connected) return client::ErrorStatus(connected.error());
  rig->client_ = *std::move(connected);
  return rig;
}

Result<Lease> Rig::Open(const std::string& model, const Place& place) {
  OpenOptions options = OptionsFor(place);
  options.progress = [this](trims_phase phase, uint64_t done_bytes, uint64_t total_bytes) {
    observer_.Show(
        {.label = PhaseText(phase), .done_bytes = done_bytes, .total_bytes = total_bytes});
    return !interrupts_.Check().ok();
  };
  Expected<Lease> lease = client_.Open(model, options);
  observer_.Clear();
  if (lease) return *std::move(lease);
  return lease.error().status() == TRIMS_CANCELLED ? CancelledError("interrupted")
                                                   : client::ErrorStatus(lease.error());
}

Expected<Lease> Rig::OpenPlainly(const std::string& model, const Place& place) {
  return client_.Open(model, OptionsFor(place));
}

Status Rig::Settle() {
  // Behind every close on the same connection.
  const std::optional<Error> error = client_.Ping();
  return error ? client::ErrorStatus(*error) : OkStatus();
}

Status Rig::KeepOnly(const std::string& model, const std::vector<std::string>& keep) {
  return KeepOnlyUntil(std::chrono::steady_clock::now() + kCalmDeadline, model, keep,
                       [this] { return interrupts_.Wait(kPoll); });
}

void Rig::DropAll(const std::string& model) {
  // Whoever interrupts a benchmark still wants it to clean up; the daemon may be gone, which is
  // no reason to fail twice.
  const Status ignored =
      KeepOnlyUntil(std::chrono::steady_clock::now() + kCleanUpDeadline, model, {}, [] {
        ::poll(nullptr, 0, static_cast<int>(kPoll.count()));
        return OkStatus();
      });
  static_cast<void>(ignored.ok());
}

Status Rig::KeepOnlyUntil(std::chrono::steady_clock::time_point deadline, const std::string& model,
                          const std::vector<std::string>& keep,
                          const std::function<Status()>& wait) {
  RETURN_IF_ERROR(Settle());
  // Calm for a while: the daemon begins a copy in the host tier only after a load has ended.
  for (int calm = 0; calm < kCalmPolls; ++calm) {
    if (std::chrono::steady_clock::now() > deadline) {
      return DeadlineExceededError(
          "the daemon does not come to rest: other loads go on, which would be measured, too");
    }
    v1::InfoRequest request;
    request.set_model(model);
    v1::InfoResponse info;
    RETURN_IF_ERROR(control_.Info(request, &info));
    for (const v1::ReplicaView& replica : info.model().replicas()) {
      if (std::find(keep.begin(), keep.end(), replica.tier()) != keep.end()) continue;
      calm = -1;
      v1::EvictRequest evict;
      evict.set_model(model);
      evict.set_tier(replica.tier());
      evict.set_force(true);
      v1::EvictResponse evicted;
      const Status status = control_.Evict(evict, &evicted);
      if (!status.ok() && status.code() != StatusCode::kNotFound) return status;
    }
    v1::GetStatusResponse now;
    RETURN_IF_ERROR(control_.GetStatus(v1::GetStatusRequest(), &now));
    if (now.loads_running() > 0 || now.host_pinning()) calm = -1;
    RETURN_IF_ERROR(wait());
  }
  return OkStatus();
}

Status Rig::WaitUntilCleared(uint64_t bytes) const {
  if (!device_) return interrupts_.Check();
  return interrupts_.Wait(std::chrono::milliseconds(20 + 10 * bytes / kGiB));
}

}  // namespace trims::bench
