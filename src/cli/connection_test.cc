// What the program says when it can not reach the daemon, and what to do about it.
#include "cli/connection.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class ConnectionTest : public CliTest {};

TEST_F(ConnectionTest, NoDaemonIsExitCodeSevenEverywhere) {
  for (const std::vector<std::string>& words : {std::vector<std::string>{"ls"},
                                                {"ps"},
                                                {"show", "x"},
                                                {"load", "x"},
                                                {"evict", "x"},
                                                {"pin", "x"},
                                                {"unpin", "x"},
                                                {"rm", "x"},
                                                {"verify"},
                                                {"leases"},
                                                {"add", "x", "/y"},
                                                {"watch"},
                                                {"status"},
                                                {"bench", "open"},
                                                {"bench", "load"},
                                                {"config", "show"}}) {
    const Outcome outcome = Run(words);
    EXPECT_EQ(outcome.code, 7) << words[0];
    EXPECT_THAT(outcome.err,
                AllOf(StartsWith("trims: can not reach the daemon"), HasSubstr("\nhint: ")))
        << words[0];
    EXPECT_THAT(outcome.out, IsEmpty()) << words[0];
  }
}

TEST_F(ConnectionTest, ADeadSocketSaysThatTheDaemonMayBeGone) {
  Listen("control.sock", SOCK_STREAM);  // Closed at once; the inode stays.
  const Outcome outcome = Run({"ls"});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.err, HasSubstr("may be gone"));
}

TEST_F(ConnectionTest, ErrorsOfTheDaemonAreShownWithAHint) {
  backend_.set_unary_error(UnavailableError("the worker is being restarted"));
  StartDaemon();
  const Outcome outcome = Run({"ls"});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.err, StartsWith("trims: the worker is being restarted\nhint: "));
}

TEST_F(ConnectionTest, WithoutADirectoryItSaysHowToStartADaemonOrNameAnother) {
  const Outcome outcome = Run({"ls", "--runtime-dir", "/nonexistent/trims"});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(
      outcome.err,
      AllOf(StartsWith("trims: can not reach the daemon: "), HasSubstr("/nonexistent/trims"),
            EndsWith("hint: start a daemon with \"trims serve\", or name the directory of "
                     "its sockets with --runtime-dir or TRIMS_RUNTIME_DIR\n")));
}

TEST_F(ConnectionTest, AFileInPlaceOfTheSocketIsRefused) {
  const Outcome outcome = [&] {
    std::filesystem::create_directory(directory_ + "/control.sock");
    return Run({"ls"});
  }();
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.err, AllOf(StartsWith("trims: can not reach the daemon: "),
                                 HasSubstr(directory_ + "/control.sock"), HasSubstr("\nhint: ")));
}

TEST_F(ConnectionTest, ASocketOfAnotherUserIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a socket away";
  StartDaemon();
  EXPECT_EQ(Run({"ls"}).code, 0);
  const std::string path = directory_ + "/control.sock";
  ASSERT_EQ(::chown(path.c_str(), 12345, 12345), 0);
  const Outcome outcome = Run({"ls"});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.err, AllOf(StartsWith("trims: can not reach the daemon: "), HasSubstr(path),
                                 HasSubstr("12345"), HasSubstr("\nhint: ")));
  EXPECT_THAT(outcome.out, IsEmpty());
}

TEST_F(ConnectionTest, ADirectoryThatEverybodyCanWriteIsRefused) {
  StartDaemon();
  ASSERT_EQ(::chmod(directory_.c_str(), 0777), 0);
  const Outcome outcome = Run({"ps"});
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.err, AllOf(StartsWith("trims: can not reach the daemon: "),
                                 HasSubstr(directory_), HasSubstr("\nhint: ")));
}

TEST_F(ConnectionTest, WithoutPermissionItNamesWhoMay) {
  StartDaemon();
  const std::string path = directory_ + "/control.sock";
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  Outcome outcome;
  if (::geteuid() == 0) {
    // As nobody, with a copy of the program that nobody can reach.
    ASSERT_EQ(::chmod(directory_.c_str(), 0755), 0);
    std::filesystem::copy_file(TRIMS_PROGRAM, directory_ + "/trims");
    outcome.out = Shell("setpriv --reuid=65534 --regid=65534 --clear-groups " + directory_ +
                            "/trims ls --runtime-dir " + directory_ + " 2>&1",
                        &outcome.code);
  } else {
    ASSERT_EQ(::chmod(path.c_str(), 0), 0);
    const Outcome refused = Run({"ls"});
    outcome = {refused.code, refused.err, ""};
  }
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.out, AllOf(StartsWith("trims: can not reach the daemon: "),
                                 HasSubstr("hint: this user may not write to " + path),
                                 HasSubstr(", root, or a member of group ")));
}

