#include "weights_file.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string_view>
#include <type_traits>
#include <vector>

#include "random.h"

namespace trims::models {
namespace {

static_assert(std::endian::native == std::endian::little,
              "both formats are little-endian and are written from memory as it is");

// A file that exists under its own name only once Commit has succeeded.
class OutputFile final {
 public:
  explicit OutputFile(std::string path) : path_(std::move(path)), partial_(path_ + ".partial") {
    file_ = std::fopen(partial_.c_str(), "wbe");
    if (file_ == nullptr) Fail("cannot create", partial_);
  }
  ~OutputFile() {
    if (file_ == nullptr) return;
    std::fclose(file_);
    std::remove(partial_.c_str());
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void Write(const void* bytes, size_t size) {
    if (size != 0 && std::fwrite(bytes, 1, size, file_) != size) Fail("cannot write", partial_);
  }
  void Write(std::string_view text) { Write(text.data(), text.size()); }
  template <typename T>
  requires std::is_arithmetic_v<T>
  void Number(T value) { Write(&value, sizeof value); }
  void Random(uint64_t seed, const std::string& name, uint64_t elements, float limit) {
    Xoshiro256 random(seed, name);
    while (elements != 0) {
      const auto count = static_cast<size_t>(std::min<uint64_t>(elements, buffer_.size()));
      const std::span<float> piece(buffer_.data(), count);
      random.FillUniform(piece, limit);
      Write(piece.data(), piece.size_bytes());
      elements -= count;
    }
  }
  void Commit() {
    const bool closed = std::fclose(file_) == 0;
    file_ = nullptr;
    if (!closed || std::rename(partial_.c_str(), path_.c_str()) != 0) {
      const int error = errno;
      std::remove(partial_.c_str());
      errno = error;
      Fail("cannot write", path_);
    }
  }

 private:
  [[noreturn]] static void Fail(const char* what, const std::string& path) {
    throw std::runtime_error(std::string(what) + " " + path + ": " + std::strerror(errno));
  }

  std::string path_;
  std::string partial_;
  std::FILE* file_ = nullptr;
  std::vector<float> buffer_ = std::vector<float>(64 * 1024);  // Even: see FillUniform.
};

}  // namespace

void WriteMxnetParams(const Network& network, uint64_t seed, ParamsVersion version,
                      const std::string& path) {
  OutputFile file(path);
  file.Number(uint64_t{0x112});
  file.Number(uint64_t{0});
  file.Number(uint64_t{network.tensors.size()});
  for (const TensorSpec& tensor : network.tensors) {
    if (version == ParamsVersion::kV1) file.Number(uint32_t{0xF993FAC8});
    if (version == ParamsVersion::kV2) file.Number(uint32_t{0xF993FAC9});
    if (version == ParamsVersion::kV3) file.Number(uint32_t{0xF993FACA});
    if (version >= ParamsVersion::kV2) file.Number(int32_t{0});  // Dense.
    file.Number(static_cast<uint32_t>(tensor.shape.size()));
    for (const int64_t dim : tensor.shape) {
      if (version == ParamsVersion::kV0) {
        file.Number(static_cast<uint32_t>(dim));
      } else {
        file.Number(dim);
      }
    }
    file.Number(int32_t{1});  // CPU
    file.Number(int32_t{0});  // number 0,
    file.Number(int32_t{0});  // float32.
    file.Random(seed, tensor.name, tensor.elements(), tensor.limit);
  }
  file.Number(uint64_t{network.tensors.size()});
  for (const TensorSpec& tensor : network.tensors) {
    const std::string name = "arg:" + tensor.name;
    file.Number(uint64_t{name.size()});
    file.Write(name);
  }
  file.Commit();
}

void WriteSafetensors(const Network& network, uint64_t seed, const std::string& path) {
  // By name, as the reference writer sorts tensors of one type.
  std::vector<const TensorSpec*> sorted;
  for (const TensorSpec& tensor : network.tensors) sorted.push_back(&tensor);
  std::sort(sorted.begin(), sorted.end(),
            [](const TensorSpec* a, const TensorSpec* b) { return a->name < b->name; });

  std::string header = "{";
  uint64_t offset = 0;
  for (const TensorSpec* tensor : sorted) {
    if (header.size() > 1) header += ",";
    header += "\"" + tensor->name + "\":{\"dtype\":\"F32\",\"shape\":[";
    for (size_t i = 0; i < tensor->shape.size(); ++i) {
      header += (i ? "," : "") + std::to_string(tensor->shape[i]);
    }
    header += "],\"data_offsets\":[" + std::to_string(offset) + ",";
    offset += tensor->elements() * sizeof(float);
    header += std::to_string(offset) + "]}";
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');

  OutputFile file(path);
  file.Number(uint64_t{header.size()});
  file.Write(header);
  for (const TensorSpec* tensor : sorted) {
    file.Random(seed, tensor->name, tensor->elements(), tensor->limit);
  }
  file.Commit();
}

void WriteInput(const Network& network, uint64_t seed, const std::string& path) {
  uint64_t elements = 1;
  for (const int64_t dim : network.input) elements *= static_cast<uint64_t>(dim);
  OutputFile file(path);
  file.Random(seed, "data", elements, network.input_limit);
  file.Commit();
}

void WriteText(const std::string& text, const std::string& path) {
  OutputFile file(path);
  file.Write(text);
  file.Commit();
}

}  // namespace trims::models
