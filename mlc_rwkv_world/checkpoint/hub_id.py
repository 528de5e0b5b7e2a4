"""Names of models on the hub, as people write them and as they copy them from a browser."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from mlc_rwkv_world.checkpoint import hub_settings
from mlc_rwkv_world.checkpoint.folder import is_plain_name
from mlc_rwkv_world.checkpoint.wording import quoted
from mlc_rwkv_world.errors import UsageError

MAIN = "main"
WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# A revision ends at a slash, so that its own are encoded, but for those of refs/pr/1 and its like,
# which the hub makes itself.
_HUBS_REF = r"refs/[^/]+/[^/]+"
_ID = re.compile(
    rf"(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>{_HUBS_REF}|[^/]+))?(?:/(?P<file>.+))?", re.DOTALL
)
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_HUB_SCHEME = re.compile(r"hf://", re.IGNORECASE)
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class HubId:
    """A repository on the hub; one weight file of it where it holds several; a revision.

    `revision` is a branch, a tag or a commit, None for the main branch.
    """

    repo: str
    file: str | None = None
    revision: str | None = None

    @property
    def folder_name(self) -> str:
        """The model's name in the models folder, another one for each revision."""
        name = self.repo.split("/")[1] if self.file is None else PurePosixPath(self.file).stem
        if self.revision is None:
            return name
        revision = self.revision[:12] if is_commit(self.revision) else self.revision
        return f"{name}@{revision.replace('/', '-')}"

    def __str__(self) -> str:
        text = self.repo
        if self.revision is not None:
            slash = "/" if re.fullmatch(_HUBS_REF, self.revision) else "%2F"
            text += "@" + self.revision.replace("%", "%25").replace("/", slash)
        return text if self.file is None else f"{text}/{self.file}"


def is_commit(revision: str) -> bool:
    """Whether `revision` names a commit in full, which never changes."""
    return _COMMIT.fullmatch(revision) is not None


def is_address(text: str) -> bool:
    """Whether `text` can only mean a model on the hub, whatever files there are here."""
    return bool(_HUB_SCHEME.match(text) or _SCHEME.match(text)) or _path_at_hub(text) is not None


def parse_hub_id(text: str, revision: str | None = None) -> HubId:
    """Reads `owner/name[@revision][/file.pth]`, or the address of a page or file of the hub.

    Addresses are those of the server in HF_ENDPOINT or of huggingface.co, encoded as a browser
    shows them, with or without their scheme; `hf://` may stand before a name. `revision` is one
    that was given apart from `text`. Raises UsageError where `text` is none of these, or the two
    revisions differ.
    """
    path = _path_at_hub(text)
    if path is not None:
        found = _read_page(path)
    elif _HUB_SCHEME.match(text):
        found = _read_id(text[len("hf://") :].rstrip("/"))
    else:
        found = _read_id(text)
    if found is None:
        raise UsageError(
            f"{quoted(text)} is not a model on the hub; expected owner/name, owner/name@revision, "
            "owner/name/file.pth for one file of several, or the address of one of these at "
            f"{hub_settings.endpoint()}."
        )
    if revision is None:
        return found
    if not _is_revision(revision):
        raise UsageError(
            f"{quoted(revision)} is no revision; give a branch, a tag or a commit of {found.repo}."
        )
    if found.revision not in (None, revision):
        raise UsageError(
            f"{quoted(text)} names the revision {quoted(found.revision)} and not "
            f"{quoted(revision)}, which was given too. Give one of them."
        )
    return replace(found, revision=None if revision == MAIN else revision)


def _path_at_hub(text: str) -> str | None:
    """What follows the server in an address of the hub, still encoded; None for other texts."""
    scheme = _SCHEME.match(text)
    rest = text[scheme.end() :] if scheme else text
    server = _SCHEME.sub("", hub_settings.endpoint(), count=1)
    for place in (server, *_HUB_HOSTS):
        head, tail = rest[: len(place)], rest[len(place) :]
        if head.lower() == place.lower() and tail[:1] in ("", "/", "?", "#"):
            return tail
    return None


def _read_page(path: str) -> HubId | None:
    """The model on whose page, or file at whose address, `path` is."""
    try:
        # Decoded part by part: an encoded slash may belong to a revision's name.
        encoded = urlsplit(f"//host{path}").path.split("/")
        parts = [unquote(part, errors="strict") for part in encoded if part]
    except ValueError:
        return None
    match parts:
        case [owner, name]:
            return _checked(f"{owner}/{name}", None, None)
        case [owner, name, "tree" | "blob" | "resolve" | "raw" | "commit" as kind, *rest] if rest:
            length = 3 if rest[0] == "refs" else 1
            revision, file = "/".join(rest[:length]), "/".join(rest[length:])
            if bool(file) == (kind in ("blob", "resolve", "raw")):
                return _checked(f"{owner}/{name}", file or None, revision)
    return None


def _read_id(text: str) -> HubId | None:
    match = _ID.fullmatch(text)
    if match is None:
        return None
    revision = match["revision"]
    return _checked(match["repo"], match["file"], revision and unquote(revision))


def _checked(repo: str, file: str | None, revision: str | None) -> HubId | None:
    if _REPO.fullmatch(repo) is None or ".." in repo:
        return None
    if file is not None and not _is_weight_file(file):
        return None
    if revision is not None and not _is_revision(revision):
        return None
    return HubId(repo, file, None if revision == MAIN else revision)


def _is_weight_file(name: str) -> bool:
    last = name.split("/")[-1]
    return stays_inside(name) and last.endswith(WEIGHT_SUFFIXES) and not last.startswith(".")


def stays_inside(name: str) -> bool:
    """Whether a file's path in a repository leads nowhere else."""
    return all(is_plain_name(part) for part in name.split("/"))


def _is_revision(text: str) -> bool:
    """Whether git could have a branch, tag or commit of this name."""
    return (
        0 < len(text.encode(errors="replace")) <= 200
        and text.isprintable()
        and not re.search(r"[\s~^:?*\[\\@]|\.\.|//|^[-./]|[./]$", text)
    )
