"""Documents as an instruct model meets them: put through the tokenizer's chat template."""

from __future__ import annotations

from typing import Any

from jinja2.exceptions import TemplateError

from pennyweight.core import DataError
from pennyweight.model.textfiles import Document, TokenDocument
from pennyweight.model.tokens import Tokenizer


def as_chat(document: Document | TokenDocument, tokenizer: Tokenizer | None) -> TokenDocument:
    """The turns of a document, or its text as one turn of the user, with the template's own BOS.

    Raises DataError if there is no template, or it refuses the turns.
    """
    if isinstance(document, TokenDocument):
        raise DataError(
            f"{document.name}: holds token ids, to which no chat template can be applied; "
            "leave chat_template out"
        )
    if tokenizer is None or not tokenizer.chat_template:
        raise DataError(
            "chat_template: the tokenizer has none; leave it out, or use the instruct model"
        )
    turns = document.messages or (("user", document.text),)
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        ids: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    except TemplateError as error:
        raise DataError(f"{document.name}: the chat template refuses it: {error}") from None
    return TokenDocument(name=document.name, ids=tuple(ids))
