// What models are made of, and by which names they are known: from a name, a passed
// file or a digest to a model's contents. What of them is resident is not known here.
//
// Who owns which fact. A name leads to a model because of one record here, made by a
// look at the files that the catalogue says. A model may be opened by everybody while
// a name leads to it (ModelContents::is_public), and no longer: when a name is removed
// or replaced, or its files are gone or others, the record goes, and with it the open
// descriptors of its files. Files that no look has found again are not held open.
//
// Looking. Opening, reading and hashing files takes long and may hang, so it happens
// on loader threads; many that ask for the same files share one look. A second open of
// a named model does without: the kernel tells of every change (base/path_watch.h), so
// Current() makes no call that a file system can hold up. Files that can not be watched
// are looked at again for every open, on a loader thread. What the kernel does not tell
// (stores into mapped files, mounts) is found by a look in the background, at most once
// in kRecheckInterval for each name that is used.
//
// Thread rule: the reactor's thread. Callbacks come on that thread, never from inside
// a call that starts a look.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/path_watch.h"
#include "daemon/catalogue.h"
#include "daemon/ledger.h"
#include "daemon/loaders.h"
#include "daemon/reactor.h"
#include "ipc/region.h"
#include "tier/ingest.h"
#include "tier/manifest.h"
#include "tier/source.h"

namespace trims {

inline constexpr Duration kRecheckInterval = std::chrono::seconds(1);

// Files, and the manifest that was made from just these files. Two names may hold
// the same contents in different files; a load needs a pair that fits.
struct Readable {
  std::shared_ptr<const Source> source;
  std::shared_ptr<const ModelManifest> manifest;
};

// A model's contents, whether resident or not. Shared by who is at work with them;
// `names` is changed by Contents only.
struct ModelContents {
  std::shared_ptr<const ModelManifest> manifest;
  std::vector<std::string> names;  // That lead here, the one found last at the end.
  std::string label;               // A client's word for it, for listings.
  // Made on first use. By granularity (index: its number).
  std::array<std::shared_ptr<const Layout>, 4> layouts;
  std::array<std::shared_ptr<const ReadOnlyRegion>, 4> indexes;
  std::optional<store::Granularity> chosen;  // What `auto` means for it.
  // The serialized manifest, for the ledger.
  std::shared_ptr<const ReadOnlyRegion> sealed_manifest;
  uint64_t sealed_manifest_bytes = 0;  // Without padding.

  const Digest& digest() const { return manifest->digest; }
  // Reached by a catalogue name: everybody may open it.
  bool is_public() const { return !names.empty(); }
  // Its newest name, else the label, else "@sha256:…".
  std::string DisplayName() const;
  Result<std::shared_ptr<const Layout>> LayoutAt(store::Granularity granularity,
                                                 uint64_t slab_bytes);
};

// Tells looks apart; all that wait for one have its key.
using LookKey = std::string;

class Contents final {
 public:
  struct Found {
    std::shared_ptr<ModelContents> contents;
    std::shared_ptr<const ModelManifest> manifest;  // Of just these files.
  };
  struct Looked {
    Result<Found> found = Found();
    // A name led to these files, or failed to, at this moment; who asked later, and shared the
    // look, may have seen it change.
    Time current_at{};
    uint64_t need_bytes = 0;  // With RESOURCE_EXHAUSTED: what the files have.
  };
  struct Options {
    std::unique_ptr<Catalogue> catalogue;
    std::unique_ptr<SidecarStore> sidecars;  // May be null.
    uint64_t bytes_max = 0;                  // Larger files are not worth hashing.
    int threads = 1;                         // For one look.
    // The names that lead to this model have changed.
    std::function<void(const std::shared_ptr<ModelContents>&)> on_names_changed;
    std::function<void(const LookKey&, uint64_t done, uint64_t total)> on_look_progress;
    // Once for each look that was not cancelled.
    std::function<void(const LookKey&, const Looked&)> on_looked;
  };

  // Borrows `reactor` and `loaders`.
  Contents(Reactor* reactor, Loaders* loaders, Options options);
  ~Contents();
  Contents(const Contents&) = delete;
  Contents& operator=(const Contents&) = delete;

  // Stops looks. To be called before the loaders end.
  void CancelLooks();

  // What the name stands for, when that is certain without asking a file system; else
  // null, and LookAtName finds out.
  std::shared_ptr<ModelContents> Current(const std::string& name);
  LookKey LookAtName(const std::string& name);
  // The same for a descriptor that a client passed. `open` tells files apart whose identity
  // may be made up.
  std::optional<Found> KnownFiles(const Source& source) const;
  LookKey LookAtFiles(std::shared_ptr<const Source> source, store::OpenId open);
  // Nobody waits for it any more.
  void CancelLook(const LookKey& key);

