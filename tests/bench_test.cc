// `trims bench` as an operator runs it: the program, a real daemon, and the fake driver where
// devices are concerned. How long things take is not looked at, but that all of it is there and
// agrees with itself, and that nothing of it is left.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/test_daemon.h"

namespace trims::testing_support {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class BenchTest : public testing::Test {
 protected:
  void StartDaemon(std::vector<std::string> flags = {}) {
    std::map<std::string, std::string> environment;
#ifdef FAKE_CUDA_LIBRARY
    machine_ = "/tmp/trims-bench-machine-" + std::to_string(::getpid());
    environment = {{"TRIMS_CUDA_LIBRARY", FAKE_CUDA_LIBRARY},
                   {"FAKE_CUDA_DIR", machine_},
                   {"FAKE_CUDA_DEVICES", "2"}};
    for (const char* flag : {"--pinned-pool-bytes", "32MiB"}) flags.emplace_back(flag);
#endif
    daemon_ = std::make_unique<TestDaemon>(flags, environment);
    environment_ = environment;
    files_ = daemon_->root() + "/files";
    std::filesystem::create_directory(files_);
  }
  void TearDown() override {
    daemon_.reset();
    if (!machine_.empty()) std::filesystem::remove_all(machine_);
  }

  // Starts `trims words…`; its output goes to files.
  pid_t Start(std::vector<std::string> words) {
    words.insert(words.begin(), TRIMS_PROGRAM);
    return StartChild([&] {
      for (const auto& [name, value] : environment_) ::setenv(name.c_str(), value.c_str(), 1);
      ::setenv("TRIMS_RUNTIME_DIR", daemon_->runtime_dir().c_str(), 1);
      for (const auto& [name, to] : {std::pair("/out", STDOUT_FILENO), {"/err", STDERR_FILENO}}) {
        const std::string path = daemon_->root() + name;
        ::dup2(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), to);
      }
      std::vector<char*> argv;
      for (std::string& word : words) argv.push_back(word.data());
      argv.push_back(nullptr);
      ::execv(TRIMS_PROGRAM, argv.data());
      return 127;
    });
  }
  int Run(const std::vector<std::string>& words) { return WaitChild(Start(words)); }
  std::string Text(const char* name) const {
    std::ifstream in(daemon_->root() + name);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }
  std::string Out() const { return Text("/out"); }
  std::string Err() const { return Text("/err"); }

  // The results of a small `trims bench`, after which nothing of it is left.
  json Bench(std::vector<std::string> words) {
    words.insert(words.begin(), "bench");
    for (const char* word : {"--json", "--dir"}) words.emplace_back(word);
    words.push_back(files_);
    const int code = Run(words);
    EXPECT_EQ(code, 0) << Err();
    const std::string out = Out();
    ExpectNothingLeft();
    return code == 0 ? json::parse(out) : json();
  }
  void ExpectNothingLeft() {
    EXPECT_TRUE(std::filesystem::is_empty(files_));
    EXPECT_EQ(Run({"ls", "--json"}), 0);
    EXPECT_EQ(json::parse(Out()), json::array());
    EXPECT_TRUE(Eventually([&] {
      Run({"status", "--json"});
      const json status = json::parse(Out());
      uint64_t used = status["leases"].get<uint64_t>();
      for (const json& tier : status["tiers"]) used += tier["used_bytes"].get<uint64_t>();
      return used == 0;
    })) << Out();
  }

