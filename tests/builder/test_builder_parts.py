"""What a build writes, keeps, reuses and refuses."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import NAME, build_tiny, contents
from support.checkpoints import Tensors, random_world, write_pth

import mlc_rwkv_world
from mlc_rwkv_world import Artifact
from mlc_rwkv_world.artifact.checksums import write_checksums
from mlc_rwkv_world.artifact.index import ParameterIndex
from mlc_rwkv_world.artifact.search import find
from mlc_rwkv_world.builder import assemble, choices
from mlc_rwkv_world.compiler import pipeline
from mlc_rwkv_world.compiler.cache import cache_folder
from mlc_rwkv_world.compiler.target import resolve
from mlc_rwkv_world.errors import (
    ArtifactError,
    CheckpointError,
    NotFoundError,
    TargetError,
    UsageError,
)
from mlc_rwkv_world.reporter import Reporter

LIBRARY = f"{NAME}-llvm.so"


class Listener(Reporter):
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.done: list[tuple[int, int]] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def progress(self, done: int, total: int, what: str) -> None:
        self.done.append((done, total))


@pytest.fixture
def no_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the passes fail: what is built must come from elsewhere."""

    def run(*_: object) -> None:
        raise AssertionError("the module was lowered again")

    monkeypatch.setattr(pipeline, "run", run)


def logits(folder: Path) -> np.ndarray:
    engine = mlc_rwkv_world.load(folder, "cpu")
    return engine.prefill([24281, 59, 4571, 261], engine.new_state())


def kept_modules() -> list[Path]:
    folder = cache_folder()
    assert folder is not None
    return sorted(folder.iterdir())


def test_artifact(built: Artifact) -> None:
    folder = built.folder
    assert (built.name, folder.name, built.params) == (NAME, NAME, folder / "params")
    assert {path.name for path in folder.iterdir()} == {"params", LIBRARY, "SHA256SUMS"}
    assert {path.name for path in built.params.iterdir()} == {
        "params_shard_0.bin",
        "tensor-cache.json",
        "ndarray-cache.json",
        "mlc-chat-config.json",
        "tokenizer_model",
    }
    assert built.libraries == (folder / LIBRARY,)
    assert (built.quantization, built.target, built.compute_dtype) == ("q4f16_1", "llvm", "float32")
    assert built.nbytes == (built.params / "params_shard_0.bin").stat().st_size
    # 4 bits and a 16th of a 16-bit scale, and vectors of float32.
    assert 4.5 < built.bits_per_weight < 4.6
    index = ParameterIndex.read(built.params)
    index.check_files()
    assert list(index.damaged_shards()) == []
    # Nothing is left of the work.
    assert {path.name for path in folder.parent.iterdir()} == {NAME}
    assert np.isfinite(logits(folder)).all()


def test_configuration(built: Artifact) -> None:
    config = json.loads((built.params / "mlc-chat-config.json").read_text())
    assert config["model_type"] == "rwkv_world"
    assert config["quantization"] == "q4f16_1"
    assert config["vocab_size"] == 65536
    assert config["prefill_chunk_size"] == config["model_config"]["prefill_chunk_size"] == 16
    assert config["context_window_size"] == -1
    assert config["tokenizer_files"] == ["tokenizer_model"]
    assert config["model_config"]["rescale_every"] == 6
    for field in ("hidden_size", "num_hidden_layers", "head_size", "num_heads"):
        assert config["model_config"][field] > 0
    sampling = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
    assert [config[key] for key in sampling] == [1.0, 0.3, 0.4, 0.4]
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 0)
    assert config["conv_template"]["name"] == "rwkv_world"
    assert config["rwkv_world"] == {"template": "world"}
    assert str(built.template) == "world"


def test_a_template_can_be_chosen(source: Path, tmp_path: Path) -> None:
    artifact = build_tiny(source, tmp_path, library=False, template="qa")
    config = json.loads((artifact.params / "mlc-chat-config.json").read_text())
    assert config["rwkv_world"] == {"template": "qa"}
    assert (config["conv_template"]["name"], config["top_p"]) == ("rwkv_qa", 0.2)
    assert str(artifact.template) == "qa"


