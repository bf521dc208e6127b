// trims completion: scripts for shells, made from the commands and options that
// the program really has.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/text.h"
#include "cli/command.h"

namespace trims::cli {
namespace {

struct Flag {
  std::vector<std::string> words;  // "-q", "--quiet"
  std::string help;
  bool takes_value = false;
};

// One command, by its words after "trims": {} for trims itself, {"config", "show"}.
struct Node {
  std::vector<std::string> path;
  std::string help;
  std::vector<std::string> aliases;
  std::vector<Flag> flags;
  std::vector<Node> children;
  std::vector<std::string> choices;  // For the positional argument.
  bool takes_models = false;
  bool takes_files = false;
};

std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

Node Collect(const CLI::App& app, std::vector<std::string> path) {
  Node node;
  node.path = std::move(path);
  node.help = FirstLine(app.get_description());
  node.aliases = app.get_aliases();
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_positional()) {
      const std::string name = option->get_name(true);
      if (name == "MODEL" || name == "NAME") {
        node.takes_models = true;
      } else if (name == "SHELL") {
        node.choices = {"bash", "zsh", "fish"};
      } else {
        node.takes_files = true;
      }
      if (option->get_snames().empty() && option->get_lnames().empty()) continue;
    }
    Flag flag;
    for (const std::string& name : option->get_snames()) flag.words.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) flag.words.push_back("--" + name);
    flag.help = FirstLine(option->get_description());
    flag.takes_value = option->get_items_expected_max() > 0;
    node.flags.push_back(std::move(flag));
  }
  for (const CLI::App* child : app.get_subcommands([](const CLI::App*) { return true; })) {
    std::vector<std::string> child_path = node.path;
    child_path.push_back(child->get_name());
    node.children.push_back(Collect(*child, std::move(child_path)));
  }
  return node;
}

// What comes after a flag.
struct ValueWords {
  std::string_view flag;
  std::string_view words;  // Empty: a directory.
};
constexpr ValueWords kValueWords[] = {
    {"--runtime-dir", ""}, {"--tier", "host gpu:"},
    {"--device", "gpu:"},  {"--from", "page-cache disk host peer:gpu:"},
    {"--dir", ""},         {"--granularity", "auto model slab layer"},
};

std::vector<std::string> FlagWords(const Node& node) {
  std::vector<std::string> words;
  for (const Flag& flag : node.flags)
    words.insert(words.end(), flag.words.begin(), flag.words.end());
  return words;
}

std::vector<std::string> ChildWords(const Node& node) {
  std::vector<std::string> words;
  for (const Node& child : node.children) words.push_back(child.path.back());
  return words;
}

void AddValueFlags(const Node& node, std::vector<std::string>* words) {
  for (const Flag& flag : node.flags) {
    if (flag.takes_value) words->insert(words->end(), flag.words.begin(), flag.words.end());
  }
  for (const Node& child : node.children) AddValueFlags(child, words);
}

// The body of one branch of the bash function; nodes are told apart by their words.
void BashCases(const Node& node, const std::string& root_flags, std::string* text) {
  std::string pattern = "\"" + Join(node.path, " ") + "\"";
  for (const std::string& alias : node.aliases) pattern += "|\"" + alias + "\"";
  std::string flags = Join(FlagWords(node), " ");
  if (!node.path.empty()) flags += " " + root_flags;
  *text += "    " + pattern + ")\n      flags=\"" + flags + "\"\n";
  if (!node.children.empty()) *text += "      words=\"" + Join(ChildWords(node), " ") + "\"\n";
  if (!node.choices.empty()) *text += "      words=\"" + Join(node.choices, " ") + "\"\n";
  if (node.takes_models) *text += "      words=\"$(trims ls -q 2>/dev/null)\"\n";
  if (node.takes_files) *text += "      files=1\n";
  *text += "      ;;\n";
  for (const Node& child : node.children) BashCases(child, root_flags, text);
}

std::string BashValues() {
  std::string text;
  for (const ValueWords& value : kValueWords) {
    const std::string words(value.words);
    text += "    " + std::string(value.flag) + ")\n      mapfile -t COMPREPLY < <(compgen " +
            (words.empty() ? "-d" : "-W \"" + words + "\"") +
            " -- \"$current\")\n      return ;;\n";
  }
  return text;
}

