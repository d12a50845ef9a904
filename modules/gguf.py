"""GGUF files as backbones: transformers de-quantizes each once, into a folder that loads like any other.

transformers parses such a file anew for the configuration, the tokenizer and the weights: half a minute for 135 million
weights on a busy machine, against half a second for the folder.
"""

import hashlib
import importlib.util
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from huggingface_hub import constants
from transformers import AutoModel, AutoTokenizer, GgufConfig

from modules.errors import BackboneError

NEEDED = ("gguf", "accelerate")
"""What transformers needs to read such a file."""

QUANTIZATION_FILE = "quantization.txt"
"""In a folder of de-quantized weights: which types the file's weights had."""

INSTEAD = "Give a model with safetensors weights: a hub id, or a folder made by save_pretrained."


def is_gguf(path: Path) -> bool:
    """Return whether a backbone is a file, or should be one by its name. A hub id is neither."""
    return path.is_file() or path.suffix.lower() == ".gguf"


def dequantized_folder(path: Path) -> Path:
    """Return the folder of a GGUF file's weights in float32, which is made once per file and version of transformers.

    Raises:
        BackboneError: If the file cannot be read, or not all of its weights.
    """
    return _made_once(path, "weights", _write_weights)


def tokenizer_folder(path: Path) -> Path:
    """Return the folder of a GGUF file's tokenizer, which is made once per file and version of transformers.

    Raises:
        BackboneError: If the file cannot be read, or transformers cannot read its tokenizer.
    """
    return _made_once(path, "tokenizer", _write_tokenizer)


def check_complete(name: str, loading_info: Mapping[str, Any]) -> None:
    """Refuse weights that transformers has left random, by its report of the loading.

    Raises:
        BackboneError: If a weight other than those of a pooler, which is not used, is missing.
    """
    missing = [key for key in sorted(loading_info["missing_keys"]) if not key.startswith("pooler.")]
    if missing:
        raise BackboneError(
            f"The weights of the backbone {name!r} lack {missing[0]}, which would be random. Complete them."
        )


def _made_once(path: Path, what: str, write: Callable[[Path, Any, Path], None]) -> Path:
    digest = _checked_digest(path)
    made = Path(constants.HF_HOME) / "dequantized" / f"{digest[:32]}-transformers-{transformers.__version__}" / what
    if made.is_dir():
        return made
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{made}.lock"):  # other processes wait: each would need the memory as well
            if not made.is_dir():
                _make(path, made, write)
    except OSError as error:
        raise BackboneError(
            f"The {what} of {path} cannot be written to {made.parent}: {error}. Make room there, or set HF_HOME to "
            "another folder."
        ) from error
    return made


def _make(path: Path, made: Path, write: Callable[[Path, Any, Path], None]) -> None:
    unfinished = made.with_name(f"{made.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        write(path, _reader(path), unfinished)
        unfinished.rename(made)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _checked_digest(path: Path) -> str:
    """Return the SHA-256 of a GGUF file."""
    if not path.is_file():
        raise BackboneError(f"The backbone {path.absolute()} does not exist. Check its path.")
    with path.open("rb") as content:
        if content.read(4) != b"GGUF":
            raise BackboneError(f"The backbone {path} is a file, but not a GGUF file. {INSTEAD}")
        content.seek(0)
        return hashlib.file_digest(content, "sha256").hexdigest()


def _reader(path: Path) -> Any:
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        raise BackboneError(
            f"The backbone {path} is a GGUF file, but the package {lacking[0]} is not installed. Install "
            "the extra that brings it: pip install -e ./callbacks -e '.[gguf]'"
        )
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except Exception as error:  # numpy and struct raise whatever the damage leads to
        raise BackboneError(
            f"The backbone {path} is damaged or cut off ({type(error).__name__}: {error}). Download it again."
        ) from error


def _write_weights(path: Path, reader: Any, folder: Path) -> None:
    """De-quantize into an empty folder: transformers would prefer other files to the GGUF file."""
    location = {"pretrained_model_name_or_path": str(folder), "gguf_file": str(path.resolve())}
    try:
        backbone, loading_info = AutoModel.from_pretrained(
            **location,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),  # with the package `kernels`, weights would stay packed
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # what is in a file may make transformers raise anything; the cause is kept
        architecture = reader.fields.get("general.architecture")
        raise BackboneError(
            f"transformers cannot de-quantize the backbone {path} of architecture "
            f"{architecture.contents() if architecture else None!r}: {_first_line(error)}. {INSTEAD}"
        ) from error
    check_complete(str(path), loading_info)
    _check_all_read(path, reader, backbone)
    backbone.save_pretrained(folder, max_shard_size="500MB")  # safetensors copies a shard before it writes it
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # safetensors lets the owner alone read them
    (folder / QUANTIZATION_FILE).write_text(describe_quantization(reader))


def _check_all_read(path: Path, reader: Any, backbone: Any) -> None:
    """Refuse a file of which transformers has left out weights or scaled rotary positions, as it says nothing of them.

    `load_gguf_checkpoint` skips tensors that it has no name for, such as the `rope_freqs` of Llama 3.
    """
    head = ("output.weight", "output.bias")  # of the language model; a classifier has its own
    stored = sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name not in head)
    read = sum(parameter.numel() for parameter in backbone.parameters())
    rope = next(
        (field.contents() for name, field in reader.fields.items() if name.endswith(".rope.scaling.type")), None
    )
    is_scaled = (getattr(backbone.config, "rope_parameters", None) or {}).get("rope_type", "default") != "default"
    if stored == read and (rope in (None, "none") or is_scaled):
        return
    cause = f"it has {stored:,} weights, of which transformers reads {read:,}"
    if stored == read or any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        cause = "transformers does not read its scaling of rotary positions"
    raise BackboneError(f"The vectors of the backbone {path} would be wrong: {cause}. {INSTEAD}")


def describe_quantization(reader: Any) -> str:
    """Return the types of a file's weights by share, the largest first: `Q4_1 78.9 %, Q8_0 21 %, F32 0.0261 %`."""
    types: Counter[str] = Counter()
    for tensor in reader.tensors:
        types[tensor.tensor_type.name] += int(tensor.n_elements)
    return ", ".join(f"{name} {100 * count / types.total():.3g} %" for name, count in types.most_common())


def _write_tokenizer(path: Path, reader: Any, folder: Path) -> None:
    architecture = reader.fields["general.architecture"].contents()
    length = reader.fields.get(f"{architecture}.context_length")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=str(path.resolve()), trust_remote_code=False)
    except Exception as error:  # as for the weights
        raise BackboneError(
            f"transformers cannot read the tokenizer of {path}: {_first_line(error)}. Give another one, a hub id or a "
            "folder: --tokenizer"
        ) from error
    if length is not None:
        tokenizer.model_max_length = int(length.contents())
    tokenizer.save_pretrained(folder)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