  std::shared_ptr<ModelContents> Find(const Digest& digest) const;
  // What the name stood for when its files were last looked at.
  std::optional<Digest> DigestOfName(const std::string& name) const;
  std::string NameOf(const Digest& digest) const;

  // Open files of a name that leads to the model; empty when there are none.
  Readable FilesOf(const ModelContents& contents) const;
  // Where the newest name's graph and labels are; "" without a name.
  std::string DirectoryOf(const ModelContents& contents) const;
  std::vector<NamedFiles> NamesOf(const ModelContents& contents) const;

  // Its files are to be looked at again before the next answer.
  void Doubt(const std::string& name);
  // The name leads nowhere until it is looked at again.
  void ForgetName(const std::string& name);
  // What an earlier worker knew: names whose catalogue entries still say the same lead to the
  // model again, until a look that begins now finds that their files are others. Blocks; before
  // serving.
  std::shared_ptr<ModelContents> Adopt(const ReplicaEntry& entry,
                                       std::shared_ptr<const ModelManifest> manifest,
                                       std::shared_ptr<const ReadOnlyRegion> sealed_manifest);

  Catalogue& catalogue() const { return *catalogue_; }
  size_t looks_running() const { return looks_.size(); }

  // Aborts with a description when a fact contradicts another. O(everything).
  void CheckInvariants() const;

 private:
  // What a name stood for when it was last looked at.
  struct NameRecord {
    NamedFiles named;
    uint64_t catalogue_version = 0;
    Readable readable;  // No source after an adoption.
    std::shared_ptr<const PathWatch::Watched> watched;
    std::shared_ptr<ModelContents> contents;
    Time checked_at{};
    bool is_checking = false;
    uint64_t number = 0;  // Never used twice.
  };
  struct Look {
    std::shared_ptr<LoadControl> control = std::make_shared<LoadControl>();
    int rounds = 0;
  };
  // Everything that one look needs and finds, on a loader thread.
  struct LookWork;

  LookKey StartLook(const LookKey& key, LoaderPool& pool, std::shared_ptr<LookWork> work);
  void LookOnLoaderThread(const LookKey& key, std::shared_ptr<LookWork> work);
  void LookAtFilesOfName(LookWork& work) const;
  void LookAtSource(LookWork& work) const;
  std::shared_ptr<const PathWatch::Watched> WatchFiles(const LookWork& work) const;
  bool IsStillSo(const LookWork& work);
  bool IsListedStill(const LookWork& work) const;
  void FinishLook(const LookKey& key, const std::shared_ptr<LookWork>& work);
  std::shared_ptr<ModelContents> ContentsOf(const std::shared_ptr<const ModelManifest>& manifest);
  void SetName(NameRecord record);
  void RemoveName(ModelContents& contents, const std::string& name);
  // Closing a file may take as long as any other call to its file system.
  void LetGo(std::shared_ptr<const Source> source,
             std::shared_ptr<const PathWatch::Watched> watched);
  void OnFilesReported();
  void OnFilesChanged();
  void CheckInBackground(const std::string& name, NameRecord& record);
  void CheckOnFilesThread(const std::string& name, uint64_t number, bool was_changed,
                          std::shared_ptr<const Source> source);
  void DropIdle();

  Reactor* const reactor_;
  Loaders* const loaders_;
  const std::unique_ptr<Catalogue> catalogue_;
  const std::unique_ptr<SidecarStore> sidecars_;
  const uint64_t bytes_max_;
  const int threads_;
  const decltype(Options::on_names_changed) on_names_changed_;
  const decltype(Options::on_look_progress) on_look_progress_;
  const decltype(Options::on_looked) on_looked_;
  std::unique_ptr<PathWatch> watch_;  // Null where the kernel has none left.
  Reactor::WatchId watch_events_{};
  Reactor::TimerId watch_pause_{};

  std::unordered_map<std::string, NameRecord> names_;
  std::unordered_map<Digest, std::shared_ptr<ModelContents>> contents_;
  // Of passed descriptors; only files whose identity can be trusted.
  std::map<std::vector<FileIdentity>, std::shared_ptr<const ModelManifest>> manifests_by_files_;
  std::unordered_map<LookKey, Look> looks_;
  size_t drop_idle_at_;
  uint64_t last_record_ = 0;
};

// The same text for a model that does not exist and one that the asker may not know of.
std::string UnknownDigestText(const Digest& digest);

}  // namespace trims
