#include "daemon/reactor.h"

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "daemon/log.h"

namespace trims {
namespace {

constexpr Duration kNoWait = Duration::zero();

UniqueFd MakeEvent(uint64_t count = 0) {
  return UniqueFd(::eventfd(static_cast<unsigned>(count), EFD_CLOEXEC | EFD_NONBLOCK));
}
void Signal(const UniqueFd& event) {
  const uint64_t one = 1;
  ASSERT_EQ(::write(event.get(), &one, sizeof one), static_cast<ssize_t>(sizeof one));
}
void Drain(const UniqueFd& event) {
  uint64_t count;
  ASSERT_EQ(::read(event.get(), &count, sizeof count), static_cast<ssize_t>(sizeof count));
}
// Holds the caller for so long, by the clock.
void HoldFor(Duration duration) {
  const Time until = Now() + duration;
  while (Now() < until) {
  }
}

class ReactorTest : public testing::Test {
 protected:
  Reactor::WatchId Watch(const UniqueFd& fd, std::function<void(uint32_t)> callback,
                         uint32_t events = EPOLLIN) {
    return reactor_->Watch(fd.get(), events, "test", std::move(callback)).value();
  }
  // What `work` writes to the log.
  static std::string Logged(const std::function<void()>& work) {
    InitLog({});
    testing::internal::CaptureStderr();
    work();
    std::string text = testing::internal::GetCapturedStderr();
    InitLog({});
    return text;
  }

