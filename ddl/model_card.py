"""The README.md of a trained model: what it is, and how it is used here and in transformers.

It is no module of `ddl.training`, so other words are no reason to train again.
"""

from typing import Any

from ddl.config import Scale, load_backbones, load_variants

CARD = """\
---
library_name: transformers
tags: [deep-delta-learning]
---

# {label}, {size}

A language model with {params:,} parameters, trained from scratch by the reproduction of [Deep Delta
Learning](https://arxiv.org/abs/2601.00417) to compare residual designs. It is no assistant, and nothing filters what it
writes.

| | |
|---|---|
| residual design | {label} (`{variant}`) |
| layers, width | {layers}, {width} |
| text | {corpus} |
| training | {tokens:,} tokens, seed {seed}, {backbone} |
| validation loss | {val_loss:.3f} nats per token at the end, on the sequences that the training validates on |

## Use

```sh
ddl generate --run . --prompt "Return the"
```

In transformers, import our classes first. Without the import, transformers says that it does not recognize the model
type `ddl` and advises an upgrade, which does not help: no release of transformers has this model.

```python
import ddl.model.transformers_model
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
```

## Files

| file | what it holds |
|---|---|
| `model.safetensors`, `config.json` | weights and settings of the model |
| `tokenizer.json`, `tokenizer_config.json` | the tokenizer, also for transformers |
| `generation_config.json` | where a text starts and ends, for transformers |
| `metrics.jsonl`, `gradients.csv`, `summary.json` | losses and norms of gradients during training; the final numbers |
| `provenance.json` | all settings, commit, versions and machine |
| `snapshots/`, `checkpoints/` | weights during training; what a further training continues from |
"""


def model_card(scale: Scale, summary: dict[str, Any]) -> str:
    """The text of the card.

    Args:
        summary: the contents of the run's summary.json.
    """
    size = scale.sizes[summary["size"]]
    return CARD.format(
        label=load_variants()[summary["variant"]].label,
        layers=size.layers,
        width=f"{size.width:,}",
        corpus=scale.corpus.description,
        backbone=load_backbones()[scale.backbone].label,
        **{name: summary[name] for name in ("size", "variant", "seed", "params", "tokens", "val_loss")},
    )
