#include "daemon/ledger.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "daemon/ledger_link.h"
#include "daemon/log.h"
#include "daemon/test_keeper.h"

namespace trims {
namespace {

using store::Granularity;
using ::testing::HasSubstr;

Digest SomeDigest(uint8_t first) {
  Digest digest;
  for (size_t i = 0; i < digest.bytes.size(); ++i)
    digest.bytes[i] = static_cast<uint8_t>(first + 7 * i);
  return digest;
}

ReplicaEntry SomeEntry() {
  ReplicaEntry entry;
  entry.names = {{"bvlc/alexnet:1.0", "/models/alexnet", "/models/alexnet"},
                 {"a \"quoted\" one", "/models/\xC3\xA9t\xC3\xA9\\n\n", "/models"}};
  entry.label = "passed\tfile";
  entry.generation = UINT64_MAX;
  entry.slab_bytes = 64 << 20;
  entry.manifest_bytes = 12345;
  entry.proved_uids = {0, 1000, UINT32_MAX};
  return entry;
}

// --- Keys --------------------------------------------------------------------------

TEST(LedgerKeyTest, EveryKindOfKeyComesBackAsItWas) {
  const Digest digest = SomeDigest(0xA5);
  for (const char* tier : {"host", "gpu:GPU-fa4e", "a/b", "a/1", "/", "x/", "/2/", "\xff\n"}) {
    EXPECT_EQ(ParseLedgerKey(ExtentLedgerKey(tier, digest)),
              (LedgerKey{LedgerKey::Kind::kExtent, tier, digest}))
        << tier;
    EXPECT_EQ(ParseLedgerKey(PinLedgerKey(tier, digest)),
              (LedgerKey{LedgerKey::Kind::kPin, tier, digest}))
        << tier;
    for (const Granularity granularity :
         {Granularity::kModel, Granularity::kSlab, Granularity::kLayer}) {
      EXPECT_EQ(ParseLedgerKey(ReplicaLedgerKey(tier, granularity, digest)),
                (LedgerKey{LedgerKey::Kind::kReplica, tier, digest, granularity}))
          << tier;
    }
  }
  EXPECT_EQ(ParseLedgerKey(kRhoLedgerKey), LedgerKey{LedgerKey::Kind::kRho});
  EXPECT_EQ(ParseLedgerKey(kLinksLedgerKey), LedgerKey{LedgerKey::Kind::kDevice});
  EXPECT_EQ(ParseLedgerKey(kHashKeyLedgerKey), LedgerKey{LedgerKey::Kind::kDevice});
}

TEST(LedgerKeyTest, KeysThatNoWorkerWritesAreRefused) {
  const std::string hex = SomeDigest(0xA5).ToHex();
  std::string upper = hex;
  std::transform(upper.begin(), upper.end(), upper.begin(), ::toupper);
  ASSERT_NE(upper, hex);
  for (const std::string& key : std::vector<std::string>{
           "", "x", "rho/", "rh", "extent", "extent/", "extent/host", "extent/host/",
           "extent/" + hex, "extent//" + hex, "extent/host/" + hex + "0",
           "extent/host/" + hex + "/", "extent/host/" + hex.substr(1),
           "extent/host/g" + hex.substr(1),
           // Spellings that people may use.
           "extent/host/" + upper, "extent/host/sha256:" + hex, "extent/host/@sha256:" + hex,
           "pin/" + hex, "pin//" + hex, "pin/host/", "pins/host/" + hex, "replica/host/" + hex,
           "replica/host/0/" + hex, "replica/host/4/" + hex, "replica/host/11/" + hex,
           "replica/host//" + hex, "replica/host/-/" + hex, "replica//1/" + hex, "replica/1/" + hex,
           "Replica/host/1/" + hex, "device"}) {
    EXPECT_FALSE(ParseLedgerKey(key).has_value()) << key;
  }
}

// --- Entries of replicas -------------------------------------------------------------

TEST(ReplicaEntryTest, ComesBackAsItWas) {
  for (const ReplicaEntry& entry : {ReplicaEntry(), SomeEntry()}) {
    const Result<ReplicaEntry> parsed = ParseReplicaEntry(EncodeReplicaEntry(entry));
    ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
    EXPECT_EQ(*parsed, entry);
  }
}

TEST(ReplicaEntryTest, TextThatIsNotUtf8LosesOnlyItself) {
  ReplicaEntry entry = SomeEntry();
  entry.label = "half \xC3";
  entry.names[0].path = "/models/\xff\xfe";
  const Result<ReplicaEntry> parsed = ParseReplicaEntry(EncodeReplicaEntry(entry));
  ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
  // Never the path of other files.
  EXPECT_EQ(parsed->names[0].path, "/models/\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(parsed->label, "half \xEF\xBF\xBD");
  ReplicaEntry rest = *parsed;
  rest.label = entry.label;
  rest.names[0].path = entry.names[0].path;
  EXPECT_EQ(rest, entry);
}

TEST(ReplicaEntryTest, TooManyNamesAndUidsAreLeftOut) {
  ReplicaEntry entry = SomeEntry();
  entry.names.clear();
  for (size_t i = 0; i < kMaxLedgerNames + 3; ++i)
    entry.names.push_back({"n" + std::to_string(i), "/p", "/d"});
  entry.proved_uids.assign(kMaxLedgerUids + 1, UINT32_MAX);
  const Result<ReplicaEntry> parsed = ParseReplicaEntry(EncodeReplicaEntry(entry));
  ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
  entry.names.resize(kMaxLedgerNames);
  entry.proved_uids.resize(kMaxLedgerUids);
  EXPECT_EQ(*parsed, entry);
}

TEST(ReplicaEntryTest, FitsTheLinkWhateverIsInIt) {
  for (const char byte : {'x', '\x01', '"', '\xff'}) {
    for (const size_t length : {10u, 100u, 250u, 500u, 1500u, 5000u, 60'000u}) {
      ReplicaEntry entry = SomeEntry();
      const std::string text(length, byte);
      entry.names.assign(kMaxLedgerNames, {text, text, text});
      entry.label = text;
      entry.generation = entry.slab_bytes = entry.manifest_bytes = UINT64_MAX;
      entry.proved_uids.assign(kMaxLedgerUids, UINT32_MAX);
      const std::string encoded = EncodeReplicaEntry(entry);
      EXPECT_LE(encoded.size(), kMaxLinkBodyBytes) << int{byte} << " x " << length;
      const Result<ReplicaEntry> parsed = ParseReplicaEntry(encoded);
      ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
      EXPECT_EQ(parsed->proved_uids, entry.proved_uids);
      EXPECT_EQ(parsed->generation, entry.generation);
      if (length == 10) {
        EXPECT_EQ(parsed->names.size(), kMaxLedgerNames);
      }
    }
  }
}

TEST(ReplicaEntryTest, EveryMissingOrMistypedMemberIsRefusedByItsName) {
  const nlohmann::json good = nlohmann::json::parse(EncodeReplicaEntry(SomeEntry()));
  const std::vector<nlohmann::json> none_of_them = {nullptr, true, -1, 1.5,
                                                    nlohmann::json::object()};
  for (const char* member :
       {"names", "label", "generation", "slab_bytes", "manifest_bytes", "proved_uids"}) {
    const std::string said = std::string("\"") + member + "\"";
    nlohmann::json without = good;
    without.erase(member);
    EXPECT_THAT(ParseReplicaEntry(without.dump()).status().message(), HasSubstr(said));
    for (const nlohmann::json& other : none_of_them) {
      nlohmann::json mistyped = good;
      mistyped[member] = other;
      const Result<ReplicaEntry> parsed = ParseReplicaEntry(mistyped.dump());
      EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument) << mistyped.dump();
      EXPECT_THAT(parsed.status().message(), HasSubstr(said)) << mistyped.dump();
    }
  }
  for (const char* member : {"name", "path", "directory"}) {
    nlohmann::json without = good;
    without["names"][1].erase(member);
    EXPECT_THAT(ParseReplicaEntry(without.dump()).status().message(), HasSubstr("\"names\""));
    for (const nlohmann::json& other : none_of_them) {
      nlohmann::json mistyped = good;
      mistyped["names"][1][member] = other;
      EXPECT_THAT(ParseReplicaEntry(mistyped.dump()).status().message(), HasSubstr("\"names\""));
    }
  }
  nlohmann::json nameless = good;
  nameless["names"][0]["name"] = "";
  EXPECT_FALSE(ParseReplicaEntry(nameless.dump()).ok());
  nlohmann::json flat = good;
  flat["names"][0] = "a";
  EXPECT_THAT(ParseReplicaEntry(flat.dump()).status().message(), HasSubstr("\"names\""));
  for (const nlohmann::json& uid : {nlohmann::json(-1), nlohmann::json(uint64_t{1} << 32),
                                    nlohmann::json("0"), nlohmann::json(0.0)}) {
    nlohmann::json odd = good;
    odd["proved_uids"].push_back(uid);
    EXPECT_THAT(ParseReplicaEntry(odd.dump()).status().message(), HasSubstr("\"proved_uids\""));
  }
}

TEST(ReplicaEntryTest, WhatIsNoObjectIsRefused) {
  for (const char* text : {"", " ", "null", "1", "[]", "{", "{}x", "\"{}\"", "\xff"}) {
    EXPECT_EQ(ParseReplicaEntry(text).status().code(), StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(ParseRho(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
}

// A newer worker may write more.
TEST(ReplicaEntryTest, MembersThatAreNotKnownAreIgnored) {
  nlohmann::json json = nlohmann::json::parse(EncodeReplicaEntry(SomeEntry()));
  json["later"] = {1, 2};
  json["names"][0]["later"] = 3;
  const Result<ReplicaEntry> parsed = ParseReplicaEntry(json.dump());
  ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
  EXPECT_EQ(*parsed, SomeEntry());
}

// --- Rho -----------------------------------------------------------------------------

TEST(RhoEntryTest, ComesBackAsItWas) {
  RhoConstants rho;
  rho.read_bytes_per_second = 1.25e9 / 3;
  rho.export_cost = std::chrono::nanoseconds(1234);
  rho.open_cost = std::chrono::nanoseconds(0);
  const Result<RhoConstants> parsed = ParseRho(EncodeRho(rho));
  ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
  EXPECT_EQ(parsed->read_bytes_per_second, rho.read_bytes_per_second);
  EXPECT_EQ(parsed->export_cost, rho.export_cost);
  EXPECT_EQ(parsed->open_cost, rho.open_cost);
}

TEST(RhoEntryTest, GarbageIsRefused) {
  for (const char* text : {
           R"({})",
           R"({"q":1e9,"o_ns":1})",
           R"({"q":1e9,"s_ns":1})",
           R"({"o_ns":1,"s_ns":1})",
           R"({"q":"1e9","o_ns":1,"s_ns":1})",
           R"({"q":0,"o_ns":1,"s_ns":1})",
           R"({"q":-1,"o_ns":1,"s_ns":1})",
           R"({"q":null,"o_ns":1,"s_ns":1})",
           R"({"q":1e999,"o_ns":1,"s_ns":1})",
           R"({"q":1e9,"o_ns":-1,"s_ns":1})",
           R"({"q":1e9,"o_ns":1,"s_ns":-1})",
           R"({"q":1e9,"o_ns":1.5,"s_ns":1})",
           R"({"q":1e9,"o_ns":18446744073709551615,"s_ns":1})",
       }) {
    EXPECT_EQ(ParseRho(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
}

// --- The ledger itself ---------------------------------------------------------------

UniqueFd SomeFile(const std::string& text) {
  UniqueFd fd(::memfd_create("test", MFD_CLOEXEC));
  EXPECT_EQ(::write(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  return fd;
}

std::string TextOf(const UniqueFd& fd) {
  std::string text(100, '\0');
  const ssize_t size = ::pread(fd.get(), text.data(), text.size(), 0);
  return size < 0 ? "(unreadable)" : text.substr(0, static_cast<size_t>(size));
}

TEST(LedgerTest, WhatIsPutIsThereUntilItIsReplacedOrDropped) {
  TestKeeper keeper;
  Ledger ledger(keeper.link());
  ResidentExtent extent;
  extent.key = SomeDigest(1);
  extent.integrity = "a proof";
  extent.fd = SomeFile("the extent");
  const Digest model = SomeDigest(2);
  const UniqueFd manifest = SomeFile("the manifest");
  const std::string extent_key = ExtentLedgerKey("host", extent.key);
  const std::string replica_key = ReplicaLedgerKey("host", Granularity::kSlab, model);
  const std::string pin_key = PinLedgerKey("gpu:x", model);

  ledger.PutExtent("host", extent);
  ledger.PutReplica("host", Granularity::kSlab, model, SomeEntry(), manifest.get());
  ledger.PutPin("gpu:x", model);
  ledger.PutText(kRhoLedgerKey, "some text");
  using Entry = TestKeeper::Entry;
  const std::map<std::string, Entry> all = {
      {extent_key, Entry{"a proof", true}},
      {replica_key, Entry{EncodeReplicaEntry(SomeEntry()), true}},
      {pin_key, Entry{"", false}},
      {kRhoLedgerKey, Entry{"some text", false}}};
  EXPECT_EQ(keeper.Ledger(), all);
  for (const LinkMessage& entry : keeper.EntriesForNextWorker()) {
    const std::string text = entry.fd.valid() ? TextOf(entry.fd) : "";
    EXPECT_EQ(text, entry.key == extent_key    ? "the extent"
                    : entry.key == replica_key ? "the manifest"
                                               : "");
  }
  // Lent for the call only.
  EXPECT_EQ(TextOf(extent.fd), "the extent");
  EXPECT_EQ(TextOf(manifest), "the manifest");

  ReplicaEntry other = SomeEntry();
  other.generation = 7;
  ledger.PutReplica("host", Granularity::kSlab, model, other, manifest.get());
  EXPECT_EQ(keeper.Ledger().at(replica_key).body, EncodeReplicaEntry(other));
  EXPECT_EQ(keeper.Ledger().size(), 4u);
  ledger.Drop(replica_key);
  ledger.Drop(replica_key);  // Not there any more.
  EXPECT_FALSE(keeper.Ledger().contains(replica_key));
  EXPECT_EQ(keeper.Ledger().size(), 3u);
}

// A model with the longest tier name, label and names is not lost in a crash.
TEST(LedgerTest, TheLargestEntryOfAReplicaIsKept) {
  TestKeeper keeper;
  Ledger ledger(keeper.link());
  ReplicaEntry entry = SomeEntry();
  entry.label.assign(100'000, '\x01');
  entry.names.assign(kMaxLedgerNames, {"n", std::string(4096, '\x01'), "/d"});
  entry.proved_uids.assign(3 * kMaxLedgerUids, UINT32_MAX);
  const UniqueFd manifest = SomeFile("the manifest");
  ledger.PutReplica("host", Granularity::kModel, SomeDigest(2), entry, manifest.get());
  EXPECT_EQ(keeper.Ledger().size(), 1u);
}

TEST(LedgerTest, ALinkThatIsGoneIsToldForEachEntryAndEndsNothing) {
  int fds[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
  const UniqueFd link(fds[0]);
  ASSERT_EQ(::close(fds[1]), 0);
  Ledger ledger(link.get());
  InitLog({});
  ::testing::internal::CaptureStderr();
  ledger.PutPin("host", SomeDigest(3));
  ledger.PutText(kRhoLedgerKey, "x");
  ledger.Drop(kRhoLedgerKey);  // Nothing is lost that way.
  const std::string log = ::testing::internal::GetCapturedStderr();
  InitLog({});
  EXPECT_THAT(log, HasSubstr(PinLedgerKey("host", SomeDigest(3))));
  EXPECT_THAT(log, HasSubstr("measurement"));
  size_t lines = 0;
  for (size_t at = 0; (at = log.find("a crash would lose it", at)) != log.npos; ++at) ++lines;
  EXPECT_EQ(lines, 2u) << log;
}

TEST(LedgerTest, WithoutAKeeperNothingIsWrittenOrTold) {
  Ledger ledger(-1);
  InitLog({});
  ::testing::internal::CaptureStderr();
  ledger.PutPin("host", SomeDigest(3));
  ledger.Drop("x");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  InitLog({});
}

}  // namespace
}  // namespace trims
