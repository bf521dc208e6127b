#include "trace/profile.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace trims {
namespace {

using nlohmann::json;
using std::chrono::microseconds;

const ProfileServer kServer = {.eviction_policy = "lru", .base_dir = "/models"};

// Checks that every track's events are strictly nested in time, and returns the
// names of its spans with their durations in microseconds.
std::multimap<std::string, double> CheckNested(const json& trace) {
  std::multimap<std::string, double> spans;
  std::map<int, std::vector<json>> open;
  std::map<int, double> now;
  for (const json& event : trace.at("traceEvents")) {
    if (event.at("ph") == "M") continue;
    const int tid = event.at("tid");
    EXPECT_GE(event.at("ts").get<double>(), now[tid]) << "time runs backwards on track " << tid;
    now[tid] = event.at("ts");
    if (event.at("ph") == "B") {
      EXPECT_EQ(event.at("ts"), event.at("start"));
      open[tid].push_back(event);
      continue;
    }
    EXPECT_EQ(event.at("ph"), "E");
    if (open[tid].empty()) {
      ADD_FAILURE() << "an end without a beginning";
      continue;
    }
    EXPECT_EQ(open[tid].back().at("name"), event.at("name"));
    EXPECT_EQ(event.at("ts"), event.at("end"));
    spans.emplace(event.at("name"),
                  event.at("end").get<double>() - event.at("start").get<double>());
    open[tid].pop_back();
  }
  for (const auto& [tid, stack] : open)
    EXPECT_TRUE(stack.empty()) << "track " << tid << " is left open";
  return spans;
}

size_t Tracks(const json& trace) {
  std::set<int> tids;
  for (const json& event : trace.at("traceEvents")) {
    if (event.at("ph") != "M") tids.insert(event.at("tid").get<int>());
  }
  return tids.size();
}

TEST(ProfileTest, DisabledProfileRecordsAndWritesNothing) {
  Profile profile;
  profile.Span("open", "grpc", Now(), Now());
  EXPECT_FALSE(profile.enabled());
  EXPECT_EQ(profile.Write("/nonexistent/x.json").code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(json::parse(profile.ToJson()).at("traceEvents").size(), 1u);  // The process's name.
}

TEST(ProfileTest, TraceSaysWhoWroteItAndUnderWhichSettings) {
  ProfileServer server = kServer;
  server.estimation_rate = 3.0;
  server.persist_cpu = false;
  server.memory_percentage = 0.5;
  const Profile profile(server);
  const json trace = json::parse(profile.ToJson());
  EXPECT_EQ(trace.at("displayTimeUnit"), "ms");
  EXPECT_EQ(trace.at("upr_enabled"), true);
  const json& other = trace.at("otherData");
  EXPECT_EQ(other.at("server"), json({{"eviction_policy", "lru"},
                                      {"estimation_rate", 3.0},
                                      {"persist_cpu", false},
                                      {"memory_percentage", 0.5}}));
  EXPECT_EQ(other.at("upr_base_dir"), "/models");
  EXPECT_EQ(other.at("is_client"), false);
  EXPECT_EQ(other.at("dropped_spans"), 0);
  EXPECT_FALSE(other.at("hostname").get<std::string>().empty());
  // "2026-01-31T12:00:00.123456789+00:00" sorts as time does.
  EXPECT_EQ(other.at("start_at").get<std::string>().size(), 35u);
  EXPECT_LE(other.at("start_at").get<std::string>(), other.at("end_at").get<std::string>());
}

TEST(ProfileTest, NestedWorkSharesATrackAndOverlappingWorkDoesNot) {
  Profile profile(kServer);
  const Time t = Now() + std::chrono::seconds(1);
  // Recorded as they end: inner before outer.
  profile.Span("load_ndarray", "serialization", t + microseconds(10), t + microseconds(40));
  profile.Span("perform_eviction", "evict", t + microseconds(40), t + microseconds(50),
               {{"policy", "lru"},
                {"model_name", "vgg16_1.0"},
                {"estimated_model_size", uint64_t{553433088}},
                {"memory_to_free", uint64_t{1} << 60}});
  profile.Span("open", "grpc", t, t + microseconds(50));
  json trace = json::parse(profile.ToJson());
  EXPECT_EQ(Tracks(trace), 1u);
  profile.Span("open", "grpc", t + microseconds(45), t + microseconds(60));
  trace = json::parse(profile.ToJson());
  EXPECT_EQ(Tracks(trace), 2u);
  const auto spans = CheckNested(trace);
  EXPECT_EQ(spans.size(), 4u);
  EXPECT_NEAR(spans.find("load_ndarray")->second, 30, 1e-6);
  for (const json& event : trace.at("traceEvents")) {
    if (event.at("name") != "perform_eviction") continue;
    EXPECT_EQ(event.at("cat"), "evict");
    EXPECT_EQ(event.at("args"), json({{"policy", "lru"},
                                      {"model_name", "vgg16_1.0"},
                                      {"estimated_model_size", 553433088},
                                      {"memory_to_free", uint64_t{1} << 60}}));
  }
}

TEST(ProfileTest, SpansWithEqualTimesAreNestedInOrderOfRecording) {
  Profile profile(kServer);
  const Time t = Now() + std::chrono::seconds(1);
  profile.Span("inner", "x", t, t + microseconds(5));
  profile.Span("outer", "x", t, t + microseconds(5));
  profile.Span("instant", "x", t + microseconds(5), t + microseconds(5));
  const json trace = json::parse(profile.ToJson());
  EXPECT_EQ(CheckNested(trace).size(), 3u);
  EXPECT_EQ(Tracks(trace), 1u);
  std::vector<std::string> begins;
  for (const json& event : trace.at("traceEvents")) {
    if (event.at("ph") == "B") begins.push_back(event.at("name"));
  }
  EXPECT_EQ(begins, (std::vector<std::string>{"outer", "inner", "instant"}));
}

TEST(ProfileTest, RandomSpansAreNestedOnEveryTrack) {
  Profile profile(kServer);
  std::mt19937 random(20190708);
  const Time t = Now() + std::chrono::seconds(1);
  for (int i = 0; i < 2000; ++i) {
    const auto start = microseconds(random() % 500);
    profile.Span("span" + std::to_string(random() % 10), "x", t + start,
                 t + start + microseconds(random() % 60));
  }
  EXPECT_EQ(CheckNested(json::parse(profile.ToJson())).size(), 2000u);
}

TEST(ProfileTest, TimesBeforeTheProfileAndBackwardsSpansAreCut) {
  Profile profile(kServer);
  const Time t = Now();
  profile.Span("early", "x", t - std::chrono::hours(1), t);
  profile.Span("backwards", "x", t + microseconds(9), t + microseconds(3));
  const auto spans = CheckNested(json::parse(profile.ToJson()));
  EXPECT_EQ(spans.find("backwards")->second, 0);
  EXPECT_GE(spans.find("early")->second, 0);
}

TEST(ProfileTest, MemoryIsBoundedAndLossIsCounted) {
  Profile profile(kServer, 64 * 1024);
  const std::string text(1000, 'x');
  for (int i = 0; i < 1000; ++i) profile.Span("load", "x", Now(), Now(), {{"path", text}});
  EXPECT_GT(profile.dropped(), 900u);
  const json trace = json::parse(profile.ToJson());
  EXPECT_EQ(trace.at("otherData").at("dropped_spans"), profile.dropped());
  EXPECT_EQ(CheckNested(trace).size(), 1000 - profile.dropped());
}

TEST(ProfileTest, NamesThatAreNotUtf8StillMakeValidJson) {
  Profile profile(kServer);
  profile.Span("open", "grpc", Now(), Now(), {{"model_name", "\xff\"\n\xc3"}});
  EXPECT_EQ(CheckNested(json::parse(profile.ToJson())).size(), 1u);
}

TEST(ProfileTest, ThreadsRecordAtOnce) {
  Profile profile(kServer);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&profile] {
      for (int i = 0; i < 100; ++i) {
        const Time start = Now();
        profile.Span("load", "x", start, Now());
        if (i % 50 == 0) {
          EXPECT_FALSE(profile.ToJson().empty());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(CheckNested(json::parse(profile.ToJson())).size(), 800u);
}

class ProfileFileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "trims-profile-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::string dir_;
};

TEST_F(ProfileFileTest, FileIsReplacedWholeAndNothingIsLeftBeside) {
  Profile profile(kServer);
  const std::string path = dir_ + "/server_profile.json";
  std::ofstream(path) << std::string(100000, 'x');
  profile.Span("close", "grpc", Now(), Now());
  ASSERT_TRUE(profile.Write(path).ok());
  std::ifstream in(path);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  EXPECT_EQ(CheckNested(json::parse(text)).size(), 1u);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_), {}), 1);
}

