#include "bench/device.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <optional>
#include <utility>

#include "base/limits.h"
#include "cuda/device.h"
#include "cuda/driver.h"
#include "cuda/memory.h"
#include "cuda/stream.h"

namespace trims::bench {
namespace {

using std::chrono::steady_clock;

constexpr uint64_t kPieceBytes = kGiB;

}  // namespace

struct Device::State {
  State(cuda::Device its_device, cuda::Context its_context)
      : device(std::move(its_device)), context(std::move(its_context)) {}

  // Of the size of a piece, unless the model is smaller. Kept: pinning costs 0.6 s per GiB.
  Status WantBuffer(uint64_t bytes) {
    if (buffer && buffer->size() >= bytes) return OkStatus();
    buffer.reset();
    ASSIGN_OR_RETURN(buffer, cuda::DeviceBuffer::Allocate(context, bytes));
    return OkStatus();
  }
  Status WantPinned(uint64_t bytes) {
    if (pinned && pinned->size() >= bytes) return OkStatus();
    pinned.reset();
    ASSIGN_OR_RETURN(pinned, cuda::PinnedBuffer::Allocate(context, bytes));
    return OkStatus();
  }

  // `piece(bytes)` queues one copy.
  Result<double> MeasurePieces(
      uint64_t bytes, const std::function<Status(const cuda::Stream&, uint64_t bytes)>& piece) {
    ASSIGN_OR_RETURN(const cuda::Stream stream, cuda::Stream::Create(context));
    const steady_clock::time_point begin = steady_clock::now();
    for (uint64_t done = 0; done < bytes; done += kPieceBytes) {
      RETURN_IF_ERROR(piece(stream, std::min(kPieceBytes, bytes - done)));
    }
    RETURN_IF_ERROR(stream.Synchronize());
    return Seconds(begin, steady_clock::now());
  }

  cuda::Device device;
  cuda::Context context;
  UniqueFd shared;
  uint64_t shared_bytes = 0;
  std::optional<cuda::DeviceBuffer> buffer;
  std::optional<cuda::PinnedBuffer> pinned;
};

Device::Device(std::unique_ptr<State> state) : state_(std::move(state)) {}
Device::Device(Device&&) noexcept = default;
Device& Device::operator=(Device&&) noexcept = default;
Device::~Device() = default;

Result<Device> Device::Open(const std::string& uuid) {
  ASSIGN_OR_RETURN(const cuda::Driver* driver, cuda::Driver::Load());
  ASSIGN_OR_RETURN(cuda::Device device, driver->FindDevice(uuid));
  ASSIGN_OR_RETURN(cuda::Context context, cuda::Context::Retain(device));
  return Device(std::make_unique<State>(std::move(device), std::move(context)));
}

Result<std::vector<Device>> Device::OpenAll() {
  ASSIGN_OR_RETURN(const cuda::Driver* driver, cuda::Driver::Load());
  ASSIGN_OR_RETURN(const std::vector<cuda::Device> devices, driver->Devices());
  std::vector<Device> opened;
  for (const cuda::Device& device : devices) {
    ASSIGN_OR_RETURN(Device one, Open(device.uuid()));
    opened.push_back(std::move(one));
  }
  return opened;
}

const std::string& Device::uuid() const { return state_->device.uuid(); }
const std::string& Device::name() const { return state_->device.name(); }
int Device::ordinal() const { return state_->device.ordinal(); }
uint64_t Device::total_bytes() const { return state_->device.total_bytes(); }

Status Device::MakeShared(uint64_t bytes) {
  DropShared();
  ASSIGN_OR_RETURN(cuda::PhysicalMemory memory,
                   cuda::PhysicalMemory::Create(state_->device, bytes));
  ASSIGN_OR_RETURN(state_->shared, memory.Export());
  state_->shared_bytes = memory.size();
  // Importing what this process still has a handle of might be cheaper than what clients do.
  return memory.Release();
}

void Device::DropShared() {
  state_->shared.Reset();
  state_->shared_bytes = 0;
}

Result<OpenTimes> Device::MeasureMapping() const {
  const steady_clock::time_point begin = steady_clock::now();
  ASSIGN_OR_RETURN(
      cuda::PhysicalMemory memory,
      cuda::PhysicalMemory::Import(state_->device, state_->shared.get(), state_->shared_bytes));
  ASSIGN_OR_RETURN(cuda::DeviceMapping mapping,
                   cuda::DeviceMapping::Map(memory, cuda::Access::kRead));
  const steady_clock::time_point opened = steady_clock::now();
  RETURN_IF_ERROR(mapping.Unmap());
  RETURN_IF_ERROR(memory.Release());
  return OpenTimes{.open = Seconds(begin, opened), .close = Seconds(opened, steady_clock::now())};
}

Result<double> Device::MeasureCopy(Copy copy, uint64_t bytes) {
  const uint64_t piece = std::min(kPieceBytes, bytes);
  RETURN_IF_ERROR(state_->WantBuffer(copy == Copy::kOnDevice ? 2 * piece : piece));
  if (copy != Copy::kOnDevice) RETURN_IF_ERROR(state_->WantPinned(piece));
  return state_->MeasurePieces(bytes, [&](const cuda::Stream& stream, uint64_t part) {
    switch (copy) {
      case Copy::kFromHost:
        return stream.CopyToDevice(state_->buffer->pointer(), state_->pinned->data(), part);
      case Copy::kToHost:
        return stream.CopyToHost(state_->pinned->data(), state_->buffer->pointer(), part);
      case Copy::kOnDevice:
        return stream.CopyOnDevice(state_->buffer->pointer() + piece, state_->buffer->pointer(),
                                   part);
    }
    return InternalError("no such copy");
  });
}

Result<double> Device::MeasureCopyFrom(Device& peer, uint64_t bytes) {
  const uint64_t piece = std::min(kPieceBytes, bytes);
  RETURN_IF_ERROR(state_->WantBuffer(piece));
  RETURN_IF_ERROR(peer.state_->WantBuffer(piece));
  // Without a link the copy goes through the host, and so would a load.
  for (const Status& status : {state_->context.EnablePeerAccess(peer.state_->context),
                               peer.state_->context.EnablePeerAccess(state_->context)}) {
    if (!status.ok() && status.code() != StatusCode::kUnimplemented) return status;
  }
  return state_->MeasurePieces(bytes, [&](const cuda::Stream& stream, uint64_t part) {
    return stream.CopyFromPeer(state_->buffer->pointer(), peer.state_->context,
                               peer.state_->buffer->pointer(), part);
  });
}

}  // namespace trims::bench
