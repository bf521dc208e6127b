// `trims doctor`: what it says of the daemon and its sockets, and to whom.
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class DoctorTest : public CliTest {};

TEST_F(DoctorTest, DoctorSaysWhatToDoWithoutADaemon) {
  const Outcome outcome = Run({"doctor"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("FAIL  control socket"), HasSubstr("trims serve"),
                                 HasSubstr("OK    memfd sealing"), HasSubstr("OK    /proc")));
}

TEST_F(DoctorTest, DoctorChecksARunningDaemon) {
  StartDaemon();
  backend_.set_version("9.9.9");
  const json findings = json::parse(Run({"doctor", "--json"}).out);
  const auto level = [&findings](const std::string& check) {
    for (const json& finding : findings) {
      EXPECT_EQ(finding["level"] == "OK", finding["advice"] == "") << finding;
      if (finding["check"] == check) return finding["level"].get<std::string>();
    }
    return std::string("missing");
  };
  EXPECT_EQ(level("runtime directory"), "OK");
  EXPECT_EQ(level("control socket"), "OK");
  EXPECT_EQ(level("lease socket"), "OK");
  EXPECT_EQ(level("daemon version"), "WARN");
  EXPECT_EQ(level("daemon worker"), "WARN");
  for (const char* check :
       {"memory", "open files", "locked memory", "huge pages", "transparent huge pages", "gpu"}) {
    EXPECT_NE(level(check), "missing") << check;
  }
}

TEST_F(DoctorTest, DoctorSaysWhatTheDaemonServesAndWhatIsWrongWithIt) {
  AddDevices();
  StartDaemon();
  const Outcome outcome = Run({"doctor"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(
      outcome.out,
      AllOf(HasSubstr("WARN  daemon gpu:0"), HasSubstr("load buffers 128.0 MiB of 256.0 MiB\n"),
            HasSubstr("LimitMEMLOCK=infinity"), HasSubstr("vm.nr_hugepages=128")));
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr("FAIL  daemon gpu:1"), HasSubstr("the device was lost\n")));
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("WARN  daemon gpu:2"),
                                 HasSubstr("NVIDIA T4 is not served: out of memory")));
  EXPECT_THAT(outcome.out, HasSubstr("this process does not see GPU-fa4ec0da"));
}

