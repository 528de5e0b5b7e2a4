"""What is done to which of mlc_llm's modules to register RWKV World there, and how it went.

Each step waits for one module of the host's and acts on it right after it was executed, so that
no module of the host's is imported earlier than the host would, and in no other order.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from mlc_rwkv_world import console
from mlc_rwkv_world.stock import PACKAGE
from mlc_rwkv_world.stock.defects import present
from mlc_rwkv_world.stock.host import host_version, share_path

WAITING = "waiting"
DONE = "done"
NOT_NEEDED = "not needed, this version is right"
_ROOM = "mlc_rwkv_world.stock"


@dataclass(frozen=True)
class Step:
    """What is done to `module` of the host's: `action`, `module:function` of this room.

    A step that only answers defects is left out where the host's version has none of them.
    """

    module: str
    what: str
    action: str
    before: bool = False
    defects: tuple[str, ...] = ()

    @property
    def needed(self) -> bool:
        """Whether the host that is there has what this step is for."""
        version = host_version()
        return not self.defects or any(present(name, version) for name in self.defects)


STEPS = (
    Step(
        "nn",
        "names that TVM 0.27 moved",
        "tvm_aliases:add_aliases",
        before=True,
        defects=("moved_names",),
    ),
    Step("model.model", "model types rwkv_world, rwkv, and rwkv5 to rwkv7", "models:add_models"),
    Step("model.model_preset", "presets of 0.1B to 7B", "presets:add_presets"),
    Step("quantization.quantization", "formats q8f16_1 and q8f32_1", "models:add_formats"),
    Step("conversation_template", "conversation templates", "template:add_templates"),
    Step("interface.gen_config", "gen_config", "commands:add_gen_config"),
    Step("interface.convert_weight", "convert_weight", "commands:add_convert_weight"),
    Step("support.auto_weight", ".pth files and World folders", "commands:add_source_format"),
    Step("compiler_pass.pipeline", "our passes and kernels", "pipeline:add_pipeline"),
    Step(
        "serve.config",
        "engine defaults for a recurrent state",
        "serving:add_engine_defaults",
        defects=("prefix_cache", "history", "prefill_mode", "no_chunks"),
    ),
    Step(
        "serve.engine",
        "requests wait until the engine has room",
        "serving:add_admission",
        defects=("no_admission",),
    ),
    Step(
        "interface.chat",
        "text in `mlc_llm chat`",
        "serving:add_chat_engine",
        defects=("unfinished_characters",),
    ),
    Step(
        "tokenizers",
        "characters that span tokens",
        "serving:add_text_streamer",
        defects=("unfinished_characters",),
    ),
)

# How each step went: WAITING, DONE, or what went wrong.
outcomes: dict[Step, str] = dict.fromkeys(STEPS, WAITING)
_running: set[Step] = set()
_told: set[str] = set()


def catch_up() -> None:
    """Sees to the modules that were there before the hook."""
    share_path()
    _sweep()


def before(module: ModuleType) -> None:
    """A module of the host's is about to be executed."""
    name = module.__name__
    if name == PACKAGE:
        share_path()
    for step in STEPS:
        if step.before and name == _full_name(step):
            _do(step, module)


def after(module: ModuleType) -> None:
    """A module of the host's was executed."""
    for step in STEPS:
        if not step.before and module.__name__ == _full_name(step):
            # It may be executed again, as after a first import that failed.
            outcomes[step] = WAITING
            _do(step, module)
    # What was under way when the hook was armed: its end is nowhere to be heard of.
    _sweep()


def failed(module: ModuleType, error: BaseException) -> None:
    """A module of the host's raised while it was executed."""
    if isinstance(error, Exception):
        tell(
            f"{module.__name__} could not be imported ({_reason(error)}). "
            "`python -m mlc_rwkv_world build` and `mlc_chat_cli` work without mlc_llm.",
            key="import",
        )


def _sweep() -> None:
    for step in STEPS:
        module = sys.modules.get(_full_name(step))
        if module is not None and outcomes[step] == WAITING and not _initializing(module):
            _do(step, module)


def _do(step: Step, module: ModuleType) -> None:
    if outcomes[step] != WAITING or step in _running:
        return
    if not step.needed:
        outcomes[step] = NOT_NEEDED
        return
    _running.add(step)
    try:
        place, function = step.action.split(":")
        getattr(import_module(f"{_ROOM}.{place}"), function)(module)
        outcomes[step] = DONE
    except Exception as error:
        # Whatever is wrong here, the host's own work goes on.
        outcomes[step] = _reason(error)
        tell(
            f"{step.what}: not registered with mlc_llm {host_version() or 'without a version'} "
            f"({_reason(error)}). "
            "`python -m mlc_rwkv_world doctor` says more.",
            key="step",
        )
    finally:
        _running.discard(step)


def _full_name(step: Step) -> str:
    return f"{PACKAGE}.{step.module}"


def _initializing(module: ModuleType) -> bool:
    return bool(getattr(module.__spec__, "_initializing", False))


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def tell(text: str, key: str | None = None) -> None:
    """One line on stderr; once for each key."""
    if (key or text) not in _told:
        _told.add(key or text)
        console.complain(f"mlc_rwkv_world: {text}")
