// What a lease costs: warm opens through a real daemon, against the floor: the
// same socket, descriptors and mappings with no protocol and no daemon behind
// them, in the same run.
//
//   lease_bench [--seconds N] [--json FILE]
//
// Prints one table. "open" is the time from the call of trims_lease_open to
// usable pointers; every open is followed by one read of the weights and a close.
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "bench/samples.h"
#include "bench/socket_floor.h"
#include "bench/timing.h"
#include "tests/test_daemon.h"
#include "trims/trims.hpp"

namespace trims::testing_support {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kClientsMax = 64;
constexpr size_t kMaxSamplesPerClient = 200'000;
constexpr uint64_t kFloorBytes = 512 << 20;

// Shared with the client processes: each writes its own slice.
struct Board {
  std::atomic<int> ready;
  std::atomic<bool> go;
  std::atomic<bool> stop;
  struct Client {
    uint32_t count;
    float opens[kMaxSamplesPerClient];  // Seconds.
  } clients[kClientsMax];
};

struct Figures {
  double per_second = 0;
  double median_us = 0;
  double p99_us = 0;        // Of all opens.
  double worst_p99_us = 0;  // Of the client that fared worst.
};

// What a client process does until `go_on` says no; it tells `record` the seconds of each open.
using Client = std::function<int(const std::function<bool()>& go_on,
                                 const std::function<void(double seconds)>& record)>;

// Runs `clients` processes of `client` for `seconds`.
Figures Measure(int clients, double seconds, const Client& client) {
  void* memory =
      ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* board = static_cast<Board*>(memory);
  std::vector<pid_t> children;
  for (int i = 0; i < clients; ++i) {
    children.push_back(StartChild([&, i] {
      Board::Client& mine = board->clients[i];
      bool waited = false;
      const auto go_on = [&] {
        if (!waited) {
          waited = true;
          ++board->ready;
          while (!board->go) ::usleep(100);
        }
        return !board->stop.load(std::memory_order_relaxed);
      };
      return client(go_on, [&](double took) {
        if (mine.count < kMaxSamplesPerClient) {
          mine.opens[mine.count++] = static_cast<float>(took);
        }
      });
    }));
  }
  while (board->ready < clients) ::usleep(1000);
  const auto start = Clock::now();
  board->go = true;
  ::usleep(static_cast<useconds_t>(seconds * 1e6));
  board->stop = true;
  const double took = bench::Seconds(start, Clock::now());
  for (const pid_t child : children) {
    if (const int status = WaitChild(child); status != 0)
      std::printf("client ended with status %d\n", status);
  }
  Figures figures;
  bench::Samples all;
  for (int i = 0; i < clients; ++i) {
    bench::Samples one;
    for (uint32_t j = 0; j < board->clients[i].count; ++j) {
      one.Add(static_cast<double>(board->clients[i].opens[j]));
    }
    figures.worst_p99_us = std::max(figures.worst_p99_us, one.Percentile(99) * 1e6);
    all.Add(one);
  }
  figures.per_second = static_cast<double>(all.size()) / took;
  figures.median_us = all.Median() * 1e6;
  figures.p99_us = all.Percentile(99) * 1e6;
  ::munmap(memory, sizeof(Board));
  return figures;
}

int LeaseClient(TestDaemon& daemon, const std::string& model, const std::function<bool()>& go_on,
                const std::function<void(double)>& record) {
  trims::Client client(daemon.Connect());
  if (!client) return 1;
  while (go_on()) {
    const auto start = Clock::now();
    const Expected<Lease> lease = client.Open(model);
    if (!lease) return 2;
    const std::optional<Tensor> tensor = lease->tensor(0);
    if (!tensor) return 3;
    record(bench::Seconds(start, Clock::now()));
    static_cast<void>(*static_cast<const volatile std::byte*>(tensor->bytes().data()));
  }
  return 0;
}

int FloorClient(const std::string& path, const std::function<bool()>& go_on,
                const std::function<void(double)>& record) {
  Result<bench::SocketFloorClient> client = bench::SocketFloorClient::Connect(path, kFloorBytes);
  if (!client.ok()) return 1;
  while (go_on()) {
    const Result<bench::OpenTimes> times = client->Measure();
    if (!times.ok()) return 2;
    record(times->open);
  }
  return 0;
}

int Main(double seconds, const std::string& json_path) {
  TestDaemon daemon({"--log-level", "warn"});
  // 512 MiB in 10 tensors; 10 and 5,000 tensors of 64 MiB in all.
  daemon.WriteModel("small10", PatternModel(1, 10, (64 << 20) / 10 / 8 * 8));
  daemon.WriteModel("small5000", PatternModel(2, 5000, (64 << 20) / 5000 / 8 * 8));
  daemon.WriteModel("large10", PatternModel(3, 10, (512 << 20) / 10 / 8 * 8));
  {
    trims::Client client(daemon.Connect());
    for (const char* model : {"small10", "small5000", "large10"}) {
      if (!client.Open(model)) return 1;
    }
  }
  const std::string floor_path = daemon.root() + "/floor.sock";
  Result<bench::SocketFloor> floor_server = bench::SocketFloor::Listen(floor_path, kFloorBytes);
  const UniqueFd never(::eventfd(0, EFD_CLOEXEC));
  if (!floor_server.ok() || !never.valid()) return 1;
  const pid_t server = StartChild([&] { return floor_server->Serve(never.get()).ok() ? 0 : 1; });

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
      return FloorClient(floor_path, go_on, record);
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
      const std::string_view number = argv[++i];
      const auto [end, error] =
          std::from_chars(number.data(), number.data() + number.size(), seconds);
      if (error != std::errc() || end != number.data() + number.size() || seconds <= 0) {
        std::fprintf(stderr, "lease_bench: --seconds %s is not a number of seconds\n", argv[i]);
        return 2;
      }
    } else if (word == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else {
      std::fprintf(stderr, "usage: lease_bench [--seconds N] [--json FILE]\n");
      return 2;
    }
  }
  return trims::testing_support::Main(seconds, json);
}
