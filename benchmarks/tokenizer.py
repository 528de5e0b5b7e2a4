"""The World tokenizer against its peers, on real text.

    python benchmarks/tokenizer.py corpus FOLDER   make the texts (needs Debian's apt and dpkg)
    python benchmarks/tokenizer.py check FOLDER    hold the ids to those of `rwkv`
    python benchmarks/tokenizer.py speed FOLDER    print the tables of docs/tokenizer.md

The peers are the packages `rwkv`, `pyrwkv-tokenizer` and `rwkv-tokenizer`; one that is not
installed is left out.

Times are CPU time of the whole process, so that other load on the machine does not count; every
call here runs on one thread. The contestants take turns on one text, and a figure is the median of
their rounds.
"""

from __future__ import annotations

import argparse
import html.parser
import importlib.util
import math
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

OURS = "mlc-rwkv-world"
ARRAY = f"{OURS} (array)"
RUST = "pyrwkv-tokenizer"
ROUNDS = 9
TURN = 0.05
"""Seconds; long enough for a contestant to find its tables in the caches again."""
ENOUGH = 10.0
"""Seconds for one text, after which a slow contestant sits out the other rounds."""

# The languages of a program's help and of a handbook, in ten scripts.
HELP = "libreoffice-help-{}"
HELP_FILES = "usr/share/libreoffice/help/{}"
HANDBOOK_FILES = "usr/share/doc/debian-handbook/html/{}"
TEXTS = {
    "English": (HELP.format("en-us"), HELP_FILES.format("en-US")),
    "German": (HELP.format("de"), HELP_FILES.format("de")),
    "Vietnamese": ("debian-handbook", HANDBOOK_FILES.format("vi-VN")),
    "Russian": (HELP.format("ru"), HELP_FILES.format("ru")),
    "Greek": (HELP.format("el"), HELP_FILES.format("el")),
    "Arabic": ("debian-handbook", HANDBOOK_FILES.format("ar-MA")),
    "Hindi": (HELP.format("hi"), HELP_FILES.format("hi")),
    "Khmer": (HELP.format("km"), HELP_FILES.format("km")),
    "Dzongkha": (HELP.format("dz"), HELP_FILES.format("dz")),
    "Chinese": (HELP.format("zh-cn"), HELP_FILES.format("zh-CN")),
    "Japanese": (HELP.format("ja"), HELP_FILES.format("ja")),
    "Korean": (HELP.format("ko"), HELP_FILES.format("ko")),
}
CODE = "Python code"
CODE_BYTES = 10_500_000


class TextOfPage(html.parser.HTMLParser):
    """The visible text of a page, a line for each block of it."""

    HIDDEN = ("head", "script", "style")
    INLINE = ("a", "b", "code", "em", "i", "kbd", "span", "strong", "tt")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.hidden = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in self.HIDDEN

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in self.HIDDEN
        if tag not in self.INLINE:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.pieces.append(data)

    def text(self) -> str:
        lines = (" ".join(line.split()) for line in "".join(self.pieces).split("\n"))
        return "".join(f"{line}\n" for line in lines if line)


def make_corpus(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    packages = sorted({package for package, _ in TEXTS.values()})
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *packages],
            cwd=scratch,
            check=True,
        )
        for archive in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg", "-x", archive, scratch], check=True)
        for name, (_, files) in TEXTS.items():
            pages = sorted((Path(scratch) / files).rglob("*.html"))
            text = "\n".join(TextOfPage(page.read_text("utf-8")).text() for page in pages)
            (folder / f"{name}.txt").write_text(text, "utf-8")
    (folder / f"{CODE}.txt").write_text(python_code(), "utf-8")


def python_code() -> str:
    code = ""
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts and len(code) < CODE_BYTES:
            code += path.read_text("utf-8", errors="ignore")
    return code


@dataclass(frozen=True)
class Contestant:
    name: str
    load: Callable[[], Any]
    encode: Callable[[Any, str], Any]
    decode: Callable[[Any, Sequence[int]], Any]