  const std::unique_ptr<Reactor> reactor_ = Reactor::Create().value();
};

// --- Watches ---------------------------------------------------------------------

// The number is all that the kernel's event of the second has in common with the third.
TEST_F(ReactorTest, AnEventOnItsWayToAnEndedWatchDoesNotReachANewOneWithTheSameNumber) {
  UniqueFd first = MakeEvent(1);
  UniqueFd second = MakeEvent(1);
  UniqueFd third;
  const int number = second.get();
  int first_calls = 0, second_calls = 0, third_calls = 0;
  Reactor::WatchId second_watch{};
  Watch(first, [&](uint32_t) {
    if (++first_calls > 1) return;
    reactor_->Unwatch(second_watch);
    second.Reset();
    third = MakeEvent();
    Watch(third, [&](uint32_t) { ++third_calls; });
  });
  second_watch = Watch(second, [&](uint32_t) { ++second_calls; });
  reactor_->RunOnce(kNoWait);
  ASSERT_EQ(first_calls, 1);
  ASSERT_EQ(third.get(), number);  // Else nothing was tested.
  EXPECT_EQ(second_calls, 0);
  EXPECT_EQ(third_calls, 0);
  // It hears what is its own.
  Signal(third);
  reactor_->RunOnce(kNoWait);
  EXPECT_EQ(third_calls, 1);
}

TEST_F(ReactorTest, AWatchThatEndedInTheSameBatchIsNotCalled) {
  const UniqueFd a = MakeEvent(1);
  const UniqueFd b = MakeEvent(1);
  int calls = 0;
  Reactor::WatchId watch_a{}, watch_b{};
  watch_a = Watch(a, [&](uint32_t) {
    ++calls;
    reactor_->Unwatch(watch_b);
  });
  watch_b = Watch(b, [&](uint32_t) {
    ++calls;
    reactor_->Unwatch(watch_a);
  });
  reactor_->RunOnce(kNoWait);
  reactor_->Unwatch(watch_a);
  EXPECT_EQ(calls, 1);
}

TEST_F(ReactorTest, ACallbackMayEndItsOwnWatchAndOutlivesIt) {
  const UniqueFd event = MakeEvent(1);
  auto token = std::make_shared<int>(7);
  const std::weak_ptr<int> held = token;
  int seen = 0;
  Reactor::WatchId watch{};
  watch = Watch(event, [&, token = std::move(token)](uint32_t) {
    reactor_->Unwatch(watch);
    seen = *token;  // What it holds is still there.
  });
  reactor_->RunOnce(kNoWait);
  EXPECT_EQ(seen, 7);
  EXPECT_TRUE(held.expired());  // And goes with it.
  seen = 0;
  reactor_->RunOnce(kNoWait);
  EXPECT_EQ(seen, 0);
}

TEST_F(ReactorTest, AWatchIsCalledAsLongAsItsDescriptorIsReady) {
  const UniqueFd event = MakeEvent(1);
  int calls = 0;
  Watch(event, [&](uint32_t events) {
    EXPECT_EQ(events, static_cast<uint32_t>(EPOLLIN));
    if (++calls == 3) Drain(event);
  });
  for (int i = 0; i < 6; ++i) reactor_->RunOnce(kNoWait);
  EXPECT_EQ(calls, 3);
}

TEST_F(ReactorTest, ChangedEventsAreWhatAWatchHearsFromThenOn) {
  const UniqueFd event = MakeEvent(1);
  std::vector<uint32_t> heard;
  const Reactor::WatchId watch = Watch(event, [&](uint32_t events) { heard.push_back(events); });
  reactor_->ChangeEvents(watch, EPOLLOUT);
  reactor_->RunOnce(kNoWait);
  reactor_->ChangeEvents(watch, 0);
  reactor_->RunOnce(kNoWait);
  reactor_->ChangeEvents(watch, EPOLLIN | EPOLLOUT);
  reactor_->RunOnce(kNoWait);
  EXPECT_EQ(heard, (std::vector<uint32_t>{EPOLLOUT, EPOLLIN | EPOLLOUT}));
}

TEST_F(ReactorTest, UnknownAndEndedIdsAreIgnored) {
  const UniqueFd event = MakeEvent(1);
  int calls = 0;
  const Reactor::WatchId ended = Watch(event, [&](uint32_t) { ++calls; });
  reactor_->Unwatch(ended);
  const Reactor::WatchId live = Watch(event, [&](uint32_t) { ++calls; });
  EXPECT_NE(ended, live);
  for (const Reactor::WatchId id : {ended, Reactor::WatchId::kNone}) {
    reactor_->Unwatch(id);
    reactor_->ChangeEvents(id, 0);
  }
  reactor_->CancelTimer(Reactor::TimerId::kNone);
  reactor_->RunOnce(kNoWait);
  EXPECT_EQ(calls, 1);
}

TEST_F(ReactorTest, WhatCanNotBeWatchedIsAnErrorWithTheReason) {
  EXPECT_FALSE(reactor_->Watch(-1, EPOLLIN, "test", [](uint32_t) {}).ok());
  const UniqueFd event = MakeEvent();
  Watch(event, [](uint32_t) {});
  const auto again = reactor_->Watch(event.get(), EPOLLIN, "test", [](uint32_t) {});
  EXPECT_NE(again.status().message().find("watching a descriptor"), std::string::npos);
}

TEST_F(ReactorTest, ManyWatchesAreAllServedWhoeverIsBusy) {
  constexpr int kMany = 500;  // Several batches of events.
  std::vector<UniqueFd> events;
  std::vector<Reactor::WatchId> watches;
  std::vector<int> calls(kMany);
  for (int i = 0; i < kMany; ++i) {
    events.push_back(MakeEvent(1));  // None is drained: every one is always ready.
    watches.push_back(Watch(events.back(), [&calls, i](uint32_t) { ++calls[i]; }));
  }
  for (int i = 0; i < kMany; ++i) reactor_->RunOnce(kNoWait);
  EXPECT_GT(*std::min_element(calls.begin(), calls.end()), 0);
  for (int i = 0; i < kMany; i += 2) reactor_->Unwatch(watches[i]);
  std::fill(calls.begin(), calls.end(), 0);
  for (int i = 0; i < kMany; ++i) reactor_->RunOnce(kNoWait);
  for (int i = 0; i < kMany; ++i) EXPECT_EQ(calls[i] == 0, i % 2 == 0) << i;
}

// --- Timers ----------------------------------------------------------------------

TEST_F(ReactorTest, TimersRunInTheOrderOfTheirTimesAndOfTheirSettingWhenTheyAreEqual) {
  const Time past = Now() - std::chrono::seconds(1);
  std::string order;
  reactor_->RunAt(past + std::chrono::milliseconds(2), "test", [&] { order += 'c'; });
  reactor_->RunAt(past, "test", [&] { order += 'a'; });
  reactor_->RunAt(past + std::chrono::milliseconds(2), "test", [&] { order += 'd'; });
  reactor_->RunAt(past + std::chrono::milliseconds(1), "test", [&] { order += 'b'; });
  reactor_->RunOnce(kNoWait);
  EXPECT_EQ(order, "abcd");
  reactor_->RunOnce(kNoWait);
  EXPECT_EQ(order, "abcd");  // Once each.
}

TEST_F(ReactorTest, NoTimerRunsBeforeItsTimeAndTheLoopWaitsForIt) {
  const Time due = Now() + std::chrono::milliseconds(20);
  std::optional<Time> ran;
  reactor_->RunAt(due, "test", [&] {
    ran = Now();
    reactor_->Stop();
  });
  reactor_->RunOnce(kNoWait);
  if (!ran) reactor_->Run();
  ASSERT_TRUE(ran.has_value());
  EXPECT_GE(*ran, due);
}

TEST_F(ReactorTest, ACancelledTimerNeverRunsAlsoWhenAnotherOfItsBatchCancelsIt) {
  const Time past = Now() - std::chrono::seconds(1);
  int calls = 0;
  reactor_->CancelTimer(reactor_->RunAt(past, "test", [&] { ++calls; }));
  Reactor::TimerId a{}, b{};
  a = reactor_->RunAt(past, "test", [&] {
    ++calls;
    reactor_->CancelTimer(b);
    reactor_->CancelTimer(a);  // Itself: it has begun.
  });
  b = reactor_->RunAt(past, "test", [&] {
    ++calls;
    reactor_->CancelTimer(a);
  });
  reactor_->RunOnce(kNoWait);
  EXPECT_EQ(calls, 1);
  reactor_->CancelTimer(a);  // Past.
  reactor_->RunOnce(kNoWait);
  EXPECT_EQ(calls, 1);
}

TEST_F(ReactorTest, ATimerThatIsAlwaysDueDoesNotHoldTheLoop) {
  int calls = 0;
  std::function<void()> again = [&] {
    ++calls;
    reactor_->RunAt(Time{}, "test", again);
  };
  again();
  for (int turn = 1; turn <= 3; ++turn) {
    reactor_->RunOnce(kNoWait);
    EXPECT_EQ(calls, turn + 1);
  }
}

// --- Posts -----------------------------------------------------------------------

TEST_F(ReactorTest, PostsFromOtherThreadsRunOnTheLoopsThreadInTheOrderOfEachThread) {
  constexpr int kThreads = 4, kPosts = 500;
  std::thread loop([this] { reactor_->Run(); });
  const std::thread::id loop_thread = loop.get_id();
  std::vector<std::vector<int>> seen(kThreads);  // The loop's.
  std::atomic<bool> elsewhere = false;
  std::vector<std::thread> posters;
  for (int t = 0; t < kThreads; ++t) {
    posters.emplace_back([&, t] {
      for (int i = 0; i < kPosts; ++i) {
        reactor_->Post("test", [&, t, i] {
          if (std::this_thread::get_id() != loop_thread) elsewhere = true;
          seen[t].push_back(i);
        });
      }
    });
  }
  for (std::thread& poster : posters) poster.join();
  reactor_->Post("test", [this] { reactor_->Stop(); });
  loop.join();
  EXPECT_FALSE(elsewhere);
  for (const std::vector<int>& of_one : seen) {
    ASSERT_EQ(of_one.size(), static_cast<size_t>(kPosts));
    EXPECT_TRUE(std::is_sorted(of_one.begin(), of_one.end()));
  }
}

TEST_F(ReactorTest, APostWakesALoopThatSleeps) {
  std::promise<std::thread::id> woken;
  std::thread loop([this] { reactor_->Run(); });
  reactor_->Post("test", [&] { woken.set_value(std::this_thread::get_id()); });
  // Nothing else would wake it: there is no timer.
  EXPECT_EQ(woken.get_future().get(), loop.get_id());
  reactor_->Post("test", [this] { reactor_->Stop(); });
  loop.join();
}

TEST_F(ReactorTest, WhatAPostPostsComesInALaterTurn) {
  std::string order;
  reactor_->Post("test", [&] {
    order += 'a';
    reactor_->Post("test", [&] { order += 'c'; });
  });
  reactor_->Post("test", [&] { order += 'b'; });
  reactor_->RunOnce(kNoWait);
  EXPECT_EQ(order, "ab");
  reactor_->RunOnce(kNoWait);
  EXPECT_EQ(order, "abc");
}

TEST_F(ReactorTest, PostsAfterTheEndAreDroppedWithWhatTheyHold) {
  const auto before = std::make_shared<int>();
  const auto after = std::make_shared<int>();
  int calls = 0;
  reactor_->Post("test", [&] {
    reactor_->Stop();
    reactor_->Post("test", [&calls, before] { ++calls; });  // Behind the end.
  });
  reactor_->Run();
  EXPECT_EQ(before.use_count(), 1);
  reactor_->Post("test", [&calls, after] { ++calls; });
  EXPECT_EQ(after.use_count(), 1);
  EXPECT_EQ(calls, 0);
}

TEST_F(ReactorTest, ADroppedPostMayPostAgain) {
  // Its callback is destroyed with no lock held: what it holds may talk to the reactor.
  struct Poster {
    Poster(Reactor* of, int* count) : reactor(of), ends(count) {}
    ~Poster() {
      reactor->Post("test", [count = ends] { *count = -1; });
      ++*ends;
    }
    Reactor* const reactor;
    int* const ends;
  };
  int ends = 0;
  reactor_->Post("test", [&] {
    reactor_->Stop();
    reactor_->Post("test", [held = std::make_shared<Poster>(reactor_.get(), &ends)] {});
  });
  reactor_->Run();
  EXPECT_EQ(ends, 1);
}

// --- Stopping --------------------------------------------------------------------

TEST_F(ReactorTest, NoEventOfABatchIsToldAfterStop) {
  const UniqueFd a = MakeEvent(1);
  const UniqueFd b = MakeEvent(1);
  int calls = 0;
  for (const UniqueFd* event : {&a, &b}) {
    Watch(*event, [&](uint32_t) {
      ++calls;
      reactor_->Stop();
    });
  }
  reactor_->Run();
  EXPECT_EQ(calls, 1);
}

// --- Who holds the loop ------------------------------------------------------------

constexpr Duration kHeld = kReactorHoldWarning + std::chrono::milliseconds(1);

TEST_F(ReactorTest, ACallbackThatHoldsTheLoopIsCountedAndNamedInTheLog) {
  const UniqueFd event = MakeEvent(1);
  struct Case {
    const char* name;
    std::function<void(Reactor&)> arrange;
  };
  const Case cases[] = {
      {"slow-watch",
       [&](Reactor& reactor) {
         ASSERT_TRUE(
             reactor.Watch(event.get(), EPOLLIN, "slow-watch", [](uint32_t) { HoldFor(kHeld); })
                 .ok());
       }},
      {"slow-timer",
       [](Reactor& reactor) { reactor.RunAt(Now(), "slow-timer", [] { HoldFor(kHeld); }); }},
      {"slow-post", [](Reactor& reactor) { reactor.Post("slow-post", [] { HoldFor(kHeld); }); }},
  };
  for (const Case& each : cases) {
    const std::string line =
        std::string("warn callback held the reactor callback=") + each.name + " held=";
    std::string log;
    // On a busy machine the mailbox may be the slow one, and the first to be told.
    for (int attempt = 0; attempt < 20 && log.find(line) == std::string::npos; ++attempt) {
      const std::unique_ptr<Reactor> reactor = Reactor::Create().value();
      each.arrange(*reactor);
      log = Logged([&] { reactor->RunOnce(kNoWait); });
      EXPECT_GE(reactor->slow_callbacks(), 1u) << each.name;
      EXPECT_GE(reactor->longest_callback(), kHeld) << each.name;
    }
    EXPECT_NE(log.find(line), std::string::npos) << each.name << ": " << log;
  }
}

TEST_F(ReactorTest, SlowCallbacksAreToldOnceASecondAtMostAndNoneIsForgotten) {
  constexpr int kSlow = 5;
  for (int i = 0; i < kSlow; ++i) reactor_->Post("slow", [] { HoldFor(kHeld); });
  const Time began = Now();
  std::string log = Logged([&] {
    for (int i = 0; i < kSlow; ++i) reactor_->RunOnce(kNoWait);  // One holds a whole turn.
  });
  const auto lines = [](const std::string& text) {
    return std::count(text.begin(), text.end(), '\n');
  };
  EXPECT_GE(reactor_->slow_callbacks(), static_cast<uint64_t>(kSlow));
  EXPECT_LE(lines(log), 1 + std::chrono::ceil<std::chrono::seconds>(Now() - began).count());
  // A second later all that were not told are in one line with the next.
  HoldFor(std::chrono::milliseconds(1001));
  reactor_->Post("slow", [] { HoldFor(kHeld); });
  log += Logged([&] { reactor_->RunOnce(kNoWait); });
  uint64_t told = 0;
  const std::string field = "slow_callbacks=";
  for (size_t at = log.find(field); at != std::string::npos; at = log.find(field, at + 1))
    told += std::stoull(log.substr(at + field.size()));
  // What comes after the last line is not told yet, when the machine is slow.
  EXPECT_GE(told, static_cast<uint64_t>(kSlow) + 1);
  EXPECT_LE(told, reactor_->slow_callbacks());
}

TEST_F(ReactorTest, CallbacksThatReturnAtOnceAreNotSlow) {
  constexpr int kMany = 1000;
  int calls = 0;
  for (int i = 0; i < kMany; ++i) reactor_->Post("quick", [&] { ++calls; });
  reactor_->RunOnce(kNoWait);
  EXPECT_EQ(calls, kMany);
  // The machine may take the processor away from a few.
  EXPECT_LT(reactor_->slow_callbacks(), static_cast<uint64_t>(kMany / 10));
  EXPECT_GT(reactor_->longest_callback(), Duration::zero());
}

// --- Spinning ----------------------------------------------------------------------

TEST_F(ReactorTest, ASpinningLoopDoesNotSleepAfterAnEvent) {
  const UniqueFd event = MakeEvent();
  Watch(event, [&](uint32_t) { Drain(event); });
  reactor_->SetSpin(std::chrono::hours(24));
  // Nothing has happened yet: it sleeps.
  const Time began = Now();
  reactor_->RunOnce(std::chrono::milliseconds(20));
  EXPECT_GE(Now() - began, std::chrono::milliseconds(19));
  Signal(event);
  reactor_->RunOnce(kNoWait);
  // These would sleep for an hour: the test would never end.
  for (int i = 0; i < 100; ++i) reactor_->RunOnce(std::chrono::hours(1));
}

TEST_F(ReactorTest, ASpinningLoopHearsEventsTimersAndPosts) {
  const UniqueFd event = MakeEvent(1);
  reactor_->SetSpin(std::chrono::milliseconds(1));
  int rounds = 0;
  Watch(event, [&](uint32_t) {
    Drain(event);
    reactor_->RunAt(Now() + std::chrono::milliseconds(2), "test", [&] {
      reactor_->Post("test", [&] {
        if (++rounds == 5) return reactor_->Stop();
        Signal(event);
      });
    });
  });
  reactor_->Run();
  EXPECT_EQ(rounds, 5);
}

// Each is short, all together are not.
TEST(ReactorTurnTest, ThousandsOfPostsDoNotHoldUpADescriptor) {
  const std::unique_ptr<Reactor> reactor = Reactor::Create().value();
  const UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  int posts = 0, posts_before_event = -1;
  std::vector<int> order;
  ASSERT_TRUE(reactor
                  ->Watch(event.get(), EPOLLIN, "event",
                          [&](uint32_t) {
                            uint64_t count = 0;
                            EXPECT_EQ(::read(event.get(), &count, sizeof count), 8);
                            posts_before_event = posts;
                          })
                  .ok());
  for (int i = 0; i < 200; ++i) {
    reactor->Post("short", [&, i] {
      const uint64_t one = 1;
      if (i == 0) {
        EXPECT_EQ(::write(event.get(), &one, sizeof one), 8);
      }
      for (const Time end = Now() + std::chrono::microseconds(500); Now() < end;) continue;
      ++posts;
      order.push_back(i);
    });
  }
  while (posts < 200) reactor->RunOnce(std::chrono::milliseconds(1));
  EXPECT_GE(posts_before_event, 1);
  EXPECT_LT(posts_before_event, 100);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
}

}  // namespace
}  // namespace trims
