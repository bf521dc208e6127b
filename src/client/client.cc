#include "client/client.h"

#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "ipc/message.h"

namespace trims::client {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// How much later than the daemon this side ends an open by its deadline.
constexpr Duration kDeadlineGrace = seconds(1);
// A caller's progress function is called at least this often.
constexpr Duration kProgressInterval = milliseconds(100);
constexpr Duration kBackOffMin = milliseconds(2);
constexpr Duration kBackOffMax = milliseconds(200);
// The background thread, while nobody waits for it.
constexpr Duration kIdleBackOff = seconds(1);
// Answers to Close are taken when it costs nothing, at the latest when so many are
// due: well under what the daemon lets a client leave unread.
constexpr size_t kClosesInFlightMax = kMaxReplyBacklogPerSession / 4;
constexpr Duration kCloseWaitMax = seconds(1);

constexpr std::string_view kForked =
    "this client belongs to the parent process; a forked child must connect a client of its own";

Failure Fail(Status status) { return Failure{std::move(status)}; }

uint64_t MillisecondsUp(Duration duration) {
  return static_cast<uint64_t>(std::chrono::ceil<milliseconds>(duration).count());
}

// Codes of a connect that another moment, or the daemon's restart, can turn into success.
bool IsPassing(StatusCode code) {
  switch (code) {
    case StatusCode::kUnavailable:
    case StatusCode::kNotFound:
    case StatusCode::kDeadlineExceeded:  // Its queue of connections is full.
    case StatusCode::kResourceExhausted:
      return true;
    default:
      return false;
  }
}

std::string DescribeDuration(Duration duration) {
  return std::to_string(MillisecondsUp(duration)) + " ms";
}

}  // namespace

// --- Life --------------------------------------------------------------------

Client::Client(ClientOptions options) : options_(std::move(options)), owner_pid_(getpid()) {
  server_version_ = &*server_versions_.insert("").first;
}

Client::~Client() { Disconnect(); }

Result<std::shared_ptr<Client>> Client::Connect(ClientOptions options) {
  const Time give_up_at = Now() + options.connect_timeout;
  std::shared_ptr<Client> client(new Client(std::move(options)));
  const Places& places = client->options_.places;
  std::unique_ptr<Attempt> attempt;
  for (Duration back_off = kBackOffMin; attempt == nullptr;
       back_off = std::min(2 * back_off, kBackOffMax)) {
    bool retry = false;
    std::string tried;
    Status refusal;  // Says more than that there is nothing.
    for (const std::string& path : places.sockets) {
      Result<std::unique_ptr<Attempt>> started =
          Attempt::Start(path, client->options_.daemon_uid, {});
      Status status = started.status();
      if (started.ok()) {
        switch ((*started)->Run(give_up_at, -1, client->buffer_)) {
          case Attempt::Progress::kDone:
            client->socket_path_ = path;
            attempt = std::move(*started);
            break;
          case Attempt::Progress::kPending:
            status = UnavailableError("the daemon at " + path + " does not answer");
            refusal = status;
            break;
          case Attempt::Progress::kFailed:
            status = (*started)->status();
            refusal = status;
            // Somebody listens there: worth waiting for, while its worker restarts.
            if (!(*started)->is_final()) retry = true;
            break;
        }
        if (attempt != nullptr) break;
      } else if (status.code() == StatusCode::kDeadlineExceeded) {
        retry = true;
        status = UnavailableError(path + ": the daemon's queue of connections is full");
        refusal = status;
      } else if (!IsPassing(status.code())) {
        refusal = status;
      }
      tried += (tried.empty() ? "" : "; ") + status.message();
    }
    if (attempt != nullptr) break;
    if (retry && Now() + back_off < give_up_at) {
      WaitFor(-1, 0, -1, Now() + back_off);
      continue;
    }
    if (!refusal.ok()) {
      return Status(refusal.code(), tried + " (waited up to " +
                                        DescribeDuration(client->options_.connect_timeout) + ")");
    }
    return UnavailableError("no daemon found by " + places.origin + ": " + tried +
                            "; start one with `trims serve`, or name its socket in TRIMS_SOCKET");
  }

  // Only the background thread, which waits for it, can know this mutex yet.
  const MutexLock lock(client->mu_);
  client->Adopt(attempt->TakeSocket(), attempt->daemon_version(), attempt->daemon_instance());
  if (client->options_.background) {
    client->wake_fd_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!client->wake_fd_.valid()) return ErrnoStatus(errno, "making an eventfd");
    client->leading_ = true;
    // Signals are the program's: none may be delivered to a thread of ours.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(
        &client->background_, nullptr,
        [](void* raw) -> void* {
          static_cast<Client*>(raw)->RunBackground();
          return nullptr;
        },
        client.get());
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (error != 0) {
      client->leading_ = false;
      return ErrnoStatus(error, "starting the background thread");
    }
    client->has_background_ = true;
  }
  return client;
}

