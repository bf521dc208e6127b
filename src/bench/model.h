// The model that a benchmark works with: a weights file of its own under a name of its own
// ("bench/<pid>-<n>"). Removed from everywhere with the object, however the benchmark ends. One
// thread; the rig outlives it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "bench/rig.h"
#include "bench/weights_file.h"

namespace trims::bench {

class Model final {
 public:
  // Writes the file and adds it. NOT_FOUND and PERMISSION_DENIED say that the daemon can not
  // read it where it lies.
  static Result<std::unique_ptr<Model>> Make(Rig& rig, const WeightsFileSpec& spec);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const std::string& name() const { return name_; }
  const std::string& path() const { return file_.path(); }
  uint64_t file_bytes() const { return file_.file_bytes(); }

 private:
  Model(Rig& rig, WeightsFile file);

  Rig& rig_;
  WeightsFile file_;
  std::string name_;
  bool added_ = false;
};

}  // namespace trims::bench
