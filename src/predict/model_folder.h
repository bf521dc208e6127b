// What lies in a model's directory beside its weights: the graph, the labels, and
// the manifest that says what the network wants as input. Functions; thread-safe.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "predict/image.h"

namespace trims::predict {

// The part of a model name that names its files: "vgg16" of "team/vgg16:1.0".
std::string BaseName(std::string_view model);

// The first of model.symbol, <name>.symbol, <name>-symbol.json and
// model-symbol.json. NOT_FOUND lists what was looked for.
Result<std::string> ReadSymbol(const std::string& folder, const std::string& name);

// Lines of features.txt or synset.txt, in the order of the network's outputs;
// empty if there is neither.
Result<std::vector<std::string>> ReadLabels(const std::string& folder);

// manifest.json, with the keys of the 2019 manifests:
//   {"inputs": [{"name": "data", "dimensions": [C, H, W], "mean": [...], "scale": s}]}
// where the last three may also be inside "parameters". Everything else in it is
// left alone. mean may be one number for all channels; scale divides.
struct Manifest {
  std::string input_name = "data";
  ImageInput input;
};
// nullopt if there is no manifest. INVALID_ARGUMENT names the file and the key.
Result<std::optional<Manifest>> ReadManifest(const std::string& folder);
Result<Manifest> ParseManifest(std::string_view json, const std::string& description);

}  // namespace trims::predict
