"""The doors: where text and bytes come in that nobody vouches for, and what each promises.

An input is either taken, and then what was made of it holds, or refused by an error of the door's
own. Anything else that comes out is a fault.
"""

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import jax

import backpass as bp
from backpass.compiler.budget import _under as under
from backpass.compiler.budget import parse_bytes
from backpass.compiler.dump import read_manifest, read_stages, write_dump
from backpass.compiler.exported import Exported
from backpass.compiler.memory_plan import choices_from
from backpass.compiler.settled import Shelf
from backpass.compiler.target import parse_spec
from backpass.ir.device import DEVICES
from backpass.ir.records import parsed
from backpass.ir.types import dtype_name
from backpass.passes import PASSES, parse_pipeline
from backpass.passes.pipeline import spelled
from backpass.passes.rematerialise import Planner
from backpass.runtime.cache import Store
from backpass.runtime.device import _read as read_figures
from fuzz.garbled import garbled
from fuzz.grammar import BYTES, GRAPH, PIPELINE, SPEC, Grammar, drawn
from models import networks
from passes.joints import LOSSES, rows, sgd

HERE = Path(__file__).parent
KEY = "k" * 64
_CHAIN = [jax.ShapeDtypeStruct((8, 8), "float32")] * 6, rows(256, 8)
_NETWORKS = (
    *("mlp tanh", "mlp scanned", "mlp dropout", "lenet", "lstm", "complex-valued", "switched"),
    *("gpt scanned and checkpointed", "mixture by ragged_dot", "graph network"),
)

Enter = Callable[[bytes, Path], None]
Corpus = Mapping[str, Sequence[bytes]]


@dataclass(frozen=True)
class Door:
    """`enter(data, folder)` raises one of `refusals`, or nothing, or it is a fault.

    `share` of all inputs; `grammar` draws a half of them where there is one, the others are
    seeds of the kind `seeds` made unsound.
    """

    enter: Enter
    refusals: tuple[type[Exception], ...]
    share: int
    seeds: str = ""
    grammar: Grammar | None = None

    def input(self, corpus: Corpus, rng: Random) -> bytes:
        """Draw what is thrown at the door."""
        seeds = corpus.get(self.seeds)
        if self.grammar is not None and (not seeds or rng.random() < 0.5):
            found = drawn(self.grammar, rng)
            return garbled([found], rng) if rng.random() < 0.5 else found
        return garbled(seeds or [b""], rng)


def graph(data: bytes, folder: Path) -> None:
    """`bp.ir.parse`: equal after printing and parsing; `verify` is content, or says why not."""
    text = data.decode("utf-8", "surrogateescape")
    refused = None
    for opaque in (False, True) if "opaque<" in text else (False,):
        try:
            found = bp.ir.parse(text, opaque=opaque)
        except bp.ParseError as error:
            assert re.match(r"line \d+, column \d+: ", str(error)), error
            assert len(str(error)) < 1000
            refused = error
            continue
        refused = None
        again = bp.ir.parse(str(found), opaque=opaque)
        assert again == found, "another graph after printing and parsing"
        assert str(again) == str(found), "another text after printing and parsing"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX's own, of the ops' parameters
            with suppress(bp.GraphError):
                bp.ir.verify(found)
    if refused is not None:
        raise refused


def memory_plan(data: bytes, folder: Path) -> None:
    """`MemoryPlan.load`: prints, and is the same once saved and loaded again."""
    path = _written(folder / "plan.json", data)
    try:
        plan = bp.MemoryPlan.load(path)
    except bp.ArgumentError as error:
        assert str(path) in str(error)
        raise
    assert str(plan)
    plan.save(path)
    assert bp.MemoryPlan.load(path) == plan


def schedule(data: bytes, folder: Path) -> None:
    """What a plan that is pinned or kept has of schedules: a sound program under it, or none."""
    traced = _chain().stages[-2].graph
    planner = Planner(traced, DEVICES["cpu"], frozenset(range(6)))
    bp.ir.verify(under(planner, choices_from(parsed(data))).graph)


def exported(data: bytes, folder: Path) -> None:
    """`Exported.load`, of files whose checksum is right: prints, and is saved again."""
    header, _, program = data.partition(b"\n")
    body = len(header).to_bytes(8, "big") + header + program
    digest = sha256(body).hexdigest().encode()
    path = _written(folder / "step.bp", b"backpass.export 1\n%s\n" % digest + body)
    _load(path)


def exported_file(data: bytes, folder: Path) -> None:
    """`Exported.load`, of any file."""
    _load(_written(folder / "step.bp", data))


def _load(path: Path) -> None:
    try:
        found = Exported.load(path)
    except bp.ExportError as error:
        assert str(path) in str(error)
        raise
    assert str(found) and found.platforms and isinstance(found.name, str)
    found.save(path)
    assert Exported.load(path)._header == found._header


def cache_entry(data: bytes, folder: Path) -> None:
    """A plan in a cache, of which the checksum is right: taken, or dropped with a warning."""
    header = {"format": 1, "key": f"{KEY}-7", "sha256": sha256(data).hexdigest()}
    cache_file(json.dumps(header).encode() + b"\n" + data, folder)


def cache_file(data: bytes, folder: Path) -> None:
    """A file in a cache, whatever it is."""
    path = _written(folder / f"plan-{KEY[:32]}-7.json", data)
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        plans = list(Shelf(Store(folder), KEY).plans())
    assert all(each.category is bp.CacheWarning for each in met), met
    assert len(plans) + len(met) == 1
    assert path.exists() == bool(plans)
    for budget, (choices, peak) in plans:
        assert budget == 7 and isinstance(peak, int) and hash(choices) is not None


