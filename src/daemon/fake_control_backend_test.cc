// The fake keeps the rules that the real control calls keep.
#include "daemon/fake_control_backend.h"

#include <google/protobuf/util/time_util.h>

#include <memory>

#include "daemon/control_conformance.h"

namespace trims {
namespace {

class FakeWorld final : public ControlWorld {
 public:
  ControlBackend& backend() override { return backend_; }
  void AddModel(const std::string& name) override {
    backend_.AddModel(name, fills_.at(models_), 4096 * (models_ + 1));
    ++models_;
  }
  std::string MakeFile() override { return "/models/file" + std::to_string(++files_); }
  void Lease(const std::string& name) override {
    bool is_resident = false;
    backend_.Change(name, [&](FakeControlBackend::FakeModel& model) {
      is_resident = !model.view.replicas().empty();
    });
    if (!is_resident) backend_.MakeResident(name);
    backend_.AddLease(name, ++leases_, 1000, 42, "python3");
  }
  void Damage(const std::string& name) override {
    backend_.Change(name, [](FakeControlBackend::FakeModel& model) { model.corrupt = true; });
  }
  void HoldLoads(bool is_held) override { backend_.HoldLoads(is_held); }
  void TakeAllRoom() override { backend_.set_capacity_bytes(0); }
  void Happen(const std::string& name) override {
    v1::Event event;
    event.set_kind(v1::EVENT_KIND_PINNED);
    event.set_model(name);
    *event.mutable_time() = google::protobuf::util::TimeUtil::GetCurrentTime();
    backend_.Publish(event);
  }

 private:
  FakeControlBackend backend_;
  const std::string fills_ = "abcef";
  size_t models_ = 0;
  int files_ = 0;
  uint64_t leases_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Fake, ControlConformance, ::testing::Values(WorldFactory{[] {
                           return std::make_unique<FakeWorld>();
                         }}));

}  // namespace
}  // namespace trims
