// MXNet's .params files: a list of arrays, then a list of their names.
//
//   0    u64 0x112
//   8    u64 reserved
//   16   u64 n, then n arrays, without padding
//        u64 m, 0 or n, then m times { u64 length; bytes }
//
// An array begins with a u32 that tells its variant:
//
//   V0  <= 0.10  rank        u32 dims[]                      all little-endian
//   V1  0.11     0xf993fac8  u32 rank, i64 dims[]
//   V2  0.12     0xf993fac9  i32 storage, u32 rank, i64 dims[]
//   V3  1.5 np   0xf993faca  i32 storage, i32 rank, i64 dims[]
//
// followed by i32 device type, i32 device id, i32 element type and the elements;
// or by nothing at all where the shape says that there is no array ("none"):
// rank 0 in V0 to V2, rank or a dimension of -1 in V3, where rank 0 is a scalar.
//
// The device is ignored: it is where the writer happened to keep the array.
// Bytes after the last name are ignored as MXNet does. Unlike MXNet this parser
// refuses a name given twice, of which MXNet keeps the last, and a named array
// that is none, because whoever asks for it would find nothing; none arrays of a
// list without names are left out. Arrays without names are called by their
// position, "0", "1" and so on.

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <utility>

#include "base/limits.h"
#include "format/model_file.h"
#include "format/sniff.h"
#include "format/text.h"

namespace trims::format {
namespace {

static_assert(std::endian::native == std::endian::little,
              "ReadLittleEndian copies bytes as they are");

constexpr uint64_t kListMagic = 0x112;
constexpr uint32_t kMagicV1 = 0xf993fac8;
constexpr uint32_t kMagicV2 = 0xf993fac9;
constexpr uint32_t kMagicV3 = 0xf993faca;
constexpr uint64_t kSmallestArrayBytes = 4;  // A V0 that is none.

// Reads forward through a source, a page at a time, so that a file of many
// small arrays does not cost a read per number.
class Cursor final {
 public:
  explicit Cursor(const ByteSource& source) : source_(source) {}

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return source_.size() - offset_; }

  // At most the window's size. `what` and `who` tell where a truncated file ends.
  Status Read(std::span<std::byte> out, std::string_view who, std::string_view what) {
    if (out.size() > remaining()) return Truncated(out.size(), who, what);
    if (offset_ < window_begin_ || offset_ + out.size() > window_begin_ + window_size_) {
      window_size_ = 0;
      const uint64_t size = std::min<uint64_t>(window_.size(), remaining());
      RETURN_IF_ERROR(source_.ReadAt(offset_, std::span(window_).first(size)));
      window_begin_ = offset_;
      window_size_ = size;
    }
    std::memcpy(out.data(), window_.data() + (offset_ - window_begin_), out.size());
    offset_ += out.size();
    return OkStatus();
  }

  template <typename T>
  Status ReadNumber(T& out, std::string_view who, std::string_view what) {
    std::array<std::byte, sizeof(T)> bytes = {};
    RETURN_IF_ERROR(Read(bytes, who, what));
    out = std::bit_cast<T>(bytes);
    return OkStatus();
  }

  Status Skip(uint64_t size, std::string_view who, std::string_view what) {
    if (size > remaining()) return Truncated(size, who, what);
    offset_ += size;
    return OkStatus();
  }

 private:
  Status Truncated(uint64_t size, std::string_view who, std::string_view what) const {
    return InvalidArgumentError(source_.description() + " is truncated: " + std::string(who) +
                                " needs " + std::to_string(size) + " bytes for " +
                                std::string(what) + " at offset " + std::to_string(offset_) +
                                ", where the file has " + std::to_string(remaining()) +
                                "; fetch it again");
  }

  const ByteSource& source_;
  uint64_t offset_ = 0;
  uint64_t window_begin_ = 0;
  uint64_t window_size_ = 0;
  std::array<std::byte, 4096> window_;
};
static_assert(kMaxTensorNameBytes <= 4096 && kMaxTensorRank * 8 <= 4096,
              "names and shapes must fit in the cursor's window");

std::optional<DType> DTypeFromTypeFlag(int32_t flag) {
  switch (flag) {
    case 0:
      return DType::kF32;
    case 1:
      return DType::kF64;
    case 2:
      return DType::kF16;
    case 3:
      return DType::kU8;
    case 4:
      return DType::kI32;
    case 5:
      return DType::kI8;
    case 6:
      return DType::kI64;
    case 7:
      return DType::kBool;
    case 8:
      return DType::kI16;
    case 9:
      return DType::kU16;
    case 10:
      return DType::kU32;
    case 11:
      return DType::kU64;
    case 12:
      return DType::kBF16;
    default:
      return std::nullopt;
  }
}

std::string Hex(uint32_t value) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text = "0x";
  for (int shift = 28; shift >= 0; shift -= 4) text += kDigits[value >> shift & 15];
  return text;
}

