#include "cli/bench_rig.h"

#include <poll.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "base/limits.h"
#include "cli/progress.h"
#include "cli/text.h"
#include "daemon/config.h"

namespace trims::cli {
namespace {

// For an answer of the daemon to appear in what it reports, and for what it does by itself.
constexpr std::chrono::milliseconds kPoll(10);
constexpr int kCalmPolls = 5;
constexpr std::chrono::minutes kCalmDeadline(5);
constexpr std::chrono::seconds kCleanUpDeadline(5);

// The C ABI's codes are ours by number.
Status TakeError(trims_status code, trims_error* error) {
  const Status status(static_cast<StatusCode>(code), trims_error_message(error));
  trims_error_free(error);
  return status;
}

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

struct OpenProgress {
  ProgressBar bar;
  const Interrupts& interrupts;
};

int OnOpenProgress(void* user, trims_phase phase, uint64_t done_bytes, uint64_t total_bytes) {
  auto* progress = static_cast<OpenProgress*>(user);
  progress->bar.Update(
      {.label = PhaseText(phase), .done_bytes = done_bytes, .total_bytes = total_bytes});
  return progress->interrupts.Check().ok() ? 0 : 1;
}

}  // namespace

Result<std::vector<uint64_t>> BenchSizes(const BenchOptions& options) {
  std::vector<uint64_t> sizes;
  for (const std::string& text : options.sizes) {
    const Result<uint64_t> size = ParseSize(text);
    if (!size.ok()) return InvalidArgumentError("--size: " + size.status().message());
    for (const uint32_t tensors : options.tensors) {
      if (*size < tensors * kTensorAlignment) {
        return InvalidArgumentError("--size " + text + " is too small for " +
                                    std::to_string(tensors) + " tensors: each takes at least " +
                                    std::to_string(kTensorAlignment) + " bytes");
      }
    }
    sizes.push_back(*size);
  }
  return sizes;
}

ExitCode FailBench(const Context& context, const Status& status) {
  switch (status.code()) {
    case StatusCode::kUnavailable:
      if (const Result<std::string> directory = RuntimeDir(context);
          directory.ok() && status.message().starts_with("can not reach the daemon")) {
        return Fail(status, Connection::HintFor(*directory));
      }
      return Fail(status, "\"trims doctor\" says what is wrong with devices and with the daemon");
    case StatusCode::kPermissionDenied:
      return Fail(status, "\"trims doctor\" checks sockets, devices and what this user may do");
    case StatusCode::kNotFound:
      return Fail(status, "\"trims status\" shows the daemon's devices");
    case StatusCode::kAborted:
    case StatusCode::kDeadlineExceeded:
      return Fail(status, "measure again when nobody else uses the daemon");
    case StatusCode::kFailedPrecondition:
      return Fail(status, "\"trims bench load --help\" shows what can be chosen");
    case StatusCode::kInvalidArgument:
      return Fail(status,
                  "\"trims bench --help\" and \"trims bench load --help\" say what is accepted");
    default:
      return Fail(status);
  }
}

// --- The rig --------------------------------------------------------------------

BenchRig::BenchRig(Connection daemon, v1::GetStatusResponse status, bool json)
    : daemon_(std::move(daemon)), status_(std::move(status)), json_(json) {}

BenchRig::~BenchRig() { trims_client_disconnect(client_); }

Result<std::unique_ptr<BenchRig>> BenchRig::Make(const Context& context,
                                                 const std::string& device) {
  ASSIGN_OR_RETURN(const std::string directory, RuntimeDir(context));
  ASSIGN_OR_RETURN(Connection daemon, Connection::Open(directory));
  v1::GetStatusResponse status;
  RETURN_IF_ERROR(daemon.GetStatus(v1::GetStatusRequest(), &status));
  std::unique_ptr<BenchRig> rig(new BenchRig(std::move(daemon), std::move(status), context.json));
  if (!device.empty()) {
    ASSIGN_OR_RETURN(rig->place_, rig->FindPlace(device));
    Result<BenchDevice> opened = BenchDevice::Open(rig->place_.uuid);
    if (!opened.ok()) {
      return Status(opened.status().code(), "this process can not use " + rig->place_.text + ": " +
                                                opened.status().message());
    }
    rig->device_ = std::move(*opened);
  }
  trims_connect_options connect = TRIMS_CONNECT_OPTIONS_INIT;
  connect.runtime_dir = directory.c_str();
  connect.daemon_uid = rig->status_.uid();  // Of whom the control socket was, which was checked.
  trims_error* error = nullptr;
  if (const trims_status code = trims_client_connect(&connect, &rig->client_, &error);
      code != TRIMS_OK) {
    return TakeError(code, error);
  }
  return rig;
}

Result<BenchPlace> BenchRig::FindPlace(const std::string& tier) const {
  if (tier == "host") return BenchPlace();
  const TierNames names(status_);
  const std::string wanted = names.Resolve(tier);
  std::string served;
  for (const v1::DeviceView& device : status_.devices()) {
    const std::string text = names.DeviceText(device.uuid());
    if (wanted == DeviceTierName(device.uuid())) {
      if (!device.tier().empty() && device.ready()) {
        return BenchPlace{.tier = device.tier(), .uuid = device.uuid(), .text = text};
      }
      return UnavailableError("the daemon does not serve " + text + " (" + device.name() +
                              "): " + device.state());
    }
    if (device.ready()) served += (served.empty() ? "" : ", ") + text + " (" + device.name() + ")";
  }
  return NotFoundError(
      "the daemon has no device " + tier +
      (served.empty() ? ", and serves none: " + status_.gpu() : "; it serves " + served));
}

trims_open_options BenchRig::OpenOptions(const BenchPlace& place) const {
  trims_open_options options = TRIMS_OPEN_OPTIONS_INIT;
  if (!place.uuid.empty()) {
    options.tier = TRIMS_TIER_DEVICE;
    options.device_uuid = place.uuid.c_str();
  }
  return options;
}

Result<Lease> BenchRig::Open(const std::string& model, const BenchPlace& place) {
  OpenProgress progress{.bar = ProgressBar(!json_), .interrupts = interrupts_};
  trims_open_options options = OpenOptions(place);
  options.progress = OnOpenProgress;
  options.progress_user = &progress;
  trims_lease* lease = nullptr;
  trims_error* error = nullptr;
  const trims_status code = trims_lease_open(client_, model.c_str(), &options, &lease, &error);
  if (code != TRIMS_OK) {
    const Status status = TakeError(code, error);
    return code == TRIMS_CANCELLED ? CancelledError("interrupted") : status;
  }
  return Lease(lease);
}

trims_lease* BenchRig::OpenPlainly(const std::string& model, const BenchPlace& place,
                                   Status* status) {
  const trims_open_options options = OpenOptions(place);
  trims_lease* lease = nullptr;
  trims_error* error = nullptr;
  const trims_status code = trims_lease_open(client_, model.c_str(), &options, &lease, &error);
  if (code != TRIMS_OK) *status = TakeError(code, error);
  return lease;
}

Status BenchRig::Settle() {
  // Behind every close on the same connection.
  trims_error* error = nullptr;
  const trims_status code = trims_client_ping(client_, &error);
  return code == TRIMS_OK ? OkStatus() : TakeError(code, error);
}

Status BenchRig::KeepOnly(const std::string& model, const std::vector<std::string>& keep) {
  return KeepOnlyUntil(std::chrono::steady_clock::now() + kCalmDeadline, model, keep,
                       [this] { return interrupts_.Wait(kPoll); });
}

void BenchRig::DropAll(const std::string& model) {
  // Whoever interrupts a benchmark still wants it to clean up; the daemon may be gone, which is
  // no reason to fail twice.
  const Status ignored =
      KeepOnlyUntil(std::chrono::steady_clock::now() + kCleanUpDeadline, model, {}, [] {
        ::poll(nullptr, 0, static_cast<int>(kPoll.count()));
        return OkStatus();
      });
  static_cast<void>(ignored.ok());
}

Status BenchRig::KeepOnlyUntil(std::chrono::steady_clock::time_point deadline,
                               const std::string& model, const std::vector<std::string>& keep,
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
    RETURN_IF_ERROR(daemon_.Info(request, &info));
    for (const v1::ReplicaView& replica : info.model().replicas()) {
      if (std::find(keep.begin(), keep.end(), replica.tier()) != keep.end()) continue;
      calm = -1;
      v1::EvictRequest evict;
      evict.set_model(model);
      evict.set_tier(replica.tier());
      evict.set_force(true);
      v1::EvictResponse evicted;
      const Status status = daemon_.Evict(evict, &evicted);
      if (!status.ok() && status.code() != StatusCode::kNotFound) return status;
    }
    v1::GetStatusResponse now;
    RETURN_IF_ERROR(daemon_.GetStatus(v1::GetStatusRequest(), &now));
    if (now.loads_running() > 0 || now.host_pinning()) calm = -1;
    RETURN_IF_ERROR(wait());
  }
  return OkStatus();
}

