// weights_client: what N processes with one model cost, with sharing off and on.
//
//   weights_client --sharing on|off --dir MODEL_DIR --model NAME --processes N
//                  [--shape 1,3,224,224] [--runtime-dir DIR] [--daemon-pid PID]
//
// Starts N processes one after the other and keeps all of them alive. Each is the
// program that users of the C predict API write: with sharing off it reads the
// weights file and hands it to MXPredCreate, with sharing on MXPredCreate gets the
// weights from the daemon; then one prediction, which touches every weight. When
// all have answered, each reads its own memory from /proc, so that the sums are of
// one moment. Prints lines of "key=value"; tools/demo makes a table of them.
//
// Times run from the start of main() of each process. PSS is the kernel's
// proportional set size: a page that k processes map counts 1/k in each.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "bench/samples.h"
#include "bench/timing.h"
#include "mxnet/c_predict_api.h"
#include "trims/trims.hpp"

extern char** environ;

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  bool child = false;
  bool sharing = false;
  std::string dir;
  std::string model;
  std::string runtime_dir;
  int processes = 1;
  pid_t daemon_pid = 0;
  std::vector<mx_uint> shape = {1, 3, 224, 224};
};

[[noreturn]] void Die(const std::string& text) { throw std::runtime_error(text); }

int64_t ParseInt(const std::string& flag, std::string_view text, int64_t min, int64_t max) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < min || value > max) {
    Die(flag + ": \"" + std::string(text) + "\" is not a number from " + std::to_string(min) +
        " to " + std::to_string(max));
  }
  return value;
}

Options ParseOptions(int argc, char** argv) {
  Options options;
  bool sharing_given = false;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--child") {
      options.child = true;
      continue;
    }
    if (++i == argc) Die(flag + " needs a value");
    const std::string value = argv[i];
    if (flag == "--sharing") {
      if (value != "on" && value != "off") Die("--sharing must be on or off");
      options.sharing = value == "on";
      sharing_given = true;
    } else if (flag == "--dir") {
      options.dir = value;
    } else if (flag == "--model") {
      options.model = value;
    } else if (flag == "--runtime-dir") {
      options.runtime_dir = value;
    } else if (flag == "--processes") {
      options.processes = static_cast<int>(ParseInt(flag, value, 1, 1000));
    } else if (flag == "--daemon-pid") {
      options.daemon_pid = static_cast<pid_t>(ParseInt(flag, value, 1, INT32_MAX));
    } else if (flag == "--shape") {
      options.shape.clear();
      std::stringstream parts(value);
      for (std::string part; std::getline(parts, part, ',');) {
        options.shape.push_back(static_cast<mx_uint>(ParseInt(flag, part, 1, 1 << 20)));
      }
    } else {
      Die("unknown option " + flag);
    }
  }
  if (!sharing_given || options.dir.empty() || options.model.empty() || options.shape.empty()) {
    Die("usage: weights_client --sharing on|off --dir MODEL_DIR --model NAME --processes N "
        "[--shape 1,3,224,224] [--runtime-dir DIR] [--daemon-pid PID]");
  }
  return options;
}

std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) Die("cannot open " + path + ": " + std::strerror(errno));
  return {std::istreambuf_iterator<char>(in), {}};
}

// A file read as a program does that loads its own weights.
struct FileBytes {
  explicit FileBytes(const std::string& path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    if (end < 0) Die("cannot open " + path + ": " + std::strerror(errno));
    size = static_cast<size_t>(end);
    bytes = static_cast<char*>(std::malloc(size));
    if (bytes == nullptr) Die("no memory for " + path);
    for (size_t done = 0; done < size;) {
      const ssize_t n = pread(fd, bytes + done, size - done, static_cast<off_t>(done));
      if (n <= 0) Die("cannot read " + path + ": " + (n < 0 ? std::strerror(errno) : "it shrank"));
      done += static_cast<size_t>(n);
    }
    close(fd);
  }
  ~FileBytes() { std::free(bytes); }
  FileBytes(const FileBytes&) = delete;
  FileBytes& operator=(const FileBytes&) = delete;

  char* bytes = nullptr;
  size_t size = 0;
};

struct Memory {
  uint64_t pss = 0;           // Of the whole process, without hugetlb pages.
  uint64_t weights_pss = 0;   // Of the mappings that hold the weights.
  uint64_t weights_huge = 0;  // Their hugetlb pages, for which the kernel has no PSS.
};