@pytest.mark.slow
@pytest.mark.parametrize("library_first", [False, True])
def test_parts_make_the_same_artifact(
    source: Path, built: Artifact, dist: Path, library_first: bool
) -> None:
    # As `test_library_of_an_earlier_build_is_reused`, once.
    reused = built.libraries[0] if library_first else None
    parts: list[dict[str, Any]] = [
        {"library": False},
        {"weights": False, "reuse_lib": reused},
    ]
    first, second = parts[:: -1 if library_first else 1]
    artifact = build_tiny(source, dist, **first)
    assert artifact.libraries == (() if not library_first else (dist / NAME / LIBRARY,))
    assert artifact.params.is_dir() == (not library_first)
    build_tiny(source, dist, **second)
    whole, parted = contents(built.folder), contents(dist / NAME)
    assert set(whole) == set(parted)
    assert {k for k in whole if whole[k] != parted[k]} <= {LIBRARY}
    np.testing.assert_array_equal(logits(dist / NAME), logits(built.folder))


def test_stages_and_progress(source: Path, dist: Path, world: Tensors) -> None:
    listener = Listener()
    build_tiny(source, dist, library=False, reporter=listener)
    assert listener.stages == [f"looking for {source}", "converting weights to q4f16_1"]
    total = sum(values.size for values in world.values())
    assert listener.done[-1] == (total, total)
    assert [done for done, _ in listener.done] == sorted({done for done, _ in listener.done})


def test_library_of_an_earlier_build_is_reused(
    source: Path, built: Artifact, tmp_path: Path, no_lowering: None
) -> None:
    artifact = build_tiny(source, tmp_path, reuse_lib=built.libraries[0])
    assert contents(artifact.folder) == contents(built.folder)
    # And from the artifact itself that is being replaced.
    again = build_tiny(source, tmp_path, reuse_lib=artifact.libraries[0])
    assert contents(again.folder) == contents(built.folder)


def test_library_of_another_model_is_not_reused(
    source: Path, built: Artifact, tmp_path: Path
) -> None:
    library = built.libraries[0]
    wider = write_pth(tmp_path / "wider.pth", random_world(2, 64), "float16")
    deeper = write_pth(tmp_path / "deeper.pth", random_world(3, 32), "float16")
    config = json.loads((source / "config.json").read_text())

    def configured(name: str, **changes: int) -> Path:
        folder = tmp_path / name / "tiny"
        folder.mkdir(parents=True)
        for file in source.iterdir():
            (folder / file.name).hardlink_to(file)
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    halved = configured("halved", rescale_every=1)
    divided = configured("divided", head_size_divisor=4)
    text = tmp_path / "text.so"
    text.write_text("no library")

    cases: list[tuple[Path, dict[str, Any], type[Exception], str]] = [
        (wider, {}, ArtifactError, r"other hidden_size \(32 there, 64 here\)"),
        (deeper, {}, ArtifactError, r"built for other params\. Build without --reuse-lib"),
        (source, {"quantization": "q8f16_1"}, ArtifactError, "other quantization"),
        (source, {"arithmetic": "decode=float32,prefill=int8"}, ArtifactError, "other arithmetic"),
        (halved, {}, ArtifactError, r"other rescale_every \(6 there, 1 here\)"),
        (divided, {}, ArtifactError, r"other head_size_divisor \(8 there, 4 here\)"),
        (source, {"target": "cuda -arch=sm_90"}, ArtifactError, r"other target \('llvm' there"),
        (source, {"stock": True}, ArtifactError, r"other stock \(False there, True here\)"),
        (source, {"reuse_lib": text}, ArtifactError, r"text\.so cannot be loaded"),
        (source, {"reuse_lib": tmp_path / "no"}, NotFoundError, r"no: there is no such file"),
    ]
    for checkpoint, options, error, message in cases:
        with pytest.raises(error, match=message):
            build_tiny(checkpoint, tmp_path / "dist", **{"reuse_lib": library} | options)
    assert not (tmp_path / "dist" / NAME).exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"library": False}], ids=["all", "weights"])
def test_a_failed_build_leaves_the_older_artifact(
    broken: Path, built: Artifact, dist: Path, older: Path, options: dict[str, Any]
) -> None:
    before = contents(older)
    reused = None if options else built.libraries[0]
    with pytest.raises(CheckpointError, match=r"tiny\.pth.*head\.weight"):
        build_tiny(broken, dist, reuse_lib=reused, **options)
    assert contents(older) == before
    assert {path.name for path in dist.iterdir()} == {NAME}


def test_a_failed_first_build_leaves_nothing(broken: Path, dist: Path) -> None:
    with pytest.raises(CheckpointError):
        build_tiny(broken, dist, library=False)
    assert {path.name for path in dist.iterdir()} == set()


