// Runs every case under tests/golden (its README has the format) and compares with
// what Apache MXNet computed. A folder without cases is a failure: a comparison
// that compares nothing must not pass.
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "predict/predictor.h"

namespace trims::predict {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> CaseNames() {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(TRIMS_GOLDEN_DIR)) {
    if (fs::exists(entry.path() / "meta.json")) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string ReadText(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.is_open()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

std::vector<float> ReadFloats(const fs::path& path) {
  const std::string bytes = ReadText(path);
  std::vector<float> values(bytes.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

int RunProgram(std::vector<std::string> arguments) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  if (::posix_spawn(&pid, argv[0], nullptr, nullptr, argv.data(), environ) != 0) return -1;
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid || !WIFEXITED(status)) return -1;
  return WEXITSTATUS(status);
}

class ScratchFolder final {
 public:
  ScratchFolder() {
    std::string name = (fs::temp_directory_path() / "trims-golden-XXXXXX").string();
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~ScratchFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

class GoldenTest : public testing::TestWithParam<std::string> {};

TEST(GoldenFolderTest, HasCases) { EXPECT_GE(CaseNames().size(), 20u) << TRIMS_GOLDEN_DIR; }

TEST_P(GoldenTest, AgreesWithMxnet) {
  const fs::path folder = fs::path(TRIMS_GOLDEN_DIR) / GetParam();
  const nlohmann::json meta = nlohmann::json::parse(ReadText(folder / "meta.json"));

  ScratchFolder scratch;
  fs::path symbol = folder / "symbol.json";
  fs::path input = folder / "input.bin";
  std::shared_ptr<FileWeights> weights;
  if (meta.contains("recipe")) {
    std::vector<std::string> command = {TRIMS_MAKE_MODEL};
    for (const std::string argument : meta["recipe"]) command.push_back(argument);
    command.insert(command.end(), {"--out", scratch.path().string()});
    ASSERT_EQ(RunProgram(command), 0);
    if (!fs::exists(symbol)) symbol = scratch.path() / "model.symbol";
    if (!fs::exists(input)) input = scratch.path() / "input.bin";
    auto loaded = FileWeights::FromPath(scratch.path().string(), "model");
    ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
    weights = *loaded;
  } else if (fs::exists(folder / "params.bin")) {
    auto loaded = FileWeights::FromPath((folder / "params.bin").string(), GetParam());
    ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
    weights = *loaded;
  } else {
    // A list of no arrays and no names.
    const uint64_t empty[4] = {0x112, 0, 0, 0};
    auto loaded = FileWeights::FromBytes(std::as_bytes(std::span(empty)), "no weights");
    ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
    weights = *loaded;
  }
  const auto graph = Graph::FromJson(ReadText(symbol));
  ASSERT_TRUE(graph.ok()) << graph.status().ToString();

  InputShapes shapes;
  for (const auto& entry : meta["inputs"]) shapes[entry["name"]] = entry["shape"].get<Shape>();
  const std::vector<float> values = ReadFloats(input);
  const std::vector<float> expected = ReadFloats(folder / "output.bin");
  const double rtol = meta["rtol"], atol = meta["atol"];

  for (const bool pack : {false, true}) {
    SCOPED_TRACE(pack ? "packed weights" : "weights in place");
    const auto predictor = Predictor::Create(*graph, weights, shapes, {.pack_weights = pack});
    ASSERT_TRUE(predictor.ok()) << predictor.status().ToString();
    size_t used = 0;
    for (const auto& entry : meta["inputs"]) {
      const auto count = static_cast<size_t>(ElementCount(entry["shape"].get<Shape>()));
      ASSERT_LE(used + count, values.size());
      const Status status =
          (*predictor)
              ->SetInput(entry["name"].get<std::string>(), std::span(values).subspan(used, count));
      ASSERT_TRUE(status.ok()) << status.ToString();
      used += count;
    }
    ASSERT_EQ(used, values.size());
    const Status run = (*predictor)->Forward();
    ASSERT_TRUE(run.ok()) << run.ToString();

    size_t compared = 0;
    double worst = 0;
    ASSERT_EQ((*predictor)->output_count(), meta["outputs"].size());
    for (size_t i = 0; i < meta["outputs"].size(); ++i) {
      ASSERT_EQ(*(*predictor)->OutputShape(i), meta["outputs"][i]["shape"].get<Shape>());
      const std::span<const float> actual = *(*predictor)->PeekOutput(i);
      ASSERT_LE(compared + actual.size(), expected.size());
      for (size_t k = 0; k < actual.size(); ++k) {
        const double golden = expected[compared + k];
        const double difference = std::fabs(actual[k] - golden);
        ASSERT_TRUE(difference <= atol + rtol * std::fabs(golden))
            << "output " << i << " element " << k << ": " << actual[k] << ", MXNet has " << golden;
        worst = std::max(worst, difference / (atol + rtol * std::fabs(golden)));
      }
      compared += actual.size();
    }
    ASSERT_EQ(compared, expected.size());
    RecordProperty(pack ? "worst_packed" : "worst_in_place", std::to_string(worst));
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenTest, testing::ValuesIn(CaseNames()), [](const auto& test) {
  std::string name = test.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(c); }, '_');
  return name;
});

}  // namespace
}  // namespace trims::predict