  // What is said of so few samples follows from some of it.
  static void ExpectSamples(const json& samples, int runs) {
    const auto value = [&samples](const char* key) { return samples.at(key).get<double>(); };
    EXPECT_EQ(samples["runs"], runs);
    EXPECT_GT(value("min_seconds"), 0);
    EXPECT_EQ(value("p99_seconds"), value("max_seconds"));  // Of up to a hundred.
    if (runs < 10) {
      EXPECT_EQ(value("p90_seconds"), value("max_seconds"));
    }
    if (runs == 2) {
      EXPECT_EQ(value("median_seconds"), value("mean_seconds"));
    }
    if (runs == 3) {
      const double sum = value("min_seconds") + value("median_seconds") + value("max_seconds");
      EXPECT_NEAR(value("mean_seconds"), sum / 3, sum * 1e-9);
    }
    if (runs == 12) {
      // Sorted, the sixth and seventh make the median and the eleventh is the 90th percentile:
      // five lie between the least and the median, three between that and the eleventh.
      const double told = 2 * value("median_seconds") + value("p90_seconds") + value("max_seconds");
      const double sum = 12 * value("mean_seconds");
      EXPECT_GE(sum * (1 + 1e-9), told + 5 * value("min_seconds") + 3 * value("median_seconds"));
      EXPECT_LE(sum * (1 - 1e-9), told + 5 * value("median_seconds") + 3 * value("p90_seconds"));
    }
  }
  static void ExpectOpens(const json& report, const std::string& tier, int runs) {
    ASSERT_TRUE(report.is_object());
    EXPECT_EQ(report["benchmark"], "open");
    ASSERT_EQ(report["results"].size(), 4u);
    for (const json& result : report["results"]) {
      EXPECT_EQ(result["tier"], tier);
      EXPECT_GT(result["cold_open_seconds"], 0);
      for (const char* what : {"open", "close", "floor_open", "floor_close"}) {
        ExpectSamples(result[what], runs);
      }
      EXPECT_NEAR(result["open_ratio"].get<double>(),
                  result["open"]["median_seconds"].get<double>() /
                      result["floor_open"]["median_seconds"].get<double>(),
                  1e-6);
    }
    EXPECT_EQ(report["results"][0]["tensors"], 3);
    EXPECT_EQ(report["results"][1]["tensors"], 40);
    EXPECT_GE(report["results"][3]["bytes"], 3 << 20);
  }
  static void ExpectLoads(const json& report, const std::string& tier, const std::string& from,
                          const std::vector<std::string>& floors) {
    ASSERT_TRUE(report.is_object());
    EXPECT_EQ(report["benchmark"], "load");
    ASSERT_EQ(report["results"].size(), 1u);
    const json& result = report["results"][0];
    EXPECT_EQ(result["tier"], tier);
    EXPECT_EQ(result["from"], from);
    EXPECT_GE(result["bytes"], 2 << 20);
    EXPECT_GT(result["bytes_per_second"], 0);
    ExpectSamples(result["load"], 3);
    EXPECT_EQ(result["floors"].size(), floors.size()) << result["floors"];
    for (const std::string& floor : floors) {
      ExpectSamples(result["floors"][floor]["times"], 3);
      EXPECT_GT(result["floors"][floor]["load_rate_over_floor"], 0) << floor;
    }
  }
  // False where files can not be taken out of the page cache.
  bool HasDisk() {
    StartDaemon();
    const int code =
        Run({"bench", "load", "--from", "disk", "--size", "1MiB", "--runs", "1", "--dir", files_});
    return code == 0 || Err().find("give a --dir on a disk") == std::string::npos;
  }

  static inline const std::string kTier0 = "gpu:GPU-fa4ec0da-0000-4000-8000-000000000000";

  std::string machine_;
  std::map<std::string, std::string> environment_;
  std::unique_ptr<TestDaemon> daemon_;
  std::string files_;
};

// "145.2 us" and its like, as seconds.
double SecondsOf(const std::string& number, const std::string& unit) {
  const double value = std::stod(number);
  return unit == "us" ? value * 1e-6 : unit == "ms" ? value * 1e-3 : value;
}

const std::vector<std::string> kOpen = {"open", "--size", "1MiB,3MiB", "--tensors",
                                        "3,40", "--runs", "12"};

TEST_F(BenchTest, OpensOnTheHostAreComparedWithBareMappings) {
  StartDaemon();
  ExpectOpens(Bench(kOpen), "host", 12);
  EXPECT_EQ(Run({"bench", "open", "--size", "1MiB", "--runs", "2", "--dense", "--dir", files_}), 0)
      << Err();
  EXPECT_THAT(Out(), HasSubstr("FLOOR: the median of 2 times the bare mappings"));
}