std::string BashScript(const Node& root) {
  std::vector<std::string> value_flags;
  AddValueFlags(root, &value_flags);
  std::vector<std::string> groups;
  for (const Node& child : root.children) {
    if (!child.children.empty()) groups.push_back(child.path.back());
  }
  std::string cases;
  BashCases(root, Join(FlagWords(root), " "), &cases);
  return "# bash completion for trims; made by \"trims completion bash\".\n"
         "_trims() {\n"
         "  local current=\"${COMP_WORDS[COMP_CWORD]}\" previous=\"${COMP_WORDS[COMP_CWORD-1]}\"\n"
         "  local command=\"\" depth=1 skip=0 flags=\"\" words=\"\" files=0 word i\n"
         "  if declare -F _get_comp_words_by_ref >/dev/null; then\n"
         "    _get_comp_words_by_ref -n : -c current -p previous  # Names have versions after "
         "':'.\n"
         "  fi\n"
         "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
         "    word=\"${COMP_WORDS[i]}\"\n"
         "    if ((skip)); then skip=0; continue; fi\n"
         "    case \"$word\" in\n"
         "      " +
         Join(value_flags, "|") +
         ") skip=1 ;;\n"
         "      -*) ;;\n"
         "      *)\n"
         "        if ((depth > 0)); then\n"
         "          command=\"${command:+$command }$word\"\n"
         "          depth=$((depth - 1))\n" +
         (groups.empty()
              ? std::string()
              : "          case \"$command\" in " + Join(groups, "|") + ") depth=1 ;; esac\n") +
         "        fi\n"
         "        ;;\n"
         "    esac\n"
         "  done\n"
         "  COMPREPLY=()\n"
         "  case \"$previous\" in\n" +
         BashValues() + "    " + Join(value_flags, "|") +
         ") return ;;\n"
         "  esac\n"
         "  case \"$command\" in\n" +
         cases +
         "  esac\n"
         "  if [[ \"$current\" == -* ]]; then\n"
         "    mapfile -t COMPREPLY < <(compgen -W \"$flags\" -- \"$current\")\n"
         "  else\n"
         "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$current\")\n"
         "    if ((files)); then\n"
         "      compopt -o filenames 2>/dev/null\n"
         "      mapfile -t -O \"${#COMPREPLY[@]}\" COMPREPLY < <(compgen -f -- \"$current\")\n"
         "    fi\n"
         "  fi\n"
         "  if declare -F __ltrimcolonprefixes >/dev/null; then __ltrimcolonprefixes \"$current\"; "
         "fi\n"
         "}\n"
         "complete -F _trims trims\n";
}

// For single quotes, in zsh and fish.
std::string Quoted(const std::string& text, bool fish) {
  std::string quoted = "'";
  for (const char c : text) {
    if (c == '\'') {
      quoted += fish ? "\\'" : "'\\''";
    } else if (c == '\\' && fish) {
      quoted += "\\\\";
    } else {
      quoted.push_back(c);
    }
  }
  return quoted + "'";
}

// _describe and _arguments give ':' and brackets a meaning.
std::string ZshText(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == ':' || c == '[' || c == ']' || c == '\\') escaped.push_back('\\');
    escaped.push_back(c);
  }
  return escaped;
}

void ZshCases(const Node& node, const Node& root, std::string* text) {
  std::string pattern = "'" + Join(node.path, " ") + "'";
  for (const std::string& alias : node.aliases) pattern += "|'" + alias + "'";
  *text += "    " + pattern + ")\n      flags=(";
  std::vector<const Node*> sources = {&node};
  if (!node.path.empty()) sources.push_back(&root);
  for (const Node* source : sources) {
    for (const Flag& flag : source->flags) {
      for (const std::string& word : flag.words) {
        *text += "\n        " + Quoted(word + ":" + ZshText(flag.help), false);
      }
    }
  }
  *text += ")\n";
  if (!node.children.empty()) {
    *text += "      entries=(";
    for (const Node& child : node.children) {
      *text += "\n        " + Quoted(child.path.back() + ":" + ZshText(child.help), false);
    }
    *text += ")\n";
  }
  if (!node.choices.empty()) *text += "      entries=(" + Join(node.choices, " ") + ")\n";
  if (node.takes_models)
    *text += "      entries=(${${(f)\"$(trims ls -q 2>/dev/null)\"}//:/\\\\:})\n";
  if (node.takes_files) *text += "      files=1\n";
  *text += "      ;;\n";
  for (const Node& child : node.children) ZshCases(child, root, text);
}

std::string ZshValues() {
  std::string text;
  for (const ValueWords& value : kValueWords) {
    const std::string words(value.words);
    text += "    " + std::string(value.flag) + ") " +
            (words.empty() ? "_files -/" : "compadd " + words) + "; return ;;\n";
  }
  return text;
}

