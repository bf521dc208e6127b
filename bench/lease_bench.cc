// What a lease costs: warm opens through a real daemon, against the floor: the
// same socket, descriptors and mappings with no protocol and no daemon behind
// them, in the same run.
//
//   lease_bench [--seconds N] [--json FILE]
//
// Prints one table. "open" is the time from the call of trims_lease_open to
// usable pointers; every open is followed by one read of the weights and a close.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "ipc/region.h"
#include "ipc/seqpacket.h"
#include "tests/test_daemon.h"

namespace trims::testing_support {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxSamplesPerClient = 200'000;

// Shared with the client processes: each writes its own slice.
struct Samples {
  std::atomic<int> ready;
  std::atomic<bool> go;
  std::atomic<bool> stop;
  struct Client {
    uint32_t count;
    uint32_t opens_us10[kMaxSamplesPerClient];  // Tenths of microseconds.
  } clients[64];
};

struct Figures {
  double per_second = 0;
  double median_us = 0;
  double p99_us = 0;        // Of all opens.
  double worst_p99_us = 0;  // Of the client that fared worst.
};

double Percentile(std::vector<uint32_t>& values, double share) {
  if (values.empty()) return 0;
  const size_t at =
      std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<long>(at), values.end());
  return values[at] / 10.0;
}

// Runs `clients` processes of `client(open)` for `seconds`; `open` is told each
// open's duration.
Figures Measure(int clients, double seconds,
                const std::function<int(const std::function<bool()>& go_on,
                                        const std::function<void(Clock::duration)>&)>& client) {
  void* memory =
      ::mmap(nullptr, sizeof(Samples), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* samples = static_cast<Samples*>(memory);
  std::vector<pid_t> children;
  for (int i = 0; i < clients; ++i) {
    children.push_back(StartChild([&, i] {
      Samples::Client& mine = samples->clients[i];
      bool waited = false;
      const auto go_on = [&] {
        if (!waited) {
          waited = true;
          ++samples->ready;
          while (!samples->go) ::usleep(100);
        }
        return !samples->stop.load(std::memory_order_relaxed);
      };
      return client(go_on, [&](Clock::duration took) {
        if (mine.count < kMaxSamplesPerClient) {
          mine.opens_us10[mine.count++] = static_cast<uint32_t>(
              std::chrono::duration_cast<std::chrono::nanoseconds>(took).count() / 100);
        }
      });
    }));
  }
  while (samples->ready < clients) ::usleep(1000);
  const auto start = Clock::now();
  samples->go = true;
  ::usleep(static_cast<useconds_t>(seconds * 1e6));
  samples->stop = true;
  const double took = std::chrono::duration<double>(Clock::now() - start).count();
  for (const pid_t child : children) {
    if (const int status = WaitChild(child); status != 0)
      std::printf("client ended with status %d\n", status);
  }
  Figures figures;
  std::vector<uint32_t> all;
  for (int i = 0; i < clients; ++i) {
    std::vector<uint32_t> one(samples->clients[i].opens_us10,
                              samples->clients[i].opens_us10 + samples->clients[i].count);
    all.insert(all.end(), one.begin(), one.end());
    figures.worst_p99_us = std::max(figures.worst_p99_us, Percentile(one, 0.99));
  }
  figures.per_second = static_cast<double>(all.size()) / took;
  figures.median_us = Percentile(all, 0.5);
  figures.p99_us = Percentile(all, 0.99);
  ::munmap(memory, sizeof(Samples));
  return figures;
}

int LeaseClient(const TestDaemon& daemon, const std::string& model,
                const std::function<bool()>& go_on,
                const std::function<void(Clock::duration)>& record) {
  trims_client* client = const_cast<TestDaemon&>(daemon).Connect();
  if (client == nullptr) return 1;
  trims_lease* lease = nullptr;
  while (go_on()) {
    const auto start = Clock::now();
    if (trims_lease_open(client, model.c_str(), nullptr, &lease, nullptr) != TRIMS_OK) return 2;
    trims_tensor tensor;
    if (trims_lease_tensor(lease, 0, &tensor) != TRIMS_OK) return 3;
    record(Clock::now() - start);
    static volatile char sink;
    sink = *static_cast<const volatile char*>(tensor.data);
    (void)sink;
    trims_lease_close(lease);
  }
  return 0;
}

// --- The floor -------------------------------------------------------------------

// Answers 96-byte requests with 300 bytes and two descriptors, and "close" with
// 16 bytes; one epoll loop, nothing else.
int FloorServer(int listener, int extent, int index) {
  UniqueFd epoll(::epoll_create1(0));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = listener;
  ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, listener, &event);
  epoll_event events[64];
  char buffer[512];
  const int fds[2] = {index, extent};
  std::byte answer[300] = {};
  for (;;) {
    const int count = ::epoll_wait(epoll.get(), events, 64, -1);
    for (int i = 0; i < count; ++i) {
      if (events[i].data.fd == listener) {
        const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
        event.data.fd = fd;
        if (fd >= 0) ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event);
        continue;
      }
      const ssize_t size = ::recv(events[i].data.fd, buffer, sizeof buffer, 0);
      if (size <= 0) {
        ::close(events[i].data.fd);
      } else if (size == 96) {
        (void)!SendPacket(events[i].data.fd, answer, {}, fds).ok();
      } else {
        (void)!SendPacket(events[i].data.fd, std::span(answer).first(16), {}, {}).ok();
      }
    }
  }
}

