// Images of files as inputs of networks.
//
// Decodes PNG and JPEG, resizes, and lays the pixels out as networks of this
// family want them: one plane per channel (red, green, blue; or grey), each value
// (pixel - mean) / scale, pixels from 0 to 255. Files are hostile: their size and
// dimensions are checked before anything is decoded. Pure; safe on any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/limits.h"
#include "base/status.h"

namespace trims::predict {

inline constexpr uint64_t kMaxImageFileBytes = 256 * kMiB;
inline constexpr int64_t kMaxImagePixels = 64'000'000;
inline constexpr int64_t kMaxInputDimension = 16'384;

// What a network expects of an image.
struct ImageInput {
  int64_t channels = 3;  // 1 or 3; other images are converted.
  int64_t height = 224;
  int64_t width = 224;
  std::vector<float> mean;  // Empty: 0. Else one for each channel, in their order.
  float scale = 1.0f;       // A divisor.

  size_t element_count() const { return static_cast<size_t>(channels * height * width); }
};

// INVALID_ARGUMENT says which number is out of range.
Status CheckImageInput(const ImageInput& input);

// `description` names the image in errors.
Result<std::vector<float>> ImageFromBytes(std::span<const std::byte> bytes,
                                          const std::string& description, const ImageInput& input);
Result<std::vector<float>> ImageFromFile(const std::string& path, const ImageInput& input);

}  // namespace trims::predict