void Client::Disconnect() {
  if (InChild()) return CloseInChild();
  {
    const MutexLock lock(mu_);
    if (state_ == State::kEnded) return;
    stopping_ = true;
  }
  if (has_background_) {
    WakeBackground();
    pthread_join(background_, nullptr);
    has_background_ = false;
  }
  indexes_.Clear();
  const MutexLock lock(mu_);
  state_ = State::kEnded;
  socket_.Reset();
  poll_fd_.Reset();
  attempt_.reset();
  for (const std::shared_ptr<Holding>& holding : holdings_) holding->attached = false;
  holdings_.clear();
  FailAll(FailedPreconditionError("the client was disconnected"));
}

// The mutex may have been held by a thread that does not exist here, and so may be
// anything it guards but the numbers of the descriptors.
void Client::CloseInChild() {
  socket_.Reset();
  poll_fd_.Reset();
  broken_event_.Reset();
  wake_fd_.Reset();
}

Status Client::Usable() const {
  if (state_ == State::kEnded) return FailedPreconditionError("the client was disconnected");
  return OkStatus();
}

// --- Calls -------------------------------------------------------------------

Failure Client::Open(const OpenRequest& what, Granted* granted) {
  if (InChild()) return Fail(FailedPreconditionError(std::string(kForked)));
  const MutexLock lock(mu_);
  if (Status status = Usable(); !status.ok()) return Fail(std::move(status));
  Pending pending;
  pending.open = &what;
  pending.started = Now();
  pending.next_call = pending.started + kProgressInterval;
  if (what.deadline) pending.deadline = pending.started + *what.deadline;
  const uint64_t id = Register(pending, Entry::Kind::kOpen);
  SendUnsent();
  Wait(id, pending);
  if (pending.failure.status.ok()) {
    granted->holding = std::move(pending.holding);
    granted->fds = std::move(pending.fds);
  }
  return std::move(pending.failure);
}

Status Client::Ping() {
  if (InChild()) return FailedPreconditionError(std::string(kForked));
  const MutexLock lock(mu_);
  RETURN_IF_ERROR(Usable());
  Pending pending;
  pending.started = Now();
  pending.give_up_at = pending.started + options_.connect_timeout;
  const uint64_t id = Register(pending, Entry::Kind::kPing);
  SendUnsent();
  Wait(id, pending);
  return pending.failure.status;
}

void Client::Close(const std::shared_ptr<Holding>& holding, uint64_t peak_internal_bytes) {
  if (InChild()) return;
  const MutexLock lock(mu_);
  holdings_.erase(holding);
  // When the connection is broken there is nothing to end: the daemon ended the
  // lease with it, and who connects again no longer finds it in holdings_.
  if (!holding->attached.exchange(false) || state_ != State::kConnected) return;
  SendClose(holding->lease_id, peak_internal_bytes);

  if (leading_ || closes_in_flight_ < kClosesInFlightMax / 2) return;
  while (state_ == State::kConnected && TakeOne()) {
  }
  const Time give_up_at = Now() + kCloseWaitMax;
  while (state_ == State::kConnected && !leading_ && closes_in_flight_ >= kClosesInFlightMax &&
         Now() < give_up_at) {
    Lead(give_up_at);
  }
  PromoteOne();
}

Status Client::Service() {
  if (InChild()) return FailedPreconditionError(std::string(kForked));
  const MutexLock lock(mu_);
  RETURN_IF_ERROR(Usable());
  if (leading_) return OkStatus();  // Who leads does it.
  while (state_ == State::kConnected && TakeOne()) {
  }
  const Time give_up_at = Now() + options_.connect_timeout;
  while (state_ == State::kBroken && !leading_ && Now() < give_up_at) {
    Lead(give_up_at);
    if (state_ == State::kBroken && !last_failure_.ok() && !IsPassing(last_failure_.code())) break;
  }
  PromoteOne();
  if (state_ == State::kBroken && !leading_) return last_failure_;
  return OkStatus();
}