class Meddler(Reporter):
    """Somebody who writes into an artifact's folder while its next build runs."""

    def __init__(self, older: Path) -> None:
        self.older = older

    def stage(self, text: str) -> None:
        if not text.startswith("converting"):
            return
        (self.older / "talks").mkdir()
        (self.older / "talks/new.state").write_text("new")
        (self.older / "params/stray.bin").write_text("stray")
        (self.older / "SHA256SUMS").write_text("changed")
        (self.older / "removed").unlink()
        for name in ("kept.state", "talks.old/kept.state"):
            # As /save does it: the older file is replaced, not written into.
            (self.older / "fresh").write_text("said since")
            (self.older / "fresh").replace(self.older / name)


@pytest.mark.parametrize("by_link", [True, False])
def test_what_is_saved_beside_an_artifact_while_it_is_built_again_stays(
    source: Path, dist: Path, older: Path, monkeypatch: pytest.MonkeyPatch, by_link: bool
) -> None:
    (older / "talks.old").mkdir()
    for name in ("kept.state", "talks.old/kept.state", "same.state", "removed"):
        (older / name).write_text("before")
    if not by_link:
        monkeypatch.setattr("os.link", _refused)
    build_tiny(source, dist, library=False, reporter=Meddler(older))
    found = {name: text for name, text in _texts(older).items() if name.endswith(".state")}
    assert found == {
        "kept.state": "said since",
        "talks.old/kept.state": "said since",
        "talks/new.state": "new",
        "same.state": "before",
    }
    assert not (older / "params/stray.bin").exists()
    assert find(older).checksums is not None
    assert {path.name for path in dist.iterdir()} == {NAME}


def _refused(*_: object, **__: object) -> None:
    raise PermissionError("links are not made here")


def _texts(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text(errors="replace") for path in files}


@pytest.mark.slow
def test_what_a_build_does_not_write_stays(
    source: Path, built: Artifact, dist: Path, older: Path
) -> None:
    (older / f"{NAME}-cuda.so").write_bytes(b"for another machine")
    (older / "notes").mkdir()
    (older / "notes" / "mine.txt").write_text("mine")
    (older / "link").symlink_to("notes/mine.txt")
    (older / "params" / "stale.bin").write_bytes(b"of an older build")
    build_tiny(source, dist, reuse_lib=built.libraries[0])
    assert (older / f"{NAME}-cuda.so").read_bytes() == b"for another machine"
    assert (older / "link").read_text() == "mine"
    assert (older / "link").is_symlink()
    assert not (older / "params" / "stale.bin").exists()


@pytest.mark.slow
def test_a_build_lists_its_own_libraries_and_no_others(
    source: Path, built: Artifact, dist: Path, older: Path
) -> None:
    """Else a stranger's library would become the user's own by a build in the same place."""
    stray = older / f"{NAME}-cuda.so"
    stray.write_bytes(b"a program")
    artifact = build_tiny(source, dist, library=False)
    # What this user built stays listed, in a copy too.
    assert list(find(older).libraries) == [older / LIBRARY]
    assert f"{stray} was not built here: it stays, but does not run." in artifact.notes
    # A list that this user's builds did not write says nothing of what may run.
    write_checksums(older, [LIBRARY, stray.name], {})
    artifact = build_tiny(source, dist, library=False)
    assert list(find(older).libraries) == []
    assert {note.split()[0] for note in artifact.notes} == {str(stray), str(older / LIBRARY)}
    assert stray.read_bytes() == b"a program"
    build_tiny(source, dist, reuse_lib=built.libraries[0])
    assert list(find(NAME).libraries) == list(find(older).libraries) == [older / LIBRARY]


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "a\rb", "x" * 223, "é" * 112])
def test_names_that_no_list_could_hold(world: Tensors, tmp_path: Path, name: str) -> None:
    path = write_pth(tmp_path / f"{name}.pth", world, "float16")
    with pytest.raises(UsageError, match="cannot be the name of an artifact"):
        build_tiny(path, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x" * 222, "-a b'c\"\t\x1b"])
def test_odd_names_are_built_and_found(world: Tensors, tmp_path: Path, name: str) -> None:
    artifact = build_tiny(write_pth(tmp_path / f"{name}.pth", world, "float16"), tmp_path / "dist")
    assert list(find(artifact.folder).libraries) == list(artifact.libraries)
    assert find(artifact.name).folder == artifact.folder
    assert logits(artifact.folder).shape == (65536,)


@pytest.mark.parametrize("content", ["pipe", "[" * 100_000, "{}", '{"model_config": 1}'])
def test_another_configuration_in_place_of_an_older_one(
    source: Path, dist: Path, older: Path, content: str
) -> None:
    """It says that the weights are another model's, whatever it is; nothing waits for it."""
    path = older / "params/mlc-chat-config.json"
    path.unlink()
    if content == "pipe":
        os.mkfifo(path)
    else:
        path.write_text(content)
    before = sorted(older.iterdir())
    with pytest.raises(ArtifactError, match="was converted for another configuration"):
        build_tiny(source, dist, weights=False)
    assert sorted(older.iterdir()) == before
    build_tiny(source, dist, library=False)
    assert list(find(older).libraries) == []


@pytest.mark.slow
def test_an_older_configuration_that_has_no_form_in_utf8(
    source: Path, built: Artifact, dist: Path, older: Path
) -> None:
    path = older / "params/mlc-chat-config.json"
    content = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**content, "author": "\ud800"}))
    build_tiny(source, dist, weights=False, reuse_lib=built.libraries[0])
    assert json.loads(path.read_text())["author"] == "\ud800"