TEST_F(DoctorTest, DoctorFailsWhenOthersCanPlantSockets) {
  StartDaemon();
  ASSERT_EQ(::chmod(directory_.c_str(), 0777), 0);
  const Outcome outcome = Run({"doctor"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.out, HasSubstr("FAIL  runtime directory"));
  EXPECT_EQ(Run({"ls"}).code, 7);
}

// The finding of that name, null when there is none.
json FindingOf(const json& findings, const std::string& check) {
  for (const json& finding : findings) {
    if (finding["check"] == check) return finding;
  }
  return nullptr;
}

TEST_F(DoctorTest, AMissingDirectoryFailsWithWhatToDo) {
  const json findings = RunJson({"doctor", "--runtime-dir", "/nonexistent/trims"}, 1);
  const json directory = FindingOf(findings, "runtime directory");
  EXPECT_EQ(directory["level"], "FAIL");
  EXPECT_EQ(directory["text"], "/nonexistent/trims is not there");
  EXPECT_THAT(directory["advice"].get<std::string>(),
              AllOf(HasSubstr("trims serve"), HasSubstr("--runtime-dir")));
  const json lease = FindingOf(findings, "lease socket");
  EXPECT_EQ(lease["text"], "/nonexistent/trims/lease.sock is not there");
  EXPECT_EQ(lease["advice"], "start a daemon with \"trims serve\"");
}

TEST_F(DoctorTest, AFileInPlaceOfTheDirectoryFails) {
  const std::string path = directory_ + "/file";
  std::ofstream(path) << "x";
  const json directory =
      FindingOf(RunJson({"doctor", "--runtime-dir", path}, 1), "runtime directory");
  EXPECT_EQ(directory["level"], "FAIL");
  EXPECT_EQ(directory["text"], path + " is not a directory");
  EXPECT_EQ(directory["advice"], "name another one");
}

TEST_F(DoctorTest, ADirectoryInWhichEverybodyCanPlantSocketsFailsWithItsCommand) {
  ASSERT_EQ(::chmod(directory_.c_str(), 0777), 0);
  const json directory = FindingOf(RunJson({"doctor"}, 1), "runtime directory");
  EXPECT_EQ(directory["level"], "FAIL");
  EXPECT_THAT(directory["text"].get<std::string>(),
              EndsWith("mode 0777: everybody can plant sockets in it"));
  EXPECT_EQ(directory["advice"], "chmod o-w " + directory_);
}

TEST_F(DoctorTest, ALeaseSocketThatNobodyServesFails) {
  StartDaemon();
  std::filesystem::remove(directory_ + "/lease.sock");
  Listen("lease.sock", SOCK_SEQPACKET);  // Closed at once; the inode stays.
  const json lease = FindingOf(RunJson({"doctor"}, 1), "lease socket");
  EXPECT_EQ(lease["level"], "FAIL");
  EXPECT_THAT(lease["text"].get<std::string>(), HasSubstr(directory_ + "/lease.sock"));
  EXPECT_EQ(lease["advice"],
            "look at the daemon's log; processes of this user can not open models");
}

TEST_F(DoctorTest, AControlSocketThatNobodyServesFails) {
  Listen("control.sock", SOCK_STREAM);
  const json control = FindingOf(RunJson({"doctor"}, 1), "control socket");
  EXPECT_EQ(control["level"], "FAIL");
  EXPECT_THAT(control["advice"].get<std::string>(), HasSubstr("may be gone: look at its log"));
}

TEST_F(DoctorTest, ADaemonThatAnswersWithErrorsFails) {
  backend_.set_unary_error(UnavailableError("the worker is being restarted"));
  StartDaemon();
  const json findings = RunJson({"doctor"}, 1);
  const json control = FindingOf(findings, "control socket");
  EXPECT_EQ(control["text"], directory_ + "/control.sock: the worker is being restarted");
  EXPECT_EQ(control["advice"],
            "the daemon is stopping, or its worker can not start: look at its log");
  EXPECT_EQ(FindingOf(findings, "daemon version"), nullptr);
  EXPECT_EQ(FindingOf(findings, "lease socket")["level"], "OK");
}

TEST_F(DoctorTest, TheSameVersionAndAWorkerThatNeverDiedAreGood) {
  backend_.ChangeStatus([](v1::GetStatusResponse* status) { status->set_worker_restarts(0); });
  StartDaemon();
  backend_.set_version(RunJson({"version"})["version"]);
  const Outcome outcome = Run({"doctor", "--json"});
  const json findings = json::parse(outcome.out);
  EXPECT_EQ(FindingOf(findings, "daemon version")["level"], "OK");
  EXPECT_EQ(FindingOf(findings, "daemon worker")["text"], "pid 4001, never restarted");
}

TEST_F(DoctorTest, OtherVersionsAndRestartsAreWarningsWithAdvice) {
  backend_.set_version("9.9.9");
  StartDaemon();
  const json findings = json::parse(Run({"doctor", "--json"}).out);
  const json version = FindingOf(findings, "daemon version");
  EXPECT_THAT(version["text"].get<std::string>(), StartsWith("9.9.9, this program is "));
  EXPECT_THAT(version["advice"].get<std::string>(),
              StartsWith("restart the daemon after an update"));
  const json worker = FindingOf(findings, "daemon worker");
  EXPECT_EQ(worker["text"], "restarted 2 times since the daemon started");
  EXPECT_EQ(worker["advice"], "look for the reason in the daemon's log");
}

TEST_F(DoctorTest, ASettingThatCanNotBeReadIsTheFirstFinding) {
  const std::string path = directory_ + "/trims.toml";
  std::ofstream(path) << "runtime_dir = 7\n";
  Process process({"doctor", "--json"}, {"TRIMS_CONFIG=" + path});
  const Outcome outcome = process.Wait();
  EXPECT_EQ(outcome.code, 1);
  const json first = json::parse(outcome.out).at(0);
  EXPECT_EQ(first["check"], "configuration");
  EXPECT_EQ(first["level"], "FAIL");
  EXPECT_THAT(first["text"].get<std::string>(), HasSubstr(path));
  EXPECT_EQ(first["advice"], "correct the setting that is named");
}

TEST_F(DoctorTest, AdviceStandsUnderItsFindingAndLevelsAreColoursOnATerminal) {
  const Outcome plain = Run({"doctor"});
  EXPECT_THAT(plain.out, Not(HasSubstr("\033[")));
  EXPECT_THAT(plain.err, IsEmpty());
  const std::vector<std::string> lines = Lines(plain.out);
  bool advised = false;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (!lines[i].starts_with("FAIL  control socket")) continue;
    ASSERT_LT(i + 1, lines.size());
    EXPECT_THAT(lines[i + 1], AllOf(StartsWith("      "), HasSubstr("  -> start a daemon with")));
    advised = true;
  }
  EXPECT_TRUE(advised) << plain.out;
  EXPECT_THAT(
      Spawn({"doctor"}, {.out = 100})->Wait().out,
      AllOf(HasSubstr("\033[31mFAIL\033[0m  control socket"), HasSubstr("\033[32mOK  \033[0m")));
}

}  // namespace
}  // namespace trims::cli