Status CheckStorage(const std::string& who, int32_t storage) {
  switch (storage) {
    case 0:
      return OkStatus();
    case 1:
    case 2:
      return UnimplementedError(who + " is sparse (" + (storage == 1 ? "row_sparse" : "csr") +
                                "); only dense arrays are read: convert it with "
                                "array.tostype('default') and save again");
    default:
      return InvalidArgumentError(who + " has the unknown storage type " + std::to_string(storage) +
                                  "; expected 0 (dense)");
  }
}

// One array without its name. nullopt: it is none.
class ArrayReader final {
 public:
  ArrayReader(Cursor& cursor, const std::string& file, uint64_t number)
      : cursor_(cursor), name_("array " + std::to_string(number)), who_(file + ": " + name_) {}

  Result<std::optional<TensorEntry>> Read() {
    const uint64_t begin = cursor_.offset();
    uint32_t magic = 0;
    RETURN_IF_ERROR(cursor_.ReadNumber(magic, name_, "the magic number"));
    uint32_t rank = magic;
    bool narrow_dims = true;
    if (magic == kMagicV1 || magic == kMagicV2 || magic == kMagicV3) {
      narrow_dims = false;
      if (magic != kMagicV1) {
        int32_t storage = 0;
        RETURN_IF_ERROR(cursor_.ReadNumber(storage, name_, "the storage type"));
        RETURN_IF_ERROR(CheckStorage(who_, storage));
      }
      RETURN_IF_ERROR(cursor_.ReadNumber(rank, name_, "the rank"));
    } else if (magic > kMaxTensorRank) {
      return InvalidArgumentError(who_ + " at offset " + std::to_string(begin) +
                                  " has the unknown magic number " + Hex(magic) +
                                  ": the file is damaged or of a later version");
    }
    const bool np_shape = magic == kMagicV3;
    if (np_shape ? static_cast<int32_t>(rank) == -1 : rank == 0)
      return std::optional<TensorEntry>();
    if (rank > kMaxTensorRank) {
      return InvalidArgumentError(who_ + " at offset " + std::to_string(begin) + " has " +
                                  std::to_string(rank) + " dimensions; at most " +
                                  std::to_string(kMaxTensorRank) + " are allowed");
    }
    TensorEntry entry;
    ASSIGN_OR_RETURN(entry.shape,
                     narrow_dims ? ReadShape<uint32_t>(rank) : ReadShape<int64_t>(rank));
    for (const int64_t dim : entry.shape) {
      if (dim == -1 && np_shape) return std::optional<TensorEntry>();
      if (dim < 0) {
        return InvalidArgumentError(who_ + " has a dimension of " + std::to_string(dim) +
                                    "; expected 0 or more");
      }
    }
    RETURN_IF_ERROR(ReadBody(entry));
    return std::optional(std::move(entry));
  }

 private:
  template <typename Dim>
  Result<std::vector<int64_t>> ReadShape(uint32_t rank) {
    std::array<Dim, kMaxTensorRank> dims = {};
    RETURN_IF_ERROR(
        cursor_.Read(std::as_writable_bytes(std::span(dims).first(rank)), name_, "the shape"));
    return std::vector<int64_t>(dims.begin(), dims.begin() + rank);
  }

  Status ReadBody(TensorEntry& entry) {
    struct {
      int32_t device_type;
      int32_t device_id;
      int32_t type_flag;
    } fields = {};
    RETURN_IF_ERROR(cursor_.ReadNumber(fields, name_, "device and element type"));
    const std::optional<DType> dtype = DTypeFromTypeFlag(fields.type_flag);
    if (!dtype.has_value()) {
      return InvalidArgumentError(who_ + " has the unknown element type " +
                                  std::to_string(fields.type_flag) + "; known are 0 to 12");
    }
    entry.dtype = *dtype;
    uint64_t size = DTypeBits(entry.dtype) / 8;
    for (const int64_t dim : entry.shape) {
      if (__builtin_mul_overflow(size, static_cast<uint64_t>(dim), &size)) {
        return InvalidArgumentError(who_ + " has a shape whose size does not fit in 64 bits");
      }
    }
    entry.offset = cursor_.offset();
    entry.size_bytes = size;
    return cursor_.Skip(size, name_, "the elements");
  }

  Cursor& cursor_;
  const std::string name_;
  const std::string who_;
};

