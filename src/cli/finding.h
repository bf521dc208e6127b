// What `trims doctor` found out about one thing. Values; no thread rule.
#pragma once

#include <string>
#include <utility>

namespace trims::cli {

enum class Level { kOk, kWarn, kFail };

struct Finding {
  Level level = Level::kOk;
  std::string check;
  std::string text;
  std::string advice;  // What to do; empty when good.
};

inline Finding Good(std::string check, std::string text) {
  return {Level::kOk, std::move(check), std::move(text), ""};
}
inline Finding Bad(Level level, std::string check, std::string text, std::string advice) {
  return {level, std::move(check), std::move(text), std::move(advice)};
}

}  // namespace trims::cli