def load_ours() -> Any:
    from mlc_rwkv_world.tokenizer import PACKAGED_VOCABULARY, WorldTokenizer

    return WorldTokenizer.from_file(PACKAGED_VOCABULARY)


def load_blinkdl() -> Any:
    import rwkv
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    return TRIE_TOKENIZER(str(Path(str(rwkv.__file__)).parent / "rwkv_vocab_v20230424.txt"))


def load_rust(module: str) -> Callable[[], Any]:
    return lambda: importlib.import_module(module).RWKVTokenizer()


def encode(tokenizer: Any, text: str) -> Any:
    return tokenizer.encode(text)


def decode(tokenizer: Any, ids: Sequence[int]) -> Any:
    return tokenizer.decode(ids)


ALL = {
    OURS: (Contestant(OURS, load_ours, encode, decode), "mlc_rwkv_world"),
    ARRAY: (
        Contestant(ARRAY, load_ours, lambda t, text: t.encode_array(text), decode),
        "mlc_rwkv_world",
    ),
    RUST: (
        Contestant(RUST, load_rust("pyrwkv_tokenizer"), encode, decode),
        "pyrwkv_tokenizer",
    ),
    "rwkv-tokenizer": (
        Contestant("rwkv-tokenizer", load_rust("rwkv_tokenizer"), encode, decode),
        "rwkv_tokenizer",
    ),
    "rwkv": (Contestant("rwkv", load_blinkdl, encode, decode), "rwkv"),
}
CONTESTANTS = {
    name: contestant
    for name, (contestant, module) in ALL.items()
    if importlib.util.find_spec(module) is not None
}


def texts(folder: Path) -> Iterator[tuple[str, str]]:
    for name in (*TEXTS, CODE):
        yield name, (folder / f"{name}.txt").read_text("utf-8")


def megabytes(text: str) -> float:
    return len(text.encode()) / 1e6


