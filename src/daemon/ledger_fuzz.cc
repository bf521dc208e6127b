// Arbitrary bytes as what an earlier worker left in the ledger: refused with a reason or
// understood, and what is understood is what a second reading of its encoding gives. The first
// byte says what they are: a key, the entry of a replica, rho, or what an entry is made of.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "daemon/ledger.h"
#include "daemon/ledger_link.h"

namespace {

using trims::LedgerKey;
using trims::ReplicaEntry;

void Require(bool holds) {
  if (!holds) std::abort();
}

void ReadKey(std::string_view text) {
  const std::optional<LedgerKey> key = trims::ParseLedgerKey(text);
  if (!key) return;
  switch (key->kind) {
    case LedgerKey::Kind::kExtent:
      return Require(trims::ExtentLedgerKey(key->tier, key->digest) == text);
    case LedgerKey::Kind::kReplica:
      return Require(trims::ReplicaLedgerKey(key->tier, key->granularity, key->digest) == text);
    case LedgerKey::Kind::kPin:
      return Require(trims::PinLedgerKey(key->tier, key->digest) == text);
    case LedgerKey::Kind::kRho:
      return Require(text == trims::kRhoLedgerKey);
    case LedgerKey::Kind::kDevice:
      return Require(text.starts_with("device/"));
  }
}

// Nothing is lost but what the header says.
void WriteAndReadAgain(const ReplicaEntry& entry, bool is_utf8) {
  const std::string encoded = trims::EncodeReplicaEntry(entry);
  Require(encoded.size() <= trims::kMaxLinkBodyBytes);
  const auto again = trims::ParseReplicaEntry(encoded);
  Require(again.ok());
  Require(again->generation == entry.generation && again->slab_bytes == entry.slab_bytes &&
          again->manifest_bytes == entry.manifest_bytes);
  Require(again->proved_uids.size() == std::min(entry.proved_uids.size(), trims::kMaxLedgerUids));
  Require(
      std::equal(again->proved_uids.begin(), again->proved_uids.end(), entry.proved_uids.begin()));
  Require(again->names.size() <= std::min(entry.names.size(), trims::kMaxLedgerNames));
  if (!is_utf8) return;
  Require(std::equal(again->names.begin(), again->names.end(), entry.names.begin()));
  Require(entry.label.size() > trims::kMaxLedgerLabelBytes || again->label == entry.label);
}

void ReadEntry(std::string_view text) {
  const auto entry = trims::ParseReplicaEntry(text);
  if (!entry.ok()) return Require(!entry.status().message().empty());
  WriteAndReadAgain(*entry, /*is_utf8=*/true);  // As JSON is.
}

void ReadRho(std::string_view text) {
  const auto rho = trims::ParseRho(text);
  if (!rho.ok()) return Require(!rho.status().message().empty());
  Require(rho->read_bytes_per_second > 0 && rho->export_cost.count() >= 0 &&
          rho->open_cost.count() >= 0);
  const auto again = trims::ParseRho(trims::EncodeRho(*rho));
  Require(again.ok() && again->read_bytes_per_second == rho->read_bytes_per_second &&
          again->export_cost == rho->export_cost && again->open_cost == rho->open_cost);
}

// Lines: a label, then names, paths and directories in turn; each stands as often as the first
// byte says.
void MakeEntry(std::string_view text) {
  ReplicaEntry entry;
  if (text.empty()) return;
  const size_t often = 1 + static_cast<uint8_t>(text[0]);
  text.remove_prefix(1);
  const auto line = [&text, often] {
    const std::string_view one = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), one.size() + 1));
    std::string many;
    for (size_t i = 0; i < often && many.size() < 100'000; ++i) many += one;
    return many;
  };
  entry.label = line();
  while (!text.empty()) {
    trims::NamedFiles named;
    named.name = "n" + line();
    named.path = line();
    named.directory = line();
    entry.names.push_back(std::move(named));
    entry.proved_uids.insert(entry.proved_uids.end(), 10 * often, UINT32_MAX);
  }
  entry.generation = often;
  WriteAndReadAgain(entry, /*is_utf8=*/false);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      ReadKey(text);
      break;
    case 1:
      ReadEntry(text);
      break;
    case 2:
      ReadRho(text);
      break;
    default:
      MakeEntry(text);
      break;
  }
  return 0;
}
