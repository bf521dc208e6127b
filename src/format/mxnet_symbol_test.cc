#include "format/mxnet_symbol.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "base/limits.h"

namespace trims::format {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;

std::vector<std::string> ArgumentNames(const Symbol& symbol) {
  std::vector<std::string> names;
  for (const uint32_t node : symbol.argument_nodes) names.push_back(symbol.nodes[node].name);
  return names;
}

const SymbolNode& NodeNamed(const Symbol& symbol, std::string_view name) {
  for (const SymbolNode& node : symbol.nodes) {
    if (node.name == name) return node;
  }
  ADD_FAILURE() << "no node named " << name;
  return symbol.nodes.at(0);
}

void ExpectRefused(std::string_view json, const std::string& message,
                   StatusCode code = StatusCode::kInvalidArgument) {
  const Result<Symbol> symbol = ParseMxnetSymbol(json);
  ASSERT_FALSE(symbol.ok()) << "accepted; expected: " << message;
  EXPECT_EQ(symbol.status().code(), code);
  EXPECT_THAT(symbol.status().message(), HasSubstr(message));
}

// A graph of the given nodes with the head [head, 0].
std::string Graph(const std::string& nodes, int head, const std::string& more = "") {
  return "{\"nodes\":[" + nodes + "],\"arg_nodes\":[],\"heads\":[[" + std::to_string(head) +
         ",0]]" + more + "}";
}
std::string Variable(const std::string& name, const std::string& more = "") {
  return "{\"op\":\"null\",\"name\":\"" + name + "\",\"inputs\":[]" + more + "}";
}
std::string Operator(const std::string& op, const std::string& name, const std::string& inputs,
                     const std::string& more = "") {
  return "{\"op\":\"" + op + "\",\"name\":\"" + name + "\",\"inputs\":[" + inputs + "]" + more +
         "}";
}
std::string Version(int version) {
  return ",\"attrs\":{\"mxnet_version\":[\"int\"," + std::to_string(version) + "]}";
}

// --- Layouts ------------------------------------------------------------------

// Written as 0.8 did: param and attr apart, no auxiliary variables, no version.
constexpr std::string_view kLayout08 = R"({
  "nodes": [
    {"op": "null", "param": {}, "name": "data", "inputs": [], "backward_source_id": -1,
     "attr": {"ctx_group": "stage1", "lr_mult": "0.2"}},
    {"op": "null", "param": {}, "name": "fc1_weight", "inputs": [], "backward_source_id": -1,
     "attr": {"wd_mult": "0.3"}},
    {"op": "null", "param": {}, "name": "fc1_bias", "inputs": [], "backward_source_id": -1},
    {"op": "FullyConnected", "param": {"no_bias": "False", "num_hidden": "10"}, "name": "fc1",
     "inputs": [[0, 0], [1, 0], [2, 0]], "backward_source_id": -1,
     "attr": {"wd_mult": "0.5", "weight_lr_mult": "1.2", "num_hidden": "12"}},
    {"op": "null", "param": {}, "name": "bn1_gamma", "inputs": [], "backward_source_id": -1},
    {"op": "null", "param": {}, "name": "bn1_beta", "inputs": [], "backward_source_id": -1},
    {"op": "BatchNorm", "param": {"eps": "0.001", "fix_gamma": "True"}, "name": "bn1",
     "inputs": [[3, 0], [4, 0], [5, 0]], "backward_source_id": -1},
    {"op": "null", "param": {}, "name": "softmax_label", "inputs": [], "backward_source_id": -1},
    {"op": "SoftmaxOutput", "param": {"multi_output": "False"}, "name": "softmax",
     "inputs": [[6, 0], [7, 0]], "backward_source_id": -1}
  ],
  "arg_nodes": [0, 1, 2, 4, 5, 7],
  "heads": [[8, 0]]
})";

