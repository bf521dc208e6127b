// The safetensors container and its shard index.
//
//   0        u64 N, little-endian: bytes of the header, at most 100,000,000
//   8        N bytes of JSON, beginning with '{', padded with spaces
//   8 + N    the tensors' bytes, to the end of the file
//
// Sorted by offset the tensors must tile the data from its first to its last
// byte: nothing may hide between, behind or inside tensors.
//
// Where the reference parser is loose this one is strict: a key given twice,
// white space before the '{', a tensor without a name and a tensor written as an
// array are errors. Fields of a tensor that the format does not define are
// stepped over, as the reference does.

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <optional>
#include <utility>

#include "base/limits.h"
#include "format/json_events.h"
#include "format/model_file.h"
#include "format/sniff.h"
#include "format/text.h"

namespace trims::format {
namespace {

// Generous for what tools write, which is some hundred entries; it bounds the
// memory that a header of nothing but metadata can take.
constexpr size_t kMaxMetadataEntries = 65'536;
constexpr size_t kMaxShardFileNameBytes = 255;  // NAME_MAX

// Offsets stay relative to the data until the whole header was read.
struct HeaderTensor {
  TensorEntry entry;
  uint64_t begin = 0;
  uint64_t end = 0;
};

class HeaderSink final : public JsonSink {
 public:
  explicit HeaderSink(const std::string& file) : file_(file) {}

  Status OnEvent(const JsonEvent& event) override;

  std::vector<HeaderTensor>& tensors() { return tensors_; }
  std::map<std::string, std::string>& metadata() { return metadata_; }

 private:
  enum class State : uint8_t {
    kStart,
    kTop,            // Between the entries of the header.
    kMetadataBegin,  // After "__metadata__":
    kMetadata,
    kMetadataValue,
    kTensorBegin,
    kTensor,
    kDType,
    kShapeBegin,
    kShape,
    kOffsetsBegin,
    kOffsets,
    kSkip,  // An unknown field of a tensor.
  };

  Status OnTopKey(std::string& name);
  Status OnMetadata(const JsonEvent& event);
  Status OnTensor(const JsonEvent& event);
  Status OnShape(const JsonEvent& event);
  Status OnOffsets(const JsonEvent& event);
  Status EndTensor();

  Status Expected(std::string_view what, std::string_view expected, JsonKind found) const {
    return InvalidArgumentError(file_ + ": " + std::string(what) + " is " +
                                std::string(JsonKindName(found)) + "; expected " +
                                std::string(expected));
  }
  std::string Tensor() const { return "tensor " + Quoted(tensors_.back().entry.name); }

