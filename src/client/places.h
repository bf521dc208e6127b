// Where the daemon's lease socket is looked for. Pure but for the environment.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace trims::client {

struct Places {
  std::vector<std::string> sockets;  // In the order to try; never empty.
  std::string origin;                // For messages: "TRIMS_SOCKET", "the default places".
};

// The first of these that is not empty decides: `socket_path`, `runtime_dir`,
// TRIMS_SOCKET, TRIMS_RUNTIME_DIR; else /run/trims, $XDG_RUNTIME_DIR/trims and
// /tmp/trims-UID are all to be tried. `environment` null: the process's own, which
// is not asked in a set-uid program.
Places FindPlaces(const std::string& socket_path, const std::string& runtime_dir,
                  const std::function<const char*(const char*)>& environment = nullptr);

}  // namespace trims::client
