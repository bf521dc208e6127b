// Bytes in sealed memory of their own, to be passed on. No thread rule.
#pragma once

#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "ipc/region.h"

namespace trims {

// RESOURCE_EXHAUSTED when there is no memory or no descriptor. Padded to whole pages.
inline Result<std::shared_ptr<const ReadOnlyRegion>> SealBytes(const std::string& label,
                                                               std::string_view bytes) {
  ASSIGN_OR_RETURN(WritableRegion region,
                   WritableRegion::Create(label, bytes.size(), PageKind::kPlain));
  if (region.has_large_pages()) {
    std::memcpy(region.bytes().data(), bytes.data(), bytes.size());
  } else {
    RETURN_IF_ERROR(region.Write(0, std::as_bytes(std::span(bytes))));
  }
  ASSIGN_OR_RETURN(ReadOnlyRegion sealed, std::move(region).Seal());
  return std::shared_ptr<const ReadOnlyRegion>(std::make_shared<ReadOnlyRegion>(std::move(sealed)));
}

}  // namespace trims
