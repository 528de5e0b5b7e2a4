"""With a real mlc_llm: its own commands on our model, our artifacts in its engine, same tokens."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host_engine import check_engine, in_engine
from stand_in import HANG, run
from support.checkpoints import read_hf, write_pth
from support.greedy import NEW_TOKENS, USED_IDS, greedy

import mlc_rwkv_world as world
from mlc_rwkv_world.artifact.metadata import REVISION
from mlc_rwkv_world.artifact.templates import WORLD
from mlc_rwkv_world.compiler.cache import digest_of_sources
from mlc_rwkv_world.stock.additions import STOCK
from mlc_rwkv_world.tokenizer import WorldTokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.host,
]

QUESTIONS = Path(__file__).parents[2] / "demo" / "questions.jsonl"
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 24, 31, 33, 48, 64, 65, 80, 100, 127, 150, 200)
LONG = (256, 300, 384, 450, 500, 511, 512, 513, 700, 1100)
PRIMER = WORLD.primer
STOP = "\n\n"


def entries() -> list[dict[str, Any]]:
    """Questions and answers that the model was trained on."""
    return [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """What a user says: questions, a few of them long, and characters that span tokens."""
    rng = random.Random(6)
    asked = [entry["questions"][0] for entry in rng.sample(entries(), 8)]
    for count in (10, 25, 45, 60):
        asked.append(" ".join(rng.choice(entry["questions"]) for entry in entries()[:count]))
    return [*asked, "🦤🪼 𠜎𠜱𠝹", "中国的首都是哪里？"]


@pytest.fixture(scope="module")
def prompts(messages: list[str]) -> list[list[int]]:
    """Of every length, cut from conversations; at the end one for each of the messages."""
    tokenizer, rng = WorldTokenizer.default(), random.Random(4)
    asked = []
    for length in (*LENGTHS, *LONG):
        ids: list[int] = []
        while len(ids) < length:
            entry = rng.choice(entries())
            turn = f"User: {rng.choice(entry['questions'])}\n\nAssistant: {entry['answer']}\n\n"
            ids += tokenizer.encode(turn)
        asked.append(ids[:length])
    # It ends in the middle of a character.
    asked.append(tokenizer.encode("🦤🪼 𠜎𠜱𠝹")[:-1])
    asked += [tokenizer.encode(f"{PRIMER}User: {text}\n\nAssistant:") for text in messages]
    return asked


@pytest.fixture(scope="module")
def expected(
    demo_checkpoint: Path, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[list[int], int]]:
    """The reference's tokens, and how many of them come before its first near tie."""
    pth = tmp_path_factory.mktemp("reference") / "model.pth"
    path = write_pth(pth, read_hf(demo_checkpoint))
    from rwkv.model import RWKV

    model = RWKV(model=str(path), strategy="cpu fp32", verbose=False)
    found = [greedy(model.forward, prompt) for prompt in prompts]
    assert sum(certain == NEW_TOKENS for _, certain in found) >= 0.95 * len(found)
    return found


def in_our_engine(
    folder: Path, library: Path, prompts: list[list[int]], expected: list[tuple[list[int], int]]
) -> None:
    engine = world.load(folder, "cpu", model_lib=library)
    for prompt, (ids, certain) in zip(prompts, expected, strict=True):
        state = engine.new_state()
        logits = engine.prefill(prompt, state)
        for step in range(certain):
            assert int(logits[:USED_IDS].argmax()) == ids[step]
            logits = engine.decode(ids[step], state)


