#include "daemon/ledger_link.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/limits.h"
#include "ipc/seqpacket.h"

namespace trims {
namespace {

class LedgerLinkTest : public testing::Test {
 protected:
  LedgerLinkTest() {
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    near_ = UniqueFd(pair[0]);
    far_ = UniqueFd(pair[1]);
  }
  // Numbers as they stand in a message's header, and what follows.
  static std::string Raw(std::vector<uint32_t> header, const std::string& rest = "") {
    return std::string(reinterpret_cast<const char*>(header.data()),
                       header.size() * sizeof(uint32_t)) +
           rest;
  }
  Status ReceiveRaw(const std::string& bytes, std::vector<int> fds = {}) {
    EXPECT_TRUE(SendPacket(near_.get(), std::as_bytes(std::span(bytes)), {}, fds).ok());
    return ReceiveLink(far_.get()).status();
  }

  UniqueFd near_, far_;
};

TEST_F(LedgerLinkTest, AMessageArrivesAsItWasSent) {
  const std::string bytes("zero\0 and \xff", 11);
  ASSERT_TRUE(SendLink(near_.get(), LinkType::kPut, "key/" + bytes, bytes).ok());
  ASSERT_TRUE(SendLink(near_.get(), LinkType::kReady, "", "").ok());
  const LinkMessage put = ReceiveLink(far_.get()).value();
  EXPECT_EQ(put.type, LinkType::kPut);
  EXPECT_EQ(put.key, "key/" + bytes);
  EXPECT_EQ(put.body, bytes);
  EXPECT_FALSE(put.fd.valid());
  const LinkMessage ready = ReceiveLink(far_.get()).value();
  EXPECT_EQ(ready.type, LinkType::kReady);
  EXPECT_EQ(ready.key + ready.body, "");
}

TEST_F(LedgerLinkTest, ADescriptorArrivesAsOneOfItsOwnThatAChildDoesNotInherit) {
  const UniqueFd sent(::memfd_create("sent", MFD_CLOEXEC));
  ASSERT_TRUE(SendLink(near_.get(), LinkType::kEntry, "k", "b", sent.get()).ok());
  const LinkMessage message = ReceiveLink(far_.get()).value();
  ASSERT_TRUE(message.fd.valid());
  EXPECT_NE(message.fd.get(), sent.get());
  struct stat mine {
  }, theirs{};
  ASSERT_EQ(::fstat(sent.get(), &mine), 0);
  ASSERT_EQ(::fstat(message.fd.get(), &theirs), 0);
  EXPECT_EQ(mine.st_ino, theirs.st_ino);
  EXPECT_NE(::fcntl(message.fd.get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(LedgerLinkTest, WhatIsTooLargeIsRefusedUnsentAndTheLimitsFit) {
  const std::string key(kMaxLinkKeyBytes, 'k');
  const std::string body(kMaxLinkBodyBytes, 'b');
  for (const auto& [too_key, too_body] :
       {std::pair(key + "k", std::string()), std::pair(std::string(), body + "b")}) {
    EXPECT_EQ(SendLink(near_.get(), LinkType::kPut, too_key, too_body).code(),
              StatusCode::kInvalidArgument);
  }
  ASSERT_TRUE(SendLink(near_.get(), LinkType::kPut, key, body).ok());
  const LinkMessage message = ReceiveLink(far_.get()).value();  // The first that was sent.
  EXPECT_EQ(message.key, key);
  EXPECT_EQ(message.body, body);
}

TEST_F(LedgerLinkTest, NothingThereAndNobodyThereAreToldApart) {
  ASSERT_EQ(::fcntl(far_.get(), F_SETFL, O_NONBLOCK), 0);
  EXPECT_EQ(ReceiveLink(far_.get()).status().code(), StatusCode::kDeadlineExceeded);
  ASSERT_TRUE(SendLink(near_.get(), LinkType::kStop, "", "").ok());
  near_.Reset();
  EXPECT_EQ(ReceiveLink(far_.get())->type, LinkType::kStop);  // What was said before the end.
  EXPECT_EQ(ReceiveLink(far_.get()).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(SendLink(far_.get(), LinkType::kReady, "", "").code(), StatusCode::kUnavailable);
}

TEST_F(LedgerLinkTest, WhatIsNoMessageIsAnErrorAndClosesItsDescriptors) {
  const UniqueFd fd(::memfd_create("sent", MFD_CLOEXEC));
  constexpr uint32_t kPut = static_cast<uint32_t>(LinkType::kPut);
  EXPECT_EQ(ReceiveRaw(Raw({kPut, 0, 0})).code(), StatusCode::kInternal);
  EXPECT_EQ(ReceiveRaw("x").code(), StatusCode::kInternal);
  EXPECT_EQ(ReceiveRaw(Raw({kPut, 1, 0, 0})).code(), StatusCode::kInternal);
  EXPECT_EQ(ReceiveRaw(Raw({kPut, 0, 0, 0}, "more")).code(), StatusCode::kInternal);
  // Sums that overflow 32 bits.
  EXPECT_EQ(ReceiveRaw(Raw({kPut, 0xffffffff, 1, 0})).code(), StatusCode::kInternal);
  EXPECT_EQ(ReceiveRaw(Raw({kPut, 0, 0, 1})).code(), StatusCode::kInternal);
  EXPECT_EQ(ReceiveRaw(Raw({kPut, 0, 0, 0}), {fd.get()}).code(), StatusCode::kInternal);
  EXPECT_FALSE(ReceiveRaw(Raw({kPut, 0, 0, 2}), {fd.get(), fd.get()}).ok());
  // The next free number is the same as before: nothing was left open.
  const UniqueFd next(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  EXPECT_EQ(next.get(), fd.get() + 1);
  // A type that is not known is for the reader to judge.
  EXPECT_TRUE(ReceiveRaw(Raw({99, 1, 1, 0}, "kb")).ok());
}

TEST_F(LedgerLinkTest, APacketLongerThanAnyMessageIsAnError) {
  const std::string bytes(kMaxPacketBytes + 1, 'x');
  ASSERT_EQ(::send(near_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(bytes.size()));
  EXPECT_EQ(ReceiveLink(far_.get()).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace trims
