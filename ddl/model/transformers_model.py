"""The model as transformers sees it: `AutoModelForCausalLM.from_pretrained(run)` reads what training wrote.

`DDLConfig` holds the settings of `ddl.config.ModelConfig` and `DDLForCausalLM` holds a `LanguageModel`; both use the
names of transformers and compute nothing of their own. The files are those of `save_model` and `load_model` in both
directions. `import ddl.model.transformers_model` registers the two classes.
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
from ddl.model.residual import Rule
from ddl.model.run_files import TRANSFORMERS_KEYS, ModelFileError, read_settings


class DDLConfig(PretrainedConfig):
    """The settings of a model as attributes, under the names of `ModelConfig` and under the usual ones.

    Raises:
        ConfigError: a setting that is missing or does not fit; in a file also one that is unknown.
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
        """Build the config of a file, strictly: a misspelt key would otherwise become an attribute, read by nobody."""
        found = {key: value for key, value in config_dict.items() if not key.startswith("_")}  # its own notes
        read_settings(found, str(Path(kwargs.get("name_or_path", "")) / "config.json"))
        return super().from_dict(config_dict, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written to config.json: every setting, and the keys of transformers that `load_model` knows."""
        head = super().to_diff_dict()
        return {key: head[key] for key in TRANSFORMERS_KEYS if key in head} | to_mapping(self.settings())

    def settings(self) -> ModelConfig:
        """The settings as the model takes them."""
        names = [field.name for field in dataclasses.fields(ModelConfig)]
        return from_mapping(ModelConfig, {name: getattr(self, name) for name in names}, type(self).__name__)

    def __eq__(self, other: object) -> bool:
        return PretrainedConfig.__eq__(self, other)  # a dataclass would compare the fields of its base only


class DDLCache(Cache):
    """`Cache` as `generate` wants it. It cannot be shortened: the windows hold only what the next token needs."""

    is_compileable = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far, padding included."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.reorder(beam_idx)


class DDLForCausalLM(PreTrainedModel, GenerationMixin):
    """A `LanguageModel` with the interface of transformers: forward with `CausalLMOutputWithPast`, and `generate`."""

    config_class = DDLConfig
    base_model_prefix = "model"  # files name the weights as LanguageModel does; from_pretrained adds this in front
    _input_embed_layer = "embedding"
    _supports_sdpa = True
    _is_stateful = True  # a cache cannot go back, so assisted decoding is refused

    def __init__(self, config: DDLConfig) -> None:
        super().__init__(config)
        self.model = LanguageModel(config.settings())
        rules = [(name, module) for name, module in self.model.named_modules() if isinstance(module, Rule)]
        self._keep_in_fp32_modules_strict = {f"{name}.{part}." for name, rule in rules for part in rule.fp32}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the constructor has drawn the weights, and a file that lacks one is refused."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Read a run directory.

        Raises:
            ConfigError: its config.json does not fit.
            ModelFileError: its weights are not those of its config.
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
        return False  # keys and values alone are not enough: `forward` makes the cache

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
        """Logits, and the loss if there are labels.

        Args:
            input_ids: (B, T), the tokens after those of the cache.
            attention_mask: (B, T), or with the tokens of the cache in front; 0 where a token is padding. Padding
                stands on the left when a cache is used. Positions follow from it.
            past_key_values: what an earlier call returned.
            labels: (B, T), compared with the logits one place earlier; -100 is left out.
            use_cache: return a cache for the next call.
            logits_to_keep: of the last so many tokens only; 0 for all.
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
        # Declared as the Cache of transformers, but `generate` asks for no more than DDLCache has.
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)  # type: ignore[arg-type]


AutoConfig.register(DDLConfig.model_type, DDLConfig)
AutoModelForCausalLM.register(DDLConfig, DDLForCausalLM)