@pytest.mark.parametrize("by_link", [False, True])
def test_a_folder_that_is_no_artifact_is_not_built_into(
    source: Path, dist: Path, tmp_path: Path, by_link: bool
) -> None:
    mine = tmp_path / "mine" if by_link else dist / NAME
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    if by_link:
        (dist / NAME).symlink_to(mine)
    with pytest.raises(UsageError, match=f"{NAME} is there already, and no artifact"):
        build_tiny(source, dist, library=False)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    assert {path.name for path in dist.iterdir()} == {NAME}


@pytest.mark.slow
def test_modules_that_lie_beside_an_artifact_become_no_code(
    source: Path, built: Artifact, dist: Path, no_lowering: None
) -> None:
    """Whoever gives a folder away could else put code into what is built there."""
    (dist / "cache").mkdir()
    for module in kept_modules():
        (dist / "cache" / module.name).write_text("{}")
    build_tiny(source, dist, weights=False)
    assert (dist / NAME / LIBRARY).is_file()


def test_a_dump_replaces_nothing_of_others(source: Path, dist: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.mkdir()
    mine = dump / "3-mine.py"
    mine.write_text("print()")
    with pytest.raises(
        UsageError, match=r"3-mine\.py is there already, and is no module of --debug"
    ):
        build_tiny(source, dist, weights=False, debug_dump=dump)
    mine.unlink()
    (dump / "0-export.py").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"0-export\.py is no file but a link"):
        build_tiny(source, dist, weights=False, debug_dump=dump)
    link = tmp_path / "link"
    link.symlink_to(dump)
    with pytest.raises(UsageError, match=r"link is a link"):
        build_tiny(source, dist, weights=False, debug_dump=link)
    assert list(dist.iterdir()) == []
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_rebuilding_does_not_write_through_to_copies(
    source: Path, dist: Path, older: Path, tmp_path: Path
) -> None:
    """Files that are kept are linked; whoever linked them before keeps what he had."""
    (tmp_path / "kept.so").hardlink_to(older / LIBRARY)
    (older / LIBRARY).write_bytes(b"older")
    build_tiny(source, dist)
    assert (tmp_path / "kept.so").read_bytes() == b"older"
    assert (older / LIBRARY).read_bytes()[:4] == b"\x7fELF"


def test_weights_and_libraries_of_different_configurations_do_not_mix(
    source: Path, world: Tensors, dist: Path, older: Path
) -> None:
    """`rescale_every` changes no shape, so nothing but the builder can notice."""
    (older / f"{NAME}-cuda.so").write_bytes(b"for the older weights")
    config = json.loads((source / "config.json").read_text())
    changed = dist / "tiny"
    changed.mkdir()
    (changed / "model.safetensors").hardlink_to(source / "model.safetensors")
    (changed / "config.json").write_text(json.dumps({**config, "rescale_every": 1}))
    before = contents(older)
    with pytest.raises(ArtifactError, match=r"another configuration .* without --build-model-only"):
        build_tiny(changed, dist, weights=False)
    assert contents(older) == before
    build_tiny(changed, dist, library=False)
    assert {path.name for path in older.iterdir()} == {"params", "SHA256SUMS"}