int FloorClient(const std::string& path, size_t extent_bytes, size_t index_bytes,
                const std::function<bool()>& go_on,
                const std::function<void(Clock::duration)>& record) {
  Result<UniqueFd> socket = ConnectTo(path, SOCK_SEQPACKET);
  if (!socket.ok()) return 1;
  (void)::fcntl(socket->get(), F_SETFL, ::fcntl(socket->get(), F_GETFL) & ~O_NONBLOCK);
  std::byte request[96] = {};
  std::byte buffer[512];
  while (go_on()) {
    const auto start = Clock::now();
    if (!SendPacket(socket->get(), request, {}, {}).ok()) return 2;
    Result<ReceivedPacket> packet = ReceivePacket(socket->get(), buffer, 2);
    if (!packet.ok() || packet->fds.size() != 2) return 3;
    void* index = ::mmap(nullptr, index_bytes, PROT_READ, MAP_SHARED, packet->fds[0].get(), 0);
    void* extent = ::mmap(nullptr, extent_bytes, PROT_READ, MAP_SHARED, packet->fds[1].get(), 0);
    packet->fds.clear();
    static volatile char sink;
    sink = *static_cast<volatile char*>(index);
    record(Clock::now() - start);
    sink = *static_cast<volatile char*>(extent);
    (void)sink;
    ::munmap(index, index_bytes);
    ::munmap(extent, extent_bytes);
    if (!SendPacket(socket->get(), std::span(request).first(16), {}, {}).ok()) return 4;
    if (!ReceivePacket(socket->get(), buffer, 0).ok()) return 5;
  }
  return 0;
}

Result<ReadOnlyRegion> FloorRegion(size_t bytes) {
  ASSIGN_OR_RETURN(WritableRegion region,
                   WritableRegion::Create("trims-floor", bytes, PageKind::kPlain));
  return std::move(region).Seal();
}

int Main(double seconds, const std::string& json_path) {
  TestDaemon daemon({"--log-level", "warn"});
  // 512 MiB in 10 tensors; 10 and 5,000 tensors of 64 MiB in all.
  daemon.WriteModel("small10", PatternModel(1, 10, (64 << 20) / 10 / 8 * 8));
  daemon.WriteModel("small5000", PatternModel(2, 5000, (64 << 20) / 5000 / 8 * 8));
  daemon.WriteModel("large10", PatternModel(3, 10, (512 << 20) / 10 / 8 * 8));
  {
    trims_client* client = daemon.Connect();
    for (const char* model : {"small10", "small5000", "large10"}) {
      trims_lease* lease = nullptr;
      if (trims_lease_open(client, model, nullptr, &lease, nullptr) != TRIMS_OK) return 1;
      trims_lease_close(lease);
    }
    trims_client_disconnect(client);
  }
  const size_t extent_bytes = 512 << 20, index_bytes = 64 << 10;
  Result<ReadOnlyRegion> extent = FloorRegion(extent_bytes);
  Result<ReadOnlyRegion> index = FloorRegion(index_bytes);
  const std::string floor_path = daemon.root() + "/floor.sock";
  Result<UniqueFd> listener = ListenAt(floor_path, SOCK_SEQPACKET, 0666);
  if (!extent.ok() || !index.ok() || !listener.ok()) return 1;
  const pid_t server =
      StartChild([&] { return FloorServer(listener->get(), extent->PeekFd(), index->PeekFd()); });

  nlohmann::json json = nlohmann::json::array();
  std::printf("%-34s %8s %10s %10s %10s %12s %8s\n", "", "clients", "opens/s", "median us",
              "p99 us", "worst p99 us", "x floor");
  const auto print = [&](const std::string& name, int clients, const Figures& f,
                         double floor_median) {
    std::printf("%-34s %8d %10.0f %10.1f %10.1f %12.1f %8.2f\n", name.c_str(), clients,
                f.per_second, f.median_us, f.p99_us, f.worst_p99_us, f.median_us / floor_median);
    std::fflush(stdout);
    json.push_back({{"name", name},
                    {"clients", clients},
                    {"opens_per_second", f.per_second},
                    {"median_us", f.median_us},
                    {"p99_us", f.p99_us},
                    {"worst_client_p99_us", f.worst_p99_us},
                    {"median_ratio_to_floor", f.median_us / floor_median}});
  };
  for (const int clients : {1, 2, 8, 64}) {
    const Figures floor = Measure(clients, seconds, [&](const auto& go_on, const auto& record) {
      return FloorClient(floor_path, extent_bytes, index_bytes, go_on, record);
    });
    print("floor: socket, 2 fds, 2 mmaps", clients, floor, floor.median_us);
    for (const char* model : {"small10", "small5000", "large10"}) {
      const Figures figures = Measure(clients, seconds, [&](const auto& go_on, const auto& record) {
        return LeaseClient(daemon, model, go_on, record);
      });
      const std::string name =
          std::string("lease: ") + (std::strcmp(model, "small10") == 0     ? "10 tensors, 64 MiB"
                                    : std::strcmp(model, "small5000") == 0 ? "5,000 tensors, 64 MiB"
                                                                           : "10 tensors, 512 MiB");
      print(name, clients, figures, floor.median_us);
    }
  }
  ::kill(server, SIGKILL);
  (void)WaitChild(server);
  if (!json_path.empty()) std::ofstream(json_path) << json.dump(2) << "\n";
  return 0;
}

}  // namespace
}  // namespace trims::testing_support

int main(int argc, char** argv) {
  double seconds = 2;
  std::string json;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--seconds" && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else if (word == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else {
      std::fprintf(stderr, "usage: lease_bench [--seconds N] [--json FILE]\n");
      return 2;
    }
  }
  return trims::testing_support::Main(seconds, json);
}
