#include "cuda/stream.h"

#include <string>
#include <utility>

#include "base/units.h"
#include "cuda/driver_table.h"
#include "cuda/error.h"

namespace trims::cuda {
namespace {

CUstream Raw(const Stream& stream) { return static_cast<CUstream>(stream.handle()); }
CUevent Raw(const Event& event) { return static_cast<CUevent>(event.handle()); }

// A result with CUDA_ERROR_NOT_READY as an answer instead of an error.
Result<bool> Passed(CUresult result, const std::string& what) {
  if (result == CUDA_ERROR_NOT_READY) return false;
  RETURN_IF_ERROR(CudaStatus(result, what));
  return true;
}

}  // namespace

Result<Stream> Stream::Create(const Context& context) {
  const CurrentContext current(context);
  RETURN_IF_ERROR(current.status());
  CUstream stream = nullptr;
  RETURN_IF_ERROR(CudaStatus(Table().cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING),
                             "creating a stream on " + context.device().uuid()));
  return Stream(context.retained(), stream);
}

Stream::Stream(Stream&& other) noexcept
    : context_(std::move(other.context_)), handle_(std::exchange(other.handle_, nullptr)) {}

Stream& Stream::operator=(Stream&& other) noexcept {
  if (this == &other) return *this;
  Stream old(std::move(*this));
  context_ = std::move(other.context_);
  handle_ = std::exchange(other.handle_, nullptr);
  return *this;
}

Stream::~Stream() {
  if (handle_ == nullptr) return;
  const CurrentContext current(context_);
  if (!current.status().ok()) return;
  static_cast<void>(Table().cuStreamSynchronize(Raw(*this)));
  static_cast<void>(Table().cuStreamDestroy(Raw(*this)));
}

Status Stream::CopyToDevice(DevicePointer to, const void* from, uint64_t bytes) const {
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  const CUresult result = Table().cuMemcpyHtoDAsync(to, from, bytes, Raw(*this));
  if (result == CUDA_SUCCESS) return OkStatus();
  return CudaStatus(result, "copying " + FormatSize(bytes) + " to " + context_->device().uuid());
}

Status Stream::CopyToHost(void* to, DevicePointer from, uint64_t bytes) const {
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  const CUresult result = Table().cuMemcpyDtoHAsync(to, from, bytes, Raw(*this));
  if (result == CUDA_SUCCESS) return OkStatus();
  return CudaStatus(result, "copying " + FormatSize(bytes) + " from " + context_->device().uuid());
}

Status Stream::CopyOnDevice(DevicePointer to, DevicePointer from, uint64_t bytes) const {
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  const CUresult result = Table().cuMemcpyDtoDAsync(to, from, bytes, Raw(*this));
  if (result == CUDA_SUCCESS) return OkStatus();
  return CudaStatus(result, "copying " + FormatSize(bytes) + " on " + context_->device().uuid());
}

Status Stream::CopyFromPeer(DevicePointer to, const Context& peer, DevicePointer from,
                            uint64_t bytes) const {
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  const CUresult result = Table().cuMemcpyPeerAsync(to, context_->context(), from,
                                                    peer.retained()->context(), bytes, Raw(*this));
  if (result == CUDA_SUCCESS) return OkStatus();
  return CudaStatus(result, "copying " + FormatSize(bytes) + " from " + peer.device().uuid() +
                                " to " + context_->device().uuid());
}

Status Stream::Fill(DevicePointer to, uint8_t value, uint64_t bytes) const {
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  const CUresult result = Table().cuMemsetD8Async(to, value, bytes, Raw(*this));
  if (result == CUDA_SUCCESS) return OkStatus();
  return CudaStatus(result, "filling " + FormatSize(bytes) + " on " + context_->device().uuid());
}

Status Stream::WaitFor(const Event& event) const {
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  return CudaStatus(Table().cuStreamWaitEvent(Raw(*this), Raw(event), 0),
                    "making a stream wait for an event");
}

Status Stream::Synchronize() const {
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  return CudaStatus(Table().cuStreamSynchronize(Raw(*this)),
                    "waiting for a stream on " + context_->device().uuid());
}

Result<bool> Stream::Done() const {
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  return Passed(Table().cuStreamQuery(Raw(*this)),
                "asking a stream on " + context_->device().uuid() + " whether it is done");
}

// Event

Result<Event> Event::Create(const Context& context) {
  const CurrentContext current(context);
  RETURN_IF_ERROR(current.status());
  CUevent event = nullptr;
  constexpr unsigned int kFlags = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING;
  RETURN_IF_ERROR(CudaStatus(Table().cuEventCreate(&event, kFlags),
                             "creating an event on " + context.device().uuid()));
  return Event(context.retained(), event);
}

Event::Event(Event&& other) noexcept
    : context_(std::move(other.context_)), handle_(std::exchange(other.handle_, nullptr)) {}

Event& Event::operator=(Event&& other) noexcept {
  if (this == &other) return *this;
  Event old(std::move(*this));
  context_ = std::move(other.context_);
  handle_ = std::exchange(other.handle_, nullptr);
  return *this;
}

Event::~Event() {
  if (handle_ == nullptr) return;
  const CurrentContext current(context_);
  if (current.status().ok()) static_cast<void>(Table().cuEventDestroy(Raw(*this)));
}

Status Event::Record(const Stream& stream) const {
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  return CudaStatus(Table().cuEventRecord(Raw(*this), Raw(stream)),
                    "recording an event on " + context_->device().uuid());
}

Status Event::Synchronize() const {
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  return CudaStatus(Table().cuEventSynchronize(Raw(*this)),
                    "waiting for an event on " + context_->device().uuid());
}

Result<bool> Event::Done() const {
  const CurrentContext current(context_);
  RETURN_IF_ERROR(current.status());
  return Passed(Table().cuEventQuery(Raw(*this)),
                "asking an event on " + context_->device().uuid() + " whether it is passed");
}

}  // namespace trims::cuda
