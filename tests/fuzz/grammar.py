"""Texts drawn from grammars: most of each is sound, so that what is not is met deep inside.

A `$name` in a production stands for one of the productions of that name, drawn evenly.
"""

import random
import re
from collections.abc import Mapping, Sequence

_SYMBOL = re.compile(r"\$([a-z]+)")
_DEPTH = 12  # of productions; beyond it the first one is taken, which ends

Grammar = Mapping[str, Sequence[str]]


class Drawing:
    """One text; `$new` defines the next value of a graph, `$old` reads one defined above."""

    def __init__(self, grammar: Grammar, rng: random.Random) -> None:
        self.grammar, self.rng = grammar, rng
        self.values = self.above = 0

    def text(self, symbol: str, depth: int = 0) -> str:
        if symbol == "new":
            self.values += 1
            return f"%{self.values - 1}"
        if symbol == "old":
            return f"%{self.rng.randrange(self.above)}" if self.above else "1.0:f32"
        outer = self.values, self.above
        if symbol == "graph":
            self.values = 0
        if symbol in ("node", "call", "label", "outs"):
            self.above = self.values
        forms = self.grammar[symbol]
        form = forms[0] if depth > _DEPTH else self.rng.choice(forms)
        found = _SYMBOL.sub(lambda match: self.text(match[1], depth + 1), form)
        if symbol == "graph":
            self.values, self.above = outer
        return found


def drawn(grammar: Grammar, rng: random.Random) -> bytes:
    """A text of a grammar, from its first symbol."""
    text = Drawing(grammar, rng).text(next(iter(grammar)))
    return text.encode("utf-8", "surrogateescape")


GRAPH: Grammar = {
    "text": ["backpass.ir 1\n\n$graph$resources"],
    "graph": ["graph $name($inputs) {\n$nodes$label$nodes  return $outs\n}\n"],
    "name": ["step", "f", "f", '"<lambda>"', '"a\\u{0}b"', "a-b.c", '""'],
    "inputs": [
        *["$new: f32[2], $new: f32[2]"] * 4,
        *("", "$new: $type", "$new: $type, $new: $type x['w'][0]", '$new: f32[2] "a b"'),
    ],
    "type": [*["f32[2]"] * 20, "f32[]", "f32[2]*", "i32[2]", "$dtype[$dims]", "f32[2/x:2]"],
    "dtype": "f32 f16 bf16 f64 i8 u4 bool c64 key<fry> f32<host> i64 f8_e5m2".split(),
    "dims": ["", "2", "2,2", "0", "1,1,1", "$digits", "2/data:2,3", "$digits,$digits"],
    "digits": ["1", "7", "4096", "9" * 18, "2147483647", "0", "00"],
    "nodes": ["", "  $node\n", "  $node\n$nodes", "  $node\n  $node\n$nodes", "  $call\n$nodes"],
    "node": [
        *["$new: f32[2] = $unary($old)$tail"] * 12,
        *["$new: f32[2] = $binary($old, $operand)$tail"] * 8,
        "$new: $type = $op($operand)$attrs$tail",
        "$new: $type = $op($operand, $operand)$attrs$tail",
        "$new: $type, $new: $type = $op($operand)$attrs",
        "$op($outs)$attrs$tail",
        "$new: f32[2] = constant() {value=$dense}",
        "$new: f32[] = reduce_sum($old) {axes=$value}",
        "$new: f32[2,2] = broadcast_in_dim($old) {broadcast_dimensions=$value}",
        "$new: $type = dot_general($old, $old) {dimension_numbers=$value, precision=$value}",
    ],
    "call": [
        "jit() {name=$string}\n    $graph",
        "$new: f32[2] = jit($old) {name=$string}\n    $graph",
        "$new: f32[2] = scan($old) {length=$value, num_carry=$number, num_consts=0}\n    $graph",
        "$new: f32[2] = while($old) {body_nconsts=$number, cond_nconsts=0}\n $graph $graph",
        "$new: f32[2] = cond(0:i32, $old)\n    $graph    $graph",
        "$new: f32[2] = $op($old)$attrs\n    $graph",
        "$new: f32[2] = remat2($old) {policy=$value}\n    $graph",
    ],
    "unary": "neg sin tanh logistic copy stop_gradient exp".split(),
    "binary": "add sub mul max min div".split(),
    "op": """neg add iota reshape transpose slice pad concatenate select_n gather scatter-add sort
        reduce_max reduce cumsum dynamic_slice conv_general_dilated convert_element_type name
        optimization_barrier custom_jvp_call custom_vjp_call shard_map psum clamp rev split top_k
        while scan cond jit random_bits fft triangular_solve reduce_window pallas_call foo neg!
        rng_bit_generator debug_callback igamma erf_inv while! argmax integer_pow square gradients
        squeeze expand_dims dynamic_update_slice bitcast_convert_type linear_call fallback
        ragged_dot_general all_gather ppermute axis_index custom_linear_solve""".split(),
    "operand": [*["$old"] * 6, "1.0:f32", "$number:$dtype", "True:bool", "0:i32*", "nan:f32"],
    "outs": ["", "$old", "$old, $old", "$operand, $operand, $operand"],
    "tail": [*[""] * 12, " @ model.py:41", " @ a.py:2 block/mlp", ' @ x "a b"'],
    "label": [
        "",
        "",
        "",
        "",
        "backward:\n  neg($old) of #0\n",
        "backward:\n  $new: f32[2] = neg($old) of $old\n",
        "update:\n",
        "forward:\n",
    ],
    "attrs": ["", "", "", "", " {$key=$value}", " {$key=$value, $key=$value}", " {-$key}", " {}"],
    "key": """axes axis shape dtype new_dtype dimension permutation sizes new_sizes name length
        strides start_indices limit_indices padding_config dimension_numbers num_consts num_carry
        reverse unroll jaxpr policy precision value index_dtype fft_lengths y exponent mesh in_specs
        out_specs axis_name broadcast_dimensions window_dimensions mode operand k limit""".split(),
    "value": [
        *("None", "0", "()", "(0,)", "True", "$number", "(0, 1)", "2", "f32", '"x"') * 6,
        *("($value,)", "[$value,$value]", "$string"),
        *("(((0,),(0,)),((),()))", "($value,$value)", "{$value: $value}", "frozenset{$value}"),
        *("$dense", "$dtype", "$number:$dtype", "slice($value,$value,$value)", "P($value,$value)"),
        *("Precision.HIGHEST", "policy.dots_saveable", "prng<fry>", 'keys<"fry" $value>', "@c0"),
        *("GatherDimensionNumbers(offset_dims=$value)", "Tolerance($key=$value)", "FftType.FFT"),
        *('opaque<"function f">', "$graph", "ConvDimensionNumbers(lhs_spec=$value)", "@c1", "x"),
        *('keys<"fry" dense<u32[2] [1, 2]>>', "DotAlgorithm($key=$value)", "RoundingMethod.NO"),
    ],
    "number": """1 0 -1 2 0.5 1e30 -inf nan 0x7fc00001 1.0+2.0j 300 4294967296 1e999 -0.0
        999999999999999999999999""".split(),
    "string": ['"x"', '""', '"a\\nb"', '"\\u{10ffff}"', '"\\u{d800}"', '"</script>"', '"\\q"'],
    "dense": [
        "dense<f32[2] [1.0, 2.0]>",
        "dense<f32[2] 0.0>",
        "dense<$dtype[$dims] $number>",
        "dense<$dtype[2] [$number, $number]>",
        "dense<f32[$digits] [$number]>",
    ],
    "resources": ["", "", "\nresources {\n$constants}\n"],
    "constants": [
        "  @c0 = u8[20] zlib(\n    eJxjYGRiZmFlY+fg5OLm4eXjFxAUEgYABUYAvw==\n  )\n",
        "  @c0 = $dtype[$dims] zlib(eJxjYGRiZmFlY+fg5OLm4eXjFxAUEgYABUYAvw==)\n",
        "  @c1 = f32[1] zlib(AAAA)\n  @c0 = f32[1] zlib()\n",
    ],
}