  const std::string& file_;
  State state_ = State::kStart;
  std::vector<HeaderTensor> tensors_;
  std::map<std::string, std::string> metadata_;
  std::string metadata_key_;
  JsonSkipper skipper_;
  size_t offsets_seen_ = 0;
  bool has_metadata_ = false;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
};

Status HeaderSink::OnEvent(const JsonEvent& event) {
  switch (state_) {
    case State::kStart:
      if (event.kind != JsonKind::kObjectBegin) {
        return Expected("the safetensors header", "an object", event.kind);
      }
      state_ = State::kTop;
      return OkStatus();
    case State::kTop:
      if (event.kind == JsonKind::kKey) return OnTopKey(*event.text);
      return OkStatus();  // The header's own end.
    case State::kMetadataBegin:
    case State::kMetadata:
    case State::kMetadataValue:
      return OnMetadata(event);
    case State::kTensorBegin:
      if (event.kind != JsonKind::kObjectBegin) {
        return Expected(Tensor(), "an object with dtype, shape and data_offsets", event.kind);
      }
      state_ = State::kTensor;
      return OkStatus();
    case State::kTensor:
      return OnTensor(event);
    case State::kDType: {
      if (event.kind != JsonKind::kString) {
        return Expected("the dtype of " + Tensor(), "a string", event.kind);
      }
      const std::optional<DType> dtype = DTypeFromName(*event.text);
      if (!dtype.has_value()) {
        return InvalidArgumentError(file_ + ": " + Tensor() + " has the unknown dtype " +
                                    Quoted(*event.text));
      }
      tensors_.back().entry.dtype = *dtype;
      state_ = State::kTensor;
      return OkStatus();
    }
    case State::kShapeBegin:
    case State::kShape:
      return OnShape(event);
    case State::kOffsetsBegin:
    case State::kOffsets:
      return OnOffsets(event);
    case State::kSkip:
      if (skipper_.Feed(event.kind)) state_ = State::kTensor;
      return OkStatus();
  }
  return InternalError(file_ + ": unknown state of the safetensors parser");
}

Status HeaderSink::OnTopKey(std::string& name) {
  if (name == "__metadata__") {
    if (std::exchange(has_metadata_, true)) {
      return InvalidArgumentError(file_ + ": the header has __metadata__ twice");
    }
    state_ = State::kMetadataBegin;
    return OkStatus();
  }
  RETURN_IF_ERROR(
      CheckName(name, file_ + ": tensor number " + std::to_string(tensors_.size() + 1)));
  if (tensors_.size() == kMaxTensorsPerModel) {
    return InvalidArgumentError(file_ + " has more than " + std::to_string(kMaxTensorsPerModel) +
                                " tensors, which is the most that is read");
  }
  tensors_.emplace_back().entry.name = std::move(name);
  has_dtype_ = has_shape_ = has_offsets_ = false;
  state_ = State::kTensorBegin;
  return OkStatus();
}

Status HeaderSink::OnMetadata(const JsonEvent& event) {
  if (state_ == State::kMetadataBegin) {
    if (event.kind == JsonKind::kNull) {  // The reference takes it as no metadata.
      state_ = State::kTop;
      return OkStatus();
    }
    if (event.kind != JsonKind::kObjectBegin) {
      return Expected("__metadata__", "an object of strings", event.kind);
    }
    state_ = State::kMetadata;
    return OkStatus();
  }
  if (state_ == State::kMetadata) {
    if (event.kind == JsonKind::kObjectEnd) {
      state_ = State::kTop;
      return OkStatus();
    }
    metadata_key_ = std::move(*event.text);
    state_ = State::kMetadataValue;
    return OkStatus();
  }
  if (event.kind != JsonKind::kString) {
    return Expected("the value of " + Quoted(metadata_key_) + " in __metadata__", "a string",
                    event.kind);
  }
  if (metadata_.size() == kMaxMetadataEntries) {
    return InvalidArgumentError(file_ + " has more than " + std::to_string(kMaxMetadataEntries) +
                                " entries in __metadata__, which is the most that is read");
  }
  const auto [entry, fresh] = metadata_.try_emplace(metadata_key_, std::move(*event.text));
  if (!fresh) {
    return InvalidArgumentError(file_ + ": __metadata__ has the key " + Quoted(metadata_key_) +
                                " twice");
  }
  state_ = State::kMetadata;
  return OkStatus();
}

Status HeaderSink::OnTensor(const JsonEvent& event) {
  if (event.kind == JsonKind::kObjectEnd) return EndTensor();
  const std::string& field = *event.text;
  bool* seen = nullptr;
  if (field == "dtype") {
    seen = &has_dtype_;
    state_ = State::kDType;
  } else if (field == "shape") {
    seen = &has_shape_;
    state_ = State::kShapeBegin;
  } else if (field == "data_offsets") {
    seen = &has_offsets_;
    state_ = State::kOffsetsBegin;
  } else {
    skipper_ = JsonSkipper();
    state_ = State::kSkip;
    return OkStatus();
  }
  if (std::exchange(*seen, true)) {
    return InvalidArgumentError(file_ + ": " + Tensor() + " has the field " + Quoted(field) +
                                " twice");
  }
  return OkStatus();
}

Status HeaderSink::OnShape(const JsonEvent& event) {
  if (state_ == State::kShapeBegin) {
    if (event.kind != JsonKind::kArrayBegin) {
      return Expected("the shape of " + Tensor(), "an array of whole numbers", event.kind);
    }
    state_ = State::kShape;
    return OkStatus();
  }
  if (event.kind == JsonKind::kArrayEnd) {
    state_ = State::kTensor;
    return OkStatus();
  }
  if (event.kind != JsonKind::kUnsigned) {
    return Expected("a dimension of " + Tensor(), "a whole number from 0", event.kind);
  }
  if (event.number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return InvalidArgumentError(file_ + ": " + Tensor() + " has a dimension of " +
                                std::to_string(event.number) + ", which is 2^63 or more");
  }
  std::vector<int64_t>& shape = tensors_.back().entry.shape;
  if (shape.size() == kMaxTensorRank) {
    return InvalidArgumentError(file_ + ": " + Tensor() + " has more than " +
                                std::to_string(kMaxTensorRank) + " dimensions");
  }
  shape.push_back(static_cast<int64_t>(event.number));
  return OkStatus();
}

Status HeaderSink::OnOffsets(const JsonEvent& event) {
  if (state_ == State::kOffsetsBegin) {
    if (event.kind != JsonKind::kArrayBegin) {
      return Expected("data_offsets of " + Tensor(), "an array of two whole numbers", event.kind);
    }
    offsets_seen_ = 0;
    state_ = State::kOffsets;
    return OkStatus();
  }
  if (event.kind == JsonKind::kArrayEnd) {
    if (offsets_seen_ != 2) {
      return InvalidArgumentError(file_ + ": data_offsets of " + Tensor() + " has " +
                                  std::to_string(offsets_seen_) + " numbers; expected 2");
    }
    state_ = State::kTensor;
    return OkStatus();
  }
  if (event.kind != JsonKind::kUnsigned) {
    return Expected("an offset of " + Tensor(), "a whole number from 0", event.kind);
  }
  if (offsets_seen_ == 2) {
    return InvalidArgumentError(file_ + ": data_offsets of " + Tensor() +
                                " has more than 2 numbers");
  }
  (offsets_seen_++ == 0 ? tensors_.back().begin : tensors_.back().end) = event.number;
  return OkStatus();
}

Status HeaderSink::EndTensor() {
  const char* missing = !has_dtype_     ? "dtype"
                        : !has_shape_   ? "shape"
                        : !has_offsets_ ? "data_offsets"
                                        : nullptr;
  if (missing != nullptr) {
    return InvalidArgumentError(file_ + ": " + Tensor() + " has no " + missing);
  }
  state_ = State::kTop;
  return OkStatus();
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t dim : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(dim);
  }
  return text + "]";
}

// What shape and dtype ask for must be what the offsets say.
Status CheckSize(const std::string& file, const HeaderTensor& tensor) {
  const TensorEntry& entry = tensor.entry;
  const std::string who = file + ": tensor " + Quoted(entry.name);
  if (tensor.begin > tensor.end) {
    return InvalidArgumentError(who + " begins at " + std::to_string(tensor.begin) +
                                " of the data and ends before, at " + std::to_string(tensor.end));
  }
  // In the reference's order, so that both refuse the same shapes: [2^62, 0] has
  // a size, [2^62, 2^62, 0] has none.
  uint64_t bits = 1;
  bool overflow = false;
  for (const int64_t dim : entry.shape) {
    overflow |= __builtin_mul_overflow(bits, static_cast<uint64_t>(dim), &bits);
  }
  overflow |= __builtin_mul_overflow(bits, DTypeBits(entry.dtype), &bits);
  if (overflow) {
    return InvalidArgumentError(who + " has the shape " + ShapeText(entry.shape) + " of " +
                                std::string(DTypeName(entry.dtype)) +
                                ": its size does not fit in 64 bits");
  }
  if (bits % 8 != 0) {
    return InvalidArgumentError(who + " has the shape " + ShapeText(entry.shape) + " of " +
                                std::string(DTypeName(entry.dtype)) + ", which is " +
                                std::to_string(bits) + " bits; expected whole bytes");
  }
  if (bits / 8 != tensor.end - tensor.begin) {
    return InvalidArgumentError(who + " has the shape " + ShapeText(entry.shape) + " of " +
                                std::string(DTypeName(entry.dtype)) + ", which needs " +
                                std::to_string(bits / 8) + " bytes; data_offsets give it " +
                                std::to_string(tensor.end - tensor.begin));
  }
  return OkStatus();
}

Status CheckUniqueNames(const std::string& file, const std::vector<HeaderTensor>& tensors) {
  std::vector<const std::string*> names;
  names.reserve(tensors.size());
  for (const HeaderTensor& tensor : tensors) names.push_back(&tensor.entry.name);
  std::sort(names.begin(), names.end(),
            [](const std::string* a, const std::string* b) { return *a < *b; });
  const auto twin =
      std::adjacent_find(names.begin(), names.end(),
                         [](const std::string* a, const std::string* b) { return *a == *b; });
  if (twin == names.end()) return OkStatus();
  return InvalidArgumentError(file + ": the header has the tensor " + Quoted(**twin) + " twice");
}

Status CheckTiling(const std::string& file, const std::vector<HeaderTensor>& tensors,
                   uint64_t data_size) {
  uint64_t position = 0;
  for (const HeaderTensor& tensor : tensors) {
    if (tensor.begin != position) {
      return InvalidArgumentError(file + ": tensor " + Quoted(tensor.entry.name) + " begins at " +
                                  std::to_string(tensor.begin) + " of the data; expected " +
                                  std::to_string(position) +
                                  (tensor.begin > position ? ": there is a hole before it"
                                                           : ": it overlaps the tensor before it"));
    }
    position = tensor.end;
  }
  if (position > data_size) {
    return InvalidArgumentError(file + " is truncated: its header describes " +
                                std::to_string(position) + " bytes of data, the file has " +
                                std::to_string(data_size) + "; fetch it again");
  }
  if (position < data_size) {
    return InvalidArgumentError(file + " has " + std::to_string(data_size - position) +
                                " bytes after its last tensor that belong to no tensor");
  }
  return OkStatus();
}

}  // namespace