std::string ZshScript(const Node& root) {
  std::vector<std::string> value_flags;
  AddValueFlags(root, &value_flags);
  std::vector<std::string> groups;
  for (const Node& child : root.children) {
    if (!child.children.empty()) groups.push_back(child.path.back());
  }
  std::string cases;
  ZshCases(root, root, &cases);
  return "#compdef trims\n"
         "# zsh completion for trims; made by \"trims completion zsh\".\n"
         "_trims() {\n"
         "  local command='' word previous=\"${words[CURRENT-1]}\" current=\"${words[CURRENT]}\"\n"
         "  local -a line=(\"${(@)words[2,CURRENT-1]}\") flags\n"
         "  integer depth=1 skip=0 files=0\n"
         "  for word in \"${line[@]}\"; do\n"
         "    if ((skip)); then skip=0; continue; fi\n"
         "    case \"$word\" in\n"
         "      " +
         Join(value_flags, "|") +
         ") skip=1 ;;\n"
         "      -*) ;;\n"
         "      *)\n"
         "        if ((depth > 0)); then\n"
         "          command=\"${command:+$command }$word\"\n"
         "          ((depth--))\n" +
         (groups.empty()
              ? std::string()
              : "          case \"$command\" in " + Join(groups, "|") + ") depth=1 ;; esac\n") +
         "        fi\n"
         "        ;;\n"
         "    esac\n"
         "  done\n"
         "  local -a entries=()\n"
         "  case \"$previous\" in\n" +
         ZshValues() + "    " + Join(value_flags, "|") +
         ") return ;;\n"
         "  esac\n"
         "  case \"$command\" in\n" +
         cases +
         "  esac\n"
         "  if [[ \"$current\" == -* ]]; then\n"
         "    _describe -o option flags\n"
         "  else\n"
         "    ((${#entries})) && _describe word entries\n"
         "    ((files)) && _files\n"
         "  fi\n"
         "}\n"
         "if [[ \"${funcstack[1]}\" == _trims ]]; then _trims \"$@\"; else compdef _trims trims; "
         "fi\n";
}

void FishFlags(const Node& node, const std::string& condition, std::string* text) {
  for (const Flag& flag : node.flags) {
    std::string line = "complete -c trims" + condition;
    for (const std::string& word : flag.words) {
      line += word.starts_with("--") ? " -l " + word.substr(2) : " -s " + word.substr(1);
    }
    if (flag.takes_value) {
      line += " -x";
      for (const ValueWords& value : kValueWords) {
        if (flag.words.back() != value.flag) continue;
        line += " -a '" +
                (value.words.empty() ? "(__fish_complete_directories)" : std::string(value.words)) +
                "'";
      }
    }
    *text += line + " -d " + Quoted(flag.help, true) + "\n";
  }
}

std::string FishScript(const Node& root) {
  std::string text =
      "# fish completion for trims; made by \"trims completion fish\".\n"
      "complete -c trims -f\n";
  FishFlags(root, "", &text);
  for (const Node& child : root.children) {
    text += "complete -c trims -n __fish_use_subcommand -a " + child.path.back() + " -d " +
            Quoted(child.help, true) + "\n";
    std::vector<std::string> names = child.aliases;
    names.insert(names.begin(), child.path.back());
    const std::string seen = "__fish_seen_subcommand_from " + Join(names, " ");
    const std::string condition = " -n '" + seen + "'";
    FishFlags(child, condition, &text);
    if (!child.choices.empty()) {
      text += "complete -c trims" + condition + " -a '" + Join(child.choices, " ") + "'\n";
    }
    if (child.takes_models)
      text += "complete -c trims" + condition + " -a '(trims ls -q 2>/dev/null)'\n";
    if (child.takes_files) text += "complete -c trims" + condition + " -F\n";
    for (const Node& grandchild : child.children) {
      text += "complete -c trims -n '" + seen + "; and not __fish_seen_subcommand_from " +
              Join(ChildWords(child), " ") + "' -a " + grandchild.path.back() + " -d " +
              Quoted(grandchild.help, true) + "\n";
      const std::string nested =
          " -n '" + seen + "; and __fish_seen_subcommand_from " + grandchild.path.back() + "'";
      FishFlags(grandchild, nested, &text);
      if (grandchild.takes_files) text += "complete -c trims" + nested + " -F\n";
    }
  }
  return text;
}

ExitCode RunCompletion(const Context& context, const std::string& shell) {
  const Node root = Collect(*context.app, {});
  Print(shell == "bash" ? BashScript(root) : shell == "zsh" ? ZshScript(root) : FishScript(root));
  return ExitCode::kOk;
}

}  // namespace

void AddCompletionCommand(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand(
      "completion", "Print a completion script: source <(trims completion bash)");
  auto shell = std::make_shared<std::string>();
  command->add_option("SHELL", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  OnRun(command, context, [&context, shell] { return RunCompletion(context, *shell); });
}

}  // namespace trims::cli
