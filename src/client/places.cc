#include "client/places.h"

#include <stdlib.h>
#include <unistd.h>

namespace trims::client {
namespace {

std::string SocketIn(std::string directory) {
  while (directory.size() > 1 && directory.back() == '/') directory.pop_back();
  return directory + "/lease.sock";
}

}  // namespace

Places FindPlaces(const std::string& socket_path, const std::string& runtime_dir,
                  const std::function<const char*(const char*)>& environment) {
  const auto variable = [&](const char* name) -> std::string {
    const char* value = environment ? environment(name) : secure_getenv(name);
    return value == nullptr ? "" : value;
  };
  if (!socket_path.empty()) return {{socket_path}, "socket_path"};
  if (!runtime_dir.empty()) return {{SocketIn(runtime_dir)}, "runtime_dir"};
  if (const std::string path = variable("TRIMS_SOCKET"); !path.empty()) {
    return {{path}, "TRIMS_SOCKET"};
  }
  if (const std::string directory = variable("TRIMS_RUNTIME_DIR"); !directory.empty()) {
    return {{SocketIn(directory)}, "TRIMS_RUNTIME_DIR"};
  }
  Places places{{"/run/trims/lease.sock"}, "the default places"};
  if (const std::string directory = variable("XDG_RUNTIME_DIR"); !directory.empty()) {
    places.sockets.push_back(SocketIn(directory + "/trims"));
  }
  places.sockets.push_back("/tmp/trims-" + std::to_string(geteuid()) + "/lease.sock");
  return places;
}

}  // namespace trims::client
