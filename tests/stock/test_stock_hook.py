"""How the plugin comes into a process, and that it harms none: in real child interpreters."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from stand_in import (
    PACKAGE_ROOT,
    TVM,
    entry_points,
    run,
    write,
    write_host,
    write_metadata,
    write_no_torch,
    write_version,
)
from support.checkpoints import fla_config, random_rwkv7, write_fla

OURS = ["rwkv", "rwkv_world"]
NAMES = "['llama', 'rwkv', 'rwkv5', 'rwkv6', 'rwkv7', 'rwkv_world']"
TEMPLATES = ["rwkv_g1", "rwkv_instruction", "rwkv_qa", "rwkv_world"]
BUILD_HELP = "usage: python -m mlc_llm.build"


@pytest.fixture
def tvm(tmp_path: Path) -> Path:
    """A site folder with a TVM that calls entry points."""
    return write(tmp_path / "tvm-site", TVM)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return write_host(tmp_path / "host-site")


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """What an installer would record; the package itself lies where the tests import it from."""
    return write_metadata(tmp_path / "our-site")


def probe(path: list[Path], *options: str, **environment: str) -> tuple[dict[str, Any], str]:
    """What `python -m mlc_llm` finds in its own tables, and what was said on stderr."""
    result = run([*options, "-m", "mlc_llm"], path, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


def test_a_plain_command_of_the_host_sees_the_plugin(tvm: Path, host: Path, ours: Path) -> None:
    found, said = probe([tvm, host, ours, PACKAGE_ROOT])
    ours_too = dict.fromkeys(("rwkv_world", "rwkv", "rwkv7"), "rwkv_world")
    theirs = {name: name for name in ("llama", "rwkv5", "rwkv6")}
    assert found["models"] == {**theirs, **ours_too}
    presets = [f"rwkv4_world_{size}" for size in ("0.1b", "0.4b", "1.5b", "3b", "7b")]
    presets += [f"rwkv5_world_{size}" for size in ("0.1b", "0.4b", "1.5b", "3b", "7b")]
    presets += [f"rwkv6_world_{size}" for size in ("1.6b", "14b", "3b", "7b")]
    presets += [f"rwkv7_world_{size}" for size in ("0.1b", "0.4b", "1.5b", "2.9b", "7.2b")]
    assert found["presets"] == ["llama2_7b", *presets]
    assert {"q0f16", "q0f32", "q4f32_1", "q8f16_1", "q8f32_1"} <= set(found["formats"])
    assert found["templates"] == {"chatml": "the host's", **dict.fromkeys(TEMPLATES, "ours")}
    assert found["choices"] == sorted({"chatml", "rwkv", *TEMPLATES})
    assert found["gen_config"] and found["convert_weight"] and found["asjson"]
    assert found["source_formats"] == ["rwkv-world", "huggingface-torch"]
    assert found["pipeline"] and found["aliased"]
    assert said == ""


def test_child_processes_see_it_too(tvm: Path, host: Path, ours: Path) -> None:
    code = (
        "import subprocess, sys; import mlc_llm; "
        "sys.exit(subprocess.run([sys.executable, '-m', 'mlc_llm']).returncode)"
    )
    result = run(["-c", code], [tvm, host, ours, PACKAGE_ROOT])
    assert set(OURS) <= set(json.loads(result.stdout)["models"])


@pytest.mark.parametrize("value", ["1", "yes"])
def test_one_variable_turns_it_off(tvm: Path, host: Path, ours: Path, value: str) -> None:
    path = [tvm, host, ours, PACKAGE_ROOT]
    found, _ = probe(path, MLC_RWKV_WORLD_DISABLE=value)
    assert list(found["models"]) == ["llama", "rwkv5", "rwkv6"]
    assert not found["asjson"] and not found["pipeline"]
    assert set(OURS) <= set(probe(path, MLC_RWKV_WORLD_DISABLE="0")[0]["models"])


def test_twice_is_once(tvm: Path, host: Path, ours: Path, tmp_path: Path) -> None:
    again = write_metadata(tmp_path / "again", "mlc_rwkv_world_again")
    once, _ = probe([tvm, host, ours, PACKAGE_ROOT])
    twice, said = probe([tvm, host, ours, again, PACKAGE_ROOT])
    assert twice == once and said == ""

    code = (
        "import sys, mlc_llm, mlc_llm.probe, mlc_rwkv_world as rwkv\n"
        "rwkv.register(); rwkv.register()\n"
        "hooks = [f for f in sys.meta_path if type(f).__name__ == 'ImportHook']\n"
        "from mlc_llm.serve import EngineConfig\n"
        "print(len(hooks), hasattr(EngineConfig.asjson.__wrapped__, '__wrapped__'))"
    )
    result = run(["-c", code], [tvm, host, ours, PACKAGE_ROOT])
    assert result.stdout.splitlines()[-1] == "1 False", result.stderr


@pytest.mark.parametrize("when", ["before", "after"])
def test_register_without_an_entry_point(tvm: Path, host: Path, when: str) -> None:
    before, after = ("rwkv.register()", "") if when == "before" else ("", "rwkv.register()")
    code = (
        "import mlc_rwkv_world as rwkv\n"
        f"{before}\n"
        "import mlc_llm.model, mlc_llm.interface.gen_config\n"
        "from mlc_llm.interface.gen_config import gen_config\n"
        f"{after}\n"
        "print(sorted(mlc_llm.model.MODELS), hasattr(mlc_llm.interface.gen_config.gen_config, "
        "'rwkv_world'))"
    )
    result = run(["-c", code], [tvm, host, PACKAGE_ROOT])
    assert result.stdout.strip() == f"{NAMES} True", result.stderr
    assert result.stderr == ""


@pytest.mark.slow
def test_a_configuration_of_another_version(host: Path, tmp_path: Path) -> None:
    """The host reads a configuration and a checkpoint from wherever it is told to."""
    checkpoint = write_fla(tmp_path / "RWKV7", random_rwkv7(2, 64, 65536))
    code = (
        "import sys, mlc_rwkv_world as rwkv\n"
        "rwkv.register()\n"
        "from types import SimpleNamespace as Some\n"
        "from mlc_llm.model import MODELS, MODEL_PRESETS\n"
        "from mlc_rwkv_world.stock.commands import _convert_weight\n"
        "config = MODELS['rwkv_world'].config.from_dict(MODEL_PRESETS['rwkv4_world_0.1b'])\n"
        "model = Some(config=Some(from_file=lambda path: config))\n"
        "given = {'config': 'config.json', 'model': model, 'source': sys.argv[1]}\n"
        "_convert_weight({**given, 'quantization': Some(name='q0f32'), 'output': sys.argv[2]})"
    )
    result = run(
        ["-c", code, checkpoint, tmp_path / "out"],
        [write_no_torch(tmp_path / "no-torch"), host, PACKAGE_ROOT],
    )
    last = result.stderr.splitlines()[-1]
    assert "config.json is the configuration of an RWKV-4, and" in last
    assert f"{checkpoint} holds an RWKV-7." in last
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_gen_config_picks_a_template(host: Path, tmp_path: Path) -> None:
    """`rwkv` is the checkpoint's own; another than that is written as asked for, with a note."""
    g1, world = "RWKV7-G1-0.1B", "RWKV7-World3-0.1B"
    cases = [
        (g1, "rwkv", "rwkv_g1", {"template": "g1", "think": "off"}),
        (g1, "rwkv_world", "rwkv_world", {"template": "world"}),
        (g1, "chatml", "chatml", None),
        (world, "rwkv", "rwkv_world", {"template": "world"}),
        (world, "rwkv_qa", "rwkv_qa", {"template": "qa"}),
    ]
    for name in (g1, world):
        config = fla_config(random_rwkv7(2, 128, 4), vocab_size=65536)
        write(tmp_path, {f"{name}/config.json": json.dumps(config)})
    code = (
        "import json, sys, mlc_rwkv_world as rwkv\n"
        "rwkv.register()\n"
        "from pathlib import Path\n"
        "from types import SimpleNamespace as Some\n"
        "from mlc_llm.model import MODELS\n"
        "from mlc_llm.interface.gen_config import gen_config\n"
        "for name, asked, *_ in json.loads(sys.argv[1]):\n"
        "    output = Path(name, asked)\n"
        "    output.mkdir()\n"
        "    config, fmt = Path(name, 'config.json'), Some(name='q4f16_1')\n"
        "    gen_config(config, MODELS['rwkv7'], output, fmt, asked)"
    ).replace("Path(name", f"Path({str(tmp_path)!r}, name")
    result = run(["-c", code, json.dumps(cases)], [host, PACKAGE_ROOT])
    assert result.returncode == 0, result.stderr
    for name, asked, written, ours in cases:
        found = json.loads((tmp_path / name / asked / "mlc-chat-config.json").read_text())
        assert found["conv_template"]["name"] == written
        assert found.get("rwkv_world") == ours
    noted = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert [line.partition(" is asked for")[0].split()[-1] for line in noted] == [
        "rwkv_world",
        "chatml",
    ]
    assert all(f"{g1} was trained for rwkv_g1" in line for line in noted)


