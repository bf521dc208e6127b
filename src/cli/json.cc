#include "cli/json.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/time_util.h>

#include <cstdio>
#include <string_view>

#include "cli/command.h"
#include "cli/text.h"

namespace trims::cli {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// REPLICA_STATE_READY of ReplicaState is "ready".
std::string EnumWord(const google::protobuf::EnumValueDescriptor& value) {
  std::string prefix;
  for (const char c : value.type()->name()) {
    if (c >= 'A' && c <= 'Z') {
      if (!prefix.empty()) prefix.push_back('_');
      prefix.push_back(c);
    } else {
      prefix.push_back(static_cast<char>(c - 'a' + 'A'));
    }
  }
  return EnumText(value.name(), prefix + "_");
}

Json MessageJson(const Message& message) {
  if (const auto* time = dynamic_cast<const google::protobuf::Timestamp*>(&message)) {
    return google::protobuf::util::TimeUtil::ToString(*time);
  }
  if (const auto* duration = dynamic_cast<const google::protobuf::Duration*>(&message)) {
    return static_cast<double>(duration->seconds()) + duration->nanos() * 1e-9;
  }
  return ToJson(message);
}

// One value: element `index` of a repeated field, else the field itself.
Json ValueJson(const Message& message, const FieldDescriptor* field, int index) {
  const Reflection* reflection = message.GetReflection();
  const bool repeated = field->is_repeated();
#define TRIMS_GET_(Type)                                           \
  (repeated ? reflection->GetRepeated##Type(message, field, index) \
            : reflection->Get##Type(message, field))
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return TRIMS_GET_(Int32);
    case FieldDescriptor::CPPTYPE_INT64:
      return TRIMS_GET_(Int64);
    case FieldDescriptor::CPPTYPE_UINT32:
      return TRIMS_GET_(UInt32);
    case FieldDescriptor::CPPTYPE_UINT64:
      return TRIMS_GET_(UInt64);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return TRIMS_GET_(Double);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return TRIMS_GET_(Float);
    case FieldDescriptor::CPPTYPE_BOOL:
      return TRIMS_GET_(Bool);
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumWord(*TRIMS_GET_(Enum));
    case FieldDescriptor::CPPTYPE_STRING:
      return TRIMS_GET_(String);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      if (!repeated && !reflection->HasField(message, field)) return nullptr;
      return MessageJson(repeated ? reflection->GetRepeatedMessage(message, field, index)
                                  : reflection->GetMessage(message, field));
  }
#undef TRIMS_GET_
  return nullptr;
}

}  // namespace

Json ToJson(const Message& message) {
  Json object = Json::object();
  const Reflection* reflection = message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    if (field->is_map()) {
      Json map = Json::object();
      for (int j = 0; j < reflection->FieldSize(message, field); ++j) {
        const Message& pair = reflection->GetRepeatedMessage(message, field, j);
        const auto* type = pair.GetDescriptor();
        map[pair.GetReflection()->GetString(pair, type->map_key())] =
            ValueJson(pair, type->map_value(), 0);
      }
      object[field->name()] = std::move(map);
    } else if (field->is_repeated()) {
      Json array = Json::array();
      for (int j = 0; j < reflection->FieldSize(message, field); ++j) {
        array.push_back(ValueJson(message, field, j));
      }
      object[field->name()] = std::move(array);
    } else {
      object[field->name()] = ValueJson(message, field, 0);
    }
  }
  return object;
}

void PrintJson(const Json& json) {
  Print(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

void PrintJsonLine(const Json& json) {
  Print(json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  std::fflush(stdout);
}

}  // namespace trims::cli
