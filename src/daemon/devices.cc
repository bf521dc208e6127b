#include "daemon/devices.h"

#include <strings.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/device_names.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "base/text.h"
#include "daemon/log.h"

#ifdef TRIMS_HAVE_CUDA
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/memory.h"
#include "cuda/stream.h"
#include "tier/device_tier.h"
#include "tier/host_pins.h"
#endif

namespace trims {

#ifndef TRIMS_HAVE_CUDA

struct Devices::State {
  Status driver = UnimplementedError(
      "this trimsd was built without GPU support: build it where CUDA's headers are installed");
  std::string version;
};

Devices::Devices(std::unique_ptr<State> state) : state_(std::move(state)) {}
Devices::~Devices() = default;
std::unique_ptr<Devices> Devices::Open(const DaemonConfig&,
                                       std::shared_ptr<const UniversalHashKey>) {
  return std::unique_ptr<Devices>(new Devices(std::make_unique<State>()));
}
std::vector<ServedTier> Devices::TakeTiers() { return {}; }
const Status& Devices::driver() const { return state_->driver; }
const std::string& Devices::driver_version() const { return state_->version; }
std::vector<DeviceFacts> Devices::Facts() const { return {}; }
std::string Devices::WhyNotServed(const std::string&) const { return state_->driver.message(); }
std::optional<uint32_t> Devices::OrdinalOf(const std::string&) const { return std::nullopt; }
uint64_t Devices::host_pinned_bytes() const { return 0; }
bool Devices::is_host_pinning() const { return false; }
std::string Devices::MeasureLinks(const std::string&) { return ""; }
bool Devices::PeerIsFaster(const std::string&, const std::string&) const { return false; }

#else

namespace {

// Large enough that a copy runs at the link's rate, small enough that nobody misses it.
constexpr uint64_t kMeasuredBytes = 64 * kMiB;
constexpr int kMeasuredCopies = 4;
constexpr char kHost[] = "host";

// Whether the configuration's list names this device.
bool IsNamed(const std::string& list, const cuda::Device& device) {
  if (list == "all") return true;
  const std::vector<std::string_view> words = SplitList(list);
  return std::any_of(words.begin(), words.end(), [&device](std::string_view word) {
    return word == std::to_string(device.ordinal()) ||
           ::strcasecmp(std::string(word).c_str(), device.uuid().c_str()) == 0;
  });
}

struct Served {
  explicit Served(cuda::Device of) : device(std::move(of)) {}

  cuda::Device device;
  Status state;
  std::optional<cuda::Context> context;
  std::unique_ptr<Tier> tier;  // Until TakeTiers.
  Tier* borrowed = nullptr;    // The same; lives until the registry goes.
  uint64_t budget_bytes = 0;
};

// The time of the fastest of some copies, as a rate; 0 when they fail.
double RateOf(const std::function<Status()>& copy) {
  double best = 0;
  for (int i = 0; i < kMeasuredCopies; ++i) {
    const Time start = Now();
    if (!copy().ok()) return 0;
    const double seconds = std::chrono::duration<double>(Now() - start).count();
    if (seconds > 0) best = std::max(best, static_cast<double>(kMeasuredBytes) / seconds);
  }
  return best;
}

bool AreLinked(const cuda::Device& a, const cuda::Device& b) {
  const Result<bool> linked = a.CanAccessPeer(b);
  return linked.ok() && *linked;
}

Status CopyAndWait(const cuda::Stream& stream, const Status& queued) {
  const Status done = stream.Synchronize();
  return queued.ok() ? done : queued;
}

}  // namespace

struct Devices::State {
  Status driver;
  std::string version;
  std::vector<Served> devices;
  uint64_t pinned_pool_bytes = 0;
  std::unique_ptr<HostPins> pins;

  mutable Mutex mutex;
  // By receiving and sending device: UUIDs, or "host".
  std::map<std::pair<std::string, std::string>, double> rates TRIMS_GUARDED_BY(mutex);