@pytest.mark.slow
def test_world_models_of_the_hosts_own_types(host: Path, tmp_path: Path) -> None:
    """The host's RWKV-5 and 6 stay what they are for others' checkpoints."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 2048, "vocab_size": 65536, "head_size": 64}
    # As published: nothing of ranks, another number of heads, and 3.5 times the width unsaid.
    published = {**sizes, "num_attention_heads": 64, "intermediate_size": None, "rescale_every": 6}
    configs = {
        "5": {**published, "model_type": "rwkv5"},
        "6": {**published, "model_type": "rwkv6"},
        "6 large": {**published, "model_type": "rwkv6", "hidden_size": 4096},
        "first 5": {**published, "model_type": "rwkv", "model_version": "5_2"},
        "theirs": {**published, "model_type": "rwkv5", "vocab_size": 50277},
    }
    files = {f"{name}/config.json": json.dumps(config) for name, config in configs.items()}
    write(tmp_path, files)
    code = (
        "import json, sys, mlc_rwkv_world as rwkv\n"
        "rwkv.register()\n"
        "from pathlib import Path\n"
        "from types import SimpleNamespace as Some\n"
        "from mlc_llm.model import MODELS\n"
        "from mlc_llm.interface.gen_config import gen_config\n"
        "for name in json.loads(sys.argv[2]):\n"
        "    folder = Path(sys.argv[1], name)\n"
        "    config, fmt = folder / 'config.json', Some(name='q4f16_1')\n"
        "    model = MODELS[json.loads(config.read_text())['model_type']]\n"
        "    print('', gen_config(config, model, folder, fmt, 'rwkv'))"
    )
    result = run(["-c", code, tmp_path, json.dumps(list(configs))], [host, PACKAGE_ROOT])
    assert result.returncode == 0, result.stderr
    answers = [line for line in result.stdout.splitlines() if line.startswith(" ")]
    assert answers == [" None"] * 4 + [" the host"]
    found = {
        name: json.loads((tmp_path / name / "mlc-chat-config.json").read_text())["model_config"]
        for name in configs
        if name != "theirs"
    }
    assert [values["model_version"] for values in found.values()] == [5, 6, 6, 5]
    assert found["5"] == found["first 5"]
    ranks = ("mix_low_rank_dim", "decay_low_rank_dim", "num_heads", "intermediate_size")
    assert [found["5"][name] for name in ranks] == [0, 0, 32, 7168]
    assert [found["6"][name] for name in ranks] == [32, 64, 32, 7168]
    assert [found["6 large"][name] for name in ranks] == [64, 128, 64, 14336]
    assert not (tmp_path / "theirs" / "mlc-chat-config.json").exists()


@pytest.mark.slow
def test_configurations_of_rwkv7(host: Path, tmp_path: Path) -> None:
    """Named as fla names fields; what is no field of ours, the host keeps aside."""
    theirs = fla_config(random_rwkv7(2, 128, 4), vocab_size=65536)
    odd = {"head_dim": 32, "norm_eps": 1e-6, "rescale_every": 6, "num_heads": 64}
    # A configuration that a build of ours wrote says the version, and not the type.
    ours = {"model_type": "rwkv_world", "model_version": 7}
    code = (
        "import json, sys, mlc_rwkv_world as rwkv\n"
        "rwkv.register()\n"
        "from mlc_llm.model import MODELS\n"
        "from mlc_rwkv_world.stock.models import model_config\n"
        "from mlc_rwkv_world.storage import format_named\n"
        "for given in json.loads(sys.argv[1]):\n"
        "    config = MODELS[given['model_type']].config.from_dict(given)\n"
        "    print(json.dumps(model_config(config, format_named('q4f16_1')).as_dict()))"
    )
    given = json.dumps([theirs, theirs | odd, theirs | ours])
    # On the real TVM.
    result = run(["-c", code, given], [write_no_torch(tmp_path / "no-torch"), host, PACKAGE_ROOT])
    assert result.returncode == 0, result.stderr
    plain, changed, built = map(json.loads, result.stdout.splitlines()[-3:])
    assert plain == built
    assert (plain["model_version"], plain["rescale_every"]) == (7, 0)
    assert (plain["fp32_layers"], plain["intermediate_size"]) == ([], 512)
    assert (plain["head_size"], plain["layer_norm_epsilon"]) == (64, 1e-5)
    assert (plain["decay_low_rank_dim"], plain["gate_low_rank_dim"]) == (32, 128)
    assert (plain["num_heads"], changed["num_heads"]) == (2, 4)
    differs = {name for name, value in changed.items() if plain[name] != value}
    assert differs == {"head_size", "num_heads", "layer_norm_epsilon"}


@pytest.mark.parametrize("module", ["__init__", "model__model", "serve__config"])
def test_a_half_initialised_host(tvm: Path, tmp_path: Path, module: str) -> None:
    from stand_in import HOST

    text = HOST[module.replace("__", "/") + ".py" if module != "__init__" else "__init__.py"]
    begins = "import mlc_rwkv_world\nmlc_rwkv_world.register()\n" + text
    host = tmp_path / "host-site"
    write_host(host)
    name = "__init__.py" if module == "__init__" else module.replace("__", "/") + ".py"
    write(host / "mlc_llm", {name: begins})
    found, said = probe([tvm, host, PACKAGE_ROOT])
    assert set(OURS) <= set(found["models"]) and found["asjson"]
    assert said == ""


def test_a_module_that_began_before_the_hook(tvm: Path, tmp_path: Path) -> None:
    # It calls register() in its own middle: only its end makes it complete.
    from stand_in import HOST

    middle = HOST["model/model.py"].replace(
        "MODELS =", "import mlc_rwkv_world\nmlc_rwkv_world.register()\nMODELS ="
    )
    host = write_host(tmp_path / "host-site", model__model=middle)
    found, _ = probe([tvm, host, PACKAGE_ROOT])
    assert set(OURS) <= set(found["models"])


@pytest.mark.parametrize("order", ["host first", "host last"])
def test_build_with_a_host_elsewhere(tvm: Path, host: Path, ours: Path, order: str) -> None:
    path = [tvm, host, ours, PACKAGE_ROOT] if order == "host first" else [
        tvm, ours, PACKAGE_ROOT, host
    ]  # fmt: skip
    result = run(["-m", "mlc_llm.build", "--help"], path)
    assert result.stdout.startswith(BUILD_HELP), result.stderr
    assert set(OURS) <= set(probe(path)[0]["models"])


def test_build_where_tvm_came_before_the_host(tvm: Path, host: Path, ours: Path) -> None:
    code = "import tvm, runpy, sys; sys.argv[1:] = ['--help']; runpy.run_module('mlc_llm.build')"
    result = run(["-c", code], [tvm, host, ours, PACKAGE_ROOT])
    assert result.returncode == 0, result.stderr


def test_no_host(tvm: Path, ours: Path) -> None:
    path = [tvm, ours, PACKAGE_ROOT]
    result = run(["-m", "mlc_llm.build", "--help"], path)
    assert result.stdout.startswith(BUILD_HELP), result.stderr
    code = "import tvm, mlc_rwkv_world; mlc_rwkv_world.register(); mlc_rwkv_world.register()"
    result = run(["-c", code], path)
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert "mlc_llm is not installed" in line and "python -m mlc_rwkv_world build" in line


def test_probes_for_a_host_find_none(tvm: Path, ours: Path) -> None:
    code = (
        "import tvm, mlc_llm\n"
        "from mlc_rwkv_world.stock.host import find_host\n"
        "print(find_host(), getattr(mlc_llm, '__file__', None))\n"
        "from importlib.util import find_spec\n"
        "print(find_spec('mlc_llm').origin, find_spec('mlc_llm.serve'))\n"
        "try:\n"
        "    from mlc_llm import MLCEngine\n"
        "except ImportError as error:\n"
        "    print(error.name)"
    )
    result = run(["-c", code], [tvm, ours, PACKAGE_ROOT])
    assert result.stdout.splitlines() == ["None None", "None None", "mlc_llm"], result.stderr
    assert result.stderr == ""


OTHER_HOSTS = {
    "with another registry": {"model__model": "MODELS = {}\nclass Model: pass\n"},
    "with another engine configuration": {
        "serve__config": "import dataclasses\n@dataclasses.dataclass\nclass EngineConfig:\n"
        "    model: str = None\n    def asjson(self): return ''\n"
    },
    "with another command": {"interface__gen_config": "def gen_config(everything): return 1\n"},
}


@pytest.mark.parametrize("kind", OTHER_HOSTS)
def test_a_host_of_another_version(tvm: Path, tmp_path: Path, ours: Path, kind: str) -> None:
    host = write_host(tmp_path / "host-site", **OTHER_HOSTS[kind])
    modules = "mlc_llm.model.model, mlc_llm.serve.config, mlc_llm.interface.gen_config"
    result = run(["-c", f"import {modules}; print('alive')"], [tvm, host, ours, PACKAGE_ROOT])
    assert result.stdout == "alive\n", result.stderr
    (line,) = result.stderr.splitlines()
    assert "not registered with mlc_llm without a version" in line and "doctor" in line


def test_a_host_of_an_unknown_version(tvm: Path, host: Path) -> None:
    code = (
        "import mlc_rwkv_world; mlc_rwkv_world.register(); mlc_rwkv_world.register()\n"
        "import mlc_llm.model; print(sorted(mlc_llm.model.MODELS))"
    )
    for version, lines in (("0.20.0.dev0", 0), ("7.5", 1)):
        known = write_version(host.with_name(f"site-{version}"), version)
        result = run(["-c", code], [known, tvm, host, PACKAGE_ROOT])
        assert result.stdout.strip() == NAMES, result.stderr
        assert len(result.stderr.splitlines()) == lines
    assert "mlc_llm 7.5 is unknown to this package (tested: 0.20)" in result.stderr


@pytest.mark.parametrize("where", ["__init__", "serve__config"])
def test_a_host_whose_import_fails(tvm: Path, tmp_path: Path, ours: Path, where: str) -> None:
    host = tmp_path / "host-site"
    write_host(host)
    name = "__init__.py" if where == "__init__" else "serve/config.py"
    write(host / "mlc_llm", {name: "import tvm\nraise RuntimeError('no library')\n"})
    result = run(["-c", "import tvm, mlc_llm"], [tvm, host, ours, PACKAGE_ROOT])
    assert result.returncode == 1 and "RuntimeError: no library" in result.stderr
    ours_said = [line for line in result.stderr.splitlines() if line.startswith("mlc_rwkv_world:")]
    assert len(ours_said) == 1
    assert "no library" in ours_said[0] and "python -m mlc_rwkv_world build" in ours_said[0]


@pytest.mark.parametrize("option", ["-I", "-S", "-IS"])
def test_interpreters_with_less(tvm: Path, host: Path, ours: Path, option: str) -> None:
    path = [str(folder) for folder in (tvm, host, ours, PACKAGE_ROOT)]
    code = (
        f"import sys; sys.path[:0] = {path}\n"
        "import mlc_llm.model; print(sorted(mlc_llm.model.MODELS))"
    )
    result = run([option, "-c", code], [])
    assert result.stdout.strip() == NAMES, result.stderr


def test_uninstalled(tvm: Path, host: Path, ours: Path) -> None:
    # Nothing of ours is left.
    found, said = probe([tvm, host], "-S")
    assert list(found["models"]) == ["llama", "rwkv5", "rwkv6"] and said == ""
    # Only the package is gone: TVM says so, and the host goes on.
    code = (
        f"import sys; sys.path[:0] = {[str(tvm), str(host), str(ours)]}\n"
        "import mlc_llm.model; print(sorted(mlc_llm.model.MODELS))"
    )
    result = run(["-I", "-S", "-c", code], [])
    assert result.stdout.splitlines()[-1] == "['llama', 'rwkv5', 'rwkv6']", result.stderr
    assert "No module named 'mlc_rwkv_world'" in result.stdout


def test_who_does_not_import_tvm_pays_nothing(host: Path, ours: Path) -> None:
    code = "import sys; print([m for m in sys.modules if 'mlc' in m or 'tvm' in m], sys.meta_path)"
    result = run(["-c", code], [host, ours, PACKAGE_ROOT])
    assert result.stdout.startswith("[] "), result.stdout
    assert "ImportHook" not in result.stdout
    # The one thing that would cost every interpreter is a .pth file, and a wheel could hold one.
    assert not list((PACKAGE_ROOT / "mlc_rwkv_world").rglob("*.pth"))


def test_who_imports_tvm_pays_little(tmp_path: Path) -> None:
    code = (
        "import tvm, sys\n"
        "from mlc_rwkv_world.stock import autoload\n"
        "for name in [m for m in sys.modules if m.startswith('mlc_rwkv_world')]:\n"
        "    del sys.modules[name]\n"
        "before = set(sys.modules)\n"
        "from mlc_rwkv_world.stock.autoload import autoload\n"
        "autoload()\n"
        "print(sorted(set(sys.modules) - before))"
    )
    path = [write_no_torch(tmp_path / "no-torch"), PACKAGE_ROOT]
    result = run(["-c", code], path, TVM_DEVICE_BACKEND_AUTOLOAD="0")
    assert result.returncode == 0, result.stderr
    room = "mlc_rwkv_world.stock"
    names = ["", ".autoload", ".import_hook"]
    expected = ["mlc_rwkv_world", *(room + name for name in names)]
    assert result.stdout.strip() == str(expected)


@pytest.mark.slow
@pytest.mark.parametrize("runtime_only", ["0", "1"])
def test_the_real_tvm_arms_the_hook(tmp_path: Path, ours: Path, runtime_only: str) -> None:
    code = (
        "import tvm\n"
        "from mlc_rwkv_world.stock import autoload\n"
        "print(tvm._RUNTIME_ONLY, autoload.armed())"
    )
    environment = {"TVM_USE_RUNTIME_LIB": "1"} if runtime_only == "1" else {}
    path = [write_no_torch(tmp_path / "no-torch"), ours, PACKAGE_ROOT]
    result = run(["-W", "error", "-c", code], path, **environment)
    assert result.stdout.strip() == f"{runtime_only == '1'} True", result.stderr


@pytest.mark.parametrize("group", ["tvm.backends", "mlc_llm.models"])
def test_declared_entry_points_exist(group: str) -> None:
    module, function = entry_points()[group].split(":")
    assert callable(getattr(import_module(module), function))
