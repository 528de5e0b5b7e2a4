"""`inspect` sees what the model computes, and names what was planted."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from planting import Precision
from support.artifacts import list_again
from support.checkpoints import random_world, read_hf, write_hf_safetensors
from support.overflows import BUMP, CASES
from support.values import run

from mlc_rwkv_world import build
from mlc_rwkv_world.__main__ import main
from mlc_rwkv_world.artifact.metadata import REVISION
from mlc_rwkv_world.artifact.output import Output
from mlc_rwkv_world.cli.inspect import NUMBERS, PICTURE
from mlc_rwkv_world.numerics.heatmap import heatmap
from mlc_rwkv_world.numerics.inspection import inspect
from mlc_rwkv_world.numerics.observe import observe
from mlc_rwkv_world.numerics.prompts import BUILT_IN, Prompts, encoded
from mlc_rwkv_world.numerics.report import Report
from mlc_rwkv_world.numerics.stepwise import Array
from mlc_rwkv_world.numerics.subject import Subject, open_subject
from mlc_rwkv_world.numerics.table import table

pytestmark = pytest.mark.slow

# Case, block, whether att.key gives float32, and the blocks to be recommended.
PLANTED: list[tuple[str, int, bool, tuple[int, ...]]] = [
    ("key", 0, False, (0,)),
    ("key", 2, False, (2,)),
    ("square", 0, True, (0,)),
    ("square", 2, True, (2,)),
    ("value", 0, True, (0,)),
    ("value", 2, True, (2,)),
    ("bump", 0, True, (0,)),
    ("bump", 2, True, (2,)),
    ("leave", 0, True, (0, 1, 2, 3)),
    ("leave", 2, True, (2, 3)),
]
TEXTS = BUILT_IN[:3]


@dataclasses.dataclass(frozen=True)
class Looked:
    """Subjects that read the same prompts."""

    subjects: list[Subject]
    prompts: Prompts

    def report(self, number: int, reference: int | None = None) -> tuple[Report, Array]:
        subject = self.subjects[number]
        if reference is None:
            return observe(subject, self.prompts, TEXTS)
        model = self.subjects[reference].model
        return observe(subject, self.prompts, TEXTS, reference=model, against="float32")


@pytest.fixture(scope="module")
def looked(demo_checkpoint: Path, planted_checkpoint: Callable[[str, int], Path]) -> Looked:
    """The trained model in float32 and float16, and then everything planted, in float16."""
    subjects = [
        open_subject(demo_checkpoint, quantization="q0f32"),
        open_subject(demo_checkpoint, quantization="q0f16"),
    ]
    for case, layer, float32_keys, _ in PLANTED:
        path = planted_checkpoint(case, layer)
        subjects.append(open_subject(path, quantization="q0f16", float32_keys=float32_keys))
    return Looked(subjects, encoded(TEXTS, subjects[0].tokenizer))


@pytest.mark.parametrize("number, planted", [*enumerate(PLANTED, start=2)])
def test_planted_operation_is_named(
    looked: Looked, number: int, planted: tuple[str, int, bool, tuple[int, ...]]
) -> None:
    case, layer, _, blocks = planted
    report, logits = looked.report(number)
    first = report.first_bad
    assert first is not None
    assert (first.block, first.operation) == (layer, CASES[case].operation)
    assert first.kind == "infinity"
    assert first.first_bad is not None
    assert report.recommended == blocks
    assert report.recommendation()[-1] == f"--fp32-layers {_spelled(blocks)}"
    assert [need.block for need in report.needed] == list(blocks)
    assert CASES[case].operation in report.needed[0].why
    assert np.isfinite(logits).all()
    assert report.leaving == (blocks if case == "leave" else ())
    if case == "leave":
        assert "rescale_every" in " ".join(report.recommendation())
        assert report.needed[1].why.startswith(f"its input is {BUMP // 1000:.0f}")


def _spelled(blocks: tuple[int, ...]) -> str:
    return str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]}-{blocks[-1]}"


def test_values_are_those_of_the_formulas(looked: Looked, demo_checkpoint: Path) -> None:
    """Largest magnitudes and where they stand, operation by operation, against float64."""
    report, logits = looked.report(0)
    prompts = looked.prompts
    runs = [run(read_hf(demo_checkpoint), ids) for ids in prompts.ids]
    checked = 0
    for reading in report.readings:
        if reading.block is None:
            continue
        values = [blocks[reading.block][reading.operation] for blocks, _ in runs]
        largest = max(np.abs(value).max() for value in values)
        assert reading.largest == pytest.approx(largest, rel=1e-4)
        place = reading.where
        there = values[place.prompt][place.position, place.channel]
        assert abs(there) == pytest.approx(largest, rel=1e-4)
        assert place.token == prompts.ids[place.prompt][place.position]
        checked += 1
    assert checked == 25 * report.num_hidden_layers
    expected = np.stack([last[-1] for _, last in runs])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-3)


def test_errors_against_float32(looked: Looked) -> None:
    report, _ = looked.report(1, reference=0)
    errors = [r.error for r in report.readings if r.dtype == "float16"]
    assert all(error is not None and 1e-5 < error < 5e-3 for error in errors)
    # Nothing has been rounded yet.
    assert report.readings[0].error == 0
    assert report.recommended == ()
    assert "nothing comes near" in report.recommendation()[0]


def test_against_a_cured_model(
    looked: Looked, planted_checkpoint: Callable[[str, int], Path]
) -> None:
    """The blocks that what is compared with has in float32 compute so."""
    path = planted_checkpoint("square", 0)
    cured = open_subject(path, quantization="q0f16", fp32_layers="0")
    broken = looked.subjects[2 + [case for case, *_ in PLANTED].index("square")]
    report, _ = observe(broken, looked.prompts, TEXTS, reference=cured.model, against="cured")
    errors = [r.error for r in report.readings if r.block != 0]
    assert all(error is not None and error < 5e-3 for error in errors)


def test_table_and_picture(looked: Looked) -> None:
    number = 2 + [case for case, *_ in PLANTED].index("square")
    report, _ = looked.report(number)
    full = list(table(report, everything=True))
    assert len([line for line in full if re.match(r" {4}\d  ", line)]) == 4 * 25
    assert any("feed_forward.key square" in line and "infinity: channel" in line for line in full)
    assert full[-1] == "Recommended:  --fp32-layers 0"
    short = list(table(report, everything=False))
    rows = [line[4] for line in short if re.match(r" {4}\d  ", line)]
    assert "".join(rows) == "0" * 25 + "123"
    svg = ElementTree.fromstring(heatmap(report))
    titles = [element.text or "" for element in svg.iter() if element.tag.endswith("title")]
    assert len(titles) == 4 * 25
    assert any("block 0, feed_forward.key square" in t and "infinity" in t for t in titles)


def test_library_of_an_artifact(
    planted_params: Callable[[str, int, str], Path], library: Callable[[Precision], Path]
) -> None:
    """The compiled library computes what the steps do, rounding included."""
    subject = open_subject(planted_params("square", 0, "q0f16"), fp32_layers="0")
    found = subject.found
    assert found is not None

    def with_library(precision: Precision) -> Subject:
        chosen = dataclasses.replace(found, chosen=library(precision))
        return dataclasses.replace(subject, found=chosen)

    report = inspect(with_library(Precision("q0f16", "0")), texts=TEXTS)
    assert report.library is not None
    assert report.library.difference is not None
    # Both are within float16's steps of each other; sums come in another order.
    assert report.library.difference < 0.1
    assert report.bad_logits == 0
    broken = inspect(with_library(Precision("q0f16")), texts=TEXTS[:1])
    assert broken.library is not None
    assert broken.library.bad_logits > 0
    assert broken.library.difference is None


@pytest.mark.parametrize("fault", ["older", "damaged", "unlisted"])
def test_library_that_cannot_be_asked(
    demo_artifact: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    """It is named, and everything else is seen all the same."""
    artifact = demo_artifact("q0f16")
    folder = tmp_path / artifact.name
    folder.mkdir()
    (folder / "params").symlink_to(artifact / "params")
    (library,) = artifact.glob("*.so")
    code = library.read_bytes()
    if fault == "older":
        revision = f'"revision": {REVISION}'.encode()
        assert revision in code
        code = code.replace(revision, b'"revision": 1')
    elif fault == "damaged":
        code = code[:5000]
    (folder / library.name).write_bytes(code)
    if fault != "unlisted":
        list_again(folder)
    assert main(["inspect", str(folder), "--prompt", "User: hi"]) == 0
    printed = capsys.readouterr().out.splitlines()
    (line,) = [line for line in printed if line.startswith("Its library was not asked: ")]
    assert library.name in line
    said = {
        "older": "built by revision 1 of mlc-rwkv-world",
        "damaged": "is cut short",
        "unlisted": "is not listed and does not run",
    }
    assert said[fault] in line
    assert printed[-1] == "Recommended:  --fp32-layers none"


def test_command(
    planted_params: Callable[[str, int, str], Path],
    planted_checkpoint: Callable[[str, int], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An artifact without a library, against its checkpoint."""
    artifact = planted_params("bump", 2, "q4f16_1")
    arguments = ["inspect", str(artifact), "--against", str(planted_checkpoint("bump", 2))]
    arguments += ["--prompt", "User: hi", "--prompt", "a, b, c"]
    arguments += ["--json", str(tmp_path / "r.json"), "--picture", str(tmp_path / "r.svg")]
    assert main(arguments) == 0
    # What an earlier run wrote may be replaced.
    for place, kind in (("r.json", NUMBERS), ("r.svg", PICTURE)):
        Output(tmp_path / place, kind).check()
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "Recommended:  --fp32-layers 2"
    assert any(line.startswith("First infinity: block 2, attention.output") for line in printed)
    found: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())
    assert found["recommended"] == [2]
    assert found["against"] == "bump2 in float32"
    errors = [r["error"] for r in found["readings"] if r["block"] == 1]
    # Four bits cost some percent.
    assert all(0.01 < error < 0.5 for error in errors)
    assert ElementTree.parse(tmp_path / "r.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("option", ["--json", "--picture"])
def test_outputs_replace_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """And that is said before the model is looked for."""
    path = tmp_path / "mine.svg"
    path.write_text("<svg>mine</svg>")
    assert main(["inspect", "./nowhere", option, str(path)]) == 2
    assert f"{path} is there already, and is no " in capsys.readouterr().err
    assert path.read_text() == "<svg>mine</svg>"


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["nowhere"], 3, "No artifact named"),
        (["{demo}", "--picture", "x.png"], 2, "pictures are SVG"),
        (["{demo}", "--prompt", ""], 2, "a prompt is empty"),
        (["{demo}", "--prompt", "caf\udce9"], 2, "a prompt is not valid UTF-8"),
        (["{demo}", "--compute-dtype", "int8"], 2, "give auto, float16 or float32"),
        (["{demo}", "--fp32-layers", "4"], 2, "blocks 0 to 3"),
        (["{demo}", "--file", "nowhere.txt"], 3, "no such file"),
        (["{demo}", "--quantization", "q3"], 2, "'q3' is not known"),
        (["{demo}", "--against", "{other}"], 2, "cannot be compared: hidden_size"),
    ],
)
def test_refusals(
    demo_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    other = tmp_path / "other"
    if "{other}" in arguments:
        write_hf_safetensors(other, random_world(1, 32, vocab_size=65536))
    given = [argument.format(demo=demo_checkpoint, other=other) for argument in arguments]
    assert main(["inspect", *given]) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, r"holds nothing as 'model\.blocks\.2\."),
        ({"intermediate_size": 64}, "holds .* where its configuration asks for"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; it is at most"),
        ({"model_version": 99}, "RWKV-99 is not supported"),
        ({"fp32_reasons": 5}, "fp32_reasons is 5"),
        ({"layer_norm_epsilon": "x"}, "layer_norm_epsilon is 'x'"),
    ],
)
def test_an_artifact_whose_configuration_is_anothers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    source = write_hf_safetensors(tmp_path / "tiny", random_world(2, 32, vocab_size=65536))
    artifact = build(source, quantization="q0f16", output=tmp_path, library=False, target="llvm")
    path = artifact.params / "mlc-chat-config.json"
    content = json.loads(path.read_text())
    content["model_config"] |= change
    path.write_text(json.dumps(content))
    assert main(["inspect", str(artifact.folder)]) in (2, 6)
    assert re.search(message, capsys.readouterr().err)


