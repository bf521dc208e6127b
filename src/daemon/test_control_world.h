// A ControlBackend under test, fake or real, and what a test may arrange around it.
#pragma once

#include <string>

#include "daemon/control_backend.h"

namespace trims {

// Tiers "host" and "gpu:GPU-0".
class ControlWorld {
 public:
  virtual ~ControlWorld() = default;
  virtual ControlBackend& backend() = 0;
  // In the catalogue, and nobody has looked at it yet. Each name has other contents.
  virtual void AddModel(const std::string& name) = 0;
  // A good weights file that no name leads to.
  virtual std::string MakeFile() = 0;
  // A client takes a lease on the host, which loads the model where needed, and keeps it.
  virtual void Lease(const std::string& name) = 0;
  // What is resident of it is damaged from now on.
  virtual void Damage(const std::string& name) = 0;
  // Loads that begin from now on do not end until this is called with false.
  virtual void HoldLoads(bool is_held) = 0;
  // From now on no load finds room.
  virtual void TakeAllRoom() = 0;
  // Makes an event of kind PINNED of this model, which is resident on the host.
  virtual void Happen(const std::string& name) = 0;
};

}  // namespace trims