Result<FileIndex> ParseSafetensors(const ByteSource& source) {
  const std::string& file = source.description();
  std::array<std::byte, 9> start = {};
  if (source.size() < start.size() + 1) {  // The smallest header is "{}".
    return InvalidArgumentError(file + " has " + std::to_string(source.size()) +
                                " bytes; a safetensors file has at least 10");
  }
  RETURN_IF_ERROR(source.ReadAt(0, start));
  uint64_t header_size = 0;
  for (size_t i = 0; i < 8; ++i) header_size |= std::to_integer<uint64_t>(start[i]) << (8 * i);
  if (header_size > kMaxSafetensorsHeaderBytes) {
    return InvalidArgumentError(file + " announces a safetensors header of " +
                                std::to_string(header_size) + " bytes; at most " +
                                std::to_string(kMaxSafetensorsHeaderBytes) + " are allowed");
  }
  if (header_size < 2) {
    return InvalidArgumentError(file + " announces a safetensors header of " +
                                std::to_string(header_size) + " bytes; the smallest has 2");
  }
  if (start[8] != std::byte{'{'}) {
    return InvalidArgumentError(
        file + ": the safetensors header begins with " +
        Quoted(std::string_view(reinterpret_cast<const char*>(&start[8]), 1)) + "; expected '{'");
  }
  if (header_size > source.size() - 8) {
    return InvalidArgumentError(file + " is truncated: its safetensors header has " +
                                std::to_string(header_size) + " bytes, the file ends after " +
                                std::to_string(source.size() - 8) + " of them; fetch it again");
  }

  HeaderSink sink(file);
  {
    std::string header(header_size, '\0');
    RETURN_IF_ERROR(source.ReadAt(8, std::as_writable_bytes(std::span(header))));
    // The file may change between two reads; nothing above is relied on below.
    RETURN_IF_ERROR(WalkJson(header, file + ": the safetensors header", sink));
  }

  std::vector<HeaderTensor>& tensors = sink.tensors();
  for (const HeaderTensor& tensor : tensors) RETURN_IF_ERROR(CheckSize(file, tensor));
  RETURN_IF_ERROR(CheckUniqueNames(file, tensors));
  // Stable, so that empty tensors at one place keep the header's order.
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const HeaderTensor& a, const HeaderTensor& b) {
                     return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                   });
  const uint64_t data_begin = 8 + header_size;
  RETURN_IF_ERROR(CheckTiling(file, tensors, source.size() - data_begin));

  FileIndex index;
  index.format = FileFormat::kSafetensors;
  index.metadata = std::move(sink.metadata());
  index.tensors.reserve(tensors.size());
  for (HeaderTensor& tensor : tensors) {
    tensor.entry.offset = data_begin + tensor.begin;
    tensor.entry.size_bytes = tensor.end - tensor.begin;
    index.tensors.push_back(std::move(tensor.entry));
  }
  return index;
}