TEST(MxnetSymbol, ReadsTheLayoutOf08) {
  const Result<Symbol> symbol = ParseMxnetSymbol(kLayout08);
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  EXPECT_EQ(symbol->mxnet_version, 800);
  EXPECT_THAT(ArgumentNames(*symbol),
              ElementsAre("data", "fc1_weight", "fc1_bias", "bn1_gamma", "bn1_beta",
                          "bn1_moving_mean", "bn1_moving_var", "softmax_label"));
  ASSERT_EQ(symbol->heads.size(), 1u);
  EXPECT_EQ(symbol->nodes[symbol->heads[0].node].name, "softmax");
}

TEST(MxnetSymbol, CreatesAuxiliaryVariablesThatOldFilesLeaveOut) {
  const Result<Symbol> symbol = ParseMxnetSymbol(kLayout08);
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  const SymbolNode& bn = NodeNamed(*symbol, "bn1");
  ASSERT_EQ(bn.inputs.size(), 5u);
  EXPECT_EQ(symbol->nodes[bn.inputs[3].node].name, "bn1_moving_mean");
  EXPECT_EQ(symbol->nodes[bn.inputs[4].node].name, "bn1_moving_var");
  EXPECT_EQ(symbol->nodes[bn.inputs[4].node].op, "");
  EXPECT_EQ(symbol->nodes[bn.inputs[0].node].name, "fc1");
}

TEST(MxnetSymbol, CreatesNoAuxiliaryVariablesFrom09On) {
  const std::string graph = Variable("data") + "," + Variable("g") + "," + Variable("b") + "," +
                            Operator("BatchNorm", "bn", "[0,0],[1,0],[2,0]");
  const Result<Symbol> old_symbol = ParseMxnetSymbol(Graph(graph, 3, Version(899)));
  ASSERT_TRUE(old_symbol.ok()) << old_symbol.status().ToString();
  EXPECT_EQ(NodeNamed(*old_symbol, "bn").inputs.size(), 5u);
  const Result<Symbol> symbol = ParseMxnetSymbol(Graph(graph, 3, Version(900)));
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  EXPECT_EQ(NodeNamed(*symbol, "bn").inputs.size(), 3u);
}

TEST(MxnetSymbol, MergesParamBelowAttr) {
  const Result<Symbol> symbol = ParseMxnetSymbol(kLayout08);
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  const SymbolNode& fc = NodeNamed(*symbol, "fc1");
  EXPECT_EQ(fc.op, "FullyConnected");
  EXPECT_THAT(fc.attributes,
              UnorderedElementsAre(Pair("no_bias", "False"), Pair("num_hidden", "12")));
}

TEST(MxnetSymbol, RenamesHiddenKeys) {
  const Result<Symbol> symbol = ParseMxnetSymbol(kLayout08);
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  EXPECT_THAT(NodeNamed(*symbol, "data").annotations,
              UnorderedElementsAre(Pair("__ctx_group__", "stage1"), Pair("__lr_mult__", "0.2")));
  EXPECT_THAT(NodeNamed(*symbol, "fc1").annotations,
              UnorderedElementsAre(Pair("__wd_mult__", "0.5")));
  EXPECT_THAT(NodeNamed(*symbol, "fc1_weight").annotations,
              UnorderedElementsAre(Pair("__wd_mult__", "0.3"), Pair("__lr_mult__", "1.2")));
  EXPECT_THAT(NodeNamed(*symbol, "fc1_bias").annotations, IsEmpty());
}

TEST(MxnetSymbol, GivesArgumentKeysToTheVariableOfTheUsualName) {
  const Result<Symbol> symbol =
      ParseMxnetSymbol(Graph(Variable("x") + "," + Variable("op_scale") + "," +
                                 Operator("Custom", "op", "[0,0],[1,0]",
                                          R"(,"attrs":{"scale_lr_mult":"2","other_lr_mult":"3"})"),
                             2));
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  EXPECT_THAT(NodeNamed(*symbol, "op_scale").annotations,
              UnorderedElementsAre(Pair("__lr_mult__", "2")));
  EXPECT_THAT(NodeNamed(*symbol, "op").annotations,
              UnorderedElementsAre(Pair("other_lr_mult", "3")));
  EXPECT_THAT(NodeNamed(*symbol, "op").attributes, IsEmpty());
}

