// The GPU backend of a build that has none.
#include "predict/backend.h"

namespace trims::predict {

Result<std::unique_ptr<Backend>> OpenGpuBackend(int /*ordinal*/, const BackendOptions&) {
  return UnimplementedError("this build of libtrims_predict has no GPU backend");
}

}  // namespace trims::predict
