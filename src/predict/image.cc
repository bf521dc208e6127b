#include "predict/image.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <memory>

#include "base/unique_fd.h"
#include "predict/stb.h"

namespace trims::predict {
namespace {

struct FreePixels {
  void operator()(stbi_uc* pixels) const { stbi_image_free(pixels); }
};

Result<std::vector<std::byte>> ReadImageFile(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, "opening image " + path);
  struct stat status;
  if (::fstat(fd.get(), &status) != 0) return ErrnoStatus(errno, "looking at image " + path);
  if (!S_ISREG(status.st_mode)) return InvalidArgumentError("image " + path + " is not a file");
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > kMaxImageFileBytes) {
    return InvalidArgumentError("image " + path + " has " + std::to_string(size) +
                                " bytes; at most " + std::to_string(kMaxImageFileBytes) +
                                " are read");
  }
  std::vector<std::byte> bytes(size);
  for (uint64_t done = 0; done < size;) {
    const ssize_t n = ::read(fd.get(), bytes.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "reading image " + path);
    if (n == 0) return DataLossError("image " + path + " became shorter while it was read");
    done += static_cast<uint64_t>(n);
  }
  return bytes;
}

}  // namespace

Status CheckImageInput(const ImageInput& input) {
  if (input.channels != 1 && input.channels != 3) {
    return InvalidArgumentError("an image has 1 (grey) or 3 (red, green, blue) channels, not " +
                                std::to_string(input.channels));
  }
  for (const int64_t side : {input.height, input.width}) {
    if (side < 1 || side > kMaxInputDimension) {
      return InvalidArgumentError("an input side of " + std::to_string(side) +
                                  " pixels is outside [1, " + std::to_string(kMaxInputDimension) +
                                  "]");
    }
  }
  if (!input.mean.empty() && input.mean.size() != static_cast<size_t>(input.channels)) {
    return InvalidArgumentError("there are " + std::to_string(input.mean.size()) +
                                " mean values for " + std::to_string(input.channels) +
                                " channel(s)");
  }
  for (const float mean : input.mean) {
    if (!std::isfinite(mean)) return InvalidArgumentError("a mean value is not a finite number");
  }
  if (!std::isfinite(input.scale) || input.scale == 0.0f) {
    return InvalidArgumentError(
        "scale divides the pixels: it must be a finite number other than 0");
  }
  return OkStatus();
}

Result<std::vector<float>> ImageFromBytes(std::span<const std::byte> bytes,
                                          const std::string& description, const ImageInput& input) {
  RETURN_IF_ERROR(CheckImageInput(input));
  const auto* const encoded = reinterpret_cast<const stbi_uc*>(bytes.data());
  if (bytes.size() > kMaxImageFileBytes) {
    return InvalidArgumentError(description + ": the file is too large");
  }
  const auto size = static_cast<int>(bytes.size());
  const auto why = [&](const std::string& what) {
    const char* reason = stbi_failure_reason();
    return InvalidArgumentError(description + ": " + what +
                                (reason == nullptr ? "" : std::string(": ") + reason));
  };
  int width = 0, height = 0, file_channels = 0;
  if (size == 0) return InvalidArgumentError(description + ": the file is empty");
  if (stbi_info_from_memory(encoded, size, &width, &height, &file_channels) == 0) {
    return why("not a PNG or JPEG image, or a far too large one");
  }
  if (width < 1 || height < 1 || int64_t{width} * height > kMaxImagePixels) {
    return InvalidArgumentError(description + ": " + std::to_string(width) + " x " +
                                std::to_string(height) + " pixels are outside 1 to " +
                                std::to_string(kMaxImagePixels));
  }
  const auto channels = static_cast<int>(input.channels);
  std::unique_ptr<stbi_uc, FreePixels> decoded(
      stbi_load_from_memory(encoded, size, &width, &height, &file_channels, channels));
  if (!decoded) return why("the image can not be decoded");

  const stbi_uc* pixels = decoded.get();
  std::vector<stbi_uc> resized;
  if (width != input.width || height != input.height) {
    resized.resize(input.element_count());
    if (stbir_resize_uint8(pixels, width, height, 0, resized.data(), static_cast<int>(input.width),
                           static_cast<int>(input.height), 0, channels) == 0) {
      return ResourceExhaustedError(description + ": no memory to resize the image");
    }
    pixels = resized.data();
  }
  const size_t plane = static_cast<size_t>(input.height * input.width);
  std::vector<float> values(input.element_count());
  for (size_t c = 0; c < static_cast<size_t>(channels); ++c) {
    const float mean = input.mean.empty() ? 0.0f : input.mean[c];
    for (size_t i = 0; i < plane; ++i) {
      values[c * plane + i] =
          (static_cast<float>(pixels[i * static_cast<size_t>(channels) + c]) - mean) / input.scale;
    }
  }
  return values;
}

Result<std::vector<float>> ImageFromFile(const std::string& path, const ImageInput& input) {
  ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, ReadImageFile(path));
  return ImageFromBytes(bytes, path, input);
}

}  // namespace trims::predict
