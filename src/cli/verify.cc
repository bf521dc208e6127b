// trims verify: are the resident bytes still the right ones?
#include <CLI/CLI.hpp>
#include <memory>

#include "base/units.h"
#include "cli/command.h"
#include "cli/connection.h"
#include "cli/json.h"
#include "cli/progress.h"
#include "cli/text.h"
#include "cli/tiers.h"

namespace trims::cli {
namespace {

struct VerifyOptions {
  std::string model;
  std::string tier;
  bool quiet = false;
};

ExitCode RunVerify(const Context& context, Connection& daemon, const VerifyOptions& options) {
  v1::VerifyRequest request;
  if (!options.model.empty()) {
    Result<std::string> model = daemon.ResolveModel(options.model);
    if (!model.ok()) return Fail(model.status());
    request.set_model(*model);
  }
  const TierNames names = TierNames::Ask(daemon);
  request.set_tier(names.Resolve(options.tier));

  int checked = 0;
  int damaged = 0;
  ProgressBar bar(!options.quiet && !context.json);
  Table table({"NAME", "DIGEST", "TIER", ">SIZE", "VERDICT", ">TOOK", "DETAIL"});
  const Status status = daemon.Verify(request, [&](const v1::VerifyProgress& progress) {
    if (context.json) PrintJsonLine(ToJson(progress));
    bar.Update({.label = "verifying",
                .done_bytes = progress.done_bytes(),
                .total_bytes = progress.total_bytes()});
    if (!progress.has_verdict()) return;
    const v1::VerifyVerdict& verdict = progress.verdict();
    ++checked;
    if (!verdict.intact()) ++damaged;
    if (options.quiet && verdict.intact()) return;
    const double seconds =
        static_cast<double>(verdict.took().seconds()) + verdict.took().nanos() * 1e-9;
    table.AddRow({verdict.model(), DigestText(verdict.digest(), false),
                  names.Text(verdict.replica().tier()), FormatSize(verdict.replica().bytes()),
                  verdict.intact() ? "intact" : "DAMAGED", SecondsText(seconds), verdict.detail()});
  });
  bar.Clear();
  if (!context.json) {
    if (!table.empty()) {
      Print(table.Render());
    } else if (status.ok() && checked == 0 && !options.quiet) {
      Print("nothing is resident: nothing to verify\n");
    }
  }
  if (!status.ok()) return Fail(status);
  if (damaged > 0) {
    return Fail(
        DataLossError(std::to_string(damaged) + " of " + std::to_string(checked) +
                      " replicas do not hold the bytes that were loaded"),
        "they are quarantined: evict them with \"trims evict\", load them again, and look "
        "for faulty memory (dmesg, EDAC, nvidia-smi -q -d ECC), or on a GPU for a client that "
        "wrote to them");
  }
  return ExitCode::kOk;
}

}  // namespace

void AddVerifyCommand(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("verify", "Check the bytes of resident models; exit code 6 when damaged");
  auto options = std::make_shared<VerifyOptions>();
  command->add_option("MODEL", options->model,
                      "Name, or the first digits of a digest; default: all");
  AddTierOptions(command, options->tier, "Only this tier: host, or gpu:0");
  command->add_flag("-q,--quiet", options->quiet, "Only what is damaged");
  OnRunWithDaemon(command, context, [&context, options](Connection& daemon) {
    return RunVerify(context, daemon, *options);
  });
}

}  // namespace trims::cli
