// What the commands of `trims bench` have in common: their options, how they show that they go
// on, and how they write what was measured. Values; one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench/observer.h"
#include "bench/samples.h"
#include "cli/command.h"
#include "cli/json.h"
#include "cli/progress.h"

namespace trims::cli {

struct BenchOptions {
  std::string device;  // As a tier: "gpu:0"; empty: the host tier.
  std::vector<std::string> sizes;
  std::vector<uint32_t> tensors;
  int runs = 0;
  std::string directory;
  bool sparse = false;
  std::string from;  // Of load: page-cache, disk, host, peer:gpu:1.
};
// `sizes` as bytes. INVALID_ARGUMENT names the one that is none, or too small for its tensors.
Result<std::vector<uint64_t>> BenchSizes(const BenchOptions& options);

// A bar on stderr, and a complaint about what stays behind.
class BenchProgress final : public bench::Observer {
 public:
  explicit BenchProgress(bool wanted) : wanted_(wanted) {}

  void Show(const Step& step) override;
  void Clear() override { bar_.reset(); }
  void Left(const std::string& model, const Status& why) override;

 private:
  const bool wanted_;
  std::optional<ProgressBar> bar_;
};

// {"runs", "min_seconds", "median_seconds", "p90_seconds", "p99_seconds", "max_seconds",
// "mean_seconds"}
Json SummaryJson(const bench::Samples& samples);
// "145.2 us", "1.93 ms", "2.10 s"
std::string TimeText(double seconds);
// "1.12", "-" for 0.
std::string RatioText(double ratio);
// "97 %", "-" for 0.
std::string PercentText(double ratio);

// Fail() with what helps in a benchmark.
ExitCode FailBench(const Context& context, const Status& status);

// The three benchmarks. They print their results.
ExitCode RunBenchOpen(const Context& context, const BenchOptions& options);
ExitCode RunBenchLoad(const Context& context, const BenchOptions& options);
ExitCode RunBenchCopy(const Context& context, const BenchOptions& options);

}  // namespace trims::cli