Status CheckUniqueNames(const std::string& file, const std::vector<TensorEntry>& tensors) {
  std::vector<const std::string*> names;
  names.reserve(tensors.size());
  for (const TensorEntry& tensor : tensors) names.push_back(&tensor.name);
  std::sort(names.begin(), names.end(),
            [](const std::string* a, const std::string* b) { return *a < *b; });
  const auto twin =
      std::adjacent_find(names.begin(), names.end(),
                         [](const std::string* a, const std::string* b) { return *a == *b; });
  if (twin == names.end()) return OkStatus();
  return InvalidArgumentError(file + " has two arrays named " + Quoted(**twin));
}

}  // namespace

Result<FileIndex> ParseMxnetParams(const ByteSource& source) {
  const std::string& file = source.description();
  Cursor cursor(source);
  constexpr std::string_view kList = "the list of arrays";
  uint64_t magic = 0;
  uint64_t reserved = 0;
  uint64_t count = 0;
  if (source.size() >= sizeof(magic)) RETURN_IF_ERROR(cursor.ReadNumber(magic, kList, "the magic"));
  if (magic != kListMagic) {
    std::array<char, kSniffBytes> head = {};
    const size_t size = std::min<uint64_t>(head.size(), source.size());
    RETURN_IF_ERROR(source.ReadAt(0, std::as_writable_bytes(std::span(head).first(size))));
    RETURN_IF_ERROR(CheckNotForeign(std::string_view(head.data(), size), file));
    return InvalidArgumentError(file + " is not an MXNet .params file: it begins with " +
                                Quoted(std::string_view(head.data(), std::min<size_t>(size, 8))) +
                                "; expected '\\x12\\x01\\x00\\x00\\x00\\x00\\x00\\x00'");
  }
  RETURN_IF_ERROR(cursor.ReadNumber(reserved, kList, "the reserved field"));
  RETURN_IF_ERROR(cursor.ReadNumber(count, kList, "the count"));
  if (count > cursor.remaining() / kSmallestArrayBytes) {
    return InvalidArgumentError(file + " is truncated or damaged: it announces " +
                                std::to_string(count) + " arrays and has " +
                                std::to_string(cursor.remaining()) + " bytes left for them");
  }
  if (count > kMaxTensorsPerModel) {
    return InvalidArgumentError(file + " has " + std::to_string(count) + " arrays; at most " +
                                std::to_string(kMaxTensorsPerModel) + " are read");
  }

  FileIndex index;
  index.format = FileFormat::kMxnetParams;
  std::vector<uint32_t> numbers;  // Of index.tensors, in the list.
  std::vector<uint32_t> nones;
  for (uint32_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(std::optional<TensorEntry> entry, ArrayReader(cursor, file, i).Read());
    if (entry.has_value()) {
      index.tensors.push_back(*std::move(entry));
      numbers.push_back(i);
    } else {
      nones.push_back(i);
    }
  }

  constexpr std::string_view kNames = "the list of names";
  uint64_t name_count = 0;
  RETURN_IF_ERROR(cursor.ReadNumber(name_count, kNames, "the count"));
  if (name_count == 0) {
    for (size_t k = 0; k < numbers.size(); ++k) {
      index.tensors[k].name = std::to_string(numbers[k]);
    }
    return index;
  }
  if (name_count != count) {
    return InvalidArgumentError(file + " has " + std::to_string(count) + " arrays and " +
                                std::to_string(name_count) +
                                " names; expected as many names as arrays, or none");
  }
  size_t next = 0;  // In index.tensors.
  for (uint32_t i = 0; i < count; ++i) {
    const std::string number = std::to_string(i);
    uint64_t length = 0;
    RETURN_IF_ERROR(cursor.ReadNumber(length, "name " + number, "the length"));
    if (length > kMaxTensorNameBytes) {
      return InvalidArgumentError(file + ": name " + number + " has " + std::to_string(length) +
                                  " bytes; at most " + std::to_string(kMaxTensorNameBytes) +
                                  " are allowed");
    }
    std::string name(length, '\0');
    RETURN_IF_ERROR(
        cursor.Read(std::as_writable_bytes(std::span(name)), "name " + number, "the text"));
    RETURN_IF_ERROR(CheckName(name, file + ": array " + number));
    if (next == numbers.size() || numbers[next] != i) {
      return InvalidArgumentError(file + ": array " + number + ", named " + Quoted(name) +
                                  ", is none: it has neither shape nor elements");
    }
    index.tensors[next++].name = std::move(name);
  }
  RETURN_IF_ERROR(CheckUniqueNames(file, index.tensors));
  return index;
}

}  // namespace trims::format
