"""Uploads of exported models to the Hugging Face hub, where a repository has the models of one run alone.

The id of the run is in the head of its card; the newest card of the repository is compared before anything is sent.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import yaml
from huggingface_hub import HfApi, ModelCard, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from common.command import Failure, first_line
from recipe.card import CARD, RUN_KEY

NO_TOKEN = "no token for the Hugging Face hub"
REFUSED = (401, 402, 403, 404)  # a wrong token, a missing permission, a name that is not there


@contextlib.contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Make one line of an error of the hub: a ValueError if it refuses, else a Failure."""
    try:
        yield
    except (httpx.HTTPError, OSError, RuntimeError) as error:  # some name only the file that did not arrive
        cause = error if hasattr(error, "response") else error.__cause__ or error
        why = first_line(Exception(getattr(cause, "server_message", None) or cause)).rstrip(".")
        if getattr(getattr(cause, "response", None), "status_code", None) in REFUSED:
            advice = "check the name, and that the token (hf auth login, or HF_TOKEN) may write there"
            raise ValueError(f"{repository}: the hub refuses: {why}; {advice}") from error
        raise Failure(f"{repository}: not uploaded: {why}; nothing is lost, the same command continues") from error


def run_id(card: Path) -> str | None:
    """Read the id of the run that a card is about; None for a card of something else."""
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.get(RUN_KEY)
    except (ValueError, yaml.YAMLError):
        return None


def claim(repository: str, card: Path, private: bool) -> str | None:
    """Check that a repository is empty or has models of the card's run; return its newest commit, None if missing.

    With `private` it must not be public: what is there keeps its visibility.
    """
    token = get_token() or ""
    if not re.fullmatch("[!-~]+", token):  # a header takes no other characters
        lack = "the token for the Hugging Face hub has blanks or characters other than ASCII" if token else NO_TOKEN
        raise ValueError(f"{lack}; run hf auth login, or set HF_TOKEN")
    api = HfApi()
    with hub_errors(repository):
        try:
            info = api.model_info(repository)
        except RepositoryNotFoundError:  # also of another's that is private, which `create` is refused
            return None
        files = {file.rfilename for file in info.siblings or ()} - {".gitattributes"}
        found = run_id(Path(api.hf_hub_download(repository, CARD, revision=info.sha))) if CARD in files else None
    if files and found != run_id(card):
        owner = f"the model of another run ({found})" if found else "files that are no run's"
        raise ValueError(f"{repository}: has {owner}, and this run is {run_id(card)}; push to another ORG/NAME")
    if private and not info.private:
        raise ValueError(f"{repository}: is public; make it private in its settings on the hub, or leave out --private")
    return info.sha


def create(repository: str, private: bool) -> str | None:
    """Make a repository, if not `private` as its organisation has it by default; return its first commit."""
    with hub_errors(repository):
        HfApi().create_repo(repository, private=private or None)
        return HfApi().model_info(repository).sha


def upload(folder: Path, repository: str, message: str, parent: str | None) -> str:
    """Upload a model's folder as a commit after `parent`; return its address. What the hub has is not sent again."""
    with hub_errors(repository):
        done = HfApi().upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            parent_commit=parent,
            ignore_patterns=[".*", "*/.*"],
        )
    return done.commit_url
