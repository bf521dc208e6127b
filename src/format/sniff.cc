#include "format/sniff.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <span>

#include "base/limits.h"
#include "format/model_file.h"
#include "format/text.h"

namespace trims::format {
namespace {

using std::string_view_literals::operator""sv;

constexpr std::string_view kConvert =
    "convert it to safetensors, for example with safetensors.torch.save_file"sv;

bool StartsWithIgnoringCase(std::string_view text, std::string_view lower_case_prefix) {
  if (text.size() < lower_case_prefix.size()) return false;
  for (size_t i = 0; i < lower_case_prefix.size(); ++i) {
    if (std::tolower(static_cast<unsigned char>(text[i])) != lower_case_prefix[i]) return false;
  }
  return true;
}

// "of 102400 bytes" from the pointer's size line; empty if there is none.
std::string LfsSize(std::string_view head) {
  const size_t line = head.find("\nsize ");
  if (line == std::string_view::npos) return "";
  std::string_view digits = head.substr(line + 6);
  digits = digits.substr(0, digits.find_first_not_of("0123456789"));
  if (digits.empty() || digits.size() > 19) return "";
  return " to a file of " + std::string(digits) + " bytes";
}

bool IsPickle(std::string_view head) {
  // PROTO 2..5, then what pickles of checkpoints go on with: a frame, an empty
  // dict, a class, or the long integer that opens PyTorch's old format.
  return head.size() >= 3 && head[0] == '\x80' && head[1] >= 2 && head[1] <= 5 &&
         "\x95}c\x8a]("sv.find(head[2]) != std::string_view::npos;
}

struct Magic {
  std::string_view bytes;
  std::string_view what;
  std::string_view advice;
};
constexpr std::array kMagics = {
    Magic{"PK\x03\x04"sv, "a zip archive, such as PyTorch's .pt and NumPy's .npz", kConvert},
    Magic{"PK\x05\x06"sv, "an empty zip archive", kConvert},
    Magic{"GGUF"sv, "a GGUF file", "use the model's safetensors files instead"sv},
    Magic{"\x1f\x8b"sv, "compressed with gzip", "decompress it with gunzip first"sv},
    Magic{"\x28\xb5\x2f\xfd"sv, "compressed with zstd", "decompress it with unzstd first"sv},
    Magic{"\xfd\x37zXZ\0"sv, "compressed with xz", "decompress it with unxz first"sv},
    Magic{"BZh"sv, "compressed with bzip2", "decompress it with bunzip2 first"sv},
    Magic{"\x89HDF\r\n\x1a\n"sv, "an HDF5 file", "export the model as safetensors"sv},
    Magic{"|TZR|"sv, "a tensorizer file", "use the model's safetensors files instead"sv},
    Magic{"\x93NUMPY"sv, "a NumPy .npy file", "save it with safetensors.numpy.save_file"sv},
    Magic{"\0\0\0\0\0\0\x01\x12"sv, "an MXNet .params file of a big-endian machine",
          "save it again on a little-endian one"sv},
};

}  // namespace

Status CheckNotForeign(std::string_view head, const std::string& file) {
  if (head.empty()) return InvalidArgumentError(file + " is empty");
  if (head.starts_with("version https://git-lfs.github.com/spec/")) {
    return InvalidArgumentError(file + " is a Git LFS pointer" + LfsSize(head) +
                                ", not the file itself: fetch it with 'git lfs pull'");
  }
  std::string_view text = head;
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  for (const std::string_view tag : {"<!doctype"sv, "<html"sv, "<head"sv, "<?xml"sv, "<error"sv}) {
    if (StartsWithIgnoringCase(text, tag)) {
      return InvalidArgumentError(file +
                                  " is an HTML or XML page, not a model: the download was answered "
                                  "with an error or log-in page; fetch it again");
    }
  }
  for (const Magic& magic : kMagics) {
    if (head.starts_with(magic.bytes)) {
      return InvalidArgumentError(file + " is " + std::string(magic.what) + ": " +
                                  std::string(magic.advice));
    }
  }
  if (IsPickle(head)) {
    return InvalidArgumentError(
        file + " is a Python pickle, which can run code when it is read: " + std::string(kConvert));
  }
  if (head.size() >= 262 && head.substr(257, 5) == "ustar") {
    return InvalidArgumentError(file + " is a tar archive: unpack it first");
  }
  return OkStatus();
}

Result<FileIndex> ParseModelFile(const ByteSource& source) {
  const std::string& file = source.description();
  std::array<char, kSniffBytes> buffer = {};
  const std::string_view head(buffer.data(), std::min<uint64_t>(buffer.size(), source.size()));
  RETURN_IF_ERROR(source.ReadAt(0, std::as_writable_bytes(std::span(buffer).first(head.size()))));
  if (head.starts_with("\x12\x01\0\0\0\0\0\0"sv)) return ParseMxnetParams(source);
  // Before the magics: a header's length may look like some of them.
  if (head.size() > 8 && head[8] == '{') {
    uint64_t header_size = 0;
    for (size_t i = 0; i < 8; ++i) {
      header_size |= uint64_t{static_cast<unsigned char>(head[i])} << (8 * i);
    }
    if (header_size <= kMaxSafetensorsHeaderBytes) return ParseSafetensors(source);
  }
  RETURN_IF_ERROR(CheckNotForeign(head, file));
  if (head[0] == '{') {
    return InvalidArgumentError(file +
                                " is JSON text, such as a shard index or an MXNet symbol; expected "
                                "the weights themselves");
  }
  return InvalidArgumentError(
      file + " is neither a safetensors nor an MXNet .params file; it has " +
      std::to_string(source.size()) + " bytes and begins with " + Quoted(head.substr(0, 16)));
}

}  // namespace trims::format
