#include "daemon/contents.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>

#include "base/limits.h"
#include "daemon/config.h"
#include "daemon/log.h"
#include "daemon/progress_throttle.h"

namespace trims {
namespace {

// Contents kept beyond those that are resident or named.
constexpr size_t kIdleContentsMax = 1024;
// Passed files whose contents are known without a look.
constexpr size_t kKnownFilesMax = 4096;
// Names of one model that are known at a time.
constexpr size_t kNamesPerModelMax = 64;
// Looks for one answer while what the name stands for seems to change.
constexpr int kLookRoundsMax = 3;
// Between two times that reports of changed files wake the loop.
constexpr Duration kReportPause = std::chrono::milliseconds(100);

std::string FileKey(const std::vector<FileIdentity>& identities) {
  std::string key = "files";
  for (const FileIdentity& file : identities) {
    key += ' ' + std::to_string(file.device) + ':' + std::to_string(file.inode) + ':' +
           std::to_string(file.size) + ':' + std::to_string(file.mtime_ns) + ':' +
           std::to_string(file.ctime_ns);
  }
  return key;
}

}  // namespace

std::string UnknownDigestText(const Digest& digest) {
  return "no model with digest " + digest.ToString() +
         " that you may use; open it by name, or pass its file";
}

std::string ModelContents::DisplayName() const {
  if (!names.empty()) return names.back();
  return label.empty() ? "@" + digest().ToString() : label;
}

Result<std::shared_ptr<const Layout>> ModelContents::LayoutAt(store::Granularity granularity,
                                                              uint64_t slab_bytes) {
  std::shared_ptr<const Layout>& slot = layouts[static_cast<size_t>(granularity)];
  if (slot == nullptr) {
    ASSIGN_OR_RETURN(Layout layout, MakeLayout(*manifest, granularity, slab_bytes));
    slot = std::make_shared<const Layout>(std::move(layout));
  }
  return slot;
}

struct Contents::LookWork {
  // Asked. A name, or a passed file.
  std::string name;
  Readable known;  // What is known of the name's files, or the passed one.
  std::string known_path;
  // Only whether these are still the files of this manifest, which an earlier worker made.
  std::shared_ptr<const ModelManifest> adopted;
  std::shared_ptr<LoadControl> control;