def test_a_model_whose_name_has_no_form_in_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\x1b")
    source = write_hf_safetensors(tmp_path / name, random_world(1, 32, vocab_size=65536))
    arguments = ["inspect", str(source), "--prompt", "hi"]
    arguments += ["--json", str(tmp_path / "r.json"), "--picture", str(tmp_path / "r.svg")]
    # Twice, since it replaces its own.
    assert [main(arguments), main(arguments)] == [0, 0]
    assert json.loads((tmp_path / "r.json").read_text())["model"] == name
    assert "caf\\udce9\\x1b" in (tmp_path / "r.svg").read_text()
    assert ElementTree.parse(tmp_path / "r.svg").getroot().tag.endswith("svg")


def test_halved_residual_compares_with_one_that_is_not(tmp_path: Path) -> None:
    """Two artifacts of one checkpoint whose residuals differ by powers of two."""
    source = write_hf_safetensors(
        tmp_path / "world", random_world(5, 32, vocab_size=65536), rescale_every=2
    )
    halved = open_subject(source, quantization="q0f16")
    plain = open_subject(source, quantization="q0f32")
    assert halved.model.config.rescale_every == 2
    assert plain.model.config.rescale_every == 0
    texts = ("User: hi",)
    prompts = encoded(texts, halved.tokenizer)
    report, _ = observe(halved, prompts, texts, reference=plain.model, against="float32")
    named = {(r.block, r.operation): r.error for r in report.readings}
    assert named[3, "feed_forward.value multiply 2"] is None
    compared = [error for error in named.values() if error is not None]
    assert len(compared) == len(named) - 2
    assert max(compared) < 0.02
