// trims bench: what an operator can know of this machine and the daemon on it in a minute: three
// benchmarks, each with the floor that it can not go below, measured in the same run.
#include <CLI/CLI.hpp>
#include <cstdlib>
#include <memory>
#include <string>

#include "base/limits.h"
#include "cli/bench_report.h"
#include "cli/command.h"
#include "cli/tiers.h"

namespace trims::cli {
namespace {

constexpr int kRunsMax = 1'000'000;

std::string DefaultDirectory() {
  const char* directory = std::getenv("TMPDIR");
  return directory != nullptr && *directory != '\0' ? directory : "/tmp";
}

// What all three accept.
std::shared_ptr<BenchOptions> AddBenchOptions(CLI::App* command, int runs,
                                              const char* device_help) {
  auto options = std::make_shared<BenchOptions>();
  options->sizes = {"512MiB"};
  options->tensors = {10};
  options->runs = runs;
  options->directory = DefaultDirectory();
  AddDeviceOption(command, options->device, device_help);
  command->add_option("--size", options->sizes, "Of the weights: 64MiB, or several: 64MiB,16GiB")
      ->delimiter(',')
      ->type_name("SIZE")
      ->capture_default_str();
  command->add_option("--runs", options->runs, "How often each thing is measured")
      ->check(CLI::Range(1, kRunsMax))
      ->type_name("N")
      ->capture_default_str();
  command
      ->add_option("--dir", options->directory,
                   "Where the weights file is written; the daemon must be able to read it")
      ->check(CLI::ExistingDirectory)
      ->type_name("DIR")
      ->capture_default_str();
  return options;
}

void AddModelOptions(CLI::App* command, BenchOptions& options, bool sparse) {
  options.sparse = sparse;
  command->add_option("--tensors", options.tensors, "In the model, or several: 10,5000")
      ->delimiter(',')
      ->check(CLI::Range(size_t{1}, kMaxTensorsPerModel))
      ->type_name("N")
      ->capture_default_str();
  CLI::Option* holes = command->add_flag_callback(
      "--sparse", [&options] { options.sparse = true; },
      sparse ? "The weights file consists of holes and takes no room on disk (default)"
             : "The weights file consists of holes: no room on disk, and faster than a real one");
  command
      ->add_flag_callback(
          "--dense", [&options] { options.sparse = false; },
          sparse ? "The weights file is full of noise"
                 : "The weights file is full of noise (default)")
      ->excludes(holes);
}

}  // namespace

void AddBenchCommand(CLI::App& app, Context& context) {
  CLI::App* bench = app.add_subcommand(
      "bench", "Measure opens, loads and copies, and what the machine can do at best");
  bench->require_subcommand(1);

  CLI::App* open = bench->add_subcommand(
      "open", "Opens of a resident model, beside the bare mapping calls for as many bytes");
  auto open_options =
      AddBenchOptions(open, 200, "On this device: gpu:0, or a UUID; default: the host tier");
  AddModelOptions(open, *open_options, true);
  OnRun(open, context, [&context, open_options] { return RunBenchOpen(context, *open_options); });

  CLI::App* load = bench->add_subcommand(
      "load",
      "Loads of a model, beside the rates of the disk, memory and links that it comes over");
  auto load_options =
      AddBenchOptions(load, 5, "To this device: gpu:0, or a UUID; default: the host tier");
  AddModelOptions(load, *load_options, false);
  load_options->from = "page-cache";
  load->add_option(
          "--from", load_options->from,
          "Where the model is before: page-cache, disk, host (the host tier), or peer:gpu:1")
      ->type_name("PLACE")
      ->capture_default_str();
  OnRun(load, context, [&context, load_options] { return RunBenchLoad(context, *load_options); });

  CLI::App* copy = bench->add_subcommand(
      "copy", "Copies of memory in this machine and its devices; needs no daemon");
  auto copy_options =
      AddBenchOptions(copy, 5, "Only to and from this device: gpu:0, or a UUID; default: all");
  OnRun(copy, context, [&context, copy_options] { return RunBenchCopy(context, *copy_options); });
}

}  // namespace trims::cli