// The weights lie in mappings of at least half their size; nothing else in such a
// process is nearly as large.
Memory MeasureMemory(pid_t pid, uint64_t weights_bytes) {
  const std::string proc = "/proc/" + std::to_string(pid);
  Memory memory;
  const auto number = [](const std::string& line, const char* key) -> uint64_t {
    if (!line.starts_with(key)) return 0;
    return std::strtoull(line.c_str() + std::strlen(key), nullptr, 10) * 1024;
  };
  std::istringstream rollup(ReadText(proc + "/smaps_rollup"));
  for (std::string line; std::getline(rollup, line);) memory.pss += number(line, "Pss:");
  std::istringstream maps(ReadText(proc + "/smaps"));
  bool weights = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.starts_with("Size:")) weights = number(line, "Size:") >= weights_bytes / 2;
    if (!weights) continue;
    memory.weights_pss += number(line, "Pss:");
    memory.weights_huge += number(line, "Shared_Hugetlb:") + number(line, "Private_Hugetlb:");
  }
  return memory;
}

// --- One process ---------------------------------------------------------------

void Check(int result) {
  if (result != 0) Die(MXGetLastError());
}

uint64_t Fnv1a(const void* bytes, size_t size) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < size; ++i) {
    hash = (hash ^ static_cast<const unsigned char*>(bytes)[i]) * 0x100000001b3u;
  }
  return hash;
}

// Microseconds from a connected client to usable pointers.
double MeasureOpen(const Options& options) {
  trims_connect_options connect = TRIMS_CONNECT_OPTIONS_INIT;
  if (!options.runtime_dir.empty()) connect.runtime_dir = options.runtime_dir.c_str();
  trims::Expected<trims::Client> client = trims::Client::Connect(connect);
  if (!client) Die(client.error().message());
  trims::bench::Samples times;
  for (int i = 0; i < 15; ++i) {
    const auto start = Clock::now();
    const trims::Expected<trims::Lease> lease = client->Open(options.model);
    if (!lease) Die(lease.error().message());
    times.Add(trims::bench::Seconds(start, Clock::now()));
  }
  return times.Median() * 1e6;
}

void RunChild(const Options& options, Clock::time_point start) {
  const auto elapsed_ms = [&] {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  };
  setenv("UPR_ENABLED", options.sharing ? "true" : "false", 1);
  setenv("UPR_MODEL_NAME", options.model.c_str(), 1);
  if (!options.runtime_dir.empty()) setenv("TRIMS_RUNTIME_DIR", options.runtime_dir.c_str(), 1);

  const std::string symbol = ReadText(options.dir + "/model.symbol");
  const char* key = "data";
  const mx_uint bounds[] = {0, static_cast<mx_uint>(options.shape.size())};
  PredictorHandle predictor = nullptr;
  if (options.sharing) {
    Check(MXPredCreate(symbol.c_str(), nullptr, 0, 1, 0, 1, &key, bounds, options.shape.data(),
                       &predictor));
  } else {
    const FileBytes file(options.dir + "/model.params");
    Check(MXPredCreate(symbol.c_str(), file.bytes, static_cast<int>(file.size), 1, 0, 1, &key,
                       bounds, options.shape.data(), &predictor));
  }
  const double weights_ms = elapsed_ms();

  size_t elements = 1;
  for (const mx_uint dim : options.shape) elements *= dim;
  std::vector<float> input(elements);
  for (size_t i = 0; i < elements; ++i) input[i] = static_cast<float>(i * 2654435761u % 256) - 128;
  Check(MXPredSetInput(predictor, key, input.data(), static_cast<mx_uint>(elements)));
  Check(MXPredForward(predictor));
  mx_uint* shape = nullptr;
  mx_uint rank = 0;
  Check(MXPredGetOutputShape(predictor, 0, &shape, &rank));
  size_t outputs = 1;
  for (mx_uint i = 0; i < rank; ++i) outputs *= shape[i];
  std::vector<float> output(outputs);
  Check(MXPredGetOutput(predictor, 0, output.data(), static_cast<mx_uint>(outputs)));
  const double prediction_ms = elapsed_ms();

  double sum = 0;
  for (const float value : output) sum += static_cast<double>(value);
  if (!(std::fabs(sum - options.shape[0]) < 1e-3)) {
    Die("the probabilities sum to " + std::to_string(sum));
  }
  const double open_us = options.sharing ? MeasureOpen(options) : 0;
  std::printf("%.4f %.4f %.3f %016" PRIx64 "\n", weights_ms, prediction_ms, open_us,
              Fnv1a(output.data(), output.size() * sizeof(float)));
  std::fflush(stdout);

  // Every further line asks for the memory in use; the end of the input ends us.
  char line[64];
  while (std::fgets(line, sizeof line, stdin) != nullptr) {
    const Memory memory = MeasureMemory(getpid(), std::strtoull(line, nullptr, 10));
    std::printf("%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", memory.pss, memory.weights_pss,
                memory.weights_huge);
    std::fflush(stdout);
  }
  Check(MXPredFree(predictor));
}