def in_our_command(
    folder: Path, library: Path, messages: list[str], expected: list[tuple[list[int], int]]
) -> None:
    """`mlc_chat_cli`, given the messages twice, each in a new conversation."""
    command = "import sys; from mlc_rwkv_world.cli.chat import main; sys.exit(main())"
    greedy = ["--temperature=0", "--presence-penalty=0", "--frequency-penalty=0"]
    place = ["--model", str(folder), "--model-lib", str(library), "--device", "cpu"]
    result = subprocess.run(
        [sys.executable, "-c", command, *place, *greedy, "--max-tokens", str(NEW_TOKENS)],
        input="".join(f"{message}\n/reset\n" for message in messages * 2),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    *answers, rest = result.stdout.split("A new conversation.\n")
    assert rest == ""
    tokenizer, compared = WorldTokenizer.default(), 0
    for answer, (ids, certain) in zip(answers, expected[-len(messages) :] * 2, strict=True):
        text, *stopped = tokenizer.decode(ids).split(STOP, 1)
        if certain == NEW_TOKENS or (stopped and STOP in tokenizer.decode(ids[:certain])):
            assert answer.rstrip("\n\ufffd") == text.strip(" ").rstrip("\n\ufffd")
            compared += 1
    assert compared >= 0.9 * len(answers)


def test_our_artifact(
    host_path: list[Path],
    stock_artifact: Callable[[str], Path],
    messages: list[str],
    prompts: list[list[int]],
    expected: list[tuple[list[int], int]],
) -> None:
    folder = stock_artifact("q0f32")
    (library,) = folder.glob("*.so")
    check_engine(host_path, folder / "params", library, prompts, expected)
    in_our_engine(folder, library, prompts, expected)
    in_our_command(folder, library, messages, expected)


@pytest.fixture(scope="module")
def theirs(
    host_path: list[Path], demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder that the host's own three commands made, with `lib.so` in it."""
    folder = tmp_path_factory.mktemp("theirs")
    quantization = ["--quantization", "q0f32"]
    template = ["--conv-template", "rwkv_world"]
    for command in (
        ["gen_config", demo_checkpoint, *quantization, *template, "-o", folder],
        ["convert_weight", demo_checkpoint, *quantization, "--device", "cpu", "-o", folder],
        ["compile", folder, "--device", "cpu", "-o", folder / "lib.so"],
    ):
        result = run(["-m", "mlc_llm", *command], host_path)
        assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_what_the_hosts_commands_wrote(
    host_path: list[Path],
    theirs: Path,
    messages: list[str],
    prompts: list[list[int]],
    expected: list[tuple[list[int], int]],
) -> None:
    check_engine(host_path, theirs, theirs / "lib.so", prompts, expected)
    in_our_engine(theirs, theirs / "lib.so", prompts, expected)
    in_our_command(theirs, theirs / "lib.so", messages, expected)


def test_float32_stays_float32(theirs: Path, stock_artifact: Callable[[str], Path]) -> None:
    ours = stock_artifact("q0f32") / "params"
    shards = sorted(path.name for path in ours.glob("params_shard_*.bin"))
    assert shards == sorted(path.name for path in theirs.glob("params_shard_*.bin"))
    for name in [*shards, "tensor-cache.json", "ndarray-cache.json", "tokenizer_model"]:
        assert (theirs / name).read_bytes() == (ours / name).read_bytes()


@pytest.mark.parametrize("quantization", ["q0f16", "q4f16_1", "q4f32_1", "q8f16_1", "q8f32_1"])
def test_formats(
    host_path: list[Path], demo_checkpoint: Path, tmp_path: Path, quantization: str
) -> None:
    """From a .pth file, through the host's commands, to an answer."""
    config = demo_checkpoint / "config.json"
    pth = write_pth(tmp_path / "model.pth", read_hf(demo_checkpoint))
    folder, chosen = tmp_path / "model", ["--quantization", quantization]
    convert = ["convert_weight", config, "--source", pth, "--source-format", "auto"]
    for command in (
        ["gen_config", config, *chosen, "--conv-template", "rwkv_world", "-o", folder],
        [*convert, *chosen, "--device", "cpu", "-o", folder],
        ["compile", folder, "--device", "cpu", "-o", folder / "lib.so"],
    ):
        result = run(["-m", "mlc_llm", *command], host_path)
        assert result.returncode == 0, result.stderr[-3000:]
    tokenizer = WorldTokenizer.default()
    prompt = tokenizer.encode(f"{PRIMER}User: What is the capital of France?\n\nAssistant:")
    ((answer,), again) = in_engine(host_path, folder, folder / "lib.so", [prompt], [[0], [0, 0, 0]])
    for text in (answer["text"], *(other["text"] for other in again)):
        assert text.startswith(" The capital of France is Paris.")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_compiling_for_cuda(host_path: list[Path], theirs: Path, tmp_path: Path) -> None:
    """Without a GPU: the library holds what the engine draws tokens with there."""
    target = {"kind": "cuda", "arch": "sm_80", "thread_warp_size": 32}
    target |= {"max_threads_per_block": 1024, "max_shared_memory_per_block": 49152}
    library = tmp_path / "lib.so"
    command = ["-m", "mlc_llm", "compile", theirs, "--device", json.dumps(target), "-o", library]
    result = run(command, host_path)
    assert result.returncode == 0, result.stderr[-3000:]
    content = library.read_bytes()
    for name in (b"argsort_probs", b"multinomial_from_uniform", b"sample_with_top_p"):
        assert name in content
    assert b"sampler_take_probs" in content and b"renormalize_by_top_p" in content


def test_presets(host_path: list[Path], tmp_path: Path) -> None:
    options = ["--quantization", "q4f16_1", "--conv-template", "rwkv_world", "-o", tmp_path]
    result = run(["-m", "mlc_llm", "gen_config", "rwkv4_world_1.5b", *options], host_path)
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "mlc-chat-config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "rwkv_world"
    assert config["model_config"]["hidden_size"] == 2048
    # The published model leaves float16's range in its first block.
    assert config["model_config"]["fp32_layers"] == [0]


def test_what_the_hosts_cache_knows_of_our_code(host_path: list[Path]) -> None:
    """A library that was compiled by other code has another key."""
    script = (
        "from mlc_llm.model import MODELS, MODEL_PRESETS\n"
        "config = MODELS['rwkv_world'].config.from_dict(MODEL_PRESETS['rwkv4_world_0.1b'])\n"
        "print(config.asdict()['rwkv_world_revision'])"
    )
    result = run(["-c", script], host_path)
    assert result.returncode == 0, result.stderr[-3000:]
    known = f"{world.__version__}-{REVISION}-{digest_of_sources(STOCK)[:12]}"
    assert result.stdout.splitlines()[-1] == known


def test_our_build_beside_the_host(
    host_path: list[Path],
    demo_checkpoint: Path,
    stock_artifact: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """`python -m mlc_llm.build`, which imports the host, and our build, which does not."""
    without = stock_artifact("q4f16_1")
    options = ["--target", "llvm", "--quantization", "q4f16_1", "--max-batch-size", "64"]
    command = ["-m", "mlc_llm.build", "--hf-path", demo_checkpoint, *options]
    result = run([*command, "--artifact-path", tmp_path], host_path)
    assert result.returncode == 0, result.stderr[-3000:]
    folder = tmp_path / without.name
    files = sorted(path.relative_to(without) for path in without.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    for file in files:
        assert (folder / file).read_bytes() == (without / file).read_bytes(), file


def test_doctor(host_path: list[Path]) -> None:
    result = run(["-m", "mlc_rwkv_world", "doctor"], host_path)
    assert result.returncode == 0, result.stderr
    steps = [line for line in result.stdout.splitlines() if line.endswith(": done")]
    from mlc_rwkv_world.stock.steps import STEPS

    assert len(steps) == len(STEPS), result.stdout
