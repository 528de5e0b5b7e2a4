"""A stand-in for mlc_llm, laid out like it, and one for the part of TVM that finds plugins.

Neither is code of theirs: modules hold the names that registering needs, and nothing behind them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import mlc_rwkv_world

PACKAGE_ROOT = Path(mlc_rwkv_world.__file__).parents[1]
# Seconds after which a command hangs. No measure of speed: beside other work the host's compiler
# took more than five minutes over two blocks.
HANG = 3600
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

TVM = {
    "tvm/__init__.py": """
from importlib.metadata import entry_points
from types import SimpleNamespace
register_global_func = None
from tvm import ir, relax
for point in entry_points(group="tvm.backends"):
    try:
        point.load()()
    except Exception as error:
        print("tvm warns:", point.name, error)
""",
    "tvm/ir.py": "class Constant: pass\nclass StringImm: pass\n",
    "tvm/relax/__init__.py": "",
    "tvm/relax/pipeline.py": """
PIPELINE_MAP = {}
def register_pipeline(name):
    def put(function):
        PIPELINE_MAP[name] = function
        return function
    return put
""",
}

HOST = {
    "__init__.py": "from tvm import register_global_func\nfrom . import serve\n",
    "__main__.py": "import sys\nimport mlc_llm.probe\n",
    "probe.py": """
import json
from mlc_llm.model import MODELS, MODEL_PRESETS
from mlc_llm.quantization import QUANTIZATION
from mlc_llm.conversation_template import ConvTemplateRegistry
from mlc_llm.interface.gen_config import CONV_TEMPLATES, gen_config
from mlc_llm.interface.convert_weight import convert_weight
from mlc_llm.support.auto_weight import CHECK_FORMAT_METHODS
from mlc_llm.serve.config import EngineConfig
import mlc_llm.nn, mlc_llm.compiler_pass.pipeline
from tvm.relax.pipeline import PIPELINE_MAP
print(json.dumps({
    "models": {key: model.name for key, model in MODELS.items()},
    "presets": sorted(MODEL_PRESETS),
    "formats": sorted(QUANTIZATION),
    "templates": {
        name: template.values.get("whose", "ours")
        for name, template in ConvTemplateRegistry.templates.items()
    },
    "choices": sorted(CONV_TEMPLATES),
    "gen_config": hasattr(gen_config, "rwkv_world"),
    "convert_weight": hasattr(convert_weight, "rwkv_world"),
    "source_formats": list(CHECK_FORMAT_METHODS),
    "asjson": hasattr(EngineConfig.asjson, "rwkv_world"),
    "aliased": mlc_llm.nn.ALIASED,
    "pipeline": hasattr(PIPELINE_MAP["mlc_llm"], "rwkv_world"),
}))
""",
    "nn/__init__.py": "from tvm import relax\nALIASED = hasattr(relax, 'Constant')\n",
    "loader/__init__.py": "",
    "model/__init__.py": """
from .model import MODELS, Model
from .model_preset import MODEL_PRESETS
""",
    "model/model.py": """
import dataclasses
import mlc_llm.nn
from mlc_llm.quantization import QUANTIZATION
@dataclasses.dataclass
class Model:
    name: str
    config: object
    model: object
    source: dict
    quantize: dict
MODELS = {name: Model(name, None, None, {}, {}) for name in ("llama", "rwkv5", "rwkv6")}
""",
    "model/model_preset.py": "MODEL_PRESETS = {'llama2_7b': {}}\n",
    "quantization/__init__.py": "from .quantization import QUANTIZATION\n",
    "quantization/quantization.py": """
class GroupQuantize:
    def __init__(self, **fields): vars(self).update(fields)
class NoQuantize(GroupQuantize): pass
QUANTIZATION = {"q4f16_1": None}
""",
    "protocol/__init__.py": "",
    "protocol/conversation_protocol.py": """
class Conversation:
    def __init__(self, values): self.values = values
    @classmethod
    def from_json_dict(cls, values): return cls(values)
    def to_json_dict(self): return self.values
""",
    "conversation_template/__init__.py": "from . import rwkv\nfrom .registry import *\n",
    "conversation_template/registry.py": """
class ConvTemplateRegistry:
    templates = {}
    @staticmethod
    def register_conv_template(template, override=False):
        assert override
        ConvTemplateRegistry.templates[template.values["name"]] = template
    @staticmethod
    def get_conv_template(name):
        return ConvTemplateRegistry.templates.get(name)
""",
    "conversation_template/rwkv.py": """