int Client::PollFd() {
  if (InChild()) return -1;
  const MutexLock lock(mu_);
  if (state_ == State::kEnded) return -1;
  if (poll_fd_.valid()) return poll_fd_.get();
  UniqueFd poll_fd(epoll_create1(EPOLL_CLOEXEC));
  // With a thread of our own there is never anything to do.
  if (!options_.background) {
    broken_event_.Reset(eventfd(state_ == State::kBroken, EFD_CLOEXEC | EFD_NONBLOCK));
    epoll_event event{};
    event.events = EPOLLIN;
    if (!broken_event_.valid() || !poll_fd.valid() ||
        epoll_ctl(poll_fd.get(), EPOLL_CTL_ADD, broken_event_.get(), &event) != 0 ||
        (socket_.valid() && epoll_ctl(poll_fd.get(), EPOLL_CTL_ADD, socket_.get(), &event) != 0)) {
      broken_event_.Reset();
      return -1;
    }
  }
  poll_fd_ = std::move(poll_fd);
  return poll_fd_.get();
}

// --- Requests ----------------------------------------------------------------

uint64_t Client::Register(Pending& pending, Entry::Kind kind) {
  const uint64_t id = ++last_id_;
  entries_.emplace(id, Entry{kind, &pending, 0});
  return id;
}

// Erases an entry, whoever was interested in it.
void Client::Forget(uint64_t id) {
  const auto entry = entries_.find(id);
  if (entry == entries_.end()) return;
  switch (entry->second.kind) {
    case Entry::Kind::kOpen:
      if (entry->second.pending->sent) --opens_in_flight_;
      break;
    case Entry::Kind::kAbandonedOpen:
      --opens_in_flight_;
      break;
    case Entry::Kind::kClose:
      --closes_in_flight_;
      break;
    case Entry::Kind::kPing:
      break;
  }
  entries_.erase(entry);
}

void Client::Finish(Entries::iterator entry, Failure failure) {
  Pending* const pending = entry->second.pending;
  Forget(entry->first);
  if (pending == nullptr) return;
  pending->failure = std::move(failure);
  pending->done = true;
  pending->changed.NotifyOne();
}

void Client::FailAll(const Status& status) {
  while (!entries_.empty()) Finish(entries_.begin(), Fail(status));
}

// When `pending` next needs its own thread to look at it, if no answer comes.
Time Client::AttentionAt(const Pending& pending) const {
  Time at = Time::max();
  if (pending.open != nullptr && pending.open->progress != nullptr && !pending.cancelled) {
    at = std::min(at, pending.next_call);
  }
  if (pending.give_up_at) at = std::min(at, *pending.give_up_at);
  if (pending.deadline && !pending.cancelled) {
    // The daemon answers for what it has; nobody does for what it has not.
    at = std::min(at, pending.sent ? *pending.deadline + kDeadlineGrace : *pending.deadline);
  }
  if (state_ == State::kBroken) {
    at = std::min(at, std::max(broken_since_, pending.started) + options_.connect_timeout);
  }
  return at;
}

void Client::Wait(uint64_t id, Pending& pending) {
  while (!pending.done) {
    const Time now = Now();
    if (pending.open != nullptr && pending.open->progress != nullptr && !pending.cancelled &&
        (pending.has_progress || now >= pending.next_call)) {
      CallProgress(id, pending);
      continue;
    }
    const Time attention_at = AttentionAt(pending);
    if (now >= attention_at) {
      if (pending.cancelled) {
        GiveUp(id, pending, CancelledError("cancelled by the caller"));
      } else if (pending.deadline && now >= *pending.deadline) {
        GiveUp(id, pending,
               DeadlineExceededError("\"" + pending.open->name + "\" was not ready in " +
                                     DescribeDuration(*pending.open->deadline)));
      } else if (state_ == State::kBroken) {
        GiveUp(id, pending,
               UnavailableError("the connection to the daemon at " + socket_path_ +
                                " was lost and could not be made again in " +
                                DescribeDuration(options_.connect_timeout) + ": " +
                                last_failure_.message()));
      } else {
        GiveUp(id, pending,
               UnavailableError("the daemon at " + socket_path_ + " did not answer in " +
                                DescribeDuration(now - pending.started)));
      }
      continue;
    }
    if (!leading_) {
      Lead(attention_at);
    } else if (attention_at == Time::max()) {
      pending.changed.Wait(mu_);
    } else {
      pending.changed.WaitUntil(mu_, attention_at);
    }
  }
  PromoteOne();
}

