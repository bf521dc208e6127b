// One name, one answer: what a model name leads to with weights that a daemon lends and
// with weights that the process loads itself, side by side.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "format/test_files.h"
#include "mxnet/c_predict_api.h"
#include "predict/test_network.h"
#include "tests/test_daemon.h"

namespace trims::predict {
namespace {

using testing::HasSubstr;
using testing_support::TestDaemon;
namespace fs = std::filesystem;

const std::string kDigits = TRIMS_DIGITS_DIR;

// A file whose name ends in '/' is a directory; "a -> b" is a symbolic link. Of weights files
// the one that ends in '*' (not part of its name) is the one that must be used.
struct Row {
  const char* claim;
  const char* asked;      // UPR_MODEL_NAME
  const char* directory;  // Below the base directory; "" for none.
  std::vector<const char*> files;
  const char* error = nullptr;  // What both messages must say, when nothing can be used.
};

const std::vector<Row>& Rows() {
  static const auto* const rows = new std::vector<Row>{
      // Which directory.
      {"a directory as it is called", "a1", "a1", {"model.params*"}},
      {"2019 spelling", "A2-B c:1.0", "a2_b_c_1.0", {"model.params*"}},
      {"the directory's own spelling", "A3:1.0", "A3:1.0", {"model.params*"}},
      {"a namespace is a directory", "team/A4:1.0", "team/a4_1.0", {"model.params*"}},
      {"a namespace in the 2019 spelling", "Team-B/A5", "team_b/a5", {"model.params*"}},
      {"a version asked for is not left off", "a6:1.0", "a6", {"model.params"}, "a6_1.0"},
      {"and none is chosen", "a7", "a7_1.0", {"model.params"}, "a7"},
      {"a file is no model directory", "a8", "", {"a8"}, "a8"},
      {"one that is called like weights neither",
       "model.params",
       "",
       {"model.params"},
       "model.params"},
      {"a directory that is called so is", "a9.params", "a9.params", {"model.params*"}},
      {"a link to a directory", "a10", "", {"real/model.params*", "a10 -> real"}},
      // What is no name.
      {"a slash at the end", "b1/", "b1", {"model.params"}, "namespace/]name[:version]"},
      {"a path that leads up", "b/../b2", "b2", {"model.params"}, "namespace/]name[:version]"},
      {"another path that leads up", "../models/b3", "b3", {"model.params"}, "namespace/]name"},
      {"two slashes", "b//b4", "b/b4", {"model.params"}, "namespace/]name[:version]"},
      {"a character that no name has", "b5!", "b5!", {"model.params"}, "not allowed"},
      // Which file.
      {"model.params is first", "c1", "c1", {"model.params*", "c1.params", "model.safetensors"}},
      {"then the name", "c2", "c2", {"c2.params*", "c2-0000.params", "model.safetensors"}},
      {"then epoch 0", "c3", "c3", {"c3-0000.params*", "c3-0001.params", "model.safetensors"}},
      {"name and version", "c4:1.0", "c4_1.0", {"c4_1.0.params*", "c4.params", "x.params"}},
      {"name and version, epoch 0", "C5:1.0", "c5_1.0", {"c5_1.0-0000.params*", "c5.params"}},
      {"name without version", "c6:1.0", "c6_1.0", {"c6.params*", "c6-0000.params"}},
      {"name without version, epoch 0",
       "c7:1.0",
       "c7_1.0",
       {"c7-0000.params*", "c7-0010.params", "model.safetensors"}},
      {"the same in the 2019 spelling", "c8_1.0", "c8_1.0", {"c8-0000.params*", "c8-0010.params"}},
      {"other letters", "NET-C9:1.0", "net_c9_1.0", {"Net-C9-0000.params*", "x-0000.params"}},
      {"other letters in another place", "net_c10", "net_c10", {"NET c10.params*", "y.params"}},
      {"namespaces do not matter to files", "team/c11", "team/c11", {"c11.params*", "x.params"}},
      {"the exact spelling wins", "C12", "C12", {"c12.params*", "C12.params"}},
      {"the only safetensors", "c13", "c13", {"x.safetensors*", "x.params"}},
      {"the only epoch", "Net-C14:1.0", "net_c14_1.0", {"Net-C14-0126.params*", "x.params"}},
      {"the beginning of the name", "c18:latest", "c18_latest", {"c18-0001.params*"}},
      {"a model that is called model", "c15", "c15", {"model-0000.params*", "model-0010.params"}},
      {"hidden files do not count", "c16_x", "c16_x", {"c16.params*", ".y.params"}},
      {"which of two spellings?", "c17", "c17", {"C17-0000.params", "C17.params*"}},
      // What is no file.
      {"a directory is no weights file", "d1", "d1", {"model.params/", "d1.params*"}},
      {"nor one called so by the name",
       "d2",
       "d2",
       {"d2.params/", "d2-0000.params/", "x.safetensors*"}},
      {"nor one among others", "d3", "d3", {"x.safetensors/", "y.safetensors*"}},
      {"a link to a directory neither",
       "d4",
       "d4",
       {"sub/", "model.params -> sub", "model.safetensors*"}},
      {"it is named when nothing else is there",
       "d5",
       "d5",
       {"model.params/"},
       "'model.params' is a directory"},
      {"nothing at all", "d6:1.0", "d6_1.0", {"notes.txt"}, "d6-0000.params"},
      // What is ambiguous.
      {"two safetensors", "e1", "e1", {"x.safetensors", "y.safetensors"}, "x.safetensors"},
      {"another model's weights", "e2", "e2", {"x.params"}, "e2-0000.params"},
      {"weights of one of two others",
       "e5_x",
       "e5_x",
       {"e5.params", "y.params"},
       "e5_x-0000.params"},
      {"two epochs", "e3", "e3", {"e3-0001.params", "e3-0002.params"}, "e3-0002.params"},
      {"two spellings", "e_4", "e_4", {"E-4.params", "e 4.params"}, "E-4.params"},
      // What can not be used.
      {"an index that leads elsewhere",
       "f1",
       "f1",
       {"model.safetensors.index.json", "../x.safetensors"},
       "../x.safetensors"},
  };
  return *rows;
}

std::vector<format::TestTensor> Weights(float value) {
  return {format::FloatTensor("arg:w", {1, 1}, value)};
}

class SharedNamesTest : public testing::Test {
 protected:
  SharedNamesTest() {
    ::setenv("TRIMS_RUNTIME_DIR", daemon_.runtime_dir().c_str(), 1);
    ::setenv("UPR_BASE_DIR", daemon_.base_dir().c_str(), 1);
  }

