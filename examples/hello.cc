// Leases a model and prints its tensors, with a checksum of each: hello.c with
// owners that close what they hold.
//
//   hello MODEL
#include <cinttypes>
#include <cstdio>
#include <optional>
#include <span>
#include <string>

#include "trims/trims.hpp"

namespace {

int Complain(const std::string& what, const trims::Error& error) {
  std::fprintf(stderr, "%s: %s\n", what.c_str(), error.ToString().c_str());
  if (error.need_bytes() != 0) {
    std::fprintf(stderr,
                 "it needs %" PRIu64 " bytes; %" PRIu64 " are free, %" PRIu64 " evictable\n",
                 error.need_bytes(), error.free_bytes(), error.evictable_bytes());
  }
  return 1;
}

// FNV-1a: enough to see that two processes read the same bytes.
uint64_t Checksum(std::span<const std::byte> bytes) {
  uint64_t hash = 14695981039346656037u;
  for (const std::byte byte : bytes) {
    hash = (hash ^ std::to_integer<uint64_t>(byte)) * 1099511628211u;
  }
  return hash;
}

std::string Describe(std::span<const int64_t> shape) {
  std::string text;
  for (const int64_t dimension : shape) {
    text += (text.empty() ? "" : ", ") + std::to_string(dimension);
  }
  return "[" + text + "]";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s MODEL\n", argv[0]);
    return 2;
  }
  trims::Expected<trims::Client> client = trims::Client::Connect();
  if (!client) return Complain("connecting", client.error());

  trims::OpenOptions options;
  options.progress = [](trims_phase phase, uint64_t done_bytes, uint64_t total_bytes) {
    if (phase == TRIMS_PHASE_LOADING && total_bytes > 0) {
      std::fprintf(stderr, "loading: %3.0f %%\r",
                   100.0 * static_cast<double>(done_bytes) / static_cast<double>(total_bytes));
    }
    return false;  // True would cancel.
  };
  trims::Expected<trims::Lease> lease = client->Open(argv[1], options);
  if (!lease) return Complain(argv[1], lease.error());

  std::printf("%s, %" PRIu32 " tensors, %" PRIu64 " bytes, %s\n", lease->digest_text().data(),
              lease->tensor_count(), lease->total_bytes(),
              lease->was_loaded() ? "loaded now" : "already resident");
  for (uint32_t i = 0; i < lease->tensor_count(); ++i) {
    const std::optional<trims::Tensor> tensor = lease->tensor(i);
    if (!tensor) {
      std::fprintf(stderr, "tensor %" PRIu32 " is described wrongly\n", i);
      return 1;
    }
    std::printf("%-32s %-8s %s %016" PRIx64 "\n", tensor->name().data(),
                tensor->dtype_name().data(), Describe(tensor->shape()).c_str(),
                Checksum(tensor->bytes()));
  }
}
