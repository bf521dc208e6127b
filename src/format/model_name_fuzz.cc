// Fuzzes names of models: none leads out of a directory, and no spelling matters.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/limits.h"
#include "format/fuzz_checks.h"
#include "format/model_name.h"

namespace {

// One name in a directory, and nothing that leads elsewhere.
void CheckPlain(std::string_view part) {
  TRIMS_CHECK(!part.empty() && part != "." && part != ".." &&
              part.find('/') == std::string_view::npos &&
              part.find('\0') == std::string_view::npos);
}

// At most a namespace and a name.
void CheckRelative(std::string_view path) {
  TRIMS_CHECK(path.size() <= trims::kMaxModelNameBytes);
  if (const size_t slash = path.find('/'); slash != std::string_view::npos) {
    CheckPlain(path.substr(0, slash));
    path.remove_prefix(slash + 1);
  }
  CheckPlain(path);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  const std::string canonical = trims::CanonicalDirectoryName(text);
  TRIMS_CHECK(canonical.size() == size && trims::CanonicalDirectoryName(canonical) == canonical);

  // Of any text, as the last part of a path may be any.
  const std::vector<std::string> stems = trims::ModelFileStems(text);
  TRIMS_CHECK(stems.size() <= 2);
  for (const std::string& stem : stems) {
    CheckPlain(stem);
    TRIMS_CHECK(trims::CanonicalDirectoryName(stem) == stem && stems[0].starts_with(stem));
  }

  const std::vector<std::string> directories = trims::ModelDirectoryNames(text);
  const trims::Result<trims::ModelReference> reference = trims::ParseModelReference(text);
  if (!reference.ok()) {
    trims::format::CheckMessage(reference.status());
    TRIMS_CHECK(directories.empty());
    return 0;
  }
  if (reference->digest) {
    TRIMS_CHECK(reference->name.empty() && directories.empty() && stems.empty());
    TRIMS_CHECK(trims::ParseModelReference(reference->digest->ToString())->digest ==
                reference->digest);
    return 0;
  }
  TRIMS_CHECK(reference->name == text);
  // What is found by the name is found by its canonical spelling, too: files always,
  // directories unless one is called by the name as it was written.
  TRIMS_CHECK(trims::ParseModelReference(canonical).ok());
  TRIMS_CHECK(trims::ModelFileStems(canonical) == stems);
  TRIMS_CHECK(directories.front() == text && directories.back() == canonical);
  for (const std::string& directory : directories) CheckRelative(directory);
  TRIMS_CHECK(!stems.empty() || size > 255);
  return 0;
}