  const Served* Find(const std::string& tier) const {
    for (const Served& served : devices) {
      if (served.borrowed != nullptr && DeviceTierName(served.device.uuid()) == tier)
        return &served;
    }
    return nullptr;
  }
  double RateBetween(const std::string& to, const std::string& from) const {
    const MutexLock lock(mutex);
    const auto found = rates.find({to, from});
    return found == rates.end() ? 0 : found->second;
  }
  double MeasureFromHost(const Served& to) const;
  double MeasureFromPeer(const Served& to, const Served& from) const;
};

Devices::Devices(std::unique_ptr<State> state) : state_(std::move(state)) {}
Devices::~Devices() = default;

std::unique_ptr<Devices> Devices::Open(const DaemonConfig& config,
                                       std::shared_ptr<const UniversalHashKey> key) {
  auto state = std::make_unique<State>();
  state->pinned_pool_bytes = config.pinned_pool_bytes;
  const auto finish = [&] { return std::unique_ptr<Devices>(new Devices(std::move(state))); };
  if (config.devices == "none") {
    state->driver = FailedPreconditionError("the setting devices is none");
    return finish();
  }
  const Result<const cuda::Driver*> driver = cuda::Driver::Load();
  if (!driver.ok()) {
    state->driver = driver.status();
    return finish();
  }
  state->version = (*driver)->VersionText();
  Result<std::vector<cuda::Device> > found = (*driver)->Devices();
  if (!found.ok()) {
    state->driver = found.status();
    return finish();
  }
  for (cuda::Device& device : *found) {
    if (state->devices.size() < kMaxDevices) state->devices.emplace_back(std::move(device));
  }

  // Contexts take 0.1 to 0.2 s each, so they are made at the same time.
  std::vector<std::thread> threads;
  for (Served& served : state->devices) {
    if (!IsNamed(config.devices, served.device)) {
      served.state = FailedPreconditionError("the setting devices does not name it");
      continue;
    }
    const auto make_context = [&served] {
      Result<cuda::Context> context = cuda::Context::Retain(served.device);
      if (context.ok()) {
        served.context.emplace(std::move(context).value());
      } else {
        served.state = context.status();
      }
    };
    try {
      threads.emplace_back(make_context);
    } catch (const std::system_error&) {
      make_context();
    }
  }
  for (std::thread& thread : threads) thread.join();

  for (Served& served : state->devices) {
    if (!served.context) continue;
    if (state->pins == nullptr && served.device.supports_read_only_registration()) {
      Result<std::unique_ptr<HostPins> > pins = HostPins::Make(served.device);
      if (pins.ok()) {
        state->pins = std::move(pins).value();
      } else {
        LogWarn("host memory is not pinned, loads from it are slower, ignoring",
                {{"reason", pins.status().message()}});
      }
    }
    DeviceTierOptions options{.device = served.device,
                              .key = key,
                              .io_threads = config.io_threads,
                              .pinned_pool_bytes = config.pinned_pool_bytes,
                              .pins = state->pins.get()};
    Result<std::unique_ptr<Tier> > tier = MakeDeviceTier(options);
    if (!tier.ok()) {
      served.state = tier.status();
      served.context.reset();
      continue;
    }
    served.tier = std::move(tier).value();
    served.borrowed = served.tier.get();
    served.budget_bytes = config.device_capacity_bytes.value_or(static_cast<uint64_t>(
        config.memory_percentage * static_cast<double>(served.device.total_bytes())));
  }
  for (const Served& served : state->devices) {
    if (served.state.ok()) {
      LogInfo("serving device", {{"device", served.device.uuid()},
                                 {"name", served.device.name()},
                                 {"budget_bytes", served.budget_bytes}});
    } else if (IsNamed(config.devices, served.device)) {
      LogError("device not served", {{"device", served.device.uuid()},
                                     {"name", served.device.name()},
                                     {"reason", served.state.message()}});
    }
  }
  // A list that names nothing here is a mistake that would otherwise go unseen.
  if (config.devices != "all" &&
      std::none_of(state->devices.begin(), state->devices.end(),
                   [&](const Served& served) { return IsNamed(config.devices, served.device); })) {
    LogError("no device is served: the setting devices names none that is here",
             {{"devices", config.devices}, {"found", state->devices.size()}});
  }
  return finish();
}

std::vector<ServedTier> Devices::TakeTiers() {
  std::vector<ServedTier> tiers;
  for (Served& served : state_->devices) {
    if (served.tier != nullptr) tiers.push_back({std::move(served.tier), served.budget_bytes});
  }
  return tiers;
}

const Status& Devices::driver() const { return state_->driver; }
const std::string& Devices::driver_version() const { return state_->version; }

std::vector<DeviceFacts> Devices::Facts() const {
  std::vector<DeviceFacts> all;
  for (const Served& served : state_->devices) {
    DeviceFacts facts;
    facts.ordinal = served.device.ordinal();
    facts.uuid = served.device.uuid();
    facts.name = served.device.name();
    facts.pci_bus_id = served.device.pci_bus_id();
    facts.supports_vmm = served.device.supports_vmm();
    facts.supports_posix_fd = served.device.supports_posix_fd();
    facts.total_bytes = served.device.total_bytes();
    facts.state = served.state;
    if (served.borrowed != nullptr) {
      facts.tier = served.borrowed->name();
      facts.state = served.borrowed->health();
      if (facts.state.ok()) facts.free_bytes = served.borrowed->FreeBytes().value_or(0);
      facts.pinned_pool_bytes = PinnedPoolBytes(*served.borrowed);
      facts.pinned_pool_bytes_max = state_->pinned_pool_bytes;
      facts.links.push_back({kHost, state_->RateBetween(facts.uuid, kHost), true});
      for (const Served& peer : state_->devices) {
        if (peer.borrowed == nullptr || peer.device == served.device) continue;
        facts.links.push_back({peer.device.uuid(),
                               state_->RateBetween(facts.uuid, peer.device.uuid()),
                               AreLinked(served.device, peer.device)});
      }
    }
    all.push_back(std::move(facts));
  }
  return all;
}

std::string Devices::WhyNotServed(const std::string& uuid) const {
  if (!state_->driver.ok()) return state_->driver.message();
  std::string served;
  for (const Served& each : state_->devices) {
    if (::strcasecmp(each.device.uuid().c_str(), uuid.c_str()) == 0) return each.state.message();
    if (each.borrowed != nullptr) served += (served.empty() ? "" : ", ") + each.device.uuid();
  }
  return served.empty() ? "it serves no device" : "it serves " + served;
}

std::optional<uint32_t> Devices::OrdinalOf(const std::string& tier) const {
  const Served* const served = state_->Find(tier);
  if (served == nullptr) return std::nullopt;
  return static_cast<uint32_t>(served->device.ordinal());
}

uint64_t Devices::host_pinned_bytes() const {
  return state_->pins == nullptr ? 0 : state_->pins->pinned_bytes();
}

bool Devices::is_host_pinning() const { return state_->pins != nullptr && state_->pins->is_busy(); }

double Devices::State::MeasureFromHost(const Served& to) const {
  const Result<cuda::PinnedBuffer> from = cuda::PinnedBuffer::Allocate(*to.context, kMeasuredBytes);
  const Result<cuda::DeviceBuffer> buffer =
      cuda::DeviceBuffer::Allocate(*to.context, kMeasuredBytes);
  const Result<cuda::Stream> stream = cuda::Stream::Create(*to.context);
  if (!from.ok() || !buffer.ok() || !stream.ok()) return 0;
  return RateOf([&] {
    return CopyAndWait(*stream,
                       stream->CopyToDevice(buffer->pointer(), from->data(), kMeasuredBytes));
  });
}

double Devices::State::MeasureFromPeer(const Served& to, const Served& from) const {
  const Result<cuda::DeviceBuffer> source =
      cuda::DeviceBuffer::Allocate(*from.context, kMeasuredBytes);
  const Result<cuda::DeviceBuffer> target =
      cuda::DeviceBuffer::Allocate(*to.context, kMeasuredBytes);
  const Result<cuda::Stream> stream = cuda::Stream::Create(*to.context);
  if (!source.ok() || !target.ok() || !stream.ok()) return 0;
  // Where there is no link the driver copies through the host.
  static_cast<void>(to.context->EnablePeerAccess(*from.context).ok());
  static_cast<void>(from.context->EnablePeerAccess(*to.context).ok());
  return RateOf([&] {
    return CopyAndWait(*stream, stream->CopyFromPeer(target->pointer(), *from.context,
                                                     source->pointer(), kMeasuredBytes));
  });
}

std::string Devices::MeasureLinks(const std::string& known) {
  // Anything but an object has no such key.
  const nlohmann::json before = nlohmann::json::parse(known, nullptr, /*allow_exceptions=*/false);
  nlohmann::json measured = nlohmann::json::object();
  const auto take = [&](const Served& to, const std::string& from,
                        const std::function<double()>& measure) {
    const std::string key = to.device.uuid() + " " + from;
    double rate = 0;
    if (const auto found = before.find(key); found != before.end() && found->is_number())
      rate = found->get<double>();
    if (!(rate > 0)) rate = measure();
    if (rate <= 0) return;
    measured[key] = rate;
    const MutexLock lock(state_->mutex);
    state_->rates[{to.device.uuid(), from}] = rate;
  };
  for (const Served& to : state_->devices) {
    if (to.borrowed == nullptr) continue;
    take(to, kHost, [&] { return state_->MeasureFromHost(to); });
    for (const Served& from : state_->devices) {
      if (from.borrowed == nullptr || &from == &to) continue;
      take(to, from.device.uuid(), [&] { return state_->MeasureFromPeer(to, from); });
    }
  }
  return measured.dump();
}

bool Devices::PeerIsFaster(const std::string& to, const std::string& from) const {
  const Served* const receiver = state_->Find(to);
  const Served* const sender = state_->Find(from);
  if (receiver == nullptr || sender == nullptr) return false;
  const double peer = state_->RateBetween(receiver->device.uuid(), sender->device.uuid());
  const double host = state_->RateBetween(receiver->device.uuid(), kHost);
  if (peer > 0 && host > 0) return peer > host;
  return AreLinked(receiver->device, sender->device);
}

#endif

}  // namespace trims