SPEC: Grammar = {
    "spec": ["$dtype[$dims]", "$dtype[$dims]", " $dtype [$dims] ", "$dtype", "[$dims]", ""],
    "dtype": "f32 i32 bf16 bool c64 key<fry> key<x> key<> f31 float32 < F32 u4 f8_e4m3fn".split(),
    "dims": ["", "8", "8,512", " 8 , 512 ", "1 2", ",", "8,", "$dims,$dims", "$odd"],
    "odd": ["-1", "1.5", "9" * 18, "9" * 19, "9" * 5000, "\u0663", "0x8", "1_0", "x", "8]"],
}

BYTES: Grammar = {
    "budget": ["$number$unit", "$number $unit", " $number$unit ", "auto", "", "-$number", "$unit"],
    "number": [
        "1",
        "0",
        "0.0",
        "1.5",
        "512",
        "9" * 30,
        "9" * 400,
        "1e9",
        "\u0663",
        ".5",
        "5.",
        "nan",
    ],
    "unit": ["", "B", "KB", "MiB", "GiB", "TB", "PB", "mib", "\u0130B", "MB MB", "%"],
}

PIPELINE: Grammar = {
    "pipeline": ["$pass", "$pass,$pass", "$pass,$pipeline", "", ",", " $pass , $pass "]
    + ["-$name", "-$name,-$name", " - $name, $pass", "-"],
    "pass": [*["cse", "dce", "autodiff", "simplify"], "$name{$options}", "$name{", "Cse", "c-e"],
    "name": "canonicalise autodiff simplify cse fold dce fuse rematerialise loops roll sink".split()
    + ["accumulate", "autocast", "gradients", "no"],
    "options": ["", "$key=$value", "$key=$value,$key=$value", "$key", "=", "$key=$key=$value"],
    "key": "budget level trips dtype steps precision rows max_steps unroll verify x limit".split(),
    "value": [
        "1",
        "0",
        "-1",
        "true",
        "false",
        "1.5",
        "nan",
        "9" * 5000,
        "\u0663",
        "",
        "x",
        "1e999",
    ],
}
