"""prepare_base: where the 16-bit original comes from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from requant.config.given_names import Repository, Revision
from requant.config.section import NOT_IN_KEY, LocalPath, Positive, Relative, Section

Implementation = Literal[
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
]
"""Fields of a config.json that name how a layer computes; the name of a hub repository is fetched
and run."""
OtherFiles = Literal["transformers_weights", "configuration_files", "fast_tokenizer_files"]
"""Fields that make transformers load another file than the one its name says: other weights, and by
version another config.json or tokenizer.json."""
OwnCode = Literal["auto_map"]
"""Field that names Python code of the model's own, in config.json or tokenizer_config.json."""


class StdlibBase(Section):
    """Train a small Qwen3-architecture model on the English text every Python ships."""

    kind: Literal["stdlib"]
    vocab_size: int = Field(4096, ge=512, le=65536, description="tokens, byte-level BPE")
    hidden_size: int = Field(256, ge=64, multiple_of=64, description="channels; GPTQ needs 64s")
    layers: Positive = Field(4, description="transformer blocks")
    heads: Positive = Field(4, description="query heads; must divide hidden_size")
    kv_heads: Positive = Field(2, description="key/value heads; must divide heads")
    intermediate_size: int = Field(768, ge=64, multiple_of=64, description="channels of the MLP")
    steps: Positive = Field(300, description="optimizer steps")
    batch_size: Positive = Field(8, description="sequences per step")
    sequence_length: int = Field(256, ge=16, le=4096, description="tokens per sequence")
    learning_rate: Relative = Field(2e-3, description="peak, AdamW")

    @model_validator(mode="after")
    def _heads_fit(self) -> "StdlibBase":
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} must divide hidden_size={self.hidden_size} and be a multiple "
                f"of kv_heads={self.kv_heads}"
            )
        return self


class FolderBase(Section):
    """An ordinary Hugging Face folder: config.json, *.safetensors, tokenizer files."""

    kind: Literal["folder"]
    path: LocalPath = Field(description="folder", json_schema_extra=NOT_IN_KEY)


class HubBase(Section):
    """A model on the Hugging Face hub; the commit its revision resolves to enters the key."""

    kind: Literal["hub"]
    repo: Repository = Field(description="owner/name")
    revision: Revision = Field(
        "main", description="branch, tag or 40-hex commit", json_schema_extra=NOT_IN_KEY
    )


class PrepareBase(Section):
    """The 16-bit original: kept for ever, never overwritten."""

    source: Annotated[StdlibBase | FolderBase | HubBase, Field(discriminator="kind")]
    leave_out: tuple[Literal[Implementation, OtherFiles, OwnCode], ...] = Field(
        (),
        description="fields of the base's config.json, tokenizer_config.json and the like that "
        "would have code fetched or other files loaded: named here they are left out of the copy, "
        "else the base is refused",
        json_schema_extra=NOT_IN_KEY,
    )
    zero_matrices: Literal["refuse", "allow"] = Field(
        "refuse",
        description="matrices of a folder's or the hub's base that hold nothing but zeros: stop, "
        "or name them",
        json_schema_extra=NOT_IN_KEY,
    )