// --- Shard index --------------------------------------------------------------

namespace {

class ShardSink final : public JsonSink {
 public:
  ShardSink(const std::string& file, ShardIndex& index) : file_(file), index_(index) {}

  Status OnEvent(const JsonEvent& event) override {
    switch (state_) {
      case State::kStart:
        if (event.kind != JsonKind::kObjectBegin) {
          return Expected("the shard index", "an object", event.kind);
        }
        state_ = State::kTop;
        return OkStatus();
      case State::kTop:
        if (event.kind != JsonKind::kKey) return OkStatus();  // The end.
        if (*event.text != "weight_map") {
          skipper_ = JsonSkipper();
          state_ = State::kSkip;
          return OkStatus();
        }
        if (std::exchange(has_map_, true)) {
          return InvalidArgumentError(file_ + " has weight_map twice");
        }
        state_ = State::kMapBegin;
        return OkStatus();
      case State::kSkip:
        if (skipper_.Feed(event.kind)) state_ = State::kTop;
        return OkStatus();
      case State::kMapBegin:
        if (event.kind != JsonKind::kObjectBegin) {
          return Expected("weight_map", "an object of tensor names and file names", event.kind);
        }
        state_ = State::kMap;
        return OkStatus();
      case State::kMap:
        if (event.kind == JsonKind::kObjectEnd) {
          state_ = State::kTop;
          return OkStatus();
        }
        tensor_ = std::move(*event.text);
        state_ = State::kFile;
        return OkStatus();
      case State::kFile:
        if (event.kind != JsonKind::kString) {
          return Expected("the file of tensor " + Quoted(tensor_), "a string", event.kind);
        }
        state_ = State::kMap;
        return OnEntry(*event.text);
    }
    return InternalError(file_ + ": unknown state of the shard index parser");
  }