void Client::CallProgress(uint64_t id, Pending& pending) {
  // The others need not wait for a caller's function.
  PromoteOne();
  pending.has_progress = false;
  pending.next_call = Now() + kProgressInterval;
  const trims_phase phase = pending.phase;
  const uint64_t done_bytes = pending.done_bytes;
  const uint64_t total_bytes = pending.total_bytes;
  int answer = 0;
  {
    const MutexUnlock unlock(mu_);
    answer = pending.open->progress(pending.open->progress_user, phase, done_bytes, total_bytes);
  }
  if (answer == 0 || pending.done) return;
  pending.cancelled = true;
  if (!pending.sent) {
    GiveUp(id, pending, CancelledError("cancelled by the caller"));
    return;
  }
  pending.give_up_at = Now() + options_.connect_timeout;
  SendCancel(id);
}

// Ends a request without an answer. One that the daemon has is left as abandoned,
// so that a lease which comes after all is closed.
void Client::GiveUp(uint64_t id, Pending& pending, Status status) {
  const auto entry = entries_.find(id);
  if (entry != entries_.end()) {
    if (entry->second.kind == Entry::Kind::kOpen && pending.sent) {
      const uint64_t lease_id = pending.holding == nullptr ? 0 : pending.holding->lease_id.load();
      entry->second = Entry{Entry::Kind::kAbandonedOpen, nullptr, lease_id};
    } else {
      Forget(id);
    }
  }
  const bool tell = pending.sent && pending.open != nullptr && !pending.cancelled;
  pending.holding.reset();
  pending.fds.clear();
  pending.failure = Fail(std::move(status));
  pending.done = true;
  if (tell) SendCancel(id);
}

// --- The lead ----------------------------------------------------------------

void Client::Lead(Time until) {
  leading_ = true;
  if (state_ == State::kConnected) {
    ReceiveOne(until);
  } else if (state_ == State::kBroken) {
    Reconnect(until);
  }
  retired_.clear();
  leading_ = false;
}

// Wakes one waiting thread to take the lead. It does, or is about to leave Wait, at
// whose end it promotes the next.
void Client::PromoteOne() {
  if (leading_) return;
  for (auto& [id, entry] : entries_) {
    if (entry.pending != nullptr && !entry.pending->done) {
      entry.pending->changed.NotifyOne();
      return;
    }
  }
  // Nobody waits. A connection half made would hold leases that may be closed by
  // the time it is of use.
  attempt_.reset();
  attempt_holdings_.clear();
}

void Client::ReceiveOne(Time until) {
  const int fd = socket_.get();
  bool ready = false;
  {
    const MutexUnlock unlock(mu_);
    ready = WaitFor(fd, POLLIN, wake_fd_.get(), until);
  }
  if (ready && state_ == State::kConnected) TakeOne();
}

bool Client::TakeOne() {
  // Descriptors come with answers to opens only.
  Result<ReceivedPacket> packet =
      ReceivePacket(socket_.get(), buffer_, opens_in_flight_ > 0 ? kMaxFdsPerPacket : 0);
  if (!packet.ok()) {
    if (packet.status().code() == StatusCode::kDeadlineExceeded) return false;
    BreakProtocol(packet.status());
    return true;
  }
  if (packet->closed) {
    Break("the daemon closed the connection");
    return true;
  }
  const Result<Frame> frame = DecodeFrame(std::span(buffer_).first(packet->size));
  if (!frame.ok()) {
    BreakProtocol(frame.status());
    return true;
  }
  Dispatch(*frame, std::move(packet->fds));
  return true;
}

// --- Connecting again --------------------------------------------------------

void Client::Break(const std::string& why) {
  if (state_ != State::kConnected) return;
  state_ = State::kBroken;
  broken_since_ = Now();
  back_off_ = Duration::zero();
  last_failure_ = UnavailableError(why);
  // A leader may be polling this number: it is closed when nobody can be.
  shutdown(socket_.get(), SHUT_RDWR);
  if (leading_) {
    retired_.push_back(std::move(socket_));
  } else {
    socket_.Reset();
  }
  for (const std::shared_ptr<Holding>& holding : holdings_) holding->attached = false;
  if (broken_event_.valid()) {
    const uint64_t one = 1;
    (void)!write(broken_event_.get(), &one, sizeof one);
  }
  // What was on its way is to be sent again, or of no interest any more.
  for (auto it = entries_.begin(); it != entries_.end();) {
    const auto entry = it++;
    Pending* const pending = entry->second.pending;
    if (pending == nullptr) {
      Forget(entry->first);
    } else if (pending->cancelled) {
      Finish(entry, Fail(CancelledError("cancelled by the caller")));
    } else {
      if (pending->sent && pending->open != nullptr) --opens_in_flight_;
      pending->sent = false;
      pending->holding.reset();
      pending->fds.clear();
      pending->changed.NotifyOne();  // Its times have changed.
    }
  }
}

