// Which files of a directory are a model: its weights, graph, labels and manifest.
//
// The one place that knows: the daemon that loads them and the process that loads
// them itself get the same answer. Looks at names and at what kind of thing they lead
// to (symbolic links are followed), opens no file and reads none.
//
// A directory is no file, whatever it is called: it is passed over, and named in the
// error when nothing else is there. Anything else that is called like a file of the
// model and can not be used is an error and not passed over, as going on to another
// file would silently serve other weights.
//
// Functions; blocking; thread-safe.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace trims::format {

// The directory of the model `name`, in any spelling, below `base_dir`: the first of
// ModelDirectoryNames that is a directory. INVALID_ARGUMENT when `name` is no name;
// NOT_FOUND lists what was looked for.
Result<std::string> FindModelDirectory(const std::string& base_dir, std::string_view name);

// A model's directory, to look for its files in.
struct ModelDirectory {
  int fd = -1;       // Borrowed; O_PATH will do.
  std::string path;  // For messages.
  std::string name;  // The model's, in any spelling, or the directory's path.
};

// All answers are plain names of files in the directory. With STEM for each of
// ModelFileStems, best first, and one ending after another:
//
//   weights  model.params, STEM.params, STEM-0000.params, model.safetensors,
//            model.safetensors.index.json; STEM.params, STEM-0000.params with STEM in
//            another spelling; the only *.safetensors; model-0000.params; the only
//            STEM-NNNN.params in any spelling, the only model-NNNN.params; the only
//            *.params if it is called like the beginning of the name
//   graph    model.symbol, STEM.symbol, STEM-symbol.json, model-symbol.json; STEM in
//            another spelling; the only *.symbol or *-symbol.json if it is called like
//            the beginning of the name
//   labels   features.txt, synset.txt
//   manifest manifest.json
//
// The beginning of a name ends before a '_' of its canonical spelling: the files of
// "foo:latest" may be foo-0000.params and foo-symbol.json, if no others are there.
//
// NOT_FOUND lists what was looked for. FAILED_PRECONDITION names two files of which
// either may be meant. INVALID_ARGUMENT names what is neither file nor directory.
// Hidden files are found by none of these names.
Result<std::string> FindWeights(const ModelDirectory& directory);
Result<std::string> FindGraph(const ModelDirectory& directory);
// nullopt when there is none.
Result<std::optional<std::string>> FindLabels(const ModelDirectory& directory);
Result<std::optional<std::string>> FindManifest(const ModelDirectory& directory);

// Whether a weights file of this path or name is a list of shards beside it.
bool IsShardIndexName(std::string_view path);

}  // namespace trims::format
