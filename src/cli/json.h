// Responses as JSON, for --json. The fields and their names are those of
// control.proto: integers are numbers, enumerators lower-case words, times RFC 3339
// strings, durations seconds; an absent message is null. Fields are only added.
#pragma once

#include <google/protobuf/message.h>

#include <nlohmann/json.hpp>
#include <string>

namespace trims::cli {

using Json = nlohmann::ordered_json;

Json ToJson(const google::protobuf::Message& message);

template <typename Messages>
Json ToJsonArray(const Messages& messages) {
  Json array = Json::array();
  for (const auto& message : messages) array.push_back(ToJson(message));
  return array;
}

// Indented, for one result; on one line, for one of many.
void PrintJson(const Json& json);
void PrintJsonLine(const Json& json);

}  // namespace trims::cli