// The daemon sent what it may not. What waits fails: sent again, it could break the
// protocol for ever.
void Client::BreakProtocol(const Status& status) {
  const Status said(
      status.code() == StatusCode::kResourceExhausted ? status.code() : StatusCode::kInternal,
      "the daemon at " + socket_path_ + " broke the protocol: " + status.message());
  FailAll(status.code() == StatusCode::kResourceExhausted ? status : said);
  Break(status.message());
}

void Client::Reconnect(Time until) {
  const auto failed = [&](Status status, bool is_final) TRIMS_REQUIRES(mu_) {
    attempt_.reset();
    attempt_holdings_.clear();
    last_failure_ = std::move(status);
    if (is_final) FailAll(last_failure_);
    back_off_ = std::clamp(2 * back_off_, kBackOffMin, kBackOffMax);
    const bool is_idle = options_.background && entries_.empty();
    const Time again_at = Now() + (is_idle ? kIdleBackOff : back_off_);
    const MutexUnlock unlock(mu_);
    WaitFor(-1, 0, wake_fd_.get(), std::min(again_at, until));
  };

  if (attempt_ == nullptr) {
    attempt_holdings_.assign(holdings_.begin(), holdings_.end());
    std::vector<Reattachment> leases;
    leases.reserve(attempt_holdings_.size());
    for (const std::shared_ptr<Holding>& holding : attempt_holdings_) {
      leases.push_back({holding->facts});
    }
    Result<std::unique_ptr<Attempt>> started = UnavailableError("");
    {
      const MutexUnlock unlock(mu_);
      started = Attempt::Start(socket_path_, options_.daemon_uid, std::move(leases));
    }
    if (!started.ok()) {
      const bool is_final = !IsPassing(started.status().code());
      failed(started.status(), is_final);
      return;
    }
    attempt_ = std::move(*started);
  }
  Attempt::Progress progress{};
  {
    const MutexUnlock unlock(mu_);
    progress = attempt_->Run(until, wake_fd_.get(), buffer_);
  }
  switch (progress) {
    case Attempt::Progress::kPending:
      last_failure_ = UnavailableError("the daemon does not answer");
      return;
    case Attempt::Progress::kFailed:
      failed(attempt_->status(), attempt_->is_final());
      return;
    case Attempt::Progress::kDone: {
      const std::unique_ptr<Attempt> attempt = std::move(attempt_);
      Publish(*attempt, std::exchange(attempt_holdings_, {}));
      return;
    }
  }
}

void Client::Publish(Attempt& attempt, std::vector<std::shared_ptr<Holding>> holdings) {
  Adopt(attempt.TakeSocket(), attempt.daemon_version(), attempt.daemon_instance());
  std::vector<uint64_t> closed_meanwhile;
  for (size_t i = 0; i < holdings.size(); ++i) {
    const uint64_t lease_id = attempt.leases()[i].lease_id;
    const bool is_held = holdings_.contains(holdings[i]);
    if (is_held && lease_id != 0) {
      holdings[i]->lease_id = lease_id;
      holdings[i]->attached = true;
    } else if (is_held) {
      holdings_.erase(holdings[i]);  // Detached: its memory is alive, nothing to tell.
    } else if (lease_id != 0) {
      closed_meanwhile.push_back(lease_id);
    }
  }
  for (const uint64_t lease_id : closed_meanwhile) SendClose(lease_id, 0);
  SendUnsent();
}

void Client::Adopt(UniqueFd socket, const std::string& version, uint64_t instance) {
  socket_ = std::move(socket);
  state_ = State::kConnected;
  back_off_ = Duration::zero();
  last_failure_ = OkStatus();
  server_version_ = &*server_versions_.insert(version).first;
  server_instance_ = instance;
  if (broken_event_.valid()) {
    uint64_t count;
    (void)!read(broken_event_.get(), &count, sizeof count);
    epoll_event event{};
    event.events = EPOLLIN;
    (void)epoll_ctl(poll_fd_.get(), EPOLL_CTL_ADD, socket_.get(), &event);
  }
}

