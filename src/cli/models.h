// What several commands do with models and replicas alike.
#pragma once

#include <google/protobuf/repeated_ptr_field.h>

#include <functional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/connection.h"
#include "cli/tiers.h"

namespace trims::cli {

// Runs `act` for each of `typed`, after ResolveModel. Goes on after a failure;
// returns the first one's exit code.
ExitCode ForEachModel(Connection& daemon, const std::vector<std::string>& typed,
                      const std::function<ExitCode(const std::string& model)>& act);

// Fail(), and when the reason is that something is in use, says by whom.
ExitCode FailWithHolders(Connection& daemon, const Status& status, const std::string& model,
                         const std::string& tier);

// "dropped from host, 528.0 MiB freed", one line per replica.
void PrintEvicted(const std::string& model, const TierNames& names,
                  const google::protobuf::RepeatedPtrField<v1::EvictedReplica>& replicas);

std::string LeaseTable(const google::protobuf::RepeatedPtrField<v1::LeaseView>& leases,
                       const TierNames& names, bool no_truncate, size_t columns_max);

// Options that several commands have.
struct ListOptions {
  bool quiet = false;
  bool no_truncate = false;
};
void AddListOptions(CLI::App* command, ListOptions& options, const char* quiet_help);
// Width to which a table on stdout is cut.
size_t ColumnsMax(const ListOptions& options);

}  // namespace trims::cli
