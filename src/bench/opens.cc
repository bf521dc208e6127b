#include "bench/opens.h"

#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "bench/mapping_floor.h"
#include "bench/model.h"
#include "bench/timing.h"
#include "client/error_status.h"

namespace trims::bench {
namespace {

constexpr int kWarmUps = 10;
constexpr std::chrono::seconds kReleaseWait(10);

Status MeasureOpen(Rig& rig, const std::string& model, OpenFigures* figures) {
  // What the close before left to be read is no part of this open.
  RETURN_IF_ERROR(rig.Settle());
  std::optional<Expected<Lease>> lease;
  std::optional<Tensor> tensor;
  const double opened = TimeOf([&] {
    lease = rig.OpenPlainly(model, rig.place());
    if (*lease) tensor = (**lease).tensor(0);
  });
  if (!*lease) return client::ErrorStatus(lease->error());
  const bool loaded = (**lease).was_loaded();
  const double closed = TimeOf([&] { (**lease).Close(); });
  if (!tensor || tensor->device_pointer() == 0) return InternalError("the lease has no tensor");
  if (loaded) return AbortedError("the model was evicted while it was measured");
  figures->open.Add(opened);
  figures->close.Add(closed);
  return OkStatus();
}

Status MeasureFloor(const MappingFloor& floor, OpenFigures* figures) {
  ASSIGN_OR_RETURN(const OpenTimes times, floor.Measure());
  figures->floor_open.Add(times.open);
  figures->floor_close.Add(times.close);
  return OkStatus();
}

// Loads the model, and keeps it whatever the daemon's policy is.
Status Prepare(Rig& rig, const Model& model, OpenFigures* figures) {
  std::optional<Result<Lease>> lease;
  figures->cold = TimeOf([&] { lease = rig.Open(model.name(), rig.place()); });
  RETURN_IF_ERROR(lease->status());
  figures->allocated_bytes = (*lease)->total_bytes();
  v1::PinRequest pin;
  pin.set_model(model.name());
  pin.set_tier(rig.place().tier);
  v1::PinResponse pinned;
  RETURN_IF_ERROR(rig.control().Pin(pin, &pinned));
  lease.reset();
  return rig.KeepOnly(model.name(), {rig.place().tier});
}

}  // namespace

Result<OpenFigures> MeasureOpens(Rig& rig, const WeightsFileSpec& spec, int runs) {
  OpenFigures figures;
  figures.bytes = spec.bytes;
  figures.tensors = spec.tensors;
  ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Model::Make(rig, spec));
  RETURN_IF_ERROR(Prepare(rig, *model, &figures));
  MappingFloor floor(rig.device());
  const Status made = floor.Make(figures.allocated_bytes);
  // A device may have no room for the model and as much again: then one after the other.
  figures.interleaved = made.ok();
  if (!made.ok() && made.code() != StatusCode::kResourceExhausted) return made;

  OpenFigures ignored;
  for (int i = 0; i < kWarmUps; ++i) {
    RETURN_IF_ERROR(MeasureOpen(rig, model->name(), &ignored));
    if (figures.interleaved) RETURN_IF_ERROR(MeasureFloor(floor, &ignored));
  }
  for (int i = 0; i < runs; ++i) {
    RETURN_IF_ERROR(rig.interrupts().Check());
    RETURN_IF_ERROR(MeasureOpen(rig, model->name(), &figures));
    if (figures.interleaved) RETURN_IF_ERROR(MeasureFloor(floor, &figures));
  }
  if (!figures.interleaved) {
    RETURN_IF_ERROR(rig.KeepOnly(model->name(), {}));
    RETURN_IF_ERROR(rig.WaitUntilCleared(figures.allocated_bytes));
    // The daemon gives memory back on a thread of its own, which a busy machine delays.
    const auto deadline = std::chrono::steady_clock::now() + kReleaseWait;
    Status room = floor.Make(figures.allocated_bytes);
    while (room.code() == StatusCode::kResourceExhausted &&
           std::chrono::steady_clock::now() < deadline) {
      RETURN_IF_ERROR(rig.interrupts().Wait(std::chrono::milliseconds(50)));
      room = floor.Make(figures.allocated_bytes);
    }
    RETURN_IF_ERROR(room);
    for (int i = 0; i < kWarmUps; ++i) RETURN_IF_ERROR(MeasureFloor(floor, &ignored));
    for (int i = 0; i < runs; ++i) {
      RETURN_IF_ERROR(rig.interrupts().Check());
      RETURN_IF_ERROR(MeasureFloor(floor, &figures));
    }
  }
  return figures;
}

}  // namespace trims::bench