// --- Sending -----------------------------------------------------------------

void Client::SendUnsent() {
  for (bool again = true; again;) {
    again = false;
    if (state_ != State::kConnected) {
      if (options_.background) WakeBackground();  // It may be resting.
      return;
    }
    for (auto& [entry_id, entry] : entries_) {
      Pending* const pending = entry.pending;
      if (pending == nullptr || pending->sent) continue;
      if (entry.kind == Entry::Kind::kOpen && opens_in_flight_ >= kMaxOpensInFlightPerSession) {
        continue;  // Sent when one of the others is answered.
      }
      const uint64_t id = entry_id;
      flatbuffers::FlatBufferBuilder builder(512);
      FrameType type = FrameType::kPing;
      int fd = -1;
      pending->sent = true;
      if (pending->open == nullptr) {
        builder.Finish(v1::CreatePing(builder));
      } else {
        ++opens_in_flight_;
        const OpenRequest& what = *pending->open;
        fd = what.fd;
        const bool is_file = fd >= 0;
        type = is_file ? FrameType::kOpenFile : FrameType::kOpen;
        uint64_t deadline_ms = 0;
        if (pending->deadline) {
          deadline_ms = std::max<uint64_t>(
              1, MillisecondsUp(std::max(*pending->deadline - Now(), Duration::zero())));
        }
        const auto label = builder.CreateString(what.name);
        const auto uuid = what.device ? builder.CreateString(what.device->uuid) : 0;
        const auto tier = what.device ? v1::TierKind::Device : v1::TierKind::Host;
        const auto digest = what.expected_digest
                                ? builder.CreateVector(what.expected_digest->bytes.data(),
                                                       what.expected_digest->bytes.size())
                                : 0;
        const auto open = v1::CreateOpen(
            builder, is_file ? flatbuffers::Offset<flatbuffers::String>(0) : label, tier, uuid,
            what.granularity, digest, deadline_ms, what.progress != nullptr, what.keep_alive_ms);
        if (is_file) {
          builder.Finish(v1::CreateOpenFile(builder, label, open));
        } else {
          builder.Finish(open);
        }
      }
      const Status status = SendFrame(type, id, MessageBytes(builder), fd);
      if (!status.ok() && status.code() != StatusCode::kUnavailable) {
        // Not the connection's fault: this packet can not be sent at any time.
        if (const auto found = entries_.find(id); found != entries_.end()) {
          Finish(found, Fail(status));
        }
      }
      // The lock may have been let go of: begin anew.
      again = true;
      break;
    }
  }
}

// Sends one packet, waiting for room. A connection that turns out to be broken is
// marked so; what could not be sent is then sent again after reconnecting.
Status Client::SendFrame(FrameType type, uint64_t id, std::span<const std::byte> payload, int fd) {
  std::array<std::byte, kFrameHeaderBytes> header;
  EncodeFrameHeader({type, 0, id}, header);
  const std::span<const int> fds(&fd, fd >= 0 ? 1 : 0);
  const Time give_up_at = Now() + milliseconds(kSendDeadlineMs);
  const int socket = socket_.get();
  for (;;) {
    const Status status = SendPacket(socket, header, payload, fds);
    if (status.ok()) return status;
    if (status.code() == StatusCode::kUnavailable) {
      Break("the daemon closed the connection");
      return status;
    }
    if (status.code() != StatusCode::kDeadlineExceeded) return status;
    if (Now() >= give_up_at) {
      Break("the daemon reads nothing");
      return UnavailableError("the daemon reads nothing");
    }
    // It may be waiting for us to read.
    if (!leading_ && TakeOne()) {
      if (state_ != State::kConnected) return last_failure_;
      continue;
    }
    const bool leads = !std::exchange(leading_, true);
    {
      const MutexUnlock unlock(mu_);
      WaitFor(socket, POLLOUT, -1, Now() + milliseconds(10));
    }
    if (leads) leading_ = false;
    if (state_ != State::kConnected || socket_.get() != socket) {
      return UnavailableError("the connection broke");
    }
  }
}