// --- All of them ---------------------------------------------------------------

struct Child {
  pid_t pid = 0;
  std::FILE* to = nullptr;
  std::FILE* from = nullptr;
};

Child Spawn(char** argv, int argc) {
  int in[2];
  int out[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) Die("cannot make a pipe");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  std::vector<char*> args(argv, argv + argc);
  std::string flag = "--child";
  args.push_back(flag.data());
  args.push_back(nullptr);
  Child child;
  const int error =
      posix_spawn(&child.pid, "/proc/self/exe", &actions, nullptr, args.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(in[0]);
  close(out[1]);
  if (error != 0) Die(std::string("cannot start a process: ") + std::strerror(error));
  child.to = fdopen(in[1], "w");
  child.from = fdopen(out[0], "r");
  return child;
}

std::string ReadReply(const Child& child) {
  char line[256];
  if (std::fgets(line, sizeof line, child.from) == nullptr) {
    Die("process " + std::to_string(child.pid) + " failed; its message is above");
  }
  return line;
}

std::vector<pid_t> WithChildren(pid_t pid) {
  std::vector<pid_t> pids{pid};
  std::istringstream children(
      ReadText("/proc/" + std::to_string(pid) + "/task/" + std::to_string(pid) + "/children"));
  for (pid_t child = 0; children >> child;) pids.push_back(child);
  return pids;
}

void RunAll(const Options& options, int argc, char** argv) {
  const std::string weights_path = options.dir + "/model.params";
  std::ifstream weights(weights_path, std::ios::ate | std::ios::binary);
  if (!weights) Die("cannot open " + weights_path + ": " + std::strerror(errno));
  const auto weights_bytes = static_cast<uint64_t>(weights.tellg());

  std::vector<Child> children;
  trims::bench::Samples weights_ms;
  trims::bench::Samples prediction_ms;
  trims::bench::Samples open_us;
  std::string output;
  for (int i = 0; i < options.processes; ++i) {
    children.push_back(Spawn(argv, argc));
    std::istringstream reply(ReadReply(children.back()));
    double ready = 0;
    double predicted = 0;
    double open = 0;
    std::string hash;
    reply >> ready >> predicted >> open >> hash;
    weights_ms.Add(ready);
    prediction_ms.Add(predicted);
    open_us.Add(open);
    if (!output.empty() && hash != output) Die("two processes computed different outputs");
    output = hash;
  }
  Memory clients;
  uint64_t huge = 0;  // One set of pages that all of them map.
  for (const Child& child : children) {
    std::fprintf(child.to, "%" PRIu64 "\n", weights_bytes);
    std::fflush(child.to);
    std::istringstream reply(ReadReply(child));
    Memory memory;
    reply >> memory.pss >> memory.weights_pss >> memory.weights_huge;
    clients.pss += memory.pss;
    clients.weights_pss += memory.weights_pss;
    huge = std::max(huge, memory.weights_huge);
  }
  clients.pss += huge;
  clients.weights_pss += huge;
  Memory daemon;
  if (options.daemon_pid != 0) {
    for (const pid_t pid : WithChildren(options.daemon_pid)) {
      const Memory memory = MeasureMemory(pid, weights_bytes);
      daemon.pss += memory.pss;
      daemon.weights_pss += memory.weights_pss;
    }
  }
  for (const Child& child : children) {
    std::fclose(child.to);
    std::fclose(child.from);
    int status = 0;
    while (waitpid(child.pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) Die("a process failed at its end");
  }

  std::printf("processes=%d\nweights_file_bytes=%" PRIu64 "\n", options.processes, weights_bytes);
  std::printf("weights_ms=%.4f\nprediction_ms=%.4f\n", weights_ms.Median(), prediction_ms.Median());
  if (options.sharing) std::printf("open_us=%.3f\n", open_us.Median());
  std::printf("clients_pss_bytes=%" PRIu64 "\nclients_weights_pss_bytes=%" PRIu64 "\n", clients.pss,
              clients.weights_pss);
  std::printf("daemon_pss_bytes=%" PRIu64 "\ndaemon_weights_pss_bytes=%" PRIu64 "\n", daemon.pss,
              daemon.weights_pss);
  std::printf("output=%s\n", output.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  const auto start = Clock::now();
  signal(SIGPIPE, SIG_IGN);
  try {
    const Options options = ParseOptions(argc, argv);
    if (options.child) {
      RunChild(options, start);
    } else {
      RunAll(options, argc, argv);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "weights_client: %s\n", error.what());
    return 1;
  }
  return 0;
}
