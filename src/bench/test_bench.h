// What the tests of measuring stand on: a directory, interrupts, and what this process holds.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "bench/interrupts.h"
#include "bench/observer.h"

namespace trims::bench {

class BenchTest : public testing::Test {
 protected:
  void SetUp() override {
    char directory[] = "/tmp/trims-bench-test-XXXXXX";
    ASSERT_NE(::mkdtemp(directory), nullptr);
    directory_ = directory;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string WriteFile(uint64_t bytes) {
    const std::string path = directory_ + "/file";
    std::ofstream(path, std::ios::binary) << std::string(bytes, 'x');
    return path;
  }

  // Mappings of memory that floors made.
  static int Mappings() {
    std::ifstream maps("/proc/self/maps");
    int count = 0;
    for (std::string line; std::getline(maps, line);) {
      count += line.find("trims-bench") != std::string::npos;
    }
    return count;
  }
  static int Descriptors() {
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      static_cast<void>(entry);
      ++count;
    }
    return count;
  }

  std::string directory_;
};

// Keeps what it is told.
class QuietObserver final : public Observer {
 public:
  void Show(const Step& step) override { shown.insert(step.label); }
  void Clear() override { ++cleared; }
  void Left(const std::string& model, const Status&) override { left.insert(model); }

  std::set<std::string> shown;
  int cleared = 0;
  std::set<std::string> left;
};

}  // namespace trims::bench