def test_a_limit_or_chunk_is_no_other_configuration(source: Path, dist: Path, older: Path) -> None:
    artifact = build_tiny(source, dist, library=False, max_seq_len=4096, prefill_chunk_size=32)
    assert (older / LIBRARY).is_file()
    config = json.loads((artifact.params / "mlc-chat-config.json").read_text())
    assert config["context_window_size"] == 4096
    assert config["model_config"]["context_window_size"] == 4096


@pytest.mark.slow
def test_kept_modules_are_used_unless_told_otherwise(
    source: Path, dist: Path, no_lowering: None, tmp_path: Path
) -> None:
    build_tiny(source, dist, weights=False)
    with pytest.raises(AssertionError, match="lowered again"):
        build_tiny(source, dist, weights=False, use_cache=False)
    with pytest.raises(AssertionError, match="lowered again"):
        build_tiny(source, dist, weights=False, debug_dump=tmp_path / "dump")
    with pytest.raises(AssertionError, match="lowered again"):
        build_tiny(source, dist, weights=False, prefill_chunk_size=17)


@pytest.mark.slow
def test_debug_dump_and_system_library(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A home of its own: other tests keep modules in the shared one at the same time.
    monkeypatch.setenv("MLC_RWKV_WORLD_HOME", str(tmp_path / "home"))
    artifact = build_tiny(
        source,
        tmp_path / "dist",
        weights=False,
        system_lib=True,
        use_cache=False,
        debug_dump=tmp_path / "dump",
    )
    assert not (tmp_path / "home" / "cache").exists()
    pipeline.prepare_dump(tmp_path / "dump")
    phases = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert [name.partition("-")[0] for name in phases] == [str(i) for i in range(len(phases))]
    first, last = ((tmp_path / "dump" / name).read_text() for name in (phases[0], phases[-1]))
    assert "rwkv_world.rwkv4.time_mix" in first
    assert "rwkv_world.rwkv4.time_mix" not in last
    # Which parts have no kernels of their own stands in it from the phase on that chose them.
    (chosen,) = (tmp_path / "dump" / name for name in phases if name.endswith("-kernels.py"))
    assert "rwkv_world_decomposed_parts" in chosen.read_text()
    assert "_metadata" in last
    (library,) = artifact.libraries
    assert library.name == f"{NAME}-llvm.tar"
    with tarfile.open(library) as archive:
        assert "tiny_q4f16_1_devc.o" in archive.getnames()
    assert "to be linked where they will run" in artifact.notes[0]


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"quantization": "q3f16_1"}, UsageError, "'q3f16_1' is not known"),
        ({"target": "vulcan"}, TargetError, "'vulcan' is not a target"),
        ({"max_seq_len": 0}, UsageError, "max_seq_len is 0"),
        ({"reuse_lib": "no.so"}, NotFoundError, r"no\.so: there is no such file"),
        ({"weights": False, "library": False}, UsageError, "nothing to build"),
        ({"prefill_chunk_size": 0}, UsageError, "prefill_chunk_size is 0"),
        ({"max_batch_size": 0}, UsageError, "max_batch_size is 0"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_anything_is_looked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    def resolve_source(*_: object, **__: object) -> None:
        raise AssertionError("looked for the model")

    monkeypatch.setattr(assemble, "resolve_source", resolve_source)
    usual: dict[str, Any] = {"target": "llvm", "output": tmp_path}
    with pytest.raises(error, match=message):
        mlc_rwkv_world.build("owner/name", **usual | options)
    assert list(tmp_path.iterdir()) == []


def test_exactly_one_source(tmp_path: Path, source: Path) -> None:
    both: dict[str, Any] = {"source": source, "model": "tiny"}
    for options in ({}, both):
        with pytest.raises(UsageError, match="say which checkpoint to build"):
            mlc_rwkv_world.build(**options, target="llvm", output=tmp_path)


def test_a_cpu_that_hides_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As hypervisors do: the CPU's name promises more than it may use."""
    features = resolve("llvm").cpu_features()
    hidden = features[0]
    monkeypatch.setattr(
        choices, "missing_features", lambda names: [n for n in names if n == hidden]
    )
    for text in ("llvm", "auto"):
        found = choices.for_this_cpu(resolve("llvm"), text)
        assert hidden not in found.cpu_features()
    asked = "llvm -mcpu=haswell -mtriple=x86_64-linux-gnu"
    assert choices.for_this_cpu(resolve(asked), asked).describe() == resolve(asked).describe()
