"""Tiny random models that see images, prompts for them, and a processor that needs no library."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from pennyweight.model.prompt import Prompt
from tests.byte_tokenizer import byte_tokenizer

VOCAB, IMAGE, START, END = 272, 257, 258, 259  # ids of the byte tokenizer end at 256
SIZE = 16  # of LLaVA's images, in patches of 4
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 256,
    "eos_token_id": 2,
}
_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": 260,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
_PATCHES = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 4,
}
FAMILIES = {
    "qwen2_vl": {
        "text_config": _TEXT | {"rope_parameters": _ROPE},
        "vision_config": _PATCHES | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        **_IDS,
    },
    "qwen2_5_vl": {
        "text_config": _TEXT | {"rope_parameters": _ROPE},
        "vision_config": _PATCHES
        | {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48}
        | {"window_size": 16, "fullatt_block_indexes": [1]},
        **_IDS,
    },
    "llava": {
        "text_config": _TEXT | {"model_type": "llama"},
        "vision_config": _CLIP,
        "image_token_index": IMAGE,
        "image_seq_length": 16,
    },
    # What its encoder finds is also added to the hidden state between the first blocks.
    "qwen3_vl": {
        "text_config": _TEXT | {"head_dim": 16, "rope_parameters": _ROPE},
        "vision_config": _PATCHES
        | {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48}
        | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        **_IDS,
    },
}


def build(family: str, folder: Path, **vision: object) -> Path:
    """The saved model, in float32. Everything is random and large enough for images to matter."""
    given = FAMILIES[family] | {"vision_config": FAMILIES[family]["vision_config"] | vision}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **given)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def original(path: Path):
    return AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()


def prompt(family: str, seed: int = 0, side: int = 4) -> Prompt:
    """Text, an image of noise, text. side: of the grid of patches, where there is one."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, 256, (12,), generator=generator)
    count = 16 if family == "llava" else side * side // 4
    ids = torch.cat([text[:5], torch.tensor([START] + count * [IMAGE] + [END]), text[5:]])
    return Prompt(ids=ids, images=_noise(family, ids, side, generator), is_text=ids != IMAGE)


def _noise(family: str, ids: torch.Tensor, side: int, generator) -> dict[str, torch.Tensor]:
    if family == "llava":
        return {"pixel_values": torch.randn(1, 3, SIZE, SIZE, generator=generator)}
    return {
        "pixel_values": torch.randn(side * side, 3 * 2 * 4 * 4, generator=generator),
        "image_grid_thw": torch.tensor([[1, side, side]]),
        "mm_token_type_ids": (ids == IMAGE).long()[None],
    }


class StandIn:
    """A processor of LLaVA's interface: images are tensors, and each is 16 placeholders."""

    image_token = "<image>"

    def __init__(self, template: str | None = "yes") -> None:
        self.tokenizer, self.chat_template, self.image_processor = byte_tokenizer(), template, self

    def __call__(self, images, text: str, return_tensors: str) -> dict[str, torch.Tensor]:
        pieces = text.split(self.image_token)
        ids = self.tokenizer(pieces[0])["input_ids"]
        for piece in pieces[1:]:
            ids += 16 * [IMAGE] + self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        made = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
        return made | ({"pixel_values": torch.stack(images)} if images else {})

    def create_mm_token_type_ids(self, ids: list[list[int]]) -> list[list[int]]:
        return [[int(each == IMAGE) for each in row] for row in ids]

    def apply_chat_template(self, messages, tokenize: bool) -> str:
        return "".join(part.get("text", self.image_token) for part in messages[0]["content"])


def save_pictures(folder: Path, count: int = 6) -> Path:
    """JSON lines, of which every other one has a placeholder, and the last no image."""
    generator, lines = torch.Generator().manual_seed(3), []
    for number in range(count):
        torch.save(torch.randn(3, SIZE, SIZE, generator=generator), folder / f"{number}.pt")
        place = "<image>" if number % 2 else ""
        lines.append({"text": f"{place}the picture {number} is noise", "image": f"{number}.pt"})
    lines.append({"text": "and here is none"})
    file = folder / "pictures.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
