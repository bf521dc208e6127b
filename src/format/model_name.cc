#include "format/model_name.h"

#include <algorithm>

#include "base/limits.h"

namespace trims {
namespace {

constexpr size_t kMaxFileNameBytes = 255;  // Of Linux.

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool IsNameCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || IsDigit(c) || c == '.' || c == '_' ||
         c == '-' || c == ' ';
}

Status CheckPart(std::string_view part, std::string_view what, std::string_view whole) {
  if (part.empty() || part == "." || part == "..") {
    return InvalidArgumentError("model name \"" + std::string(whole.substr(0, 80)) + "\" has " +
                                (part.empty() ? "an empty " : "a forbidden ") + std::string(what) +
                                "; expected [namespace/]name[:version] or @sha256:<digest>");
  }
  return OkStatus();
}

// "foo" of "foo_1.0"; empty when the stem has no version.
std::string_view WithoutVersion(std::string_view stem) {
  const size_t at = stem.rfind('_');
  if (at == std::string_view::npos) return {};
  const std::string_view version = stem.substr(at + 1);
  if (version.empty() || !IsDigit(version.front()) || version.back() == '.' ||
      version.find('.') == std::string_view::npos) {
    return {};
  }
  const std::string_view bare = stem.substr(0, at);
  return bare == "." || bare == ".." ? std::string_view() : bare;
}

}  // namespace

Result<ModelReference> ParseModelReference(std::string_view text) {
  ModelReference reference;
  if (text.empty()) {
    return InvalidArgumentError(
        "model name is empty; expected [namespace/]name[:version] or @sha256:<digest>");
  }
  if (text.size() > kMaxModelNameBytes) {
    return InvalidArgumentError("model name has " + std::to_string(text.size()) +
                                " bytes, at most " + std::to_string(kMaxModelNameBytes) +
                                " are allowed");
  }
  if (text.starts_with("@") || text.starts_with("sha256:")) {
    ASSIGN_OR_RETURN(reference.digest, Digest::Parse(text));
    return reference;
  }
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (!IsNameCharacter(c) && c != '/' && c != ':') {
      return InvalidArgumentError("model name has a character that is not allowed (byte " +
                                  std::to_string(static_cast<unsigned char>(c)) + " at position " +
                                  std::to_string(i) +
                                  "); allowed are letters, digits, spaces and . _ - / :");
    }
  }
  const size_t slash = text.find('/');
  const size_t colon = text.find(':');
  if ((slash != std::string_view::npos && text.find('/', slash + 1) != std::string_view::npos) ||
      (colon != std::string_view::npos && text.find(':', colon + 1) != std::string_view::npos) ||
      (colon != std::string_view::npos && slash != std::string_view::npos && colon < slash)) {
    return InvalidArgumentError("model name \"" + std::string(text.substr(0, 80)) +
                                "\" has too many parts; expected [namespace/]name[:version]");
  }
  std::string_view rest = text;
  if (slash != std::string_view::npos) {
    RETURN_IF_ERROR(CheckPart(rest.substr(0, slash), "namespace", text));
    rest.remove_prefix(slash + 1);
  }
  if (const size_t at = rest.find(':'); at != std::string_view::npos) {
    RETURN_IF_ERROR(CheckPart(rest.substr(at + 1), "version", text));
    rest = rest.substr(0, at);
  }
  RETURN_IF_ERROR(CheckPart(rest, "name", text));
  reference.name = std::string(text);
  return reference;
}

std::string CanonicalDirectoryName(std::string_view name) {
  std::string canonical(name);
  for (char& c : canonical) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == ' ' || c == '-' || c == ':') c = '_';
  }
  return canonical;
}

std::vector<std::string> ModelDirectoryNames(std::string_view name) {
  const Result<ModelReference> reference = ParseModelReference(name);
  if (!reference.ok() || reference->digest) return {};
  std::vector<std::string> names = {std::string(name)};
  if (std::string canonical = CanonicalDirectoryName(name); canonical != names[0]) {
    names.push_back(std::move(canonical));
  }
  return names;
}

std::vector<std::string> ModelFileStems(std::string_view name) {
  if (const auto reference = ParseModelReference(name); reference.ok() && reference->digest) {
    return {};
  }
  while (name.ends_with('/')) name.remove_suffix(1);
  name = name.substr(name.rfind('/') + 1);  // npos + 1 is 0.
  if (name.empty() || name == "." || name == ".." || name.size() > kMaxFileNameBytes ||
      name.find('\0') != std::string_view::npos) {
    return {};
  }
  std::vector<std::string> stems = {CanonicalDirectoryName(name)};
  if (const std::string_view bare = WithoutVersion(stems[0]); !bare.empty()) {
    stems.emplace_back(bare);
  }
  return stems;
}

}  // namespace trims
