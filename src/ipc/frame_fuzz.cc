// Any packet that a client may send: decoded, verified as the message its header
// names, and every field read, as the daemon does. Nothing may crash or read
// outside the packet.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>

#include "ipc/frame.h"
#include "ipc/message.h"
#include "trims/v1/lease_generated.h"

namespace {

using trims::FrameType;
using trims::ReadMessage;

// Reads memory so that a sanitizer sees where it is.
uint64_t Touch(const flatbuffers::String* text) {
  uint64_t sum = 0;
  if (text != nullptr) {
    for (const char c : *text) sum += static_cast<uint8_t>(c);
  }
  return sum;
}
uint64_t Touch(const flatbuffers::Vector<uint8_t>* bytes) {
  uint64_t sum = 0;
  if (bytes != nullptr) {
    for (const uint8_t byte : *bytes) sum += byte;
  }
  return sum;
}
uint64_t Touch(const trims::v1::Open* open) {
  if (open == nullptr) return 0;
  return Touch(open->model()) + Touch(open->device_uuid()) + Touch(open->expected_digest()) +
         static_cast<uint64_t>(open->tier()) + static_cast<uint64_t>(open->granularity()) +
         open->deadline_ms() + open->want_progress() + static_cast<uint64_t>(open->keep_alive_ms());
}

uint64_t ReadAs(FrameType type, std::span<const std::byte> payload) {
  switch (type) {
    case FrameType::kHello: {
      const auto* m = ReadMessage<trims::v1::Hello>(payload);
      return m == nullptr ? 0
                          : m->protocol_major() + m->protocol_minor() + Touch(m->client_version());
    }
    case FrameType::kOpen:
      return Touch(ReadMessage<trims::v1::Open>(payload));
    case FrameType::kOpenFile: {
      const auto* m = ReadMessage<trims::v1::OpenFile>(payload);
      return m == nullptr ? 0 : Touch(m->name()) + Touch(m->options());
    }
    case FrameType::kCancel: {
      const auto* m = ReadMessage<trims::v1::Cancel>(payload);
      return m == nullptr ? 0 : m->open_request_id();
    }
    case FrameType::kClose: {
      const auto* m = ReadMessage<trims::v1::Close>(payload);
      return m == nullptr ? 0 : m->lease_id() + m->peak_internal_bytes();
    }
    case FrameType::kReattach: {
      const auto* m = ReadMessage<trims::v1::Reattach>(payload);
      if (m == nullptr) return 0;
      if (m->digest() == nullptr) std::abort();  // Required: the verifier promised it.
      return Touch(m->digest()) + m->generation() + Touch(m->device_uuid());
    }
    case FrameType::kPing:
      return ReadMessage<trims::v1::Ping>(payload) != nullptr;
    default:
      return 0;  // Only a daemon sends these.
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Exactly as large as the input, so that one byte too far is seen; aligned, as
  // receive buffers are.
  const size_t bytes = std::max<size_t>(size, 1);
  std::unique_ptr<std::byte, decltype(&std::free)> copy(static_cast<std::byte*>(std::malloc(bytes)),
                                                        &std::free);
  if (size > 0) std::memcpy(copy.get(), data, size);
  const std::span<const std::byte> packet(copy.get(), size);
  volatile uint64_t sink = 0;
  if (const auto frame = trims::DecodeFrame(packet); frame.ok()) {
    if (frame->payload.size() + trims::kFrameHeaderBytes != size) std::abort();
    sink = ReadAs(frame->header.type, frame->payload);
    std::byte again[trims::kFrameHeaderBytes];
    trims::EncodeFrameHeader(frame->header, again);
    if (std::memcmp(again, copy.get(), sizeof again) != 0) std::abort();
    // What one message refuses another may not crash on.
    for (int type = 1; type <= 7; ++type) {
      sink = ReadAs(static_cast<FrameType>(type), frame->payload);
    }
  }
  (void)sink;
  return 0;
}
