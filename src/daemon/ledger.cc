#include "daemon/ledger.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "daemon/ledger_link.h"
#include "daemon/log.h"

namespace trims {
namespace {

constexpr std::string_view kExtentPrefix = "extent/";
constexpr std::string_view kReplicaPrefix = "replica/";
constexpr std::string_view kPinPrefix = "pin/";
constexpr std::string_view kDevicePrefix = "device/";

static_assert(kMaxLedgerUids * 11 + kMaxLedgerLabelBytes * 6 + 512 < kMaxLinkBodyBytes / 2,
              "ten digits and a comma for each uid, six bytes for each escape, all other members");

// "<tier>/<64 hex>": names of tiers may hold anything, so the digest is cut off from behind. In
// the one spelling that a worker writes: people may write digests in others.
bool SplitDigest(std::string_view rest, LedgerKey& key) {
  const size_t slash = rest.rfind('/');
  if (slash == rest.npos || slash == 0) return false;
  const Result<Digest> digest = Digest::Parse(rest.substr(slash + 1));
  if (!digest.ok() || digest->ToHex() != rest.substr(slash + 1)) return false;
  key.digest = *digest;
  key.tier = std::string(rest.substr(0, slash));
  return true;
}

// A member of the given type, or nothing.
template <typename T>
bool Read(const nlohmann::json& json, const char* name, T& out) {
  const auto it = json.find(name);
  if (it == json.end()) return false;
  if constexpr (std::is_same_v<T, std::string>) {
    if (!it->is_string()) return false;
    out = it->template get<std::string>();
  } else if constexpr (std::is_same_v<T, double>) {
    if (!it->is_number()) return false;
    out = it->template get<double>();
  } else if constexpr (std::is_signed_v<T>) {
    if (!it->is_number_integer()) return false;
    out = it->template get<T>();
  } else {
    if (!it->is_number_unsigned()) return false;
    out = it->template get<T>();
  }
  return true;
}

std::string Dump(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

std::string ExtentLedgerKey(std::string_view tier, const Digest& extent) {
  return std::string(kExtentPrefix).append(tier) + "/" + extent.ToHex();
}

std::string ReplicaLedgerKey(std::string_view tier, store::Granularity granularity,
                             const Digest& model) {
  return std::string(kReplicaPrefix).append(tier) + "/" +
         std::to_string(static_cast<int>(granularity)) + "/" + model.ToHex();
}

std::string PinLedgerKey(std::string_view tier, const Digest& model) {
  return std::string(kPinPrefix).append(tier) + "/" + model.ToHex();
}

std::optional<LedgerKey> ParseLedgerKey(std::string_view text) {
  LedgerKey key;
  if (text == kRhoLedgerKey) {
    key.kind = LedgerKey::Kind::kRho;
    return key;
  }
  if (text.starts_with(kDevicePrefix)) {
    key.kind = LedgerKey::Kind::kDevice;
    return key;
  }
  if (text.starts_with(kExtentPrefix)) {
    key.kind = LedgerKey::Kind::kExtent;
    if (!SplitDigest(text.substr(kExtentPrefix.size()), key)) return std::nullopt;
    return key;
  }
  if (text.starts_with(kPinPrefix)) {
    key.kind = LedgerKey::Kind::kPin;
    if (!SplitDigest(text.substr(kPinPrefix.size()), key)) return std::nullopt;
    return key;
  }
  if (!text.starts_with(kReplicaPrefix)) return std::nullopt;
  key.kind = LedgerKey::Kind::kReplica;
  if (!SplitDigest(text.substr(kReplicaPrefix.size()), key)) return std::nullopt;
  // What is left is "<tier>/<granularity>".
  const size_t slash = key.tier.rfind('/');
  if (slash == key.tier.npos || slash == 0 || slash + 2 != key.tier.size()) return std::nullopt;
  const int number = key.tier[slash + 1] - '0';
  if (number < static_cast<int>(store::Granularity::kModel) ||
      number > static_cast<int>(store::Granularity::kLayer)) {
    return std::nullopt;
  }
  key.granularity = static_cast<store::Granularity>(number);
  key.tier.resize(slash);
  return key;
}

std::string EncodeReplicaEntry(const ReplicaEntry& entry) {
  nlohmann::json json;
  json["names"] = nlohmann::json::array();
  size_t bytes = 0;
  for (const NamedFiles& named : entry.names) {
    bytes += named.name.size() + named.path.size() + named.directory.size() + 64;
    // Half of the room is for uids; escapes may make a text six times as long.
    if (json["names"].size() == kMaxLedgerNames || bytes * 6 > kMaxLinkBodyBytes / 2) break;
    json["names"].push_back(
        {{"name", named.name}, {"path", named.path}, {"directory", named.directory}});
  }
  json["label"] = entry.label.substr(0, kMaxLedgerLabelBytes);
  json["generation"] = entry.generation;
  json["slab_bytes"] = entry.slab_bytes;
  json["manifest_bytes"] = entry.manifest_bytes;
  json["proved_uids"] = std::vector<uint32_t>(
      entry.proved_uids.begin(),
      entry.proved_uids.begin() +
          static_cast<ptrdiff_t>(std::min(entry.proved_uids.size(), kMaxLedgerUids)));
  return Dump(json);
}

Result<ReplicaEntry> ParseReplicaEntry(std::string_view text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgumentError("a replica's entry is no JSON object");
  ReplicaEntry entry;
  const auto broken = [](const char* what) {
    return InvalidArgumentError(std::string("a replica's entry has no usable \"") + what + "\"");
  };
  if (!Read(json, "label", entry.label)) return broken("label");
  if (!Read(json, "generation", entry.generation)) return broken("generation");
  if (!Read(json, "slab_bytes", entry.slab_bytes)) return broken("slab_bytes");
  if (!Read(json, "manifest_bytes", entry.manifest_bytes)) return broken("manifest_bytes");
  const auto names = json.find("names");
  if (names == json.end() || !names->is_array()) return broken("names");
  for (const nlohmann::json& each : *names) {
    NamedFiles named;
    if (!each.is_object() || !Read(each, "name", named.name) || named.name.empty() ||
        !Read(each, "path", named.path) || !Read(each, "directory", named.directory)) {
      return broken("names");
    }
    entry.names.push_back(std::move(named));
  }
  const auto uids = json.find("proved_uids");
  if (uids == json.end() || !uids->is_array()) return broken("proved_uids");
  for (const nlohmann::json& uid : *uids) {
    if (!uid.is_number_unsigned() || uid.get<uint64_t>() > UINT32_MAX) return broken("proved_uids");
    entry.proved_uids.push_back(uid.get<uint32_t>());
  }
  return entry;
}

std::string EncodeRho(const RhoConstants& rho) {
  nlohmann::json json;
  json["q"] = rho.read_bytes_per_second;
  json["o_ns"] = rho.export_cost.count();
  json["s_ns"] = rho.open_cost.count();
  return Dump(json);
}

Result<RhoConstants> ParseRho(std::string_view text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  RhoConstants rho;
  int64_t export_ns = 0, open_ns = 0;
  if (!json.is_object() || !Read(json, "q", rho.read_bytes_per_second) ||
      !Read(json, "o_ns", export_ns) || !Read(json, "s_ns", open_ns) ||
      !(rho.read_bytes_per_second > 0) || export_ns < 0 || open_ns < 0) {
    return InvalidArgumentError("the ledger's constants of the rho test are not understood");
  }
  rho.export_cost = Duration(export_ns);
  rho.open_cost = Duration(open_ns);
  return rho;
}

void Ledger::Put(const std::string& key, const std::string& body, int fd, const char* what) {
  if (link_ < 0) return;
  const Status status = SendLink(link_, LinkType::kPut, key, body, fd);
  if (status.ok()) return;
  LogError("not in the ledger, a crash would lose it",
           {{"what", what}, {"key", key}, {"reason", status.message()}});
}

void Ledger::PutExtent(std::string_view tier, const ResidentExtent& extent) {
  Put(ExtentLedgerKey(tier, extent.key), extent.integrity, extent.fd.get(), "extent");
}

void Ledger::PutReplica(std::string_view tier, store::Granularity granularity, const Digest& model,
                        const ReplicaEntry& entry, int manifest_fd) {
  Put(ReplicaLedgerKey(tier, granularity, model), EncodeReplicaEntry(entry), manifest_fd,
      "replica");
}

void Ledger::PutPin(std::string_view tier, const Digest& model) {
  Put(PinLedgerKey(tier, model), "", -1, "pin");
}

void Ledger::PutText(const std::string& key, const std::string& text) {
  Put(key, text, -1, "measurement");
}

// The keeper that can not be told is gone, and with it the ledger.
void Ledger::Drop(const std::string& key) {
  if (link_ >= 0) (void)!SendLink(link_, LinkType::kDrop, key, "").ok();
}

}  // namespace trims
