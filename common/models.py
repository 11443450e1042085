"""Checks of a Hugging Face model's folder that do not load it."""

import math
from pathlib import Path

from common.files import digest, sha256
from common.json_lines import read_json

MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")  # weights, configs, tokenizer, template
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def is_hub_id(model: str) -> bool:
    """Tell a name that can be the hub's, owner/name, from a folder's, whether it is there or not."""
    folder = Path(model).expanduser()
    return model.count("/") == 1 and not (folder.is_dir() or folder.is_absolute() or model.startswith((".", "models/")))


def public_name(text: str) -> str:
    """Return what others may read of a model or file: of a path its name; a hub id or web address as it is."""
    is_path = "/" in text and not text.startswith(("http://", "https://"))
    return Path(text).name if is_path and (text.startswith("~") or not is_hub_id(text)) else text


def check_model(path: str | None, tokens: int = 0) -> None:
    """Check that a model is a folder with a config, a tokenizer and a long enough context, or looks like a hub id.

    Args:
        tokens: of the longest prompt and response together.

    Raises:
        ValueError: it is neither.
    """
    if not path:
        raise ValueError("the config has no model; set actor_rollout_ref.model.path=FOLDER_OR_HUB_ID")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if is_hub_id(path):
            return  # the hub knows whether it exists
        raise ValueError(f"model {path}: no such folder")
    if not (folder / "config.json").is_file():
        raise ValueError(f"model {path}: has no config.json; give a Hugging Face model folder")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"model {path}: has no tokenizer ({' or '.join(TOKENIZER_FILES)}); save it beside the weights")
    context = read_json(folder / "config.json", fix="copy the model again").get("max_position_embeddings")
    if type(context) is int and 0 < context < tokens:
        raise ValueError(f"model {path}: its context is {context} tokens, and prompt plus response may have {tokens}")


def weight_sizes(model: str) -> list[int]:
    """Return the parameters in each weight of a local model, from its safetensors headers; [] where there are none.

    Raises:
        ValueError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    sizes = []
    for path in sorted(Path(model).expanduser().glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                sizes += [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged ({error}); copy the model again") from error
    return sizes


def count_parameters(model: str) -> int | None:
    """Count a local model's parameters; None where it has no safetensors; raises as `weight_sizes` does."""
    return sum(weight_sizes(model)) or None


def model_digest(model: str) -> str | None:
    """Return a digest of a local model's files, since a folder can hold others tomorrow; None for a hub id."""
    files = sorted(path for path in Path(model).glob("*") if path.suffix in MODEL_FILES and path.is_file())
    return digest([text for path in files for text in (path.name, sha256(path))]) if files else None
