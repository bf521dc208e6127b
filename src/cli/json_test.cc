// Messages of the protocol as JSON.
#include "cli/json.h"

#include <string>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

TEST(JsonTest, EveryFieldIsThereAlsoWhenItIsNotSet) {
  const Json replica = ToJson(v1::ReplicaView());
  EXPECT_EQ(static_cast<int>(replica.size()), v1::ReplicaView::descriptor()->field_count());
  EXPECT_EQ(replica["tier"], "");
  EXPECT_EQ(replica["bytes"], 0);
  EXPECT_EQ(replica["pinned"], false);
  EXPECT_EQ(replica["until"], nullptr);
  const Json model = ToJson(v1::ModelView());
  EXPECT_EQ(model["replicas"], Json::array());
  EXPECT_EQ(ToJson(v1::InfoResponse())["metadata"], Json::object());
  EXPECT_EQ(ToJson(v1::InfoResponse())["model"], nullptr);
}

TEST(JsonTest, FieldsHaveTheOrderOfTheProtocol) {
  const Json entry = ToJson(v1::ConfigEntry());
  int i = 0;
  for (const auto& [key, value] : entry.items()) {
    EXPECT_EQ(key, v1::ConfigEntry::descriptor()->field(i++)->name());
  }
}

TEST(JsonTest, IntegersStayExact) {
  v1::ReplicaView replica;
  replica.set_bytes(18'446'744'073'709'551'615u);
  EXPECT_THAT(ToJson(replica).dump(), HasSubstr("\"bytes\":18446744073709551615,"));
  v1::LeaseView lease;
  lease.set_pid(-7);
  EXPECT_EQ(ToJson(lease)["pid"], -7);
}

TEST(JsonTest, EnumeratorsAreWordsAndNewerOnesNoSecret) {
  v1::ReplicaView replica;
  replica.set_state(v1::REPLICA_STATE_QUARANTINED);
  replica.set_granularity(v1::SHARING_GRANULARITY_LAYER);
  EXPECT_EQ(ToJson(replica)["state"], "quarantined");
  EXPECT_EQ(ToJson(replica)["granularity"], "layer");
  v1::Event event;
  event.set_kind(v1::EVENT_KIND_EVICTED);
  EXPECT_EQ(ToJson(event)["kind"], "evicted");
  replica.set_state(static_cast<v1::ReplicaState>(99));
  EXPECT_FALSE(ToJson(replica)["state"].get<std::string>().empty());
}

TEST(JsonTest, TimesAreRfc3339AndDurationsSeconds) {
  v1::ReplicaView replica;
  replica.mutable_until()->set_seconds(1'700'000'000);
  EXPECT_EQ(ToJson(replica)["until"], "2023-11-14T22:13:20Z");
  v1::VerifyVerdict verdict;
  verdict.mutable_took()->set_seconds(3);
  verdict.mutable_took()->set_nanos(250'000'000);
  EXPECT_EQ(ToJson(verdict)["took"], 3.25);
}

TEST(JsonTest, MapsAndListsKeepTheirContents) {
  v1::InfoResponse info;
  (*info.mutable_metadata())["format"] = "pt";
  v1::TensorView* tensor = info.add_tensors();
  tensor->set_name("w");
  for (const int64_t dimension : {3, 224, 224}) tensor->add_shape(dimension);
  const Json json = ToJson(info);
  EXPECT_EQ(json["metadata"].dump(), R"({"format":"pt"})");
  EXPECT_EQ(json["tensors"][0]["shape"].dump(), "[3,224,224]");
  EXPECT_EQ(ToJsonArray(info.tensors()).size(), 1u);
}

TEST(JsonTest, OneOfManyIsOnOneLine) {
  testing::internal::CaptureStdout();
  PrintJsonLine({{"a", 1}, {"b", Json::array({1, 2})}});
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "{\"a\":1,\"b\":[1,2]}\n");
  testing::internal::CaptureStdout();
  PrintJson({{"a", 1}});
  std::fflush(stdout);
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "{\n  \"a\": 1\n}\n");
}

TEST(JsonTest, BytesThatAreNoTextAreReplaced) {
  testing::internal::CaptureStdout();
  PrintJsonLine({{"name", "a\xff\n"}});
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "{\"name\":\"a\xef\xbf\xbd\\n\"}\n");
}

}  // namespace
}  // namespace trims::cli
