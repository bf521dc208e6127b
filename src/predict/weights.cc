#include "predict/weights.h"

#include <fcntl.h>

#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "base/limits.h"
#include "base/round.h"
#include "base/unique_fd.h"
#include "format/model_files.h"

namespace trims::predict {
namespace {

float FloatFromHalf(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 31 ? 0xffu : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

struct FromHalf {
  float operator()(uint16_t bits) const { return FloatFromHalf(bits); }
};
struct FromBfloat {
  float operator()(uint16_t bits) const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
};
struct FromNumber {
  float operator()(auto value) const { return static_cast<float>(value); }
};

template <typename T, typename Convert = FromNumber>
Status ConvertEach(const std::byte* bytes, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, bytes + i * sizeof value, sizeof value);
    out[i] = Convert()(value);
  }
  return OkStatus();
}

// Never blocks on a FIFO.
Result<UniqueFd> OpenForReading(int directory, const std::string& name, const std::string& path) {
  UniqueFd fd(::openat(directory, name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd.valid()) return ErrnoStatus(errno, "opening " + path);
  return fd;
}

}  // namespace

void WeightProvider::AddInternalBytes(uint64_t bytes) {
  const uint64_t now = internal_bytes_.fetch_add(bytes) + bytes;
  uint64_t peak = peak_internal_bytes_.load();
  while (peak < now && !peak_internal_bytes_.compare_exchange_weak(peak, now)) {
  }
}

std::optional<Weight> FindWeight(const WeightProvider& provider, std::string_view variable) {
  const std::string name(variable);
  for (const std::string& key : {"arg:" + name, "aux:" + name, name}) {
    if (std::optional<Weight> weight = provider.Find(key)) return weight;
  }
  return std::nullopt;
}

Status ConvertToFloat(DType dtype, const std::byte* bytes, size_t count, float* out) {
  switch (dtype) {
    case DType::kF32:
      if (count > 0) std::memcpy(out, bytes, count * sizeof(float));
      return OkStatus();
    case DType::kF64:
      return ConvertEach<double>(bytes, count, out);
    case DType::kF16:
      return ConvertEach<uint16_t, FromHalf>(bytes, count, out);
    case DType::kBF16:
      return ConvertEach<uint16_t, FromBfloat>(bytes, count, out);
    case DType::kBool:
    case DType::kU8:
      return ConvertEach<uint8_t>(bytes, count, out);
    case DType::kI8:
      return ConvertEach<int8_t>(bytes, count, out);
    case DType::kU16:
      return ConvertEach<uint16_t>(bytes, count, out);
    case DType::kI16:
      return ConvertEach<int16_t>(bytes, count, out);
    case DType::kU32:
      return ConvertEach<uint32_t>(bytes, count, out);
    case DType::kI32:
      return ConvertEach<int32_t>(bytes, count, out);
    case DType::kU64:
      return ConvertEach<uint64_t>(bytes, count, out);
    case DType::kI64:
      return ConvertEach<int64_t>(bytes, count, out);
    default:
      return UnimplementedError("elements of type " + std::string(DTypeName(dtype)) +
                                " can not be converted to float32 here");
  }
}

Status FileWeights::Add(const format::ByteSource& source) {
  ASSIGN_OR_RETURN(const format::FileIndex index, format::ParseModelFile(source));
  uint64_t total = 0;
  const auto aligned = [](uint64_t bytes) { return RoundUp(bytes, kTensorAlignment); };
  for (const format::TensorEntry& entry : index.tensors) total += aligned(entry.size_bytes);
  ASSIGN_OR_RETURN(AnonymousMemory memory, AnonymousMemory::Allocate(total, "weights"));
  std::byte* next = memory.data();
  for (const format::TensorEntry& entry : index.tensors) {
    RETURN_IF_ERROR(source.ReadAt(entry.offset, {next, entry.size_bytes}));
    const bool added =
        tensors_.try_emplace(entry.name, Weight{entry.dtype, entry.shape, next, entry.size_bytes})
            .second;
    if (!added) {
      return InvalidArgumentError(source.description() + ": tensor '" + entry.name +
                                  "' is also in another file of the model");
    }
    next += aligned(entry.size_bytes);
  }
  RETURN_IF_ERROR(memory.MakeReadOnly());
  memory_.push_back(std::move(memory));
  return OkStatus();
}

Status FileWeights::AddFile(int directory, const std::string& name, const std::string& path) {
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenForReading(directory, name, path));
  ASSIGN_OR_RETURN(const format::FileSource source, format::FileSource::Open(fd.get(), path));
  return Add(source);
}

Status FileWeights::AddFileOrShards(int directory, const std::string& name,
                                    const std::string& path) {
  if (!format::IsShardIndexName(name)) return AddFile(directory, name, path);
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenForReading(directory, name, path));
  ASSIGN_OR_RETURN(const format::FileSource source, format::FileSource::Open(fd.get(), path));
  ASSIGN_OR_RETURN(const format::ShardIndex index, format::ParseSafetensorsShardIndex(source));
  for (const std::string& file : index.files) {
    // Plain names, as the parser promises: they lead to files beside the index.
    RETURN_IF_ERROR(AddFile(directory, name.substr(0, name.rfind('/') + 1) + file,
                            path.substr(0, path.rfind('/') + 1) + file));
  }
  return OkStatus();
}

Result<std::shared_ptr<FileWeights>> FileWeights::FromBytes(std::span<const std::byte> bytes,
                                                            const std::string& description) {
  std::shared_ptr<FileWeights> weights(new FileWeights(description));
  RETURN_IF_ERROR(weights->Add(format::MemorySource(bytes, description)));
  return weights;
}

Result<std::shared_ptr<FileWeights>> FileWeights::FromPath(const std::string& given_path,
                                                           const std::string& name) {
  std::string path = given_path;
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  std::shared_ptr<FileWeights> weights(new FileWeights(path));
  // Listing it is needed, and asked for, only when no file is called as expected.
  const UniqueFd fd(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno != ENOTDIR) return ErrnoStatus(errno, "looking for weights in " + path);
    RETURN_IF_ERROR(weights->AddFileOrShards(AT_FDCWD, path, path));
    return weights;
  }
  ASSIGN_OR_RETURN(const std::string file, format::FindWeights({fd.get(), path, name}));
  RETURN_IF_ERROR(weights->AddFileOrShards(fd.get(), file, path + "/" + file));
  return weights;
}

std::optional<Weight> FileWeights::Find(std::string_view name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return std::nullopt;
  return it->second;
}

}  // namespace trims::predict