  // Every weights file holds another number; the one to be used holds 1.
  void Write(const Row& row) {
    const std::string base = daemon_.base_dir() + "/";
    const std::string folder = base + row.directory + "/";
    fs::create_directories(folder);
    float value = 1;
    for (std::string file : row.files) {
      const bool is_it = file.ends_with('*');
      if (is_it) file.pop_back();
      const std::string path = folder + file;
      const float number = is_it ? 1 : ++value;
      if (const size_t arrow = file.find(" -> "); arrow != std::string::npos) {
        fs::create_symlink(file.substr(arrow + 4), folder + file.substr(0, arrow));
      } else if (file.ends_with('/')) {
        fs::create_directories(path);
      } else if (file.ends_with(".index.json")) {
        std::ofstream(path) << R"({"weight_map":{"arg:w":"../x.safetensors"}})";
      } else {
        fs::create_directories(fs::path(path).parent_path());
        std::ofstream(path, std::ios::binary)
            << (file.ends_with(".safetensors") ? format::WriteSafetensors(Weights(number))
                                               : format::WriteMxnetParams(Weights(number)));
      }
    }
  }

  // What the network answers: its one weight. An error's message otherwise.
  static std::string Answer(bool shared) {
    static const std::string symbol =
        SymbolWriter()
            .Op("FullyConnected", "fc", {"data", "w"}, {{"num_hidden", "1"}, {"no_bias", "True"}})
            .Json();
    ::setenv("UPR_ENABLED", shared ? "true" : "false", 1);
    const char* keys[] = {"data"};
    const mx_uint indptr[] = {0, 2};
    const mx_uint dims[] = {1, 1};
    PredictorHandle handle = nullptr;
    if (MXPredCreate(symbol.c_str(), nullptr, 0, 1, 0, 1, keys, indptr, dims, &handle) != 0) {
      return MXGetLastError();
    }
    const float one = 1;
    float out = 0;
    EXPECT_EQ(MXPredSetInput(handle, "data", &one, 1), 0) << MXGetLastError();
    EXPECT_EQ(MXPredForward(handle), 0) << MXGetLastError();
    EXPECT_EQ(MXPredGetOutput(handle, 0, &out, 1), 0) << MXGetLastError();
    EXPECT_EQ(MXPredFree(handle), 0);
    return "weight " + std::to_string(static_cast<int>(out));
  }

  // Runs the program `trims`; what it printed, errors included.
  std::string Trims(const std::string& arguments, int* code) const {
    const std::string line = std::string(TRIMS_PROGRAM) + " " + arguments + " 2>&1";
    FILE* pipe = ::popen(line.c_str(), "r");
    std::string out;
    char buffer[4096];
    for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
    *code = WEXITSTATUS(::pclose(pipe));
    return out;
  }