TEST_F(ConnectionTest, ADaemonThatHangsUpIsNotWaitedFor) {
  const UniqueFd listener = Listen("control.sock", SOCK_STREAM);
  auto process = Spawn({"ls"});
  UniqueFd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC)).Reset();
  const Outcome outcome = process->Wait();
  EXPECT_EQ(outcome.code, 7);
  EXPECT_THAT(outcome.err, AllOf(StartsWith("trims: "), HasSubstr("\nhint: ")));
  EXPECT_THAT(outcome.out, IsEmpty());
}

TEST_F(ConnectionTest, ADaemonThatDoesNotAnswerInTimeIsNotTakenForOneThatIsGone) {
  backend_.set_unary_error(DeadlineExceededError("the worker did not answer within 60 seconds"));
  StartDaemon();
  const Outcome outcome = Run({"ls"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err, HasSubstr("hint: see what the daemon is doing with \"trims ps\" and in "
                                     "its log\n"));
}

TEST_F(ConnectionTest, EachKindOfErrorHasItsCodeAndItsHint) {
  StartDaemon();
  struct Case {
    Status status;
    int code;
    const char* hint;
  };
  const Case cases[] = {
      {InvalidArgumentError("odd"), 2, nullptr},
      {NotFoundError("gone"), 3, "\"trims ls\" shows the models"},
      {FailedPreconditionError("held"), 4, "\"trims ps\" and \"trims leases\""},
      {ResourceExhaustedError("full"), 5, "\"trims evict MODEL\""},
      {DataLossError("bent"), 6, "compare the file with its origin"},
      {UnavailableError("away"), 7, "see \"trims doctor\""},
      {PermissionDeniedError("shut"), 1, "check the owner and mode of the path"},
      {AbortedError("moved"), 1, "a file changed while it was read"},
      {AlreadyExistsError("taken"), 1, "--replace"},
      {UnimplementedError("new"), 1, "compare with \"trims version\""},
      {InternalError("bug"), 1, nullptr},
  };
  for (const Case& one : cases) {
    backend_.set_unary_error(one.status);
    const Outcome outcome = Run({"ls"});
    EXPECT_EQ(outcome.code, one.code) << one.status.ToString();
    EXPECT_THAT(outcome.err, StartsWith("trims: " + one.status.message() + "\n"));
    if (one.hint != nullptr) {
      EXPECT_THAT(outcome.err, AllOf(HasSubstr("\nhint: "), HasSubstr(one.hint)));
    } else {
      EXPECT_THAT(outcome.err, Not(HasSubstr("hint: "))) << one.status.ToString();
    }
  }
}

TEST_F(ConnectionTest, MessagesCanNotWriteOverTheScreen) {
  backend_.set_unary_error(NotFoundError("no model named \x1b[2J\nx"));
  StartDaemon();
  EXPECT_THAT(Run({"ls"}).err, StartsWith("trims: no model named ?[2J?x\nhint: "));
}

TEST_F(ConnectionTest, TypedDigestsResolveToOneModelOrSayWhyNot) {
  StartDaemon();
  Result<Connection> daemon = Connection::Open(directory_);
  ASSERT_TRUE(daemon.ok()) << daemon.status().ToString();
  const auto resolve = [&](const std::string& typed) {
    const Result<std::string> name = daemon->ResolveModel(typed);
    return name.ok() ? *name : std::string(StatusCodeName(name.status().code()));
  };
  EXPECT_EQ(resolve("vgg16"), "vgg16");
  EXPECT_EQ(resolve("nothing"), "nothing");  // The daemon says that there is no such name.
  EXPECT_EQ(resolve("BBBBBB"), "@sha256:" + std::string(64, 'b'));
  EXPECT_EQ(resolve("@bbbbbbbb"), "@sha256:" + std::string(64, 'b'));
  EXPECT_EQ(resolve(std::string(64, 'c')), "@sha256:" + std::string(64, 'c'));
  EXPECT_EQ(resolve("bbbbb"), "bbbbb");  // Too short for a digest: a name.
  EXPECT_EQ(resolve("cccccc"), "cccccc");
  EXPECT_EQ(resolve("@bbbbb"), StatusCodeName(StatusCode::kInvalidArgument));
  EXPECT_EQ(resolve("sha256:" + std::string(65, 'a')),
            StatusCodeName(StatusCode::kInvalidArgument));
  EXPECT_EQ(resolve("sha256:cccccc"), StatusCodeName(StatusCode::kNotFound));
  backend_.AddModel("aaaaaa", 'd', 4096);  // A name that looks like a digest is a name.
  EXPECT_EQ(resolve("aaaaaa"), "aaaaaa");
  EXPECT_EQ(resolve("sha256:aaaaaa"), "@" + kDigestA);
}

}  // namespace
}  // namespace trims::cli
