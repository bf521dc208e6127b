// `trims bench` as an operator runs it: the program, a real daemon, and the fake driver where
// devices are concerned. What it measures is not looked at, but that all of it is there and nothing
// of it is left.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
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

  static void ExpectSamples(const json& samples, int runs) {
    EXPECT_EQ(samples["runs"], runs);
    EXPECT_GT(samples["min_seconds"], 0);
    EXPECT_LE(samples["min_seconds"], samples["median_seconds"]);
    EXPECT_LE(samples["median_seconds"], samples["p90_seconds"]);
    EXPECT_LE(samples["p90_seconds"], samples["p99_seconds"]);
    EXPECT_LE(samples["p99_seconds"], samples["max_seconds"]);
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

const std::vector<std::string> kOpen = {"open", "--size", "1MiB,3MiB", "--tensors",
                                        "3,40", "--runs", "12"};

TEST_F(BenchTest, OpensOnTheHostAreComparedWithBareMappings) {
  StartDaemon();
  ExpectOpens(Bench(kOpen), "host", 12);
  EXPECT_EQ(Run({"bench", "open", "--size", "1MiB", "--runs", "2", "--dense", "--dir", files_}), 0)
      << Err();
  EXPECT_THAT(Out(), HasSubstr("FLOOR: the median of 2 times the bare mappings"));
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