def prefix(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats


def contest(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each call over turns that last TURN or more."""
    once = {name: cpu_seconds(call, 1) for name, call in calls.items()}
    repeats = {name: max(1, math.ceil(TURN / seconds)) for name, seconds in once.items()}
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            if sum(turns[name]) < ENOUGH:
                turns[name].append(cpu_seconds(call, repeats[name]))
    return {name: statistics.median(taken) for name, taken in turns.items()}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("|", " | ".join(head), "|")
    print("|", " | ".join("---" if column == 0 else "---:" for column in range(len(head))), "|")
    for row in rows:
        print("|", " | ".join(row), "|")
    print(flush=True)


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def check(folder: Path) -> None:
    reference = CONTESTANTS["rwkv"].load()
    tokenizer = load_ours()
    for name, text in texts(folder):
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text), name
        assert ids == tokenizer.encode_array(text).tolist(), name
        assert tokenizer.decode(ids) == text, name
        print(f"{name}: {megabytes(text):.1f} MB, {len(ids)} ids, all equal", flush=True)


def speed_of_encoding(folder: Path, loaded: dict[str, Any]) -> None:
    rows, ratios = [], []
    for name, text in texts(folder):
        seconds = contest(
            {who: partial(CONTESTANTS[who].encode, loaded[who], text) for who in loaded}
        )
        size = megabytes(text)
        ratios.append([seconds[RUST] / seconds[ARRAY], seconds[RUST] / seconds[OURS]])
        rows.append(
            [
                f"{name}, {size:.1f} MB",
                *(f"{size / seconds[who]:.3g}" for who in loaded),
                *(f"{ratio:.2f}" for ratio in ratios[-1]),
            ]
        )
    means = [geometric_mean(column) for column in zip(*ratios, strict=True)]
    rows.append(["geometric mean", *("" for _ in loaded), *(f"{mean:.2f}" for mean in means)])
    print("Encoding whole texts, MB/s; array and list against", RUST)
    table(["text", *loaded, "array ratio", "list ratio"], rows)


def speed_of_decoding(folder: Path, loaded: dict[str, Any]) -> None:
    rows = []
    ours = loaded[OURS]
    for name, text in texts(folder):
        ids = ours.encode(text)
        array = ours.encode_array(text)
        calls: dict[str, Callable[[], object]] = {
            "decode_bytes(array)": partial(ours.decode_bytes, array),
            "decode(array)": partial(ours.decode, array),
            "decode(list)": partial(ours.decode, ids),
        }
        for who in loaded:
            if who not in (OURS, ARRAY):
                calls[who] = partial(CONTESTANTS[who].decode, loaded[who], ids)
        seconds = contest(calls)
        size = megabytes(text)
        rows.append(
            [
                name,
                f"{size * 1e6 / len(ids):.2f}",
                *(f"{size / taken:.3g}" for taken in seconds.values()),
                f"{seconds[RUST] / seconds['decode(list)']:.2f}",
            ]
        )
    print("Decoding whole texts, MB/s; decode(list) against", RUST)
    table(["text", "bytes per token", *calls, "list ratio"], rows)


def speed_by_size(folder: Path, loaded: dict[str, Any]) -> None:
    rows = []
    code = (folder / f"{CODE}.txt").read_text("utf-8")
    for size in (1_000, 10_000, 100_000, 1_000_000, 10_000_000):
        text = prefix(code, size)
        calls: dict[str, Callable[[], object]] = {
            who: partial(CONTESTANTS[who].encode, loaded[who], text)
            for who in loaded
            if who != "rwkv"
        }
        seconds = contest(calls)
        rows.append(
            [
                f"{size / 1000:g} KB",
                *(f"{1e9 * taken / size:.2f}" for taken in seconds.values()),
            ]
        )
    print("Encoding the beginning of the code, nanoseconds per byte")
    table(["size", *calls], rows)


STARTUP = """
import sys, time
sys.path.insert(0, {benchmarks!r})
import numpy
import tokenizer
contestant = tokenizer.CONTESTANTS[{name!r}]
tokenizer.warm_import({name!r})
def resident():
    status = open("/proc/self/status").read().split()
    return int(status[status.index("VmRSS:") + 1])
before = resident()
wall, cpu = time.perf_counter(), time.process_time()
loaded = contestant.load()
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
contestant.encode(loaded, "Hello")
print(wall * 1e3, cpu * 1e3, (resident() - before) / 1e3)
"""


def warm_import(name: str) -> None:
    """Imports the contestant's module, which is not counted as loading."""
    module = ALL[name][1]
    importlib.import_module("mlc_rwkv_world.tokenizer" if name == OURS else module)


def startup() -> None:
    rows = []
    for name in CONTESTANTS:
        if name == ARRAY:
            continue
        script = STARTUP.format(benchmarks=str(Path(__file__).parent), name=name)
        runs = []
        for _ in range(5):
            out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
            runs.append([float(value) for value in out.stdout.split()])
        wall, cpu, memory = (statistics.median(column) for column in zip(*runs, strict=True))
        rows.append([name, f"{wall:.0f}", f"{cpu:.0f}", f"{memory:.1f}"])
    print("Loading after import, and memory added over Python with NumPy")
    table(["", "wall ms", "CPU ms", "MB"], rows)


def machine() -> str:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("ascii").splitlines()
        if line.startswith("model name")
    ]
    return f"{models[0]}, {len(models)} cores, Python {platform.python_version()}"


def speed(folder: Path) -> None:
    print(machine(), end="\n\n", flush=True)
    loaded = {name: contestant.load() for name, contestant in CONTESTANTS.items()}
    speed_of_encoding(folder, loaded)
    speed_of_decoding(folder, loaded)
    speed_by_size(folder, loaded)
    startup()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=["corpus", "check", "speed"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    {"corpus": make_corpus, "check": check, "speed": speed}[arguments.command](arguments.folder)


if __name__ == "__main__":
    main()