  bool has_map() const { return has_map_; }

 private:
  enum class State : uint8_t { kStart, kTop, kSkip, kMapBegin, kMap, kFile };

  Status OnEntry(std::string& name) {
    RETURN_IF_ERROR(
        CheckName(tensor_, file_ + ": entry " + std::to_string(index_.weight_map.size() + 1)));
    RETURN_IF_ERROR(CheckName(name, file_ + ": the file of tensor " + Quoted(tensor_)));
    if (name.find('/') != std::string::npos || name == "." || name == ".." ||
        name.size() > kMaxShardFileNameBytes) {
      return InvalidArgumentError(file_ + ": tensor " + Quoted(tensor_) + " is said to be in " +
                                  Quoted(name) +
                                  "; expected the name of a file in the folder of the index");
    }
    if (index_.weight_map.size() == kMaxTensorsPerModel) {
      return InvalidArgumentError(file_ + " has more than " + std::to_string(kMaxTensorsPerModel) +
                                  " tensors");
    }
    if (!index_.weight_map.try_emplace(tensor_, std::move(name)).second) {
      return InvalidArgumentError(file_ + " has the tensor " + Quoted(tensor_) + " twice");
    }
    return OkStatus();
  }

  Status Expected(std::string_view what, std::string_view expected, JsonKind found) const {
    return InvalidArgumentError(file_ + ": " + std::string(what) + " is " +
                                std::string(JsonKindName(found)) + "; expected " +
                                std::string(expected));
  }

  const std::string& file_;
  ShardIndex& index_;
  State state_ = State::kStart;
  JsonSkipper skipper_;
  std::string tensor_;
  bool has_map_ = false;
};

}  // namespace

Result<ShardIndex> ParseSafetensorsShardIndex(const ByteSource& source) {
  const std::string& file = source.description();
  if (source.size() > kMaxSafetensorsHeaderBytes) {
    return InvalidArgumentError(file + " has " + std::to_string(source.size()) +
                                " bytes; a shard index of at most " +
                                std::to_string(kMaxSafetensorsHeaderBytes) + " is read");
  }
  std::string text(source.size(), '\0');
  RETURN_IF_ERROR(source.ReadAt(0, std::as_writable_bytes(std::span(text))));
  RETURN_IF_ERROR(CheckNotForeign(text, file));
  ShardIndex index;
  ShardSink sink(file, index);
  RETURN_IF_ERROR(WalkJson(text, file, sink));
  if (!sink.has_map()) {
    return InvalidArgumentError(file + " has no weight_map: it is not a safetensors shard index");
  }
  if (index.weight_map.empty()) return InvalidArgumentError(file + ": weight_map is empty");
  index.files.reserve(index.weight_map.size());
  for (const auto& [tensor, name] : index.weight_map) index.files.push_back(name);
  std::sort(index.files.begin(), index.files.end());
  index.files.erase(std::unique(index.files.begin(), index.files.end()), index.files.end());
  index.files.shrink_to_fit();
  if (index.files.size() > kMaxFilesPerModel) {
    return InvalidArgumentError(file + " names " + std::to_string(index.files.size()) +
                                " files; at most " + std::to_string(kMaxFilesPerModel) +
                                " are read");
  }
  return index;
}

}  // namespace trims::format
