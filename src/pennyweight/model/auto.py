"""Which class of transformers builds a model: a decoder of text, or one that also sees images."""

from __future__ import annotations

import inspect

from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

AutoModel = type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]


def auto_class(config: PreTrainedConfig) -> AutoModel:
    """The class whose `from_config` and `from_pretrained` build what the checkpoint holds.

    A family that has a class for each (Llama 4) says in `architectures` which one was saved.
    """
    sees = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    if sees is None:
        return AutoModelForCausalLM
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForImageTextToText
    saved = config.architectures or []
    return AutoModelForImageTextToText if sees in saved else AutoModelForCausalLM


def argument_names(model: nn.Module) -> set[str]:
    """What the model's forward names; what it takes by `**kwargs` goes to its blocks."""
    return set(inspect.signature(model.forward).parameters)


def sees_images(model: nn.Module) -> bool:
    return "pixel_values" in argument_names(model)