void Client::SendCancel(uint64_t open_id) {
  if (state_ != State::kConnected) return;
  flatbuffers::FlatBufferBuilder builder(64);
  builder.Finish(v1::CreateCancel(builder, open_id));
  (void)SendFrame(FrameType::kCancel, ++last_id_, MessageBytes(builder));
}

void Client::SendClose(uint64_t lease_id, uint64_t peak_internal_bytes) {
  if (state_ != State::kConnected) return;
  flatbuffers::FlatBufferBuilder builder(64);
  builder.Finish(v1::CreateClose(builder, lease_id, peak_internal_bytes));
  const uint64_t id = ++last_id_;
  entries_.emplace(id, Entry{Entry::Kind::kClose, nullptr, 0});
  ++closes_in_flight_;
  (void)SendFrame(FrameType::kClose, id, MessageBytes(builder));
}

// --- Receiving ---------------------------------------------------------------

void Client::Dispatch(const Frame& frame, std::vector<UniqueFd> fds) {
  const auto entry = entries_.find(frame.header.request_id);
  // An answer to what was never asked, or to a Cancel. Descriptors close themselves.
  if (entry == entries_.end()) return;
  const Entry::Kind kind = entry->second.kind;
  const bool is_open = kind == Entry::Kind::kOpen || kind == Entry::Kind::kAbandonedOpen;
  Status status;
  switch (frame.header.type) {
    case FrameType::kOpened:
      status = is_open ? TakeOpened(entry, frame, std::move(fds))
                       : InvalidArgumentError("Opened answers a request that is no open");
      break;
    case FrameType::kOpenedMore:
      status = is_open ? TakeOpenedMore(entry, frame, std::move(fds))
                       : InvalidArgumentError("OpenedMore answers a request that is no open");
      break;
    case FrameType::kProgress: {
      const auto* progress = ReadMessage<v1::Progress>(frame.payload);
      if (progress == nullptr || !is_open) {
        status = InvalidArgumentError("a malformed or misplaced Progress");
      } else if (kind == Entry::Kind::kOpen) {
        Pending& pending = *entry->second.pending;
        pending.phase = static_cast<trims_phase>(progress->phase());
        pending.done_bytes = progress->done_bytes();
        pending.total_bytes = progress->total_bytes();
        pending.has_progress = true;
        pending.changed.NotifyOne();
      }
      break;
    }
    case FrameType::kFailed: {
      const auto* failed = ReadMessage<v1::Failed>(frame.payload);
      if (failed == nullptr) {
        status = InvalidArgumentError("a malformed Failed");
        break;
      }
      Failure failure{StatusOfFailed(failed->code(), failed->message()), failed->need_bytes(),
                      failed->free_bytes(), failed->evictable_bytes()};
      if (entry->second.pending != nullptr) {
        entry->second.pending->holding.reset();
        entry->second.pending->fds.clear();
      }
      Finish(entry, std::move(failure));
      break;
    }
    case FrameType::kClosed:
      if (kind == Entry::Kind::kClose) {
        Finish(entry, Failure{});
      } else {
        status = InvalidArgumentError("Closed answers a request that is no Close");
      }
      break;
    case FrameType::kPong:
      if (kind == Entry::Kind::kPing) {
        Finish(entry, Failure{});
      } else {
        status = InvalidArgumentError("Pong answers a request that is no Ping");
      }
      break;
    default:
      status = InvalidArgumentError("a packet of type " +
                                    std::to_string(static_cast<unsigned>(frame.header.type)));
      break;
  }
  if (!status.ok()) {
    BreakProtocol(status);
    return;
  }
  if (is_open && state_ == State::kConnected) SendUnsent();  // There may be room for another.
}

