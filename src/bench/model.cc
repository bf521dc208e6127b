#include "bench/model.h"

#include <unistd.h>

#include <utility>

namespace trims::bench {

Model::Model(Rig& rig, WeightsFile file) : rig_(rig), file_(std::move(file)) {
  static int number = 0;
  name_ = "bench/" + std::to_string(::getpid()) + "-" + std::to_string(++number);
}

Result<std::unique_ptr<Model>> Model::Make(Rig& rig, const WeightsFileSpec& spec) {
  Result<WeightsFile> file = WeightsFile::Write(spec, rig.interrupts(), [&](uint64_t done) {
    rig.observer().Show(
        {.label = "writing weights", .done_bytes = done, .total_bytes = spec.bytes});
  });
  rig.observer().Clear();
  RETURN_IF_ERROR(file.status());
  std::unique_ptr<Model> model(new Model(rig, std::move(*file)));
  v1::AddRequest request;
  request.set_name(model->name_);
  request.set_path(model->path());
  v1::AddResponse response;
  if (const Status status = rig.control().Add(request, &response); !status.ok()) {
    if (status.code() == StatusCode::kNotFound || status.code() == StatusCode::kPermissionDenied) {
      return Status(status.code(), status.message() +
                                       ". The daemon must be able to read what is written into " +
                                       spec.directory + ": give another --dir");
    }
    return status;
  }
  model->added_ = true;
  return model;
}

Model::~Model() {
  if (!added_) return;
  rig_.DropAll(name_);
  v1::RemoveRequest request;
  request.set_name(name_);
  request.set_force(true);
  v1::RemoveResponse response;
  const Status status = rig_.control().Remove(request, &response);
  if (!status.ok() && status.code() != StatusCode::kNotFound) rig_.observer().Left(name_, status);
}

}  // namespace trims::bench
