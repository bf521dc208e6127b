// The ledger: what the keeper holds for the next worker, should this one die. Here
// is what its entries mean; the keeper knows keys, texts and descriptors only.
//
//   key                                 body                      descriptor
//   extent/<tier>/<digest>              the tier's integrity      the extent's memory
//   replica/<tier>/<granularity>/<digest>  ReplicaEntry as JSON   the serialized manifest
//   pin/<tier>/<digest>                                           none
//   rho                                 RhoConstants as JSON      none
//   device/…                            the worker's own text     none
//
// Encoding and parsing are pure functions. Whatever a worker of another version, or
// one that was about to die, has left is either understood or refused with a reason.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/digest.h"
#include "base/status.h"
#include "store/types.h"
#include "tier/rho.h"
#include "tier/tier.h"

namespace trims {

// What a key says. `tier` is its name; a key about no tier has "".
struct LedgerKey {
  enum class Kind : uint8_t { kExtent, kReplica, kPin, kRho, kDevice };
  Kind kind{};
  std::string tier;
  Digest digest;  // Of the extent or the model.
  store::Granularity granularity = store::Granularity::kModel;
  friend bool operator==(const LedgerKey&, const LedgerKey&) = default;
};
std::string ExtentLedgerKey(std::string_view tier, const Digest& extent);
std::string ReplicaLedgerKey(std::string_view tier, store::Granularity granularity,
                             const Digest& model);
std::string PinLedgerKey(std::string_view tier, const Digest& model);
inline constexpr char kRhoLedgerKey[] = "rho";
inline constexpr char kLinksLedgerKey[] = "device/links";
// The seed of the key of all integrity hashes. The keeper hands it to each next worker, and
// nobody else ever sees it.
inline constexpr char kHashKeyLedgerKey[] = "device/hash-key";
// nullopt for a key that no worker of this version writes.
std::optional<LedgerKey> ParseLedgerKey(std::string_view key);

// A name by which everybody may open a model, and where its files were.
struct NamedFiles {
  std::string name;
  std::string path;       // As the catalogue has it.
  std::string directory;  // Where its graph and labels are.
  friend bool operator==(const NamedFiles&, const NamedFiles&) = default;
};

// A replica that was ready.
struct ReplicaEntry {
  std::vector<NamedFiles> names;  // None: only who has proved access may open it.
  std::string label;              // A client's word for it.
  uint64_t generation = 0;
  uint64_t slab_bytes = 0;      // Layouts at another slab size would name other extents.
  uint64_t manifest_bytes = 0;  // Its memory is padded to whole pages.
  std::vector<uint32_t> proved_uids;
  friend bool operator==(const ReplicaEntry&, const ReplicaEntry&) = default;
};
// Never longer than kMaxLinkBodyBytes: names and uids beyond kMaxLedgerNames and
// kMaxLedgerUids are left out, as who is forgotten can open the model's files again, as are
// names that would take more than half of the room, and the end of a long label. What is not
// UTF-8 does not come back as it was.
inline constexpr size_t kMaxLedgerLabelBytes = 512;
inline constexpr size_t kMaxLedgerNames = 16;
inline constexpr size_t kMaxLedgerUids = 2048;
std::string EncodeReplicaEntry(const ReplicaEntry& entry);
// INVALID_ARGUMENT says what is missing or of another type.
Result<ReplicaEntry> ParseReplicaEntry(std::string_view text);

std::string EncodeRho(const RhoConstants& rho);
Result<RhoConstants> ParseRho(std::string_view text);

// Writes entries over the link to the keeper, who has them when a call returns. A link
// that is gone is told in the log, once for each entry that a crash would lose.
//
// Thread rule: the reactor's thread.
class Ledger final {
 public:
  // Borrowed; -1: there is no keeper (tests), and nothing is written.
  explicit Ledger(int link) : link_(link) {}
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  void PutExtent(std::string_view tier, const ResidentExtent& extent);
  // `manifest_fd` is borrowed: the sealed memory of the serialized manifest.
  void PutReplica(std::string_view tier, store::Granularity granularity, const Digest& model,
                  const ReplicaEntry& entry, int manifest_fd);
  void PutPin(std::string_view tier, const Digest& model);
  void PutText(const std::string& key, const std::string& text);
  void Drop(const std::string& key);

 private:
  void Put(const std::string& key, const std::string& body, int fd, const char* what);

  const int link_;
};

}  // namespace trims
