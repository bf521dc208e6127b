#include "predict/weights.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <type_traits>
#include <utility>

#include "base/limits.h"
#include "base/unique_fd.h"

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

Result<UniqueFd> OpenForReading(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, "opening " + path);
  return fd;
}

bool IsRegularFile(const std::string& path) {
  struct stat status;
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
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
  const auto aligned = [](uint64_t bytes) {
    return (bytes + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
  };
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
  size_bytes_ += total;
  memory_.push_back(std::move(memory));
  return OkStatus();
}

Status FileWeights::AddFile(const std::string& path) {
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenForReading(path));
  ASSIGN_OR_RETURN(const format::FileSource source, format::FileSource::Open(fd.get(), path));
  return Add(source);
}

Result<std::shared_ptr<FileWeights>> FileWeights::FromBytes(std::span<const std::byte> bytes,
                                                            const std::string& description) {
  std::shared_ptr<FileWeights> weights(new FileWeights(description));
  RETURN_IF_ERROR(weights->Add(format::MemorySource(bytes, description)));
  return weights;
}

Result<std::shared_ptr<FileWeights>> FileWeights::FromPath(const std::string& path,
                                                           const std::string& name) {
  struct stat status;
  if (::stat(path.c_str(), &status) != 0)
    return ErrnoStatus(errno, "looking for weights in " + path);
  std::shared_ptr<FileWeights> weights(new FileWeights(path));
  if (!S_ISDIR(status.st_mode)) {
    RETURN_IF_ERROR(weights->AddFile(path));
    return weights;
  }
  const std::string folder = path + (path.ends_with('/') ? "" : "/");
  for (const std::string& file : {std::string("model.params"), name + ".params",
                                  name + "-0000.params", std::string("model.safetensors")}) {
    if (!IsRegularFile(folder + file)) continue;
    RETURN_IF_ERROR(weights->AddFile(folder + file));
    return weights;
  }
  const std::string shard_index = folder + "model.safetensors.index.json";
  if (IsRegularFile(shard_index)) {
    ASSIGN_OR_RETURN(const UniqueFd fd, OpenForReading(shard_index));
    ASSIGN_OR_RETURN(const format::FileSource source,
                     format::FileSource::Open(fd.get(), shard_index));
    ASSIGN_OR_RETURN(const format::ShardIndex index, format::ParseSafetensorsShardIndex(source));
    for (const std::string& file : index.files) RETURN_IF_ERROR(weights->AddFile(folder + file));
    return weights;
  }
  std::vector<std::string> candidates;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".safetensors") candidates.push_back(entry.path().string());
  }
  if (candidates.size() == 1) {
    RETURN_IF_ERROR(weights->AddFile(candidates[0]));
    return weights;
  }
  return NotFoundError("no weights in " + folder + ": looked for model.params, " + name +
                       ".params, " + name +
                       "-0000.params, model.safetensors, model.safetensors.index.json and a single "
                       "*.safetensors (there are " +
                       std::to_string(candidates.size()) + ")");
}

std::optional<Weight> FileWeights::Find(std::string_view name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) return std::nullopt;
  return it->second;
}

}  // namespace trims::predict
