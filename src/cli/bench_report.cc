#include "cli/bench_report.h"

#include <cstdio>

#include "base/limits.h"
#include "cli/connection.h"
#include "daemon/config.h"

namespace trims::cli {

Result<std::vector<uint64_t>> BenchSizes(const BenchOptions& options) {
  std::vector<uint64_t> sizes;
  for (const std::string& text : options.sizes) {
    const Result<uint64_t> size = ParseSize(text);
    if (!size.ok()) return InvalidArgumentError("--size: " + size.status().message());
    for (const uint32_t tensors : options.tensors) {
      if (*size < tensors * kTensorAlignment) {
        return InvalidArgumentError("--size " + text + " is too small for " +
                                    std::to_string(tensors) + " tensors: each takes at least " +
                                    std::to_string(kTensorAlignment) + " bytes");
      }
    }
    sizes.push_back(*size);
  }
  return sizes;
}

void BenchProgress::Show(const Step& step) {
  if (!bar_) bar_.emplace(wanted_);
  bar_->Update(
      {.label = step.label, .done_bytes = step.done_bytes, .total_bytes = step.total_bytes});
}

void BenchProgress::Left(const std::string& model, const Status& why) {
  Clear();
  Fail(Status(why.code(), model + " could not be removed: " + why.message()),
       "\"trims rm --force " + model + "\" removes it");
}

Json SummaryJson(const bench::Samples& samples) {
  return {{"runs", samples.size()},
          {"min_seconds", samples.Min()},
          {"median_seconds", samples.Median()},
          {"p90_seconds", samples.Percentile(90)},
          {"p99_seconds", samples.Percentile(99)},
          {"max_seconds", samples.Max()},
          {"mean_seconds", samples.Mean()}};
}

std::string TimeText(double seconds) {
  char text[48];
  if (seconds < 1e-3) {
    std::snprintf(text, sizeof text, "%.1f us", seconds * 1e6);
  } else if (seconds < 1) {
    std::snprintf(text, sizeof text, "%.2f ms", seconds * 1e3);
  } else {
    std::snprintf(text, sizeof text, "%.2f s", seconds);
  }
  return text;
}

std::string RatioText(double ratio) {
  char text[48];
  std::snprintf(text, sizeof text, "%.2f", ratio);
  return ratio > 0 ? text : "-";
}

std::string PercentText(double ratio) {
  char text[48];
  std::snprintf(text, sizeof text, "%.0f %%", ratio * 100);
  return ratio > 0 ? text : "-";
}

ExitCode FailBench(const Context& context, const Status& status) {
  switch (status.code()) {
    case StatusCode::kUnavailable:
      if (const Result<std::string> directory = RuntimeDir(context);
          directory.ok() && status.message().starts_with("can not reach the daemon")) {
        return Fail(status, Connection::HintFor(*directory));
      }
      return Fail(status, "\"trims doctor\" says what is wrong with devices and with the daemon");
    case StatusCode::kPermissionDenied:
      return Fail(status, "\"trims doctor\" checks sockets, devices and what this user may do");
    case StatusCode::kNotFound:
      return Fail(status, "\"trims status\" shows the daemon's devices");
    case StatusCode::kAborted:
    case StatusCode::kDeadlineExceeded:
      return Fail(status, "measure again when nobody else uses the daemon");
    case StatusCode::kFailedPrecondition:
      return Fail(status, "\"trims bench load --help\" shows what can be chosen");
    case StatusCode::kInvalidArgument:
      return Fail(status,
                  "\"trims bench --help\" and \"trims bench load --help\" say what is accepted");
    default:
      return Fail(status);
  }
}

}  // namespace trims::cli