  TestDaemon daemon_;
};

TEST_F(SharedNamesTest, ANameLeadsToTheSameWeightsBothWays) {
  for (const Row& row : Rows()) {
    SCOPED_TRACE(std::string(row.claim) + ": " + row.asked);
    Write(row);
    ::setenv("UPR_MODEL_NAME", row.asked, 1);
    const std::string with_sharing = Answer(true);
    const std::string without = Answer(false);
    if (row.error == nullptr) {
      EXPECT_EQ(with_sharing, "weight 1");
      EXPECT_EQ(without, "weight 1");
    } else {
      EXPECT_THAT(with_sharing, HasSubstr(row.error));
      EXPECT_THAT(without, HasSubstr(row.error));
      EXPECT_FALSE(with_sharing.starts_with("weight ") || without.starts_with("weight "));
    }
  }
}

TEST_F(SharedNamesTest, ADigestIsAnswerableWithSharingOnly) {
  ::setenv("UPR_MODEL_NAME", ("@sha256:" + std::string(64, 'a')).c_str(), 1);
  EXPECT_THAT(Answer(true), HasSubstr("digest"));
  EXPECT_THAT(Answer(false), HasSubstr("digest"));
}

TEST_F(SharedNamesTest, TheCommandFindsGraphAndLabelsBothWays) {
  struct Case {
    const char* asked;
    const char* directory;
    const char* weights;
    const char* graph;
    const char* labels;
  };
  const std::string image = fs::directory_iterator(kDigits + "/images")->path().string();
  for (const Case& c : {
           Case{"g1", "g1", "model.params", "model.symbol", "features.txt"},
           Case{"'Dig-Its:1.0'", "dig_its_1.0", "dig_its_1.0.params", "dig_its_1.0.symbol",
                "synset.txt"},
           Case{"g3:1.0", "g3_1.0", "g3-0000.params", "g3-symbol.json", "features.txt"},
           Case{"g4_1.0", "g4_1.0", "g4-0000.params", "g4-symbol.json", "features.txt"},
           Case{"'Team/G 5'", "team/g_5", "G-5-0000.params", "G-5-symbol.json", "features.txt"},
           Case{"g6:latest", "g6_latest", "g6-0100.params", "g6-symbol.json", "synset.txt"},
       }) {
    SCOPED_TRACE(c.asked);
    const std::string folder = daemon_.base_dir() + "/" + c.directory + "/";
    fs::create_directories(folder);
    fs::copy(kDigits + "/model.params", folder + c.weights);
    fs::copy(kDigits + "/model.symbol", folder + c.graph);
    fs::copy(kDigits + "/features.txt", folder + c.labels);
    fs::copy(kDigits + "/manifest.json", folder + "manifest.json");
    // None of these is a file.
    for (const char* name : {"model.symbol", "features.txt"}) {
      if (!fs::exists(folder + name)) fs::create_directory(folder + name);
    }
    nlohmann::json results[2];
    for (const bool shared : {true, false}) {
      int code = -1;
      const std::string out = Trims(
          std::string("predict --json -m ") + c.asked + " " + (shared ? "" : "--no-share ") + image,
          &code);
      ASSERT_EQ(code, 0) << out;
      results[shared ? 0 : 1] = nlohmann::json::parse(out)["images"];
    }
    EXPECT_EQ(results[0], results[1]);
    EXPECT_TRUE(results[0][0]["predictions"][0]["label"].is_string());
  }
}

TEST_F(SharedNamesTest, TheCommandTakesANameForAPathOnlyWhenItIsNone) {
  // There is a model of that name, and from here a directory of that path without any.
  fs::create_directories(daemon_.base_dir() + "/here");
  fs::copy(kDigits, daemon_.base_dir() + "/here/digits", fs::copy_options::recursive);
  fs::create_directories(daemon_.root() + "/cwd/paths");
  fs::create_directories(daemon_.root() + "/cwd/here/digits");
  fs::copy(kDigits, daemon_.root() + "/cwd/paths/digits", fs::copy_options::recursive);
  const std::string image = fs::directory_iterator(kDigits + "/images")->path().string();
  const fs::path before = fs::current_path();
  fs::current_path(daemon_.root() + "/cwd");
  int code = -1;
  for (const std::string model :
       {"here/digits", "paths/digits", "./paths/digits", "paths/digits/", "../cwd/paths/digits"}) {
    const std::string out = Trims("predict --no-share -m " + model + " " + image, &code);
    EXPECT_EQ(code, 0) << model << ": " << out;
  }
  const std::string out = Trims("predict --no-share -m here/nothing " + image, &code);
  EXPECT_NE(code, 0);
  EXPECT_THAT(out, HasSubstr(daemon_.base_dir() + "/here/nothing"));
  fs::current_path(before);
}

}  // namespace
}  // namespace trims::predict