// Written as 0.12 did: everything in attr, a version, mutable inputs counted.
constexpr std::string_view kLayout012 = R"json({
  "nodes": [
    {"op": "null", "name": "data", "inputs": []},
    {"op": "null", "name": "w", "attr": {"kernel": "(3, 3)", "__shape__": "(1, 2)"}, "inputs": []},
    {"op": "null", "name": "mean", "attr": {"__init__": "[\"zero\", {}]"}, "inputs": []},
    {"op": "Convolution", "name": "conv", "attr": {"kernel": "(3, 3)", "__mood__": "calm"},
     "inputs": [[0, 0], [1, 0], [2, 0, 1]]}
  ],
  "arg_nodes": [0, 1, 2],
  "node_row_ptr": [0, 1, 2, 3, 4],
  "heads": [[3, 0, 0]],
  "attrs": {"mxnet_version": ["int", 1200], "other": ["list_str", [["a"], {"b": null}]]}
})json";

TEST(MxnetSymbol, ReadsTheLayoutOf09To012) {
  const Result<Symbol> symbol = ParseMxnetSymbol(kLayout012);
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  EXPECT_EQ(symbol->mxnet_version, 1200);
  EXPECT_THAT(symbol->nodes[3].attributes, UnorderedElementsAre(Pair("kernel", "(3, 3)")));
  EXPECT_THAT(symbol->nodes[3].annotations, UnorderedElementsAre(Pair("__mood__", "calm")));
  EXPECT_THAT(symbol->nodes[3].inputs,
              ElementsAre(SymbolInput{0, 0}, SymbolInput{1, 0}, SymbolInput{2, 0}));
  EXPECT_THAT(symbol->nodes[1].attributes, IsEmpty());  // A copy of the operator's means nothing.
  EXPECT_THAT(symbol->nodes[1].annotations, UnorderedElementsAre(Pair("__shape__", "(1, 2)")));
  EXPECT_THAT(symbol->nodes[2].annotations,
              UnorderedElementsAre(Pair("__init__", "[\"zero\", {}]")));
}

TEST(MxnetSymbol, ReadsTheLayoutFrom10On) {
  const Result<Symbol> symbol = ParseMxnetSymbol(
      Graph(Variable("data") + "," +
                Operator("Activation", "relu", "[0,0,0]", R"(,"attrs":{"act_type":"relu"})"),
            1, Version(10901)));
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  EXPECT_EQ(symbol->mxnet_version, 10901);
  EXPECT_THAT(symbol->nodes[1].attributes, UnorderedElementsAre(Pair("act_type", "relu")));
}

TEST(MxnetSymbol, MergesAttrAndAttrs) {
  const Result<Symbol> symbol = ParseMxnetSymbol(
      Graph(Variable("x") + "," +
                Operator("op", "y", "[0,0]",
                         R"(,"attr":{"a":"1"},"attrs":{"b":"2"},"param":{"a":"3","c":"4"})"),
            1));
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  EXPECT_THAT(symbol->nodes[1].attributes,
              UnorderedElementsAre(Pair("a", "1"), Pair("b", "2"), Pair("c", "4")));
}

