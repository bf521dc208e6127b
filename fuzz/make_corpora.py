#!/usr/bin/env python3
"""Writes the hand-made seeds of the file format fuzzers.

    fuzz/make_corpora.py [folder]        (default: the corpora next to this file)

Every seed is a small file whose name says what is in it, good or malformed.
Files that fuzzers found interesting live beside them under their hashes; this
script leaves those alone.
"""

import json
import pathlib
import struct
import sys


def u32(value):
    return struct.pack("<I", value & 0xFFFFFFFF)


def i32(value):
    return struct.pack("<i", value)


def u64(value):
    return struct.pack("<Q", value)


def i64(value):
    return struct.pack("<q", value)


# --- safetensors --------------------------------------------------------------


def raw_safetensors(header, payload=b""):
    header = header if isinstance(header, bytes) else header.encode()
    return u64(len(header)) + header + payload


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors(tensors, payload):
    return raw_safetensors(json.dumps(tensors, separators=(",", ":")), payload)


def one(payload=b"x", **fields):
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], **fields}
    return safetensors({"a": {k: v for k, v in entry.items() if v is not None}}, payload)


def safetensors_seeds():
    two = {"a": tensor("F32", [2], 0, 8), "b": tensor("I8", [3], 8, 11)}
    yield "good_two_tensors", safetensors(two, b"x" * 11)
    yield "good_metadata", safetensors({"__metadata__": {"format": "pt"}, **two}, b"x" * 11)
    yield "good_no_tensors", raw_safetensors("{}")
    yield "good_padded_header", raw_safetensors("{}      ")
    yield "good_scalar", one(shape=[])
    yield "good_empty_tensor", one(b"", shape=[0, 7], data_offsets=[0, 0])
    yield "good_misaligned", safetensors(
        {"a": tensor("U8", [3], 0, 3), "b": tensor("F64", [1], 3, 11)}, b"x" * 11)
    yield "good_any_order", safetensors(
        {"b": tensor("U8", [2], 1, 3), "a": tensor("U8", [1], 0, 1)}, b"xyz")
    yield "good_unknown_field", one(extra={"deep": [[1, None, -2.5, True]]})
    yield "good_unicode_name", safetensors({"\u5c42.\u00e9": tensor("U8", [1], 0, 1)}, b"x")
    bits = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8,
            "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16,
            "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64,
            "I64": 64, "U64": 64}
    every, position = {}, 0
    for name, width in bits.items():
        every["t_" + name] = tensor(name, [4, 2], position, position + width)
        position += width
    yield "good_every_dtype", safetensors(every, b"x" * position)
    yield "bad_empty_file", b""
    yield "bad_nine_bytes", raw_safetensors("{")
    yield "bad_huge_header", u64(1 << 62) + b"{}"
    yield "bad_header_over_limit", u64(100_000_001) + b"{}"
    yield "bad_header_beyond_file", u64(100) + b"{}"
    yield "bad_empty_header", u64(0) + b"{}"
    yield "bad_leading_space", raw_safetensors(" {}")
    yield "bad_header_is_an_array", raw_safetensors("[[]]")
    yield "bad_json_cut", raw_safetensors('{"a":{"dty')
    yield "bad_json_twice", raw_safetensors("{}{}")
    yield "bad_utf8", raw_safetensors(b'{"\xff":{}}')
    yield "bad_lone_surrogate", raw_safetensors('{"\\ud800":{}}')
    yield "bad_nul_hides_bytes", raw_safetensors(b"{}\0hidden")
    yield "bad_deep_json", raw_safetensors('{"a":{"x":' + "[" * 200 + "]" * 200 + "}}")
    yield "bad_tensor_is_an_array", raw_safetensors('{"a":["U8",[1],[0,1]]}', b"x")
    yield "bad_no_dtype", one(dtype=None)
    yield "bad_no_shape", one(shape=None)
    yield "bad_no_offsets", one(data_offsets=None)
    yield "bad_unknown_dtype", one(dtype="Q4_0")
    yield "bad_field_twice", raw_safetensors('{"a":{"dtype":"U8","dtype":"I8"}}')
    entry = '"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    yield "bad_tensor_twice", raw_safetensors("{" + entry + "," + entry + "}")
    yield "bad_metadata_twice", raw_safetensors('{"__metadata__":{},"__metadata__":{}}')
    yield "bad_metadata_number", raw_safetensors('{"__metadata__":{"a":1}}')
    yield "bad_negative_dimension", one(shape=[-1])
    yield "bad_fractional_dimension", one(shape=[1.0])
    yield "bad_dimension_of_2_to_63", one(shape=[1 << 63])
    yield "bad_dimension_of_2_to_64", one(shape=[1 << 64])
    yield "bad_rank_33", one(shape=[1] * 33)
    yield "bad_negative_offset", one(data_offsets=[-1, 0])
    yield "bad_offsets_reversed", one(data_offsets=[1, 0])
    yield "bad_one_offset", one(data_offsets=[0])
    yield "bad_three_offsets", one(data_offsets=[0, 1, 2])
    yield "bad_size_mismatch", one(shape=[2])
    yield "bad_shape_overflow", one(shape=[1 << 32, 1 << 32], data_offsets=[0, 0])
    yield "bad_bits_overflow", one(dtype="F32", shape=[1 << 60], data_offsets=[0, 0])
    yield "bad_overflow_hidden_by_zero", one(shape=[1 << 62, 1 << 62, 0], data_offsets=[0, 0])
    yield "bad_part_of_a_byte", one(b"xx", dtype="F4", shape=[3], data_offsets=[0, 2])
    pair = lambda a, b: {"a": tensor("U8", [4], *a), "b": tensor("U8", [4], *b)}
    yield "bad_overlap", safetensors(pair((0, 4), (2, 6)), b"x" * 6)
    yield "bad_hole", safetensors(pair((0, 4), (5, 9)), b"x" * 9)
    yield "bad_first_hole", safetensors(pair((1, 5), (5, 9)), b"x" * 9)
    yield "bad_trailing_bytes", safetensors(pair((0, 4), (4, 8)), b"x" * 8 + b"PK\x05\x06")
    yield "bad_truncated_payload", safetensors(pair((0, 4), (4, 8)), b"x" * 7)
    yield "bad_empty_name", safetensors({"": tensor("U8", [1], 0, 1)}, b"x")
    yield "bad_control_character", safetensors({"a\n": tensor("U8", [1], 0, 1)}, b"x")
    yield "bad_nul_in_name", safetensors({"a\0b": tensor("U8", [1], 0, 1)}, b"x")
    # Files that are something else.
    yield "other_git_lfs", (b"version https://git-lfs.github.com/spec/v1\n"
                            b"oid sha256:" + b"0" * 64 + b"\nsize 102465345\n")
    yield "other_html", b"<!DOCTYPE html>\n<html>404</html>"
    yield "other_zip", b"PK\x03\x04\x00\x00\x08\x08"
    yield "other_pickle", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    yield "other_gguf", b"GGUF\x03\0\0\0" + u64(1) + u64(2)
    yield "other_gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03"
    # Shard indexes.
    yield "index_good", json.dumps({
        "metadata": {"total_size": 12},
        "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}).encode()
    yield "index_no_map", b'{"metadata":{}}'
    yield "index_empty_map", b'{"weight_map":{}}'
    yield "index_path", b'{"weight_map":{"a":"../../etc/passwd"}}'
    yield "index_tensor_twice", b'{"weight_map":{"a":"f","a":"g"}}'
    yield "index_map_twice", b'{"weight_map":{"a":"f"},"weight_map":{"b":"f"}}'
    yield "index_file_is_a_number", b'{"weight_map":{"a":1}}'


# --- MXNet .params ------------------------------------------------------------

V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA


def head(version, shape, rank=None, storage=0):
    rank = len(shape) if rank is None else rank
    if version == 0:
        return u32(rank) + b"".join(u32(d) for d in shape)
    storage = b"" if version == V1 else i32(storage)
    return u32(version) + storage + u32(rank) + b"".join(i64(d) for d in shape)


def array(version, shape, data, flag=0, device=(1, 0)):
    return head(version, shape) + i32(device[0]) + i32(device[1]) + i32(flag) + data


def params(arrays, names, count=None, name_count=None):
    file = u64(0x112) + u64(0) + u64(len(arrays) if count is None else count) + b"".join(arrays)
    file += u64(len(names) if name_count is None else name_count)
    return file + b"".join(u64(len(n)) + n for n in names)


def params_seeds():
    for label, version in (("v0", 0), ("v1", V1), ("v2", V2), ("v3", V3)):
        good = [array(version, (2, 2), b"x" * 16), array(version, (3,), b"x" * 12, device=(2, 7))]
        yield f"good_{label}", params(good, [b"arg:w", b"aux:m"])
        yield f"good_{label}_unnamed", params(good, [])
        yield f"good_{label}_none_unnamed", params(
            [head(version, (), rank=-1 if version == V3 else 0), good[0]], [])
        yield f"bad_{label}_none_named", params(
            [head(version, (), rank=-1 if version == V3 else 0)], [b"arg:w"])
        yield f"good_{label}_empty_array", params([array(version, (0, 4), b"")], [b"arg:e"])
        yield f"bad_{label}_truncated", params(good, [b"arg:w", b"aux:m"])[:60]
        large = 1 << 31 if version == 0 else 1 << 62
        yield f"bad_{label}_overflow", params([array(version, (large,) * 3, b"")], [b"arg:w"])
        yield f"bad_{label}_elements_beyond_file", params(
            [array(version, (1_000_000_000,), b"")], [b"arg:w"])
        yield f"bad_{label}_rank_33", params([array(version, (1,) * 33, b"xxxx")], [b"arg:w"])
        yield f"bad_{label}_element_type", params(
            [array(version, (1,), b"xxxx", flag=13)], [b"arg:w"])
        if version != 0:
            yield f"bad_{label}_negative_dimension", params(
                [array(version, (2, -5), b"")], [b"arg:w"])
    widths = [4, 8, 2, 1, 4, 1, 8, 1, 2, 2, 4, 8, 2]
    yield "good_every_type", params(
        [array(V2, (2,), b"x" * 2 * w, flag=f) for f, w in enumerate(widths)],
        [b"t%d" % f for f in range(len(widths))])
    yield "good_v3_scalar", params([array(V3, (), b"xxxx")], [b"s"])
    yield "good_v3_unknown_dimension_unnamed", params([head(V3, (2, -1))], [])
    yield "good_empty_list", params([], [])
    yield "good_trailing_bytes", params([array(V2, (1,), b"xxxx")], [b"w"]) + b"trailing"
    yield "good_mixed_versions", params(
        [array(v, (1,), b"xxxx") for v in (0, V1, V2, V3)], [b"a", b"b", b"c", b"d"])
    ok = array(V2, (1,), b"xxxx")
    yield "bad_list_magic", b"\x13" + params([ok], [b"w"])[1:]
    yield "bad_big_endian", struct.pack(">QQQ", 0x112, 0, 1)
    yield "bad_array_magic", params([u32(0xF993FACB)], [b"w"])
    yield "bad_v0_rank_of_16_gib", params([u32(0xFFFFFFFF)], [b"w"])
    yield "bad_row_sparse", params([head(V2, (1,), storage=1)], [b"w"])
    yield "bad_csr", params([head(V2, (1,), storage=2)], [b"w"])
    yield "bad_storage", params([head(V2, (1,), storage=-1)], [b"w"])
    yield "bad_v3_negative_rank", params([head(V3, (), rank=-2)], [b"w"])
    yield "bad_huge_count", params([], [], count=(1 << 64) - 1)
    yield "bad_count_beyond_file", params([ok], [], count=1000)
    yield "bad_fewer_names", params([ok, ok], [b"w"])
    yield "bad_more_names", params([ok], [b"w", b"v"])
    yield "bad_names_missing", params([ok], [], name_count=1)
    yield "bad_name_twice", params([ok, ok], [b"w", b"w"])
    yield "bad_empty_name", params([ok], [b""])
    yield "bad_nul_in_name", params([ok], [b"a\0b"])
    yield "bad_name_not_utf8", params([ok], [b"a\xc3"])
    yield "bad_huge_name", params([ok], [], name_count=1) + u64((1 << 64) - 1)


# --- MXNet symbols ------------------------------------------------------------


def variable(name, **more):
    return {"op": "null", "name": name, "inputs": [], **more}


def operator(op, name, inputs, **more):
    return {"op": op, "name": name, "inputs": inputs, **more}


def symbol(nodes, heads, version=None, **more):
    graph = {"nodes": nodes, "arg_nodes": [i for i, n in enumerate(nodes) if n["op"] == "null"],
             "heads": heads, **more}
    if version is not None:
        graph["attrs"] = {"mxnet_version": ["int", version]}
    return json.dumps(graph, separators=(",", ":")).encode()


def symbol_seeds():
    x = variable("x")
    old = [
        variable("data", param={}, backward_source_id=-1, attr={"lr_mult": "0.2"}),
        variable("fc_weight", param={}), variable("fc_bias", param={}),
        operator("FullyConnected", "fc", [[0, 0], [1, 0], [2, 0]],
                 param={"num_hidden": "10", "no_bias": "False"},
                 attr={"weight_lr_mult": "1.2", "ctx_group": "a"}, backward_source_id=-1),
        variable("bn_gamma"), variable("bn_beta"),
        operator("BatchNorm", "bn", [[3, 0], [4, 0], [5, 0]], param={"eps": "0.001"}),
    ]
    yield "good_0_8", symbol(old, [[6, 0]])
    conv = [
        x, variable("w", attr={"kernel": "(3, 3)", "__shape__": "(0,)"}),
        operator("Convolution", "c", [[0, 0], [1, 0, 1]],
                 attr={"kernel": "(3L, 3L)", "pad": "[1,1]", "stride": "()", "no_bias": "True"}),
    ]
    yield "good_0_12", symbol(conv, [[2, 0, 0]], 1200, node_row_ptr=[0, 1, 2, 3])
    yield "good_1_9", symbol(
        [x, operator("Activation", "y", [[0, 0, 0]], attrs={"act_type": "relu"})], [[1, 0]], 10901)
    yield "good_argmax", symbol(
        [x, operator("argmax", "y", [[0, 0]], attr={"axis": "-1"})], [[1, 0]], 904)
    yield "good_two_heads", symbol([x, operator("split", "y", [[0, 0]])], [[1, 0], [1, 1]], 10200)
    yield "good_control_deps", symbol(
        [x, variable("z"), operator("f", "y", [[0, 0]], control_deps=[1])], [[2, 0]])
    yield "good_unreachable", symbol([variable("u"), x, operator("f", "y", [[1, 0]])], [[2, 0]])
    yield "bad_empty", b""
    yield "bad_no_nodes", b'{"heads":[[0,0]]}'
    yield "bad_no_heads", b'{"nodes":[]}'
    yield "bad_heads_empty", symbol([x], [])
    yield "bad_unknown_field", symbol([x], [[0, 0]], extra=1)
    yield "bad_unknown_node_field", symbol([variable("x", extra=1)], [[0, 0]])
    yield "bad_no_op", b'{"nodes":[{"name":"x","inputs":[]}],"heads":[[0,0]]}'
    yield "bad_forward_reference", symbol(
        [x, operator("f", "y", [[2, 0]]), operator("f", "z", [[0, 0]])], [[1, 0]])
    yield "bad_cycle", symbol([operator("f", "y", [[0, 0]])], [[0, 0]])
    yield "bad_node_beyond", symbol([x, operator("f", "y", [[4294967295, 0]])], [[1, 0]])
    yield "bad_node_over_32_bits", symbol([x, operator("f", "y", [[4294967296, 0]])], [[1, 0]])
    yield "bad_head_beyond", symbol([x], [[1, 0]])
    yield "bad_arg_node_beyond", b'{"nodes":[],"arg_nodes":[7],"heads":[[0,0]]}'
    yield "bad_control_dep", symbol([x, operator("f", "y", [], control_deps=[1])], [[1, 0]])
    yield "bad_output_of_variable", symbol([x, operator("f", "y", [[0, 1]])], [[1, 0]])
    yield "bad_output_huge", symbol(
        [x, operator("f", "y", [[0, 0]]), operator("f", "z", [[1, 65536]])], [[2, 0]])
    yield "bad_entry_of_one", symbol([x, operator("f", "y", [[0]])], [[1, 0]])
    yield "bad_entry_of_four", symbol([x, operator("f", "y", [[0, 0, 0, 0]])], [[1, 0]])
    yield "bad_variable_with_inputs", symbol([x, operator("null", "y", [[0, 0]])], [[1, 0]])
    yield "bad_same_name", symbol([x, x, operator("f", "y", [[0, 0], [1, 0]])], [[2, 0]])
    yield "bad_subgraphs", symbol([operator("_foreach", "l", [], subgraphs=[{}])], [[0, 0]])
    yield "bad_attribute_number", symbol([variable("x", attrs={"a": 1})], [[0, 0]])
    yield "bad_version_text", symbol([x], [[0, 0]], attrs={"mxnet_version": ["str", "1"]})
    yield "bad_deep_graph_attr", (b'{"attrs":{"a":' + b"[" * 100 + b"]" * 100 + b"}}")
    for name, text in (("tuple", "(3, 3)"), ("list", "[3,3]"), ("longs", "(3L, 3L)"), ("unit", "()"),
                       ("integer", "-128"), ("float", "2e-05"), ("bool", "True"), ("none", "None"),
                       ("one", "(3,)"), ("open", "(3"), ("overflow", "9223372036854775808")):
        yield "value_" + name, text.encode()


# --- Names of models ------------------------------------------------------------

def model_name_seeds():
    hexadecimal = "0123456789abcdef" * 4
    for name, text in (
            ("plain", "vgg16"), ("of_2019", "BVLC-AlexNet:1.0"), ("canonical", "bvlc_alexnet_1.0"),
            ("spaces", "Network in Network:1.0"), ("namespace", "Team-A/VGG16_SOD:2.0rc1"),
            ("version_text", "net:latest"), ("number", "resnet-50"), ("dots", "..._1.0"),
            ("version_of_dot", "._1.0"), ("version_of_dots", ".._1.0"), ("version_only", "_1.0"),
            ("digest", "@sha256:" + hexadecimal), ("digest_bare", "sha256:" + hexadecimal),
            ("bad_digest", "sha256:12"), ("bad_empty", ""), ("bad_up", "../etc/passwd"),
            ("bad_absolute", "/models/vgg16_1.0//"), ("bad_slash", "vgg16/"), ("bad_parts", "a/b/c"),
            ("bad_colons", "a:b:c"), ("bad_order", "a:b/c"), ("bad_version", "a:.."),
            ("bad_control", "a\x1b[31m"), ("bad_nul", "a\0b"), ("bad_utf8", "\u00fc"),
            ("long", "a" * 256), ("bad_long", "a" * 513)):
        yield name, text.encode()


# --- Scripts of clients of the lease server ------------------------------------

(CONNECT, HANG_UP, HELLO, OPEN, OPEN_FILE, CANCEL, CLOSE, REATTACH, PING, RAW, TURN, READ, TIER,
 CHANGE) = range(14)  # As in src/daemon/lease_server_fuzz.cc.
MODEL, SLAB, LAYER = 1, 2, 3  # Granularities.
HOLD, RELEASE, FAIL, SHORT = range(4)
EXPECT, PROGRESS, DROP = 3, 4, 8  # Flags of an open.


def step(kind, client=0, request=0, a=0, b=0, c=0, d=0, e=0):
    return bytes([kind, client, request, a, b, c, d, e])


def lease_server_seeds():
    def greeted(client=0):
        return step(CONNECT, client) + step(HELLO, client, 1) + step(READ, client)

    wait = step(TURN, a=15, b=255)
    lease = step(OPEN, 0, 2, 0, MODEL) + wait + wait + step(READ)
    yield "good_open_close", greeted() + lease + step(CLOSE, 0, 3) + step(READ)
    yield "good_every_granularity", greeted() + b"".join(
        step(OPEN, 0, 2 + g, 0, g) + wait for g in range(4)) + step(READ)
    yield "good_device", greeted() + step(OPEN, 0, 2, 0, LAYER, 1) + wait + wait + step(READ)
    yield "good_progress", greeted() + step(OPEN, 0, 2, 1, SLAB, 0, PROGRESS) + wait + step(READ)
    yield "good_two_clients", (greeted() + greeted(1) + lease + step(OPEN, 1, 2, 0, MODEL) + wait +
                               step(HANG_UP) + step(READ, 1) + step(CLOSE, 1, 3) + step(READ, 1))
    yield "good_passed_file", greeted() + step(OPEN_FILE, 0, 2, 0, MODEL) + wait + wait + step(READ)
    yield "good_by_digest", greeted() + lease + step(OPEN, 0, 4, 100, MODEL) + wait + step(READ)
    yield "good_reattach", greeted() + lease + greeted(1) + step(REATTACH, 1, 2, 0, MODEL) + wait
    yield "good_eviction", greeted() + lease + step(CLOSE, 0, 3) + b"".join(
        step(OPEN, 0, 4 + i, i % 2, 1 + i % 3, 0, DROP) + wait + step(READ) + step(CLOSE, 0, 30)
        for i in range(4))
    yield "cancel", (step(TIER, a=HOLD) + greeted() + step(OPEN, 0, 2, 0, MODEL) + wait +
                     step(CANCEL, 0, 3, 2) + step(READ) + step(TIER, a=RELEASE) + wait)
    yield "cancel_crosses_the_answer", greeted() + lease + step(CANCEL, 0, 3, 2) + wait
    yield "deadline", (step(TIER, a=HOLD) + greeted() + step(OPEN, 0, 2, 0, MODEL, e=1) + wait +
                       wait + step(READ) + step(TIER, a=RELEASE))
    yield "hang_up_while_loading", (step(TIER, a=HOLD) + greeted() + step(OPEN, 0, 2, 0, MODEL) +
                                    wait + step(HANG_UP) + step(TIER, a=RELEASE) + wait)
    yield "load_fails", step(TIER, a=FAIL) + greeted() + lease + lease
    yield "memory_is_short", step(TIER, a=SHORT, c=4) + greeted() + lease
    yield "not_what_was_expected", greeted() + step(OPEN, 0, 2, 0, MODEL, 0, EXPECT) + wait
    yield "does_not_read", greeted() + lease + step(PING, 0, 3, 255) + step(PING, 0, 3, 255) + (
        step(OPEN, 0, 9, 0, MODEL) + wait + step(CLOSE, 0, 4, 0) + step(READ) + wait + step(READ))
    yield "never_reads", step(CONNECT) + step(HELLO, 0, 1) + step(PING, 0, 3, 255) * 6 + wait
    yield "one_session_too_many", b"".join(greeted(i) for i in range(4)) + step(HANG_UP, 1) + (
        wait + greeted(3))
    yield "request_twice", step(TIER, a=HOLD) + greeted() + step(OPEN, 0, 2) * 2 + wait
    yield "lease_of_another", greeted() + greeted(1) + lease + step(CLOSE, 1, 2, 1) + step(READ, 1)
    for kind in range(10):
        yield f"descriptor_{kind}", greeted() + step(OPEN_FILE, 0, 2, kind, MODEL) + wait + wait
    for name in range(7):
        yield f"name_{name}", greeted() + step(OPEN, 0, 2, name, MODEL) + wait + wait + step(READ)
    yield "no_options", greeted() + step(OPEN_FILE, 0, 2, 0, MODEL, 0, 32) + wait
    yield "unknown_tier", greeted() + step(OPEN, 0, 2, 0, MODEL, 9) + step(READ)
    yield "unknown_granularity", greeted() + step(OPEN, 0, 2, 0, 9) + step(READ)
    yield "no_hello", step(CONNECT) + step(PING) + wait
    yield "other_version", step(CONNECT) + step(HELLO, 0, 1, 1) + wait + step(READ)
    yield "raw_empty", greeted() + step(RAW, 0, 2, 2)
    yield "raw_bytes", greeted() + step(RAW, 0, 2, 2, 16) + bytes(range(16)) + step(READ)
    for position in (0, 4, 6, 16, 20, 24, 28, 32):
        yield f"changed_byte_{position}", (greeted() + step(CHANGE, a=position, b=0x81) +
                                           step(OPEN, 0, 2, 0, MODEL) + wait + step(READ))


# --- The keeper's ledger --------------------------------------------------------


def ledger_seeds():
    """The first byte says what is to be read: a key, a replica's entry, rho, or lines for an entry."""
    hexed = "0123456789abcdef" * 4
    keys = {"extent": f"extent/host/{hexed}", "extent_of_slashes": f"extent/a/1/{hexed}",
            "replica": f"replica/gpu:GPU-fa4e/3/{hexed}", "replica_of_slashes": f"replica//2/1/{hexed}",
            "pin": f"pin/host/{hexed}", "rho": "rho", "links": "device/links",
            "bad_no_tier": f"extent/{hexed}", "bad_empty_tier": f"pin//{hexed}",
            "bad_granularity": f"replica/host/4/{hexed}", "bad_case": f"pin/host/{hexed.upper()}",
            "bad_prefix": f"pin/host/sha256:{hexed}", "bad_kind": f"future/host/{hexed}"}
    for name, key in keys.items():
        yield "key_" + name, b"\0" + key.encode()
    entry = {"names": [{"name": "a:1", "path": "/m/a", "directory": "/m/a"}], "label": "passed",
             "generation": 7, "slab_bytes": 64 << 20, "manifest_bytes": 1234, "proved_uids": [0, 1000]}
    yield "entry_good", b"\1" + json.dumps(entry).encode()
    yield "entry_many", b"\1" + json.dumps(
        {**entry, "names": entry["names"] * 20, "proved_uids": [4294967295] * 3000}).encode()
    yield "entry_long_label", b"\1" + json.dumps({**entry, "label": "\1" * 1000}).encode()
    for member in entry:
        yield "entry_without_" + member, b"\1" + json.dumps(
            {k: v for k, v in entry.items() if k != member}).encode()
        yield "entry_odd_" + member, b"\1" + json.dumps({**entry, member: -1}).encode()
    for name, text in (("empty", b""), ("array", b"[]"), ("deep", b"[" * 1000), ("utf8", b'{"\xff":1}')):
        yield "entry_" + name, b"\1" + text
    for name, text in (("good", b'{"q":1e9,"o_ns":1,"s_ns":2}'), ("tiny", b'{"q":1e-300,"o_ns":1,"s_ns":2}'),
                       ("huge", b'{"q":1e999,"o_ns":1,"s_ns":2}'), ("negative", b'{"q":1,"o_ns":-1,"s_ns":2}'),
                       ("wrapped", b'{"q":1,"o_ns":18446744073709551615,"s_ns":2}')):
        yield "rho_" + name, b"\2" + text
    yield "lines_escapes", b"\3\xff" + b"\1\1\n" * 60
    yield "lines_not_utf8", b"\3\x40" + b"\xff\xc3\n" * 60


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "corpora")
    for target, seeds in (("safetensors", safetensors_seeds), ("params", params_seeds),
                          ("symbol", symbol_seeds), ("model_name", model_name_seeds),
                          ("ledger", ledger_seeds), ("lease_server", lease_server_seeds)):
        folder = root / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in seeds():
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
