"""Prompts: what is predicted and called, when two are the same; and which class builds what."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from pennyweight.model.auto import auto_class
from pennyweight.model.prompt import Prompt, prompts


def test_what_is_predicted_is_text_after_something():
    ids = torch.tensor([7, 9, 9, 9, 4, 5])
    seen = Prompt(ids=ids, images={"pixel_values": torch.ones(1, 2)}, is_text=ids != 9)
    assert seen.targets().tolist() == [4, 5]
    assert seen.without_images().ids.tolist() == [7, 4, 5]
    assert Prompt(ids=ids).targets().tolist() == [1, 2, 3, 4, 5]
    assert Prompt(ids=ids[:1]).targets().tolist() == []


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_targets_are_the_text_but_the_first(is_text):
    seen = Prompt(ids=torch.arange(len(is_text)), is_text=torch.tensor(is_text))
    assert seen.targets().tolist() == [i for i, text in enumerate(is_text) if text and i > 0]


def test_pixels_take_the_dtype_and_numbers_keep_theirs():
    images = {"pixel_values": torch.ones(2), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    made = Prompt(ids=torch.tensor([1, 2]), images=images).arguments(torch.bfloat16)
    kinds = {name: value.dtype for name, value in made.items()}
    assert kinds == {
        "input_ids": torch.int64, "pixel_values": torch.bfloat16, "image_grid_thw": torch.int64,
    }  # fmt: skip
    assert made["input_ids"].shape == (1, 2)


def test_the_digest_sees_ids_and_every_image():
    ids, pixels = torch.tensor([1, 2]), torch.zeros(1, 4)
    made = [
        Prompt(ids=ids), Prompt(ids=ids + 1), Prompt(ids=ids, images={"pixel_values": pixels}),
        Prompt(ids=ids, images={"pixel_values": pixels + 1}),
        Prompt(ids=ids, images={"pixel_values": pixels.view(2, 2)}),
    ]  # fmt: skip
    assert len({each.digest() for each in made}) == 5
    assert made[2].digest() == Prompt(ids=ids, images={"pixel_values": pixels.clone()}).digest()


def test_rows_of_ids_are_prompts_of_text():
    rows = torch.arange(6).view(2, 3)
    assert [each.ids.tolist() for each in prompts(rows)] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("kind", "saved", "name"),
    [
        ("llama", [], "AutoModelForCausalLM"),
        ("llava", [], "AutoModelForImageTextToText"),
        ("llama4", ["Llama4ForCausalLM"], "AutoModelForCausalLM"),
        ("llama4", ["Llama4ForConditionalGeneration"], "AutoModelForImageTextToText"),
    ],
)
def test_the_class_is_what_the_checkpoint_holds(kind, saved, name):
    config = AutoConfig.for_model(kind)
    config.architectures = saved
    assert auto_class(config).__name__ == name