TEST(MxnetSymbol, DropsTheAxisThatMeantAllAxes) {
  const auto axes = [](int version, const std::string& axis) {
    const Result<Symbol> symbol = ParseMxnetSymbol(
        Graph(Variable("x") + "," +
                  Operator("argmax", "y", "[0,0]", ",\"attr\":{\"axis\":\"" + axis + "\"}"),
              1, Version(version)));
    EXPECT_TRUE(symbol.ok()) << symbol.status().ToString();
    return symbol.ok() ? symbol->nodes[1].attributes.count("axis") : 99;
  };
  EXPECT_EQ(axes(904, "-1"), 0u);
  EXPECT_EQ(axes(904, "1"), 1u);
  EXPECT_EQ(axes(905, "-1"), 1u);
}

TEST(MxnetSymbol, ReadsFieldsInAnyOrder) {
  const Result<Symbol> symbol =
      ParseMxnetSymbol(R"({"heads":[[1,0]],"nodes":[{"inputs":[],"name":"x","op":"null"},)"
                       R"({"inputs":[[0,0]],"attrs":{"a":"1"},"name":"y","op":"f"}]})");
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  EXPECT_EQ(symbol->nodes.size(), 2u);
}

// --- Order --------------------------------------------------------------------

TEST(MxnetSymbol, ListsArgumentsDepthFirst) {
  // In file order d, c, b, a; the head takes a branch with b and a first.
  const Result<Symbol> symbol =
      ParseMxnetSymbol(Graph(Variable("d") + "," + Variable("c") + "," + Variable("b") + "," +
                                 Variable("a") + "," + Operator("add", "left", "[2,0],[3,0]") +
                                 "," + Operator("add", "right", "[2,0],[1,0],[0,0]") + "," +
                                 Operator("add", "top", "[4,0],[5,0]"),
                             6));
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  EXPECT_THAT(ArgumentNames(*symbol), ElementsAre("b", "a", "c", "d"));
}

TEST(MxnetSymbol, VisitsControlDependenciesAfterInputs) {
  const Result<Symbol> symbol =
      ParseMxnetSymbol(Graph(Variable("a") + "," + Variable("b") + "," +
                                 Operator("f", "y", "[1,0]", ",\"control_deps\":[0]"),
                             2));
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  EXPECT_THAT(ArgumentNames(*symbol), ElementsAre("b", "a"));
}

TEST(MxnetSymbol, VisitsHeadsInTheirOrder) {
  const Result<Symbol> symbol = ParseMxnetSymbol(
      R"({"nodes":[)" + Variable("a") + "," + Variable("b") + R"(],"heads":[[1,0],[0,0],[1,0]]})");
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  EXPECT_THAT(ArgumentNames(*symbol), ElementsAre("b", "a"));
  EXPECT_THAT(symbol->heads, ElementsAre(SymbolInput{1, 0}, SymbolInput{0, 0}, SymbolInput{1, 0}));
}

TEST(MxnetSymbol, LeavesOutWhatNoHeadNeeds) {
  const Result<Symbol> symbol = ParseMxnetSymbol(
      Graph(Variable("unused") + "," + Variable("x") + "," + Operator("f", "dead", "[0,0],[1,0]") +
                "," + Operator("f", "y", "[1,0]"),
            3));
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  ASSERT_EQ(symbol->nodes.size(), 2u);
  EXPECT_EQ(symbol->nodes[0].name, "x");
  EXPECT_THAT(symbol->nodes[1].inputs, ElementsAre(SymbolInput{0, 0}));
  EXPECT_THAT(symbol->heads, ElementsAre(SymbolInput{1, 0}));
}