Status Client::TakeOpened(Entries::iterator entry, const Frame& frame, std::vector<UniqueFd> fds) {
  const auto* opened = ReadMessage<v1::Opened>(frame.payload);
  if (opened == nullptr) return InvalidArgumentError("a malformed Opened");
  const bool more = (frame.header.flags & kFrameFlagMore) != 0;
  if (entry->second.kind == Entry::Kind::kAbandonedOpen) {
    entry->second.lease_id = opened->lease_id();
    if (!more) {
      Forget(entry->first);
      SendClose(opened->lease_id(), 0);
    }
    return OkStatus();
  }
  Pending& pending = *entry->second.pending;
  if (pending.holding != nullptr) return InvalidArgumentError("two Opened for one open");
  const Result<Digest> digest =
      Digest::FromBytes(opened->digest()->data(), opened->digest()->size());
  if (!digest.ok()) return InvalidArgumentError("Opened with a digest that is none");
  const auto& sizes = *opened->extent_bytes();
  if (sizes.size() > kMaxExtentsPerModel) {
    return InvalidArgumentError("Opened with " + std::to_string(sizes.size()) +
                                " extents, at most " + std::to_string(kMaxExtentsPerModel) +
                                " are allowed");
  }
  const size_t expected = size_t{1} + sizes.size();
  if (fds.empty() || fds.size() > expected || more != (fds.size() < expected)) {
    return InvalidArgumentError("Opened announces " + std::to_string(sizes.size()) +
                                " extents and an index and brings " + std::to_string(fds.size()) +
                                " descriptors");
  }
  auto facts = std::make_shared<LeaseFacts>();
  facts->digest = *digest;
  facts->generation = opened->generation();
  facts->tier = opened->tier();
  facts->granularity = opened->granularity();
  facts->loaded = opened->loaded();
  facts->tensor_count = opened->tensor_count();
  facts->total_bytes = opened->total_bytes();
  facts->index_bytes = opened->index_bytes();
  facts->extent_bytes.assign(sizes.begin(), sizes.end());
  if (opened->device_uuid() != nullptr) facts->device_uuid = opened->device_uuid()->str();
  if (opened->model_dir() != nullptr) facts->model_dir = opened->model_dir()->str();
  pending.holding = std::make_shared<Holding>();
  pending.holding->facts = std::move(facts);
  pending.holding->lease_id = opened->lease_id();
  pending.fds = std::move(fds);
  if (!more) CompleteOpen(entry);
  return OkStatus();
}

Status Client::TakeOpenedMore(Entries::iterator entry, const Frame& frame,
                              std::vector<UniqueFd> fds) {
  const auto* opened_more = ReadMessage<v1::OpenedMore>(frame.payload);
  if (opened_more == nullptr) return InvalidArgumentError("a malformed OpenedMore");
  const bool more = (frame.header.flags & kFrameFlagMore) != 0;
  if (entry->second.kind == Entry::Kind::kAbandonedOpen) {
    if (!more) {
      const uint64_t lease_id = entry->second.lease_id;
      Forget(entry->first);
      SendClose(lease_id, 0);
    }
    return OkStatus();
  }
  Pending& pending = *entry->second.pending;
  if (pending.holding == nullptr) return InvalidArgumentError("OpenedMore without Opened");
  const size_t expected = pending.holding->facts->extent_bytes.size() + 1;
  const size_t received = pending.fds.size() + fds.size();
  if (fds.empty() || opened_more->first_extent() + size_t{1} != pending.fds.size() ||
      received > expected || more != (received < expected)) {
    return InvalidArgumentError(
        "OpenedMore brings " + std::to_string(fds.size()) + " descriptors from extent " +
        std::to_string(opened_more->first_extent()) + " on, after " +
        std::to_string(pending.fds.size()) + " of " + std::to_string(expected));
  }
  pending.fds.insert(pending.fds.end(), std::make_move_iterator(fds.begin()),
                     std::make_move_iterator(fds.end()));
  if (!more) CompleteOpen(entry);
  return OkStatus();
}

// The lease is in the daemon's books from here on, so it is in ours before anybody
// can see it.
void Client::CompleteOpen(Entries::iterator entry) {
  Pending& pending = *entry->second.pending;
  if (pending.cancelled) {
    // The answer crossed the cancel.
    const uint64_t lease_id = pending.holding->lease_id;
    pending.fds.clear();
    Finish(entry, Fail(CancelledError("cancelled by the caller")));
    SendClose(lease_id, 0);
    return;
  }
  pending.holding->attached = true;
  holdings_.insert(pending.holding);
  Finish(entry, Failure{});
}

// --- The background thread ---------------------------------------------------

void Client::RunBackground() {
  const MutexLock lock(mu_);
  while (!stopping_) {
    uint64_t count;
    while (read(wake_fd_.get(), &count, sizeof count) > 0) {
    }
    if (state_ == State::kConnected) {
      ReceiveOne(Time::max());
    } else if (state_ == State::kBroken) {
      Reconnect(Time::max());
    }
    retired_.clear();
  }
  leading_ = false;
}

void Client::WakeBackground() {
  const uint64_t one = 1;
  if (wake_fd_.valid()) (void)!write(wake_fd_.get(), &one, sizeof one);
}

}  // namespace trims::client
