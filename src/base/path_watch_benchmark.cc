// What the thread that drains pays, and what an Add costs others.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/path_watch.h"
#include "base/unique_fd.h"

namespace trims {
namespace {

namespace fs = std::filesystem;

// A folder with files "0", "1" … of which one PathWatch watches all.
class Fixture final {
 public:
  explicit Fixture(int files) {
    std::string name = fs::temp_directory_path() / "path_watch_XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    folder_ = name;
    for (int i = 0; i < files; ++i) {
      asked_.files.push_back(folder_ / std::to_string(i));
      std::ofstream(asked_.files.back()) << "weights";
    }
    watch_ = PathWatch::Create({.drain_bytes = 16 * kMiB}).value();
    for (const std::string& file : asked_.files) {
      watched_.push_back(watch_->Add({.files = {file}}).value());
    }
  }
  ~Fixture() {
    watched_.clear();
    fs::remove_all(folder_);
  }

  PathWatch& watch() { return *watch_; }
  const PathWatch::Asked& asked() const { return asked_; }
  const PathWatch::Watched& watched() const { return *watched_.front(); }
  const fs::path& folder() const { return folder_; }

 private:
  fs::path folder_;
  PathWatch::Asked asked_;
  std::unique_ptr<PathWatch> watch_;
  std::vector<std::shared_ptr<const PathWatch::Watched>> watched_;
};

void DrainNothing(benchmark::State& state) {
  Fixture fixture(static_cast<int>(state.range(0)));
  for (auto _ : state) {
    fixture.watch().Drain();
    benchmark::DoNotOptimize(fixture.watched().changed());
  }
}
BENCHMARK(DrainNothing)->Arg(1)->Arg(1000);

// Seconds that this thread has had a processor: the machine may be busy with other things.
double ThreadSeconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

constexpr int kReports = 10'000;

// Reports about names next to the watched ones.
void MakeForeignReports(const fs::path& folder) {
  for (int i = 0; i < kReports / 2; ++i) {
    const std::string path = folder / ("foreign" + std::to_string(i));
    ::close(::open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    ::unlink(path.c_str());
  }
}

void DrainForeignReports(benchmark::State& state) {
  Fixture fixture(static_cast<int>(state.range(0)));
  fixture.watch().Drain();
  for (auto _ : state) {
    MakeForeignReports(fixture.folder());
    const double begin = ThreadSeconds();
    const bool marked = fixture.watch().Drain();
    state.SetIterationTime(ThreadSeconds() - begin);
    if (marked) state.SkipWithError("foreign reports marked something");
  }
  state.SetItemsProcessed(state.iterations() * kReports);
}
BENCHMARK(DrainForeignReports)->Arg(1)->Arg(1000)->UseManualTime()->Unit(benchmark::kMicrosecond);

// The kernel's part of it: copying them out.
void OnlyReadForeignReports(benchmark::State& state) {
  const Fixture fixture(1);
  const UniqueFd fd(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  ::inotify_add_watch(fd.get(), fixture.folder().c_str(), IN_CREATE | IN_DELETE);
  std::vector<char> buffer(64 * kKiB);
  for (auto _ : state) {
    MakeForeignReports(fixture.folder());
    const double begin = ThreadSeconds();
    while (::read(fd.get(), buffer.data(), buffer.size()) > 0) {
    }
    state.SetIterationTime(ThreadSeconds() - begin);
  }
  state.SetItemsProcessed(state.iterations() * kReports);
}
BENCHMARK(OnlyReadForeignReports)->UseManualTime()->Unit(benchmark::kMicrosecond);

// Of files that nobody else watches.
void AddAndDrop(benchmark::State& state) {
  Fixture fixture(static_cast<int>(state.range(0)));
  const std::unique_ptr<PathWatch> own = PathWatch::Create().value();
  for (auto _ : state) {
    if (!own->Add(fixture.asked()).ok()) state.SkipWithError("Add failed");
    own->Drain();
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(AddAndDrop)->Arg(1)->Arg(1000);

}  // namespace
}  // namespace trims

BENCHMARK_MAIN();