TEST(MxnetSymbol, ReadsAChainOfAHundredThousandNodes) {
  std::string nodes = Variable("x");
  for (int i = 0; i < 100'000; ++i) {
    nodes += "," + Operator("f", "y" + std::to_string(i), "[" + std::to_string(i) + ",0]");
  }
  const Result<Symbol> symbol = ParseMxnetSymbol(Graph(nodes, 100'000));
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  EXPECT_EQ(symbol->nodes.size(), 100'001u);
}

TEST(MxnetSymbol, ReadsANodeOfManyInputsAndArgumentKeys) {
  std::string nodes = Variable("x") + "," + Operator("f", "y", "[0,0]");
  std::string inputs = "[1,0]";
  std::string attrs = R"("k_lr_mult":"1")";
  for (int i = 0; i < 100'000; ++i) {
    inputs += ",[1,0]";
    attrs += ",\"k" + std::to_string(i) + "_lr_mult\":\"1\"";
  }
  const Result<Symbol> symbol = ParseMxnetSymbol(
      Graph(nodes + "," + Operator("Custom", "z", inputs, ",\"attrs\":{" + attrs + "}"), 2));
  ASSERT_TRUE(symbol.ok()) << symbol.status().ToString();
  EXPECT_EQ(symbol->nodes[2].annotations.size(), 100'001u);
}

// --- Refusals -----------------------------------------------------------------

TEST(MxnetSymbol, RefusesWhatIsNoGraph) {
  ExpectRefused("", "the MXNet symbol is empty");
  ExpectRefused("[]", "the text is an array; expected an object");
  ExpectRefused("{\"nodes\":", "is not valid JSON");
  ExpectRefused("{} {}", "is not valid JSON at byte 3");
  ExpectRefused("{}", "no 'nodes': this is not a symbol");
  ExpectRefused("{\"nodes\":[" + Variable("x") + "]}", "no 'heads': this is not a symbol");
  ExpectRefused(R"({"nodes":[],"heads":[[0,0]]})", "'nodes' is empty");
  ExpectRefused("{\"nodes\":[" + Variable("x") + "],\"heads\":[]}", "'heads' is empty");
  ExpectRefused("<html>", "is an HTML or XML page");
  ExpectRefused(std::string(kMaxSymbolJsonBytes + 1, ' '), "67108865 bytes of JSON; at most");
}

TEST(MxnetSymbol, RefusesUnknownAndRepeatedFields) {
  ExpectRefused(Graph(Variable("x"), 0, ",\"extra\":1"), "the graph has the unknown field 'extra'");
  ExpectRefused(Graph(Variable("x"), 0, ",\"nodes\":[]"), "the graph has the field 'nodes' twice");
  ExpectRefused(Graph(Variable("x", ",\"extra\":1"), 0),
                "node 0 ('x') has the unknown field 'extra'");
  ExpectRefused(Graph(Variable("x", ",\"op\":\"f\""), 0), "node 0 ('x') has the field 'op' twice");
  ExpectRefused(Graph(Variable("x", R"(,"attrs":{"a":"1","a":"2"})"), 0),
                "node 0 ('x') has an attribute twice: 'a'");
  ExpectRefused(Graph(Variable("x", R"(,"attrs":{"a":"1"},"attr":{"a":"2"})"), 0),
                "has an attribute twice");
  ExpectRefused(
      Graph(Variable("x"), 0, R"(,"attrs":{"mxnet_version":["int",1],"mxnet_version":["int",2]})"),
      "mxnet_version twice");
}

TEST(MxnetSymbol, RefusesMissingFieldsOfANode) {
  ExpectRefused(Graph(R"({"name":"x","inputs":[]})", 0), "node 0 ('x') has no field 'op'");
  ExpectRefused(Graph(R"({"op":"f","inputs":[]})", 0), "node 0 ('') has no field 'name'");
  ExpectRefused(Graph(R"({"op":"f","name":"x"})", 0), "node 0 ('x') has no field 'inputs'");
}

TEST(MxnetSymbol, RefusesFieldsOfTheWrongKind) {
  ExpectRefused(R"({"nodes":{}})", "'nodes' is an object; expected an array of nodes");
  ExpectRefused(R"({"nodes":[1]})", "node 0 is a number; expected an object");
  ExpectRefused(R"({"heads":[1]})", "an item of 'heads' is a number");
  ExpectRefused(R"({"arg_nodes":[-1]})", "an item of 'arg_nodes' is a negative number");
  ExpectRefused(R"({"arg_nodes":{}})", "'arg_nodes' is an object");
  ExpectRefused(R"({"attrs":[]})", "'attrs' of the graph is an array");
  ExpectRefused(R"({"nodes":[{"op":null}]})", "'op' is null; expected a string");
  ExpectRefused(R"({"nodes":[{"name":1}]})", "'name' is a number; expected a string");
  ExpectRefused(R"({"nodes":[{"name":"x","inputs":1}]})", "node 0 ('x'): 'inputs' is a number");
  ExpectRefused(R"({"nodes":[{"attrs":[]}]})",
                "'attrs' is an array; expected an object of strings");
  ExpectRefused(R"({"nodes":[{"attrs":{"a":1}}]})",
                "'a' in 'attrs' is a number; expected a string");
  ExpectRefused(R"({"nodes":[{"param":{"a":[]}}]})", "'a' in 'param' is an array");
  ExpectRefused(R"({"nodes":[{"backward_source_id":"1"}]})", "'backward_source_id' is a string");
  ExpectRefused(R"({"nodes":[{"control_deps":["a"]}]})", "an item of 'control_deps' is a string");
}

TEST(MxnetSymbol, RefusesWrongVersions) {
  const auto versioned = [](const std::string& version) {
    return Graph(Variable("x"), 0, ",\"attrs\":{\"mxnet_version\":" + version + "}");
  };
  ExpectRefused(versioned("1200"), "'mxnet_version' is a number; expected [\"int\", number]");
  ExpectRefused(versioned("[]"), "the first part of 'mxnet_version' is the end of an array");
  ExpectRefused(versioned(R"(["str","1200"])"), "mxnet_version is of the type 'str'");
  ExpectRefused(versioned(R"(["int",-1])"), "the second part of 'mxnet_version' is a negative");
  ExpectRefused(versioned(R"(["int",2147483648])"), "the second part of 'mxnet_version'");
  ExpectRefused(versioned(R"(["int",1,2])"), "the third part of 'mxnet_version' is a number");
}

TEST(MxnetSymbol, RefusesEntriesOfOtherThanTwoOrThreeNumbers) {
  const auto input = [](const std::string& entry) {
    return Graph(Variable("x") + "," + Operator("f", "y", entry), 1);
  };
  ExpectRefused(input("[]"), "an item of 'inputs' has 0 numbers; expected [node, output]");
  ExpectRefused(input("[0]"), "an item of 'inputs' has 1 numbers");
  ExpectRefused(input("[0,0,0,0]"), "part 3 of an item of 'inputs' is a number; expected [node");
  ExpectRefused(input("[0,-1]"), "part 1 of an item of 'inputs' is a negative number");
  ExpectRefused(input("[4294967296,0]"), "part 0 of an item of 'inputs'");
  ExpectRefused(input("[0,\"0\"]"), "part 1 of an item of 'inputs' is a string");
}

TEST(MxnetSymbol, RefusesForwardReferencesAndCycles) {
  ExpectRefused(
      Graph(Variable("x") + "," + Operator("f", "y", "[2,0]") + "," + Operator("f", "z", "[0,0]"),
            1),
      "node 1 ('y') has node 2 as an input; expected an earlier node");
  ExpectRefused(Graph(Variable("x") + "," + Operator("f", "y", "[1,0]"), 1),
                "node 1 ('y') has node 1 as an input");
  ExpectRefused(Graph(Variable("x") + "," + Operator("f", "y", "[4294967295,0]"), 1),
                "has node 4294967295 as an input");
  ExpectRefused(
      Graph(Variable("x") + "," + Operator("f", "y", "[0,0]", ",\"control_deps\":[1]"), 1),
      "node 1 ('y') has node 1 as a control dependency");
}

TEST(MxnetSymbol, RefusesReferencesToNodesThatDoNotExist) {
  ExpectRefused(Graph(Variable("x"), 1), "'heads' has node 1; there are 1 nodes");
  ExpectRefused(R"({"nodes":[)" + Variable("x") + R"(],"heads":[[0,0]],"arg_nodes":[7]})",
                "'arg_nodes' has node 7; there are 1 nodes");
  ExpectRefused(R"({"nodes":[)" + Operator("f", "y", "") + R"(],"heads":[[0,0]],"arg_nodes":[0]})",
                "'arg_nodes' has node 0 ('y'), which is not a variable");
}

TEST(MxnetSymbol, RefusesOutputsThatCanNotExist) {
  ExpectRefused(
      Graph(Variable("x") + "," + Operator("f", "y", "[0,1]"), 1),
      "node 1 ('y') refers to output 1 of node 0 ('x'), a variable, which has only output 0");
  ExpectRefused(Graph(Variable("x") + "," + Operator("f", "y", "[0,0]") + "," +
                          Operator("f", "z", "[1,65536]"),
                      2),
                "refers to output 65536 of node 1 ('y'); at most 65536 outputs");
  ExpectRefused(R"({"nodes":[)" + Variable("x") + R"(],"heads":[[0,3]]})",
                "'heads' refers to output 3 of node 0 ('x')");
}

TEST(MxnetSymbol, RefusesVariablesWithInputs) {
  ExpectRefused(Graph(Variable("x") + "," + Operator("null", "y", "[0,0]"), 1),
                "node 1 ('y') is a variable and has inputs");
}

TEST(MxnetSymbol, RefusesOddNames) {
  ExpectRefused(Graph(Variable(""), 0), "node 0 has an empty name");
  ExpectRefused(Graph(Variable("a\\u0000"), 0), "contains a control character");
  ExpectRefused(Graph(Operator("f", "a\\n", ""), 0), "contains a control character");
  ExpectRefused(Graph(Operator("", "a", ""), 0), "node 0 ('a') has an empty op");
  EXPECT_TRUE(ParseMxnetSymbol(Graph(Operator("f", "", ""), 0)).ok());
}

TEST(MxnetSymbol, RefusesTwoVariablesOfOneName) {
  ExpectRefused(
      Graph(Variable("x") + "," + Variable("x") + "," + Operator("f", "y", "[0,0],[1,0]"), 2),
      "two variables are named 'x'");
  // Of an old file, also with one that had to be created.
  ExpectRefused(Graph(Variable("x") + "," + Variable("bn_moving_mean") + "," + Variable("b") + "," +
                          Operator("BatchNorm", "bn", "[0,0],[1,0],[2,0]"),
                      3),
                "two variables are named 'bn_moving_mean'");
}

TEST(MxnetSymbol, RefusesSubgraphs) {
  ExpectRefused(Graph(Operator("_foreach", "loop", "", ",\"subgraphs\":[{}]"), 0),
                "node 0 ('loop') has subgraphs; control flow operators are not supported",
                StatusCode::kUnimplemented);
  EXPECT_TRUE(ParseMxnetSymbol(Graph(Operator("f", "y", "", ",\"subgraphs\":[]"), 0)).ok());
}

TEST(MxnetSymbol, BoundsNodesAndAttributes) {
  std::string nodes = Variable("x");
  for (uint32_t i = 0; i < kMaxSymbolNodes; ++i) nodes += "," + Operator("f", "", "");
  ExpectRefused(Graph(nodes, 0), "more than 200000 nodes");
  std::string attrs = "\"a\":\"\"";
  for (uint32_t i = 0; i < kMaxSymbolAttributes; ++i)
    attrs += ",\"" + std::to_string(i) + "\":\"\"";
  ExpectRefused(Graph(Variable("x", ",\"attrs\":{" + attrs + "}"), 0),
                "more than 1000000 attributes");
}

// --- Attribute values ---------------------------------------------------------

TEST(Attribute, Bool) {
  for (const char* text : {"True", "true", "TRUE", "1", " True "}) {
    const Result<bool> value = ParseBoolAttribute(text);
    ASSERT_TRUE(value.ok()) << text;
    EXPECT_TRUE(*value) << text;
  }
  for (const char* text : {"False", "false", "0"}) {
    const Result<bool> value = ParseBoolAttribute(text);
    ASSERT_TRUE(value.ok()) << text;
    EXPECT_FALSE(*value) << text;
  }
  for (const char* text : {"", "yes", "2", "Truee", "None", "true false"}) {
    EXPECT_FALSE(ParseBoolAttribute(text).ok()) << text;
  }
  EXPECT_EQ(ParseBoolAttribute("maybe").status().message(),
            "'maybe' is not a boolean; expected True or False");
}

TEST(Attribute, Int) {
  const auto expect = [](std::string_view text, int64_t expected) {
    const Result<int64_t> value = ParseIntAttribute(text);
    ASSERT_TRUE(value.ok()) << text;
    EXPECT_EQ(*value, expected) << text;
  };
  expect("0", 0);
  expect("-1", -1);
  expect("+64", 64);
  expect(" 128 ", 128);
  expect("64L", 64);
  expect("9223372036854775807", std::numeric_limits<int64_t>::max());
  expect("-9223372036854775808", std::numeric_limits<int64_t>::min());
  for (const char* text : {"", " ", "1.0", "1e3", "0x10", "9223372036854775808", "1 2", "--1",
                           "+-1", "+", "L", "None"}) {
    EXPECT_FALSE(ParseIntAttribute(text).ok()) << text;
  }
}

TEST(Attribute, Float) {
  const auto expect = [](std::string_view text, double expected) {
    const Result<double> value = ParseFloatAttribute(text);
    ASSERT_TRUE(value.ok()) << text;
    EXPECT_EQ(*value, expected) << text;
  };
  expect("2e-05", 2e-5);
  expect("0.9", 0.9);
  expect("1", 1.0);
  expect("1.", 1.0);
  expect("-1E+3", -1000.0);
  expect("+0.5", 0.5);
  expect("inf", std::numeric_limits<double>::infinity());
  expect("-inf", -std::numeric_limits<double>::infinity());
  for (const char* text : {"", "nan", "abc", "1,0", "1.0f", "1e999", "--1", "+-1", "None", "1 2"}) {
    EXPECT_FALSE(ParseFloatAttribute(text).ok()) << text;
  }
}

TEST(Attribute, Tuple) {
  const auto expect = [](std::string_view text, const std::vector<int64_t>& expected) {
    const Result<std::vector<int64_t>> value = ParseTupleAttribute(text);
    ASSERT_TRUE(value.ok()) << text;
    EXPECT_EQ(*value, expected) << text;
  };
  expect("(3, 3)", {3, 3});
  expect("(3,3)", {3, 3});
  expect("[3,3]", {3, 3});
  expect("(3L, 3L)", {3, 3});
  expect("(3,)", {3});
  expect("(3)", {3});
  expect(" ( -1 , 0 ) ", {-1, 0});
  expect("()", {});
  expect("[]", {});
  expect("( )", {});
  expect("7", {7});
  expect("None", {});
  for (const char* text : {"", "(", ")", "(3", "3)", "(3]", "(,)", "(3,,3)", "(3 3)", "(3;3)",
                           "(a)", "3,3", "(1.5,)", "((1),)", "(None,)", "(9223372036854775808,)"}) {
    EXPECT_FALSE(ParseTupleAttribute(text).ok()) << text;
  }
}

TEST(Attribute, None) {
  EXPECT_TRUE(IsNoneAttribute("None"));
  EXPECT_TRUE(IsNoneAttribute(" None "));
  EXPECT_FALSE(IsNoneAttribute("none"));
  EXPECT_FALSE(IsNoneAttribute(""));
}

}  // namespace
}  // namespace trims::format
