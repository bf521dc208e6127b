#include "cli/models.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "base/units.h"
#include "cli/text.h"
#include "cli/tiers.h"

namespace trims::cli {

ExitCode ForEachModel(Connection& daemon, const std::vector<std::string>& typed,
                      const std::function<ExitCode(const std::string& model)>& act) {
  ExitCode first = ExitCode::kOk;
  for (const std::string& one : typed) {
    Result<std::string> model = daemon.ResolveModel(one);
    const ExitCode code = model.ok() ? act(*model) : Fail(model.status());
    if (first == ExitCode::kOk) first = code;
  }
  return first;
}

ExitCode FailWithHolders(Connection& daemon, const Status& status, const std::string& model,
                         const std::string& tier) {
  if (status.code() == StatusCode::kNotFound) {
    return Fail(status, "\"trims ps\" shows what is resident, \"trims ls\" all names");
  }
  if (status.code() != StatusCode::kFailedPrecondition) return Fail(status);
  v1::ListLeasesRequest request;
  request.set_model(model);
  request.set_tier(tier);
  v1::ListLeasesResponse response;
  if (!daemon.ListLeases(request, &response).ok() || response.leases().empty()) {
    return Fail(status, "\"trims unpin\" takes a pin away; --force does it all the same");
  }
  const ExitCode code =
      Fail(status,
           "wait for these, or give --force: who holds a lease keeps its memory until it "
           "ends, and nobody gets a new one");
  const std::string table =
      LeaseTable(response.leases(), TierNames::Ask(daemon), false, TerminalColumns(STDERR_FILENO));
  std::fwrite(table.data(), 1, table.size(), stderr);
  return code;
}

void PrintEvicted(const std::string& model, const TierNames& names,
                  const google::protobuf::RepeatedPtrField<v1::EvictedReplica>& replicas) {
  for (const v1::EvictedReplica& evicted : replicas) {
    const std::string tier = names.Text(evicted.replica().tier());
    if (evicted.draining()) {
      Print(Printable(model) + " drains from " + tier + ": " +
            std::to_string(evicted.replica().leases()) + " leases still hold " +
            FormatSize(evicted.replica().bytes()) + "\n");
    } else {
      Print(Printable(model) + " dropped from " + tier + ", " + FormatSize(evicted.freed_bytes()) +
            " freed\n");
    }
  }
}

std::string LeaseTable(const google::protobuf::RepeatedPtrField<v1::LeaseView>& leases,
                       const TierNames& names, bool no_truncate, size_t columns_max) {
  Table table({">LEASE", "MODEL", "DIGEST", "TIER", ">SIZE", "USER", ">PID", "COMMAND", "SINCE"});
  for (const v1::LeaseView& lease : leases) {
    table.AddRow({std::to_string(lease.lease_id()), lease.model(),
                  DigestText(lease.digest(), no_truncate), names.Text(lease.tier(), no_truncate),
                  FormatSize(lease.bytes()), UserText(lease.uid()),
                  lease.pid() == 0 ? "-" : std::to_string(lease.pid()), lease.command(),
                  RelativeTime(lease.has_since(), lease.since())});
  }
  return table.Render(columns_max);
}

void AddListOptions(CLI::App* command, ListOptions& options, const char* quiet_help) {
  command->add_flag("-q,--quiet", options.quiet, quiet_help);
  command->add_flag("--no-truncate,--no-trunc", options.no_truncate,
                    "Whole digests and tiers, and lines longer than the terminal is wide");
}

size_t ColumnsMax(const ListOptions& options) {
  return options.no_truncate ? 0 : TerminalColumns(STDOUT_FILENO);
}

}  // namespace trims::cli
