// `trims serve`: the program becomes the daemon.
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "cli/test_cli.h"

namespace trims::cli {
namespace {

class ServeTest : public CliTest {};

TEST_F(ServeTest, ServeBecomesTheDaemonWithItsOptions) {
  // Beside a copy of the program, where an installed daemon would be.
  const std::string bin = directory_ + "/bin";
  std::filesystem::create_directory(bin);
  std::filesystem::copy_file(TRIMS_PROGRAM, bin + "/trims");
  std::ofstream(bin + "/trimsd") << "#!/bin/sh\necho \"$@\"\nexit 42\n";
  ASSERT_EQ(::chmod((bin + "/trimsd").c_str(), 0755), 0);
  const auto shell = [&](const std::string& arguments) {
    std::string out;
    FILE* pipe = ::popen((bin + "/trims " + arguments).c_str(), "r");
    char buffer[256];
    while (std::fgets(buffer, sizeof buffer, pipe) != nullptr) out += buffer;
    return std::pair(out, WEXITSTATUS(::pclose(pipe)));
  };
  EXPECT_EQ(shell("serve --eviction-policy lru --json -q x"),
            std::pair(std::string("--eviction-policy lru --json -q x\n"), 42));
  EXPECT_EQ(shell("--runtime-dir /r serve --help").first, "--runtime-dir /r --help\n");
  EXPECT_EQ(shell("serve --runtime-dir /r").first, "--runtime-dir /r\n");
  EXPECT_EQ(shell("serve").first, "\n");
}

TEST_F(ServeTest, WithoutADaemonToBecomeItSaysWhereItLooked) {
  const std::string bin = directory_ + "/bin";
  std::filesystem::create_directory(bin);
  std::filesystem::copy_file(TRIMS_PROGRAM, bin + "/trims");
  int code = -1;
  EXPECT_EQ(Shell("PATH=/nonexistent " + bin + "/trims serve 2>&1", &code),
            "trims: trimsd was not found beside this program, in ../libexec, or on PATH\n"
            "hint: install the daemon, or put its directory on PATH\n");
  EXPECT_EQ(code, 1);
}

TEST_F(ServeTest, ADaemonOnThePathIsFound) {
  const std::string bin = directory_ + "/bin";
  const std::string path = directory_ + "/path";
  std::filesystem::create_directory(bin);
  std::filesystem::create_directory(path);
  std::filesystem::copy_file(TRIMS_PROGRAM, bin + "/trims");
  std::ofstream(path + "/trimsd") << "#!/bin/sh\necho found\n";
  ASSERT_EQ(::chmod((path + "/trimsd").c_str(), 0755), 0);
  int code = -1;
  EXPECT_EQ(Shell("PATH=/nonexistent:" + path + ":/usr/bin:/bin " + bin + "/trims start", &code),
            "found\n");
  EXPECT_EQ(code, 0);
}

}  // namespace
}  // namespace trims::cli