Status BenchRig::WaitUntilCleared(uint64_t bytes) const {
  if (!device_) return interrupts_.Check();
  return interrupts_.Wait(std::chrono::milliseconds(20 + 10 * bytes / kGiB));
}

Json BenchRig::Machine() const {
  utsname system{};
  ::uname(&system);
  Json devices = Json::array();
  for (const v1::DeviceView& device : status_.devices()) {
    devices.push_back({{"ordinal", device.ordinal()},
                       {"uuid", device.uuid()},
                       {"name", device.name()},
                       {"total_bytes", device.total_bytes()},
                       {"ready", device.ready()}});
  }
  return {{"cores", std::thread::hardware_concurrency()}, {"kernel", system.release},
          {"daemon_version", status_.version()},          {"client_version", trims_version()},
          {"cuda_driver", status_.cuda_driver()},         {"devices", std::move(devices)}};
}

std::string BenchRig::MachineText() const {
  std::string text = "daemon " + status_.version() + ", " +
                     std::to_string(std::thread::hardware_concurrency()) + " cores";
  if (device_) {
    text += ", " + place_.text + " is " + device_->name() + ", CUDA " + status_.cuda_driver();
  }
  return Printable(text);
}

// --- The model ------------------------------------------------------------------

BenchModel::BenchModel(BenchRig& rig, BenchModelFile file) : rig_(rig), file_(std::move(file)) {
  static int number = 0;
  name_ = "bench/" + std::to_string(::getpid()) + "-" + std::to_string(++number);
}

