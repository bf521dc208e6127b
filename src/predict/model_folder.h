// What lies in a model's directory beside its weights: the graph, the labels, and
// the manifest that says what the network wants as input. Which files these are is
// decided in format/model_files.h. Functions; blocking; thread-safe.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "predict/image.h"

namespace trims::predict {

// The graph of the model `name` in its directory, found as format/model_files.h
// says; its errors are passed on.
Result<std::string> ReadSymbol(const std::string& folder, const std::string& name);

// Lines of the labels' file, in the order of the network's outputs; empty if there
// is none.
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
