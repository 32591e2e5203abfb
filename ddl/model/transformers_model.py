"""The model with the interface of transformers: `AutoModelForCausalLM.from_pretrained(run)` loads a trained run.

`DDLConfig` wraps the settings of `ddl.config.ModelConfig`, and `DDLForCausalLM` wraps a `LanguageModel`. They translate
names and leave all computation to the wrapped objects. They read and write the same files as `save_model` and
`load_model`. `import ddl.model.transformers_model` registers both classes.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from ddl.config import ModelConfig, from_mapping, to_mapping
from ddl.model.cache import Cache
from ddl.model.language_model import LanguageModel
from ddl.model.readers import Reader
from ddl.model.residual import Rule
from ddl.model.run_files import TRANSFORMERS_KEYS, ModelFileError, read_settings


class DDLConfig(PretrainedConfig):
    """The settings of a model as attributes, under the names of `ModelConfig` and those usual in transformers.

    Raises:
        ConfigError: a setting is missing or invalid, or a file contains an unknown key.
    """

    model_type = "ddl"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "max_position_embeddings": "sequence_length",
    }
    has_no_defaults_at_init = True
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    def __init__(self, **values: Any) -> None:
        names = [field.name for field in dataclasses.fields(ModelConfig) if field.name in values]
        settings = from_mapping(ModelConfig, {name: values.pop(name) for name in names}, type(self).__name__)
        super().__init__(**values)
        for name, value in to_mapping(settings).items():
            setattr(self, name, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the config of a file, strictly: otherwise a misspelt key would become an attribute nobody reads."""
        found = {key: value for key, value in config_dict.items() if not key.startswith("_")}  # "_": internal keys
        read_settings(found, str(Path(kwargs.get("name_or_path", "")) / "config.json"))
        return super().from_dict(config_dict, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """The contents of config.json: every setting, and the keys of transformers that `load_model` ignores."""
        head = super().to_diff_dict()
        return {key: head[key] for key in TRANSFORMERS_KEYS if key in head} | to_mapping(self.settings())

    def settings(self) -> ModelConfig:
        """The settings as a `ModelConfig`."""
        names = [field.name for field in dataclasses.fields(ModelConfig)]
        return from_mapping(ModelConfig, {name: getattr(self, name) for name in names}, type(self).__name__)

    def __eq__(self, other: object) -> bool:
        return PretrainedConfig.__eq__(self, other)  # the dataclass method compares only the fields of the base class


class DDLCache(Cache):
    """A `Cache` with the methods that `generate` calls. It cannot be cropped: windows keep no older inputs."""

    is_compileable = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens read, padding included."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.reorder(beam_idx)


class DDLForCausalLM(PreTrainedModel, GenerationMixin):
    """A `LanguageModel` with the interface of transformers: forward with `CausalLMOutputWithPast`, and `generate`."""

    config_class = DDLConfig
    base_model_prefix = "model"  # files use the weight names of LanguageModel; from_pretrained adds this prefix
    _input_embed_layer = "embedding"
    _supports_sdpa = True
    _is_stateful = True  # the cache cannot be cropped, so transformers refuses assisted decoding

    def __init__(self, config: DDLConfig) -> None:
        super().__init__(config)
        self.model = LanguageModel(config.settings())
        named = list(self.model.named_modules())
        rules = [(name, module) for name, module in named if isinstance(module, Rule)]
        readers = [name for name, module in named if isinstance(module, Reader) and [*module.parameters()]]
        self._keep_in_fp32_modules_strict = {f"{name}.{part}." for name, rule in rules for part in rule.fp32}
        self._keep_in_fp32_modules_strict |= {f"{name}." for name in readers}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the constructor has drawn the weights, and a file without one of them is refused."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Read a run directory.

        Raises:
            ConfigError: its config.json is invalid.
            ModelFileError: its weights do not match its config.json.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        wrong = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys") if info[kind]}
        if wrong:
            raise ModelFileError(f"{model.name_or_path}: not the weights of config.json: {wrong}")
        return (model, info) if output_loading_info else model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a directory that `from_pretrained` and `ddl.model.run_files.load_model` read."""
        weights = self.state_dict() if state_dict is None else state_dict
        weights = {name.removeprefix(f"{self.base_model_prefix}."): weight for name, weight in weights.items()}
        super().save_pretrained(save_directory, is_main_process, weights, **kwargs)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the default stores only keys and values, so `forward` makes a DDLCache

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: DDLCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """Compute the logits, and the loss if labels are given.

        Args:
            input_ids: (B, T), the tokens that follow those in the cache.
            attention_mask: (B, T), or (B, S) for all S tokens including those in the cache; 0 for padding. With a
                cache, padding must be on the left. Positions count from the first token that is not padding.
            past_key_values: the cache that an earlier call returned.
            labels: (B, T), compared with the logits of the preceding token; -100 is ignored.
            use_cache: return a cache for the next call.
            logits_to_keep: compute logits for only this many last tokens; 0 for all.
        """
        if past_key_values is not None and not isinstance(past_key_values, DDLCache):
            raise TypeError(f"past_key_values: expected a DDLCache, found a {type(past_key_values).__name__}")
        if use_cache and past_key_values is None:
            past_key_values = DDLCache(self.config.layers)
        real = None
        if attention_mask is not None:
            if attention_mask.dim() != 2:
                raise ValueError(f"attention_mask: expected shape (B, T), found {tuple(attention_mask.shape)}")
            real = attention_mask[:, -input_ids.shape[1] :].bool()
            real = None if real.all() else real
        hidden = self.model.hidden(input_ids, real, past_key_values)
        logits = self.model.logits(hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        # The field is declared as the Cache of transformers, but `generate` calls only the methods of DDLCache.
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)  # type: ignore[arg-type]


AutoConfig.register(DDLConfig.model_type, DDLConfig)
AutoModelForCausalLM.register(DDLConfig, DDLForCausalLM)