Result<std::unique_ptr<BenchModel>> BenchModel::Make(BenchRig& rig, const BenchModelSpec& spec) {
  ProgressBar bar(!rig.json());
  ASSIGN_OR_RETURN(
      BenchModelFile file, BenchModelFile::Write(spec, rig.interrupts(), [&](uint64_t done) {
        bar.Update({.label = "writing weights", .done_bytes = done, .total_bytes = spec.bytes});
      }));
  bar.Clear();
  std::unique_ptr<BenchModel> model(new BenchModel(rig, std::move(file)));
  v1::AddRequest request;
  request.set_name(model->name_);
  request.set_path(model->path());
  v1::AddResponse response;
  if (const Status status = rig.daemon().Add(request, &response); !status.ok()) {
    if (status.code() == StatusCode::kNotFound || status.code() == StatusCode::kPermissionDenied) {
      return Status(status.code(), status.message() +
                                       ". The daemon must be able to read what is written into " +
                                       spec.directory + ": give another --dir");
    }
    return status;
  }
  model->added_ = true;
  return model;
}

BenchModel::~BenchModel() {
  if (!added_) return;
  rig_.DropAll(name_);
  v1::RemoveRequest request;
  request.set_name(name_);
  request.set_force(true);
  v1::RemoveResponse response;
  const Status status = rig_.daemon().Remove(request, &response);
  if (!status.ok() && status.code() != StatusCode::kNotFound) {
    Fail(Status(status.code(), name_ + " could not be removed: " + status.message()),
         "\"trims rm --force " + name_ + "\" removes it");
  }
}

}  // namespace trims::cli
