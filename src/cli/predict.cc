// trims predict: classifies images with a model whose weights the daemon lends.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "base/units.h"
#include "cli/command.h"
#include "cli/json.h"
#include "cli/text.h"
#include "format/model_files.h"
#include "predict/image.h"
#include "predict/lease_weights.h"
#include "predict/model_folder.h"
#include "predict/predictor.h"

namespace trims::cli {
namespace {

struct PredictCommand {
  std::string model;
  std::vector<std::string> images;
  int64_t top = 5;
  bool no_share = false;
  bool time = false;
  std::string base_dir;
  std::string granularity;
  std::optional<std::string> input_name;
  std::optional<int64_t> channels, height, width;
  std::vector<float> mean;
  std::optional<float> scale;
};

// Milliseconds spent in each phase.
struct Times {
  double open = 0;     // Until the weights are usable.
  double bind = 0;     // Until the network is ready to run.
  double decode = 0;   // Per image.
  double forward = 0;  // Per image.
};

class Stopwatch final {
 public:
  // Since construction or the last call.
  double Lap() {
    const Time now = Now();
    return std::chrono::duration<double, std::milli>(now - std::exchange(start_, now)).count();
  }

 private:
  Time start_ = Now();
};

struct Model {
  std::shared_ptr<predict::WeightProvider> weights;
  std::string folder;
  std::string digest;  // "" when not leased.
};

Result<Model> LeaseModel(const Context& context, const PredictCommand& command) {
  predict::LeaseWeightsOptions options;
  ASSIGN_OR_RETURN(options.runtime_dir, RuntimeDir(context));
  if (!command.granularity.empty()) {
    ASSIGN_OR_RETURN(options.granularity, predict::ParseGranularity(command.granularity));
  }
  ASSIGN_OR_RETURN(std::shared_ptr<predict::LeaseWeights> lease,
                   predict::LeaseWeights::Open(command.model, options));
  Model model{lease, lease->model_dir(), std::string(lease->PeekLease().digest_text())};
  if (model.folder.empty()) {
    return FailedPreconditionError("model '" + command.model +
                                   "' has no directory, so there is no graph to run");
  }
  return model;
}

// --no-share: the directory of the base directory that the name stands for, as with
// sharing, else a directory given as a path.
Result<Model> LoadModel(const PredictCommand& command) {
  std::string base = command.base_dir;
  if (base.empty()) {
    const char* home = std::getenv("HOME");
    base = std::string(home == nullptr ? "" : home) + "/carml/data/mxnet";
  }
  Result<std::string> folder = format::FindModelDirectory(base, command.model);
  if (!folder.ok()) {
    const bool is_path = command.model.find('/') != std::string::npos &&
                         std::filesystem::is_directory(command.model);
    if (!is_path) {
      return Status(folder.status().code(),
                    folder.status().message() + "; what `trims add` named, only a daemon finds");
    }
    folder = command.model;
  }
  ASSIGN_OR_RETURN(std::shared_ptr<predict::WeightProvider> weights,
                   predict::FileWeights::FromPath(*folder, command.model));
  return Model{std::move(weights), *folder, ""};
}

// The manifest, over which go the environment and then the options.
Result<predict::Manifest> InputOf(const Model& model, const PredictCommand& command) {
  ASSIGN_OR_RETURN(std::optional<predict::Manifest> found, predict::ReadManifest(model.folder));
  predict::Manifest manifest = found.value_or(predict::Manifest{});
  predict::ImageInput& input = manifest.input;
  if (command.input_name) manifest.input_name = *command.input_name;
  input.channels = command.channels.value_or(input.channels);
  input.height = command.height.value_or(input.height);
  input.width = command.width.value_or(input.width);
  input.scale = command.scale.value_or(input.scale);
  if (!command.mean.empty()) {
    input.mean = command.mean;
    if (input.mean.size() == 1)
      input.mean.assign(static_cast<size_t>(input.channels), input.mean[0]);
  } else {
    constexpr const char* kMeans[] = {"UPR_INPUT_MEAN_R", "UPR_INPUT_MEAN_G", "UPR_INPUT_MEAN_B"};
    for (size_t c = 0; c < 3; ++c) {
      const char* text = std::getenv(kMeans[c]);
      if (text == nullptr || *text == '\0') continue;
      char* end = nullptr;
      const float mean = std::strtof(text, &end);
      if (*end != '\0' || !std::isfinite(mean)) {
        return InvalidArgumentError(std::string(kMeans[c]) + "='" + text +
                                    "': a number was expected");
      }
      if (c >= static_cast<size_t>(input.channels)) continue;
      input.mean.resize(static_cast<size_t>(input.channels), 0.0f);
      input.mean[c] = mean;
    }
  }
  RETURN_IF_ERROR(predict::CheckImageInput(input));
  return manifest;
}

struct Guess {
  size_t index;
  float probability;
};

// The `top` most probable, NaN last, equal ones by index.
std::vector<Guess> TopGuesses(std::span<const float> probabilities, size_t top) {
  std::vector<Guess> guesses(probabilities.size());
  for (size_t i = 0; i < guesses.size(); ++i) guesses[i] = {i, probabilities[i]};
  const auto rank = [](const Guess& g) {
    return std::isnan(g.probability) ? -std::numeric_limits<float>::infinity() : g.probability;
  };
  top = std::min(top, guesses.size());
  std::partial_sort(guesses.begin(), guesses.begin() + static_cast<ptrdiff_t>(top), guesses.end(),
                    [&](const Guess& a, const Guess& b) {
                      return rank(a) != rank(b) ? rank(a) > rank(b) : a.index < b.index;
                    });
  guesses.resize(top);
  return guesses;
}

std::string LabelOf(const std::vector<std::string>& labels, size_t index) {
  return index < labels.size() ? labels[index] : "class " + std::to_string(index);
}

std::string Format(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string GuessesAsText(const std::string& image, const std::vector<Guess>& guesses,
                          const std::vector<std::string>& labels) {
  std::string text = Printable(image) + "\n";
  for (const Guess& guess : guesses) {
    text += Format("%8.2f %%  ", 100.0 * guess.probability) +
            Printable(LabelOf(labels, guess.index)) + "\n";
  }
  return text;
}

Json GuessesAsJson(const std::vector<Guess>& guesses, const std::vector<std::string>& labels) {
  Json array = Json::array();
  for (const Guess& guess : guesses) {
    Json entry = {{"index", guess.index}, {"label", nullptr}, {"probability", guess.probability}};
    if (guess.index < labels.size()) entry["label"] = labels[guess.index];
    array.push_back(std::move(entry));
  }
  return array;
}

// What is common to all images of one run.
struct Session {
  std::unique_ptr<predict::Predictor> predictor;
  predict::Manifest manifest;
  std::vector<std::string> labels;
};

Result<Session> OpenSession(const Model& model, const PredictCommand& command) {
  Session session;
  ASSIGN_OR_RETURN(session.manifest, InputOf(model, command));
  ASSIGN_OR_RETURN(session.labels, predict::ReadLabels(model.folder));
  ASSIGN_OR_RETURN(const std::string symbol, predict::ReadSymbol(model.folder, command.model));
  ASSIGN_OR_RETURN(std::shared_ptr<const predict::Graph> graph, predict::Graph::FromJson(symbol));
  const std::string& name = session.manifest.input_name;
  if (!graph->FindVariable(name)) {
    return InvalidArgumentError("the graph has no input '" + name +
                                "'; name its image input with --input");
  }
  ASSIGN_OR_RETURN(const predict::PredictorOptions options,
                   predict::PredictorOptions::FromEnvironment());
  const predict::ImageInput& input = session.manifest.input;
  ASSIGN_OR_RETURN(session.predictor,
                   predict::Predictor::Create(
                       std::move(graph), model.weights,
                       {{name, {1, input.channels, input.height, input.width}}}, options));
  return session;
}

Result<std::vector<Guess>> Classify(Session& session, const std::string& image, size_t top,
                                    Times& times) {
  Stopwatch watch;
  ASSIGN_OR_RETURN(const std::vector<float> pixels,
                   predict::ImageFromFile(image, session.manifest.input));
  times.decode = watch.Lap();
  RETURN_IF_ERROR(session.predictor->SetInput(session.manifest.input_name, pixels));
  RETURN_IF_ERROR(session.predictor->Forward());
  times.forward = watch.Lap();
  ASSIGN_OR_RETURN(const std::span<const float> probabilities, session.predictor->PeekOutput(0));
  return TopGuesses(probabilities, top);
}

ExitCode RunPredict(const Context& context, const PredictCommand& command) {
  Times times;
  Stopwatch watch;
  const Result<Model> model = command.no_share ? LoadModel(command) : LeaseModel(context, command);
  times.open = watch.Lap();
  if (!model.ok()) {
    const bool unreachable = model.status().code() == StatusCode::kUnavailable;
    return Fail(model.status(),
                unreachable ? "start the daemon with \"trims serve\", or let this process load the "
                              "weights itself with --no-share"
                            : "");
  }
  Result<Session> session = OpenSession(*model, command);
  times.bind = watch.Lap();
  if (!session.ok()) {
    return Fail(session.status(), "look at the model's directory, " + model->folder);
  }

  // A bad image does not keep the others from being classified.
  ExitCode code = ExitCode::kOk;
  Json results = Json::array();
  for (const std::string& image : command.images) {
    const Result<std::vector<Guess>> guesses =
        Classify(*session, image, static_cast<size_t>(command.top), times);
    if (!guesses.ok()) {
      const ExitCode failure =
          Fail(guesses.status(), "PNG and JPEG files of reasonable size can be read");
      if (code == ExitCode::kOk) code = failure;
      continue;
    }
    if (context.json) {
      Json result = {{"image", image}, {"predictions", GuessesAsJson(*guesses, session->labels)}};
      if (command.time) {
        result["decode_ms"] = times.decode;
        result["forward_ms"] = times.forward;
      }
      results.push_back(std::move(result));
      continue;
    }
    std::string text = GuessesAsText(image, *guesses, session->labels);
    if (command.time) {
      text += Format("          decode %.3f ms", times.decode) +
              Format("  forward %.3f ms\n", times.forward);
    }
    Print(text);
  }
  if (context.json) {
    Json json = {{"model", command.model}, {"shared", !command.no_share}, {"digest", nullptr}};
    if (!model->digest.empty()) json["digest"] = model->digest;
    if (command.time) {
      json["open_ms"] = times.open;
      json["bind_ms"] = times.bind;
      json["internal_bytes"] = session->predictor->private_bytes();
    }
    json["images"] = std::move(results);
    PrintJson(json);
  } else if (command.time) {
    Print(Format("open %.3f ms", times.open) + Format("  bind %.3f ms", times.bind) +
          "  memory beside the weights " + FormatSize(session->predictor->private_bytes()) + "\n");
  }
  return code;
}

}  // namespace

void AddPredictCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("predict", "Classify images with a model");
  auto options = std::make_shared<PredictCommand>();
  command->add_option("-m,--model", options->model, "Name of the model")
      ->envname("UPR_MODEL_NAME")
      ->required();
  command->add_option("IMAGE", options->images, "PNG or JPEG files")->required();
  command->add_option("--top", options->top, "How many classes to show")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1'000'000}));
  command->add_flag("--time", options->time, "Also how long each part took");
  command->add_flag("--no-share", options->no_share,
                    "Load the weights into this process instead of leasing them; MODEL may then "
                    "also be the path of a model directory");
  command
      ->add_option("--base-dir", options->base_dir, "With --no-share: where model directories are")
      ->envname("UPR_BASE_DIR")
      ->type_name("DIR");
  command->add_option("--granularity", options->granularity, "model, slab, layer or auto")
      ->envname("UPR_SHARING_GRANULARITY");
  command->add_option("--input", options->input_name, "Name of the graph's image input")
      ->type_name("NAME");
  command->add_option("--channels", options->channels, "1 or 3; else from manifest.json, else 3")
      ->envname("UPR_INPUT_CHANNELS");
  command->add_option("--height", options->height, "Else from manifest.json, else 224")
      ->envname("UPR_INPUT_HEIGHT");
  command->add_option("--width", options->width, "Else from manifest.json, else 224")
      ->envname("UPR_INPUT_WIDTH");
  command
      ->add_option("--mean", options->mean,
                   "Subtracted from the pixels: one number, or one per "
                   "channel, R,G,B; UPR_INPUT_MEAN_R, _G and _B")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_option("--scale", options->scale, "Divides the pixels after that");
  command->footer(
      "\nThe model's directory holds the graph (model.symbol), the labels (features.txt) and\n"
      "what the network wants as input (manifest.json); options go before the environment,\n"
      "and both before the manifest. OMP_NUM_THREADS sets the number of threads;\n"
      "TRIMS_PREDICT_PACK=1 trades private memory for faster convolutions.\n");
  OnRun(command, context, [&context, options] { return RunPredict(context, *options); });
}

}  // namespace trims::cli