// Text of more than a megabyte goes out in many pieces, and all of it arrives.
TEST_F(ProfileFileTest, FileOfManyPiecesHoldsEverySpan) {
  Profile profile(kServer, 512 * kKiB);
  std::mt19937 random(20190708);
  const Time t = Now() + std::chrono::seconds(1);
  for (int i = 0; i < 5'000; ++i) {
    const auto start = microseconds(random() % 100'000);
    profile.Span("load", "x", t + start, t + start + microseconds(random() % 60));
  }
  ASSERT_GT(profile.dropped(), 0u);
  ASSERT_LT(profile.dropped(), 5'000u);
  const std::string path = dir_ + "/server_profile.json";
  ASSERT_TRUE(profile.Write(path).ok());
  EXPECT_GT(std::filesystem::file_size(path), 1 * kMiB);
  std::ifstream in(path);
  const json trace = json::parse(in);
  EXPECT_EQ(trace.at("otherData").at("dropped_spans"), profile.dropped());
  EXPECT_EQ(CheckNested(trace).size(), 5'000 - profile.dropped());
}

TEST_F(ProfileFileTest, FailureNamesThePathAndLeavesNothing) {
  Profile profile(kServer);
  const std::string path = dir_ + "/directory";
  ASSERT_EQ(::mkdir(path.c_str(), 0755), 0);
  const Status status = profile.Write(path);
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find(path), std::string::npos);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_), {}), 1);
  EXPECT_EQ(profile.Write(dir_ + "/absent/x.json").code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace trims