def figures(data: bytes, folder: Path) -> None:
    """Measured figures of a device: numbers that can be reckoned with, or none."""
    found = read_figures(_written(folder / "device.json", data))
    if found is not None:
        spec, _ = found
        assert 0 < float(spec.flops) < float("inf") and 0 < float(spec.bytes_per_s) < float("inf")
        assert bp.plan and f"{spec.memory_bytes:d} {spec.host_bytes_per_s:.2g}"
        assert all(0 < float(cost) < float("inf") for cost in spec.costs.values())


def manifest(data: bytes, folder: Path) -> None:
    """`backpass diff` of a dump whose manifest is this; and a new dump takes its place."""
    _written(folder / "manifest.json", data)
    for name, read in read_stages(folder):
        assert isinstance(name, str)
        with suppress(bp.ArgumentError, bp.ParseError):
            read()
    assert read_manifest(folder)


def spec(data: bytes, folder: Path) -> None:
    """SPEC on the command line: a type that XLA can have, and its own text again."""
    found = parse_spec(data.decode("utf-8", "surrogateescape"))
    assert parse_spec(f"{dtype_name(found.dtype)}[{','.join(map(str, found.shape))}]") == found
    assert all(0 <= size < 1 << 63 for size in found.shape)


def budget(data: bytes, folder: Path) -> None:
    """A budget: so many bytes, more than none."""
    assert parse_bytes(data.decode("utf-8", "surrogateescape")) > 0


def pipeline(data: bytes, folder: Path) -> None:
    """`passes=`: passes that are spelled as they can be read again."""
    found = parse_pipeline(data.decode("utf-8", "surrogateescape"), PASSES)
    assert parse_pipeline(spelled(found), PASSES) == found


DOORS: Mapping[str, Door] = {
    "graph": Door(graph, (bp.ParseError,), 52, "graph", GRAPH),
    "memory plan": Door(memory_plan, (bp.ArgumentError,), 10, "plan"),
    "schedule": Door(schedule, (ValueError,), 2, "schedule"),
    "exported": Door(exported, (bp.ExportError,), 4, "exported"),
    "exported file": Door(exported_file, (bp.ExportError,), 2, "exported file"),
    "cache entry": Door(cache_entry, (), 6, "entry"),
    "cache file": Door(cache_file, (), 2, "cache file"),
    "figures": Door(figures, (), 4, "figures"),
    "manifest": Door(manifest, (bp.ArgumentError,), 4, "manifest"),
    "spec": Door(spec, (bp.ArgumentError,), 5, grammar=SPEC),
    "budget": Door(budget, (bp.ArgumentError,), 4, grammar=BYTES),
    "pipeline": Door(pipeline, (bp.ArgumentError,), 5, grammar=PIPELINE),
}


def corpus(folder: Path, names: Sequence[str] = _NETWORKS) -> dict[str, list[bytes]]:
    """What is sound, by kind; graphs of the networks `names` among them."""
    found: dict[str, list[bytes]] = {}
    texts = [path.read_bytes() for path in sorted((HERE.parent / "ir" / "texts").iterdir())]
    for name in names:
        loss, args = networks.TABLE[name]
        with jax.enable_x64(True):  # the networks' arrays are float64
            lowered = bp.compile(bp.value_and_grad(loss)).lower(*args)
        texts += [str(lowered.stages[0].graph).encode(), str(lowered.graph).encode()]
    found["graph"] = [text for text in texts if len(text) < 1 << 15]
    plans = _plans()
    found["plan"] = [json.dumps(plan.as_json(), indent=1).encode() for plan in plans]
    found["schedule"] = [json.dumps(plan.choice).encode() for plan in plans]
    bodies = [{"choice": plan.choice, "peak": plan.predicted_bytes} for plan in plans]
    found["entry"] = [json.dumps(body).encode() for body in bodies]
    store = Store(folder)
    store.write("entry", f"{KEY}-7", bodies[-1])
    found["cache file"] = [(folder / "entry.json").read_bytes()]
    (folder / "entry.json").unlink()
    cpu = replace(DEVICES["cpu"], costs=dict(DEVICES["cpu"].costs))
    found["figures"] = [json.dumps({"busy": False, **asdict(cpu)}).encode()]
    lowered = bp.compile(step_of_classes).lower(jax.ShapeDtypeStruct((2, 3), "float32"))
    write_dump(lowered, folder, hlo=False)
    found["manifest"] = [(folder / "manifest.json").read_bytes()]
    lowered.export().save(folder / "step.bp")
    whole = (folder / "step.bp").read_bytes()
    _, _, body = whole.split(b"\n", 2)
    size = int.from_bytes(body[:8], "big")
    found["exported file"] = [whole]
    found["exported"] = [body[8 : 8 + size] + b"\n" + body[8 + size :]]
    return found


def step_of_classes(x: jax.Array) -> dict[str, Any]:
    """A result with a node of each kind that a file can hold."""
    return {"a": (x + 1, [x.sum(), None]), "b": x * 2}


def _plans() -> list[bp.MemoryPlan]:
    """Plans of a chain under some budgets: saved, made again, and made again within."""
    return list(bp.plan(sgd(LOSSES["mlp"]), *_CHAIN, donate_argnums=0).plans)


@cache
def _chain() -> Any:
    """The chain, lowered: its last stage but one is what is planned."""
    made = bp.compile(sgd(LOSSES["mlp"]), donate_argnums=0, memory_budget="1GiB")
    return made.lower(*_CHAIN)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
