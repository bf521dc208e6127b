#include "daemon/rates.h"

#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "daemon/test_keeper.h"
#include "tier/fake_tier.h"
#include "tier/test_model.h"

namespace trims {
namespace {

class RatesTest : public ::testing::Test {
 protected:
  RatesTest()
      : reactor_(Reactor::Create().value()),
        tiers_(MakeTiers(), nullptr),
        loaders_(1, {1}),
        rates_(reactor_.get(), &loaders_, &tiers_, &ledger_) {}

  static std::vector<ServedTier> MakeTiers() {
    std::vector<ServedTier> tiers;
    tiers.push_back({std::make_unique<FakeTier>(), 1});
    tiers.push_back({std::make_unique<FakeTier>("gpu:a"), 1});
    return tiers;
  }
  static constexpr uint64_t kLarge = kDefaultSlabBytes;

  const TemporaryDirectory root_;
  TestKeeper keeper_;
  const std::unique_ptr<Reactor> reactor_;
  const Tiers tiers_;
  Loaders loaders_;
  Ledger ledger_{keeper_.link()};
  Rates rates_;
};

TEST_F(RatesTest, NobodyKnowsBeforeTheFirstMeasurement) {
  EXPECT_FALSE(rates_.ReloadCost(1 << 20).has_value());
  EXPECT_EQ(rates_.rho().read_bytes_per_second, 0);
}

TEST_F(RatesTest, WhatAnEarlierWorkerMeasuredIsNotMeasuredAgain) {
  RhoConstants rho;
  rho.read_bytes_per_second = 2e9;
  rho.export_cost = std::chrono::microseconds(3);
  rates_.AdoptRho(rho);
  rates_.Measure(root_.path());
  rates_.Measure(root_.path());
  // Nothing is under way that could change it.
  std::promise<void> reached;
  loaders_.named.Run([&] { reached.set_value(); });
  reached.get_future().wait();
  reactor_->RunOnce(Duration::zero());
  EXPECT_EQ(rates_.rho().read_bytes_per_second, 2e9);
  EXPECT_EQ(rates_.rho().export_cost, std::chrono::microseconds(3));
  EXPECT_TRUE(keeper_.Ledger().empty());
  EXPECT_EQ(rates_.ReloadCost(1'000'000'000), std::chrono::milliseconds(500));
}

TEST_F(RatesTest, WhatIsMeasuredIsKeptForTheNextWorker) {
  rates_.Measure(root_ / "not there");  // Whose disk nobody can measure: the costs are real.
  const Time deadline = Now() + std::chrono::seconds(60);
  while (rates_.rho().read_bytes_per_second == 0 && Now() < deadline)
    reactor_->RunOnce(std::chrono::milliseconds(1));
  ASSERT_GT(rates_.rho().read_bytes_per_second, 0);
  EXPECT_GT(rates_.rho().export_cost.count(), 0);
  const auto ledger = keeper_.Ledger();
  ASSERT_TRUE(ledger.contains(kRhoLedgerKey));
  const Result<RhoConstants> kept = ParseRho(ledger.at(kRhoLedgerKey).body);
  ASSERT_TRUE(kept.ok());
  EXPECT_EQ(kept->read_bytes_per_second, rates_.rho().read_bytes_per_second);
  EXPECT_EQ(kept->open_cost, rates_.rho().open_cost);
  EXPECT_FALSE(ledger.contains(kLinksLedgerKey)) << "there are no devices to measure";
}

TEST_F(RatesTest, EveryLargeLoadMovesTheRateByAQuarter) {
  rates_.NoteLoad(kLarge, std::chrono::seconds(1));
  EXPECT_DOUBLE_EQ(rates_.rho().read_bytes_per_second, static_cast<double>(kLarge));
  rates_.NoteLoad(2 * kLarge, std::chrono::seconds(1));
  EXPECT_DOUBLE_EQ(rates_.rho().read_bytes_per_second, 1.25 * static_cast<double>(kLarge));
}

TEST_F(RatesTest, SmallLoadsAndThoseOfNoTimeSayNothing) {
  rates_.NoteLoad(kDefaultSlabBytes / 4 - 1, std::chrono::seconds(1));
  rates_.NoteLoad(kLarge, Duration::zero());
  EXPECT_FALSE(rates_.ReloadCost(1).has_value());
}

// What was kept may be any rate above nothing.
TEST_F(RatesTest, TheCostAtARateOfAlmostNothingIsLongAndNotNegative) {
  RhoConstants rho;
  rho.read_bytes_per_second = 1e-300;
  rates_.AdoptRho(rho);
  ASSERT_TRUE(rates_.ReloadCost(UINT64_MAX).has_value());
  EXPECT_GT(*rates_.ReloadCost(UINT64_MAX), std::chrono::hours(24));
}

}  // namespace
}  // namespace trims