from mlc_llm.protocol.conversation_protocol import Conversation
from .registry import ConvTemplateRegistry
for name in ("rwkv_world", "chatml"):
    ConvTemplateRegistry.templates[name] = Conversation({"name": name, "whose": "the host's"})
""",
    "interface/__init__.py": "",
    "interface/gen_config.py": """
import logging
from mlc_llm.conversation_template import ConvTemplateRegistry
logger = logging.getLogger(__name__)
CONV_TEMPLATES = {"chatml", "rwkv_world"}
class ModelConfigOverride:
    def __init__(self): pass
    def apply(self, config): return config
def gen_config(config, model, output, quantization, conv_template): return 'the host'
""",
    "interface/convert_weight.py": "def convert_weight(config, model, output): return 'the host'\n",
    "support/__init__.py": "",
    "support/config.py": """
import dataclasses, json
@dataclasses.dataclass
class ConfigBase:
    @classmethod
    def from_dict(cls, source):
        names = [field.name for field in dataclasses.fields(cls)]
        fields = {k: v for k, v in source.items() if k in names}
        return cls(**fields, kwargs={k: v for k, v in source.items() if k not in names})
    @classmethod
    def from_file(cls, path): return cls.from_dict(json.loads(path.read_text()))
    def asdict(self):
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "kwargs"}
""",
    "support/auto_weight.py": "CHECK_FORMAT_METHODS = {'huggingface-torch': lambda path: None}\n",
    "compiler_pass/__init__.py": "",
    "compiler_pass/pipeline.py": """
from tvm.relax.pipeline import register_pipeline
@register_pipeline("mlc_llm")
def pipeline(target): return target
""",
    "serve/__init__.py": "from .config import EngineConfig\n",
    "serve/config.py": """
import dataclasses, json
@dataclasses.dataclass
class EngineConfig:
    model: str = None
    prefix_cache_mode: str = "radix"
    prefill_chunk_size: int = None
    prefill_mode: str = "hybrid"
    max_history_size: int = None
    def asjson(self): return json.dumps(dataclasses.asdict(self))
""",
    "serve/engine.py": """
class MLCEngine:
    def _generate(self, prompt, generation_config, request_id): yield prompt
class AsyncMLCEngine:
    async def _generate(self, prompt, generation_config, request_id): yield prompt
""",
    "interface/chat.py": """
from mlc_llm.serve.engine import MLCEngine
class JSONFFIEngine: pass
""",
    "tokenizers/__init__.py": "class TextStreamer: pass\n",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    """Writes modules below `folder`, which it returns."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def write_host(folder: Path, **changed: str) -> Path:
    """A site folder with the stand-in; `changed` gives modules other text, as `model__model`."""
    other = {name.replace("__", "/") + ".py": text for name, text in changed.items()}
    files = {**HOST, **other}
    return write(folder, {f"mlc_llm/{name}": text for name, text in files.items()})


def write_version(folder: Path, version: str) -> Path:
    """What an installer would record of a host of this version."""
    metadata = f"Metadata-Version: 2.1\nName: mlc-llm-nightly\nVersion: {version}\n"
    return write(folder, {f"mlc_llm_nightly-{version}.dist-info/METADATA": metadata})


def write_no_torch(folder: Path) -> Path:
    """A site folder that hides torch: tvm_ffi imports it where it can, which takes seconds."""
    return write(folder, {"torch.py": "raise ImportError('hidden')\n"})


def entry_points() -> dict[str, str]:
    """Entry point of each group, as pyproject.toml declares it."""
    text = PYPROJECT.read_text(encoding="utf-8")
    found = re.findall(r'^\[project\.entry-points\."(.+)"\]\nrwkv_world = "(.+)"$', text, re.M)
    return dict(found)


def write_metadata(folder: Path, name: str = "mlc_rwkv_world") -> Path:
    """A site folder with what an installer records of our package."""
    points = "".join(
        f"[{group}]\nrwkv_world = {value}\n" for group, value in entry_points().items()
    )
    info = f"{name}-0.1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n"
    return write(folder, {f"{info}/METADATA": metadata, f"{info}/entry_points.txt": points})


def with_path(path: Sequence[Path], **environment: str) -> dict[str, str]:
    """An environment with these folders in front of Python's path, and none of ours but these."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLC_", "TVM_", "PYTHON"))
    }
    paths = os.pathsep.join(map(str, path))
    return {**inherited, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **environment}


def run(
    arguments: Sequence[object], path: Sequence[Path], **environment: str
) -> subprocess.CompletedProcess[str]:
    """An interpreter with these arguments, and these folders in front of its path."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=with_path(path, **environment),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