  // Found.
  Status status;
  Time current_at{};
  uint64_t catalogue_version = 0;  // Before the catalogue was asked: never newer than its answer.
  std::string path;
  std::vector<std::string> passed_over;  // As CatalogueEntry.
  Readable readable;
  std::shared_ptr<const PathWatch::Watched> watched;
  // The name does not stand for `known` any more, whatever else it may stand for.
  bool known_is_past = false;
  Status sidecar_status;
};

Contents::Contents(Reactor* reactor, Loaders* loaders, Options options)
    : reactor_(reactor),
      loaders_(loaders),
      catalogue_(std::move(options.catalogue)),
      sidecars_(std::move(options.sidecars)),
      bytes_max_(options.bytes_max),
      threads_(options.threads),
      on_names_changed_(std::move(options.on_names_changed)),
      on_look_progress_(std::move(options.on_look_progress)),
      on_looked_(std::move(options.on_looked)),
      drop_idle_at_(kIdleContentsMax) {
  Result<std::unique_ptr<PathWatch>> watch = PathWatch::Create();
  Status status = watch.status();
  if (watch.ok()) {
    watch_ = *std::move(watch);
    Result<Reactor::WatchId> events = reactor_->Watch(watch_->PeekFd(), EPOLLIN, "files changed",
                                                      [this](uint32_t) { OnFilesReported(); });
    status = events.status();
    if (events.ok()) {
      watch_events_ = *events;
    } else {
      watch_.reset();
    }
  }
  if (!status.ok()) {
    LogWarn("named files are looked at again for every open, ignoring",
            {{"reason", status.message()}});
  }
}

Contents::~Contents() {
  reactor_->Unwatch(watch_events_);
  reactor_->CancelTimer(watch_pause_);
}

// Opens take reports in themselves, so there is no hurry: a busy directory on the way to a model
// wakes the loop ten times a second, not for each of its entries.
void Contents::OnFilesReported() {
  OnFilesChanged();
  reactor_->ChangeEvents(watch_events_, 0);
  watch_pause_ = reactor_->RunAt(Now() + kReportPause, "watch files again",
                                 [this] { reactor_->ChangeEvents(watch_events_, EPOLLIN); });
}

void Contents::CancelLooks() {
  for (auto& [key, look] : looks_) look.control->cancelled = true;
}

// --- Names -------------------------------------------------------------------------

std::shared_ptr<ModelContents> Contents::Current(const std::string& name) {
  if (watch_ != nullptr && watch_->Drain()) OnFilesChanged();
  const auto it = names_.find(name);
  if (it == names_.end()) return nullptr;
  NameRecord& record = it->second;
  if (record.watched == nullptr || record.watched->changed() ||
      record.catalogue_version != catalogue_->version()) {
    return nullptr;
  }
  if (!record.is_checking && Now() - record.checked_at > kRecheckInterval)
    CheckInBackground(name, record);
  return record.contents;
}

void Contents::OnFilesChanged() {
  if (watch_ == nullptr) return;
  (void)watch_->Drain();
  for (auto& [name, record] : names_) {
    if (record.watched != nullptr && record.watched->changed() && !record.is_checking)
      CheckInBackground(name, record);
  }
}

// A name whose files are gone or others stands for nothing until it is looked at again.
void Contents::CheckInBackground(const std::string& name, NameRecord& record) {
  record.is_checking = true;
  const bool was_changed = record.watched->changed();
  loaders_->files.Run(
      [this, name, number = record.number, was_changed, source = record.readable.source]() mutable {
        CheckOnFilesThread(name, number, was_changed, std::move(source));
      });
}

void Contents::CheckOnFilesThread(const std::string& name, uint64_t number, bool was_changed,
                                  std::shared_ptr<const Source> source) {
  const bool is_current = source->StillCurrent();
  source.reset();
  reactor_->Post("files checked", [this, name, number, was_changed, is_current] {
    const auto it = names_.find(name);
    if (it == names_.end() || it->second.number != number) return;
    NameRecord& record = it->second;
    record.is_checking = false;
    record.checked_at = Now();
    if (!is_current) return ForgetName(name);
    if (record.watched == nullptr || !record.watched->changed()) return;
    // A report that came while it was checked calls for another check. One from before does
    // not: the files are what they were, and the next open looks and watches again.
    if (!was_changed) return CheckInBackground(name, record);
    LetGo(nullptr, std::exchange(record.watched, nullptr));
  });
}

std::optional<Digest> Contents::DigestOfName(const std::string& name) const {
  const auto it = names_.find(name);
  if (it == names_.end()) return std::nullopt;
  return it->second.contents->digest();
}

std::shared_ptr<ModelContents> Contents::Find(const Digest& digest) const {
  const auto it = contents_.find(digest);
  return it == contents_.end() ? nullptr : it->second;
}

std::string Contents::NameOf(const Digest& digest) const {
  const auto it = contents_.find(digest);
  return it == contents_.end() ? "@" + digest.ToString() : it->second->DisplayName();
}

Readable Contents::FilesOf(const ModelContents& contents) const {
  for (auto name = contents.names.rbegin(); name != contents.names.rend(); ++name) {
    const NameRecord& record = names_.at(*name);
    if (record.readable.source != nullptr) return record.readable;
  }
  return {};
}

std::string Contents::DirectoryOf(const ModelContents& contents) const {
  return contents.names.empty() ? "" : names_.at(contents.names.back()).named.directory;
}

std::vector<NamedFiles> Contents::NamesOf(const ModelContents& contents) const {
  std::vector<NamedFiles> named;
  for (const std::string& name : contents.names) named.push_back(names_.at(name).named);
  return named;
}

void Contents::SetName(NameRecord record) {
  const std::string name = record.named.name;
  const std::shared_ptr<ModelContents> contents = record.contents;
  record.number = ++last_record_;
  std::shared_ptr<ModelContents> before;
  bool is_same = false;
  if (const auto it = names_.find(name); it != names_.end()) {
    NameRecord old = std::exchange(it->second, std::move(record));
    is_same = old.contents == contents && old.named == it->second.named;
    before = old.contents;
    LetGo(std::move(old.readable.source), std::move(old.watched));
  } else {
    names_.emplace(name, std::move(record));
  }
  if (is_same) return;
  if (before != nullptr) RemoveName(*before, name);
  contents->names.push_back(name);
  if (before != nullptr && before != contents) on_names_changed_(before);
  on_names_changed_(contents);
  // A directory has as many spellings as anybody cares to make up. The model stays public by
  // those that are left, and one that is forgotten is looked at again when it is used.
  if (contents->names.size() > kNamesPerModelMax) ForgetName(contents->names.front());
}

void Contents::RemoveName(ModelContents& contents, const std::string& name) {
  std::erase(contents.names, name);
}

void Contents::Doubt(const std::string& name) {
  if (const auto it = names_.find(name); it != names_.end())
    LetGo(nullptr, std::exchange(it->second.watched, nullptr));
}

void Contents::ForgetName(const std::string& name) {
  const auto it = names_.find(name);
  if (it == names_.end()) return;
  NameRecord record = std::move(it->second);
  names_.erase(it);
  const std::shared_ptr<ModelContents> contents = record.contents;
  RemoveName(*contents, name);
  LetGo(std::move(record.readable.source), std::move(record.watched));
  on_names_changed_(contents);
}

void Contents::LetGo(std::shared_ptr<const Source> source,
                     std::shared_ptr<const PathWatch::Watched> watched) {
  if (source == nullptr && watched == nullptr) return;
  loaders_->closing.Run([source = std::move(source), watched = std::move(watched)]() mutable {
    source.reset();
    watched.reset();
  });
}

std::shared_ptr<ModelContents> Contents::ContentsOf(
    const std::shared_ptr<const ModelManifest>& manifest) {
  std::shared_ptr<ModelContents>& contents = contents_[manifest->digest];
  if (contents == nullptr) {
    contents = std::make_shared<ModelContents>();
    contents->manifest = manifest;
  }
  return contents;
}

std::shared_ptr<ModelContents> Contents::Adopt(
    const ReplicaEntry& entry, std::shared_ptr<const ModelManifest> manifest,
    std::shared_ptr<const ReadOnlyRegion> sealed_manifest) {
  const std::shared_ptr<ModelContents> contents = ContentsOf(manifest);
  if (contents->sealed_manifest == nullptr) {
    contents->sealed_manifest = std::move(sealed_manifest);
    contents->sealed_manifest_bytes = entry.manifest_bytes;
  }
  if (contents->label.empty()) contents->label = entry.label;
  for (const NamedFiles& named : entry.names) {
    if (names_.contains(named.name)) continue;
    const Result<CatalogueEntry> listed = catalogue_->Find(named.name);
    if (!listed.ok() || listed->path != named.path) continue;
    NameRecord record;
    record.named = named;
    record.contents = contents;
    SetName(std::move(record));
    auto work = std::make_shared<LookWork>();
    work->name = named.name;
    work->adopted = contents->manifest;
    StartLook("adopted " + named.name, loaders_->named, std::move(work));
  }
  return contents;
}

// --- Looking -----------------------------------------------------------------------

LookKey Contents::LookAtName(const std::string& name) {
  auto work = std::make_shared<LookWork>();
  work->name = name;
  if (const auto it = names_.find(name); it != names_.end()) {
    work->known = it->second.readable;
    work->known_path = it->second.named.path;
  }
  return StartLook("name " + name, loaders_->named, std::move(work));
}

std::optional<Contents::Found> Contents::KnownFiles(const Source& source) const {
  // Nothing is looked up or shared under an identity that the user may have made up.
  if (source.has_forgeable_identity()) return std::nullopt;
  const auto it = manifests_by_files_.find(source.Identities());
  if (it == manifests_by_files_.end()) return std::nullopt;
  const auto known = contents_.find(it->second->digest);
  if (known == contents_.end()) return std::nullopt;
  return Found{known->second, it->second};
}

LookKey Contents::LookAtFiles(std::shared_ptr<const Source> source, store::OpenId open) {
  const bool is_foreign = source->has_forgeable_identity();
  const LookKey key = is_foreign ? "open " + std::to_string(open) : FileKey(source->Identities());
  auto work = std::make_shared<LookWork>();
  work->known.source = std::move(source);
  return StartLook(key, is_foreign ? loaders_->foreign : loaders_->passed, std::move(work));
}

void Contents::CancelLook(const LookKey& key) {
  const auto it = looks_.find(key);
  if (it == looks_.end()) return;
  it->second.control->cancelled = true;
  looks_.erase(it);
}

LookKey Contents::StartLook(const LookKey& key, LoaderPool& pool, std::shared_ptr<LookWork> work) {
  // Somebody else's look at these files serves us too. A cancelled one may still be running;
  // its end is told apart by its control.
  const auto [it, is_new] = looks_.try_emplace(key);
  if (!is_new) return key;
  work->control = it->second.control;
  auto throttle = std::make_shared<ProgressThrottle>([this, key](uint64_t done, uint64_t total) {
    reactor_->Post("hashing progress",
                   [this, key, done, total] { on_look_progress_(key, done, total); });
  });
  work->control->on_progress = [throttle](uint64_t done, uint64_t total) {
    (*throttle)(done, total);
  };
  pool.Run([this, key, work = std::move(work)] { LookOnLoaderThread(key, work); });
  return key;
}

void Contents::LookOnLoaderThread(const LookKey& key, std::shared_ptr<LookWork> work) {
  if (work->name.empty()) {
    work->readable = work->known;
    LookAtSource(*work);
  } else {
    LookAtFilesOfName(*work);
  }
  reactor_->Post("look finished", [this, key, work = std::move(work)] { FinishLook(key, work); });
}

// Three attempts: what is known, which may have changed, and what is there now, which may
// change while it is read.
void Contents::LookAtFilesOfName(LookWork& work) const {
  const Readable known = work.known;
  work.current_at = Now();
  work.catalogue_version = catalogue_->version();
  const Result<CatalogueEntry> entry = catalogue_->Find(work.name);
  if (!entry.ok()) {
    work.status = entry.status();
    work.known_is_past = work.known_is_past || work.status.code() == StatusCode::kNotFound;
    return;
  }
  work.path = entry->path;
  work.passed_over = entry->passed_over;
  const bool try_known = known.source != nullptr && work.known_path == entry->path;
  work.known_is_past = work.known_is_past || (known.source != nullptr && !try_known);
  for (int attempt = try_known ? 0 : 1; attempt < 3; ++attempt) {
    if (attempt == 0) {
      work.readable = known;
    } else {
      Result<Source> source = Source::OpenPath(entry->path, CanonicalDirectoryName(work.name));
      if (!source.ok()) {
        work.status = source.status();
        work.known_is_past = work.known_is_past || work.status.code() == StatusCode::kNotFound;
        return;
      }
      work.readable = {std::make_shared<const Source>(*std::move(source)), nullptr};
      if (known.source != nullptr &&
          known.source->Identities() == work.readable.source->Identities()) {
        work.readable.manifest = known.manifest;  // Something else beside them has changed.
      } else {
        work.known_is_past = true;
      }
    }
    work.watched = WatchFiles(work);
    work.current_at = Now();
    if (!work.readable.source->StillCurrent()) {
      work.status = AbortedError(work.readable.source->description() +
                                 " changed while it was looked at: open the model again once "
                                 "nothing writes it any more");
      continue;
    }
    LookAtSource(work);
    if (work.status.code() != StatusCode::kAborted || work.control->cancelled) return;
  }
}

void Contents::LookAtSource(LookWork& work) const {
  work.status = OkStatus();
  if (work.readable.manifest != nullptr) return;
  const Source& source = *work.readable.source;
  if (work.adopted != nullptr) {
    if (source.Identities() == work.adopted->file_identities) {
      work.readable.manifest = work.adopted;
    } else {
      work.status = FailedPreconditionError(source.description() + " is not what it was");
    }
    return;
  }
  if (source.total_bytes() > bytes_max_) {
    // Not worth hashing, which for a large sparse file would take hours.
    work.status = ResourceExhaustedError(
        source.description() + " has " + FormatSize(source.total_bytes()) +
        ", more than the largest budget of this daemon, " + FormatSize(bytes_max_));
    return;
  }
  Result<IngestResult> ingested = Ingest(source, sidecars_.get(), *work.control, threads_);
  work.status = ingested.status();
  if (!ingested.ok()) return;
  work.readable.manifest = ingested->manifest;
  work.sidecar_status = ingested->sidecar_status;
}

std::shared_ptr<const PathWatch::Watched> Contents::WatchFiles(const LookWork& work) const {
  if (watch_ == nullptr) return nullptr;
  const Source& source = *work.readable.source;
  PathWatch::Asked asked;
  for (const SourceFile& file : source.files()) asked.files.push_back(file.path);
  if (source.is_directory()) asked.directories.push_back(source.directory());
  // A directory there would come first; a file, which a directory may replace, is passed over.
  for (const std::string& path : work.passed_over)
    (::access(path.c_str(), F_OK) == 0 ? asked.files : asked.absent).push_back(path);
  Result<std::shared_ptr<const PathWatch::Watched>> watched = watch_->Add(asked);
  if (watched.ok()) return *std::move(watched);
  LogDebug("files not watched, looked at again for every open",
           {{"files", source.description()}, {"reason", watched.status().message()}});
  return nullptr;
}

// As far as the kernel and the catalogue have told.
bool Contents::IsStillSo(const LookWork& work) {
  if (watch_ != nullptr) (void)watch_->Drain();
  return IsListedStill(work) && (work.watched == nullptr || !work.watched->changed());
}

bool Contents::IsListedStill(const LookWork& work) const {
  return work.catalogue_version == catalogue_->version();
}

void Contents::FinishLook(const LookKey& key, const std::shared_ptr<LookWork>& work) {
  const auto it = looks_.find(key);
  if (it == looks_.end() || it->second.control != work->control) return;
  if (!work->name.empty() && !IsStillSo(*work)) {
    // The name may have another meaning by now, or none.
    if (++it->second.rounds < kLookRoundsMax) {
      work->known = work->readable.manifest != nullptr ? work->readable : Readable();
      work->known_path = work->path;
      loaders_->named.Run([this, key, work] { LookOnLoaderThread(key, work); });
      return;
    }
    if (!IsListedStill(*work)) {
      work->known_is_past = true;
      work->status = AbortedError("the catalogue goes on changing: open \"" + work->name +
                                  "\" again when it does not");
    }
    // Reports that do not end, which others can cause for whatever lies below a directory that
    // they may write, or by their number for everything, are no proof of a change. The look is:
    // it holds for whoever asked before it, and the next open looks again.
    LetGo(nullptr, std::exchange(work->watched, nullptr));
  }
  looks_.erase(it);
  if (!work->status.ok()) {
    const auto named = names_.find(work->name);
    // What an earlier worker left says nothing against what has been looked at since.
    const bool is_newer = named != names_.end() && work->adopted != nullptr &&
                          named->second.readable.source != nullptr;
    if (named != names_.end() && work->known_is_past && !is_newer) ForgetName(work->name);
    const bool is_too_large =
        work->status.code() == StatusCode::kResourceExhausted && work->readable.source != nullptr;
    on_looked_(key, {.found = work->status,
                     .current_at = work->current_at,
                     .need_bytes = is_too_large ? work->readable.source->total_bytes() : 0});
    return;
  }
  if (!work->sidecar_status.ok()) {
    LogWarn("manifest not recorded, the file is hashed again next time, ignoring",
            {{"reason", work->sidecar_status.message()}});
  }
  Found found{ContentsOf(work->readable.manifest), work->readable.manifest};
  if (work->name.empty()) {
    if (!work->readable.source->has_forgeable_identity()) {
      // Forgetting them is safe: they are looked at again.
      if (manifests_by_files_.size() >= kKnownFilesMax) manifests_by_files_.clear();
      manifests_by_files_[work->readable.source->Identities()] = found.manifest;
    }
  } else {
    NameRecord record;
    record.named = {work->name, work->path, work->readable.source->directory()};
    record.catalogue_version = work->catalogue_version;
    record.readable = work->readable;
    record.watched = std::move(work->watched);
    record.contents = found.contents;
    record.checked_at = Now();
    SetName(std::move(record));
  }
  on_looked_(key, {.found = std::move(found), .current_at = work->current_at});
  DropIdle();
}

void Contents::DropIdle() {
  if (contents_.size() < drop_idle_at_) return;
  std::erase_if(contents_, [](const auto& item) {
    return item.second->names.empty() && item.second.use_count() == 1;
  });
  std::erase_if(manifests_by_files_,
                [&](const auto& item) { return !contents_.contains(item.second->digest); });
  drop_idle_at_ = contents_.size() + kIdleContentsMax;
}

void Contents::CheckInvariants() const {
  for (const auto& [name, record] : names_) {
    TRIMS_CHECK(record.named.name == name);
    TRIMS_CHECK(record.contents != nullptr && Find(record.contents->digest()) == record.contents);
    TRIMS_CHECK(std::count(record.contents->names.begin(), record.contents->names.end(), name) ==
                1);
    TRIMS_CHECK((record.readable.source == nullptr) == (record.readable.manifest == nullptr));
    TRIMS_CHECK(record.readable.manifest == nullptr ||
                record.readable.manifest->digest == record.contents->digest());
  }
  for (const auto& [digest, contents] : contents_) {
    TRIMS_CHECK(contents->digest() == digest);
    for (const std::string& name : contents->names) {
      const auto it = names_.find(name);
      TRIMS_CHECK(it != names_.end() && it->second.contents == contents);
    }
  }
  for (const auto& [files, manifest] : manifests_by_files_)
    TRIMS_CHECK(contents_.contains(manifest->digest));
  for (const auto& [key, look] : looks_) TRIMS_CHECK(!look.control->cancelled);
}

}  // namespace trims