TEST_F(BenchTest, NoOpenIsFasterThanTheMappingsThatItConsistsOf) {
  StartDaemon();
  const json report = Bench({"open", "--size", "3MiB", "--tensors", "3,40", "--runs", "50"});
  ASSERT_TRUE(report.is_object());
  for (const json& result : report["results"]) {
    EXPECT_LT(result["floor_open"]["min_seconds"], result["open"]["min_seconds"]) << result;
    EXPECT_LT(result["open"]["median_seconds"], result["cold_open_seconds"]) << result;
  }
}

TEST_F(BenchTest, TheRatiosInTheTableAreThoseOfTheTimesBesideThem) {
  StartDaemon();
  ASSERT_EQ(Run({"bench", "open", "--size", "2MiB", "--runs", "5", "--dir", files_}), 0) << Err();
  // 2.0 MiB  10  open  31.5 us  40.1 us  52.9 us  30.0 us  9.8 us  3.21
  std::istringstream lines(Out());
  int rows = 0;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream cells(line);
    const std::vector<std::string> row{std::istream_iterator<std::string>(cells), {}};
    if (row.size() != 15 || (row[3] != "open" && row[3] != "close")) continue;
    ++rows;
    const double median = SecondsOf(row[4], row[5]);
    const double floor = SecondsOf(row[12], row[13]);
    const double ratio = median / floor;
    // Times are rounded to a tenth of a microsecond, or to less than a percent.
    EXPECT_NEAR(std::stod(row[14]), ratio, 0.06e-6 / floor * (1 + ratio) + 0.02 * ratio) << line;
    EXPECT_LE(SecondsOf(row[10], row[11]), median * 1.01) << line;  // MIN
    EXPECT_LE(median, SecondsOf(row[6], row[7]) * 1.01) << line;    // P90
  }
  EXPECT_EQ(rows, 2) << Out();
}

TEST_F(BenchTest, LoadsToTheHostAreComparedWithReads) {
  StartDaemon();
  ExpectLoads(Bench({"load", "--size", "2MiB", "--runs", "3"}), "host", "page-cache",
              {"page_cache_read"});
  EXPECT_EQ(Run({"bench", "load", "--size", "1MiB", "--runs", "1", "--dir", files_}), 0) << Err();
  EXPECT_THAT(Out(), HasSubstr("% of it"));
}

TEST_F(BenchTest, LoadsFromDiskReadPastThePageCache) {
  if (!HasDisk()) GTEST_SKIP() << "temporary files are not on a disk: " << Err();
  ExpectLoads(Bench({"load", "--from", "disk", "--size", "2MiB", "--runs", "3"}), "host", "disk",
              {"disk_read"});
}

TEST_F(BenchTest, OpensAreMeasuredUnderAPolicyThatKeepsNothing) {
  StartDaemon({"--eviction-policy", "eager"});
  ExpectOpens(Bench(kOpen), "host", 12);
}

TEST_F(BenchTest, AnInterruptedBenchmarkIsCleanedUp) {
  StartDaemon();
  const pid_t bench =
      Start({"bench", "open", "--size", "1MiB", "--runs", "1000000", "--dir", files_});
  ASSERT_TRUE(Eventually([&] {
    return daemon_->Log().find("loaded model=bench/") != std::string::npos;
  })) << daemon_->Log();
  ::kill(bench, SIGINT);
  EXPECT_EQ(WaitChild(bench), 1);
  EXPECT_THAT(Err(), HasSubstr("interrupted"));
  ExpectNothingLeft();
}

TEST_F(BenchTest, AModelThatDoesNotFitIsRefusedAndCleanedUp) {
  StartDaemon({"--host-capacity-bytes", "4MiB"});
  EXPECT_EQ(Run({"bench", "open", "--size", "16MiB", "--dir", files_}), 5) << Err();
  ExpectNothingLeft();
}

