// Names of models: how they are spelled, and what directories and files may be
// called for a name to stand for them.
//
// The one place that knows: daemon, predictor and command line ask here. Everything
// but the first choice of a directory follows from a name's canonical spelling, so
// "BVLC-AlexNet:1.0" and "bvlc_alexnet_1.0" mean the same files. Pure functions; any
// thread, any locale.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/digest.h"
#include "base/status.h"

namespace trims {

// "[namespace/]name[:version]" or "[@]sha256:<64 hex>".
struct ModelReference {
  std::string name;  // "" when by digest.
  std::optional<Digest> digest;
};
// INVALID_ARGUMENT names the character that is not allowed, or the part that is
// empty or too long. Letters, digits, '.', '_', '-' and ' ' make up a part; no
// part is "." or "..". So a name is never a path.
Result<ModelReference> ParseModelReference(std::string_view text);

// The 2019 directory name of "[namespace/]name[:version]": lower case, and ' ',
// '-' and ':' become '_'. "BVLC-AlexNet:1.0" -> "bvlc_alexnet_1.0".
std::string CanonicalDirectoryName(std::string_view name);

// Where a model may lie below a base directory, best first: the name as it is
// written, then the canonical one; a namespace is one more level. A version that is
// asked for is never left off, and none is made up. Empty unless `name` is a name.
std::vector<std::string> ModelDirectoryNames(std::string_view name);

// What the files of a model may be called without their endings, best first, all in
// canonical spelling: the name without its namespace, and that without its version.
// "team/Foo-Bar:1.0" -> "foo_bar_1.0", "foo_bar". A version is what comes after the
// last '_', if it begins with a digit and has a dot, as every version of 2019: so
// "foo_bar_1.0" gives the same, and "resnet_50" only itself. Also for the path of a
// directory, by its last part. Empty for a digest and where no file can be called so.
std::vector<std::string> ModelFileStems(std::string_view name);

}  // namespace trims