TEST_F(BenchTest, ADirectoryThatTheDaemonCanNotReadIsExplained) {
  if (::geteuid() == 0) GTEST_SKIP() << "root reads everything";
  StartDaemon();
  std::filesystem::permissions(files_, std::filesystem::perms::none);
  EXPECT_NE(Run({"bench", "open", "--size", "1MiB", "--dir", files_}), 0);
  EXPECT_THAT(Err(), HasSubstr(files_));
  std::filesystem::permissions(files_, std::filesystem::perms::owner_all);
}

#ifdef FAKE_CUDA_LIBRARY
std::vector<std::string> With(std::vector<std::string> words,
                              const std::vector<std::string>& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

TEST_F(BenchTest, OpensOnADeviceAreComparedWithTheDriversCalls) {
  StartDaemon();
  const json report = Bench(With(kOpen, {"--device", "gpu:0"}));
  ExpectOpens(report, kTier0, 12);
  EXPECT_EQ(report["machine"]["cuda_driver"], "13.0");
  EXPECT_EQ(report["machine"]["devices"].size(), 2u);
  for (const json& result : report["results"]) EXPECT_EQ(result["floor_interleaved"], true);
}

TEST_F(BenchTest, AModelThatLeavesNoRoomForItsFloorIsMeasuredFirst) {
  StartDaemon({"--device-capacity-bytes", "700MiB"});
  const json report = Bench({"open", "--device", "gpu:0", "--size", "600MiB", "--runs", "3"});
  ASSERT_TRUE(report.is_object());
  ASSERT_EQ(report["results"].size(), 1u);
  EXPECT_EQ(report["results"][0]["floor_interleaved"], false);
  ExpectSamples(report["results"][0]["floor_open"], 3);
}

TEST_F(BenchTest, LoadsToADeviceAreComparedWithTheLinksThatTheyComeOver) {
  StartDaemon();
  const std::vector<std::string> load = {"load", "--device", "gpu:0", "--size",
                                         "2MiB", "--runs",   "3"};
  ExpectLoads(Bench(load), kTier0, "page-cache", {"page_cache_read", "pinned_copy"});
  ExpectLoads(Bench(With(load, {"--from", "host"})), kTier0, "host", {"pinned_copy"});
  ExpectLoads(Bench(With(load, {"--from", "peer:gpu:1"})), kTier0, "peer:gpu:1", {"peer_copy"});
}

TEST_F(BenchTest, LoadsToADeviceComeFromDisk) {
  if (!HasDisk()) GTEST_SKIP() << "temporary files are not on a disk: " << Err();
  ExpectLoads(
      Bench({"load", "--device", "gpu:1", "--from", "disk", "--size", "2MiB", "--runs", "3"}),
      "gpu:GPU-fa4ec0da-0000-4000-8000-000000000001", "disk", {"disk_read", "pinned_copy"});
}

TEST_F(BenchTest, CopiesAreMeasuredBetweenAllDevices) {
  StartDaemon();
  const json report = Bench({"copy", "--size", "2MiB", "--runs", "2"});
  ASSERT_TRUE(report.is_object());
  std::vector<std::string> seen;
  for (const json& result : report["results"]) {
    seen.push_back(result["from"].get<std::string>() + " " + result["to"].get<std::string>());
  }
  for (const char* pair : {"host host", "host gpu:0", "gpu:0 host", "gpu:0 gpu:0", "gpu:1 gpu:0",
                           "host gpu:1", "gpu:0 gpu:1"}) {
    EXPECT_THAT(seen, testing::Contains(pair));
  }
}

TEST_F(BenchTest, ADeviceThatOnlyTheDaemonSeesIsExplained) {
  StartDaemon();
  environment_["CUDA_VISIBLE_DEVICES"] = "1";
  EXPECT_NE(Run({"bench", "open", "--device", "gpu:0", "--dir", files_}), 0);
  EXPECT_THAT(Err(), HasSubstr("this process can not use gpu:0: "));
}
#endif

}  // namespace
}  // namespace trims::testing_support
