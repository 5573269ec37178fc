"""One text in many languages: the 123 news articles of NTREX-128, translated by people.

The content is the same in all of them, so that what differs between two such calibration sets is
the language. Federmann et al. 2022, https://aclanthology.org/2022.sumeval-1.4; the data:
https://github.com/MicrosoftTranslator/NTREX
"""

from __future__ import annotations

import difflib
from pathlib import Path

from pennyweight.core import DataError
from pennyweight.model.calibration.base import Request, calibration
from pennyweight.model.textfiles import Document, TokenDocument, read_file

FOLDER = "ntrex"


class Ntrex:
    about = f"news in a language, ntrex:deu@FOLDER, with NTREX's files in it (else in ./{FOLDER})"
    source = "Federmann et al. 2022, NTREX-128"
    generated = False
    gives_ids = False

    def __call__(
        self, argument: str, request: Request | None
    ) -> list[Document] | list[TokenDocument]:
        language, _, place = argument.partition("@")
        folder = Path(place or FOLDER)
        files = languages(folder)
        if not files:
            raise DataError(
                f"ntrex:{argument}: {folder} holds no file newstest2019-*.txt of NTREX; say where "
                "they are: ntrex:deu@FOLDER"
            )
        if language not in files:
            close = difflib.get_close_matches(language, files, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(files))}"
            raise DataError(f"ntrex:{argument}: no language {language!r} in {folder}; {hint}")
        return read_file(files[language])


def languages(folder: Path) -> dict[str, Path]:
    """Language code as in NTREX -> its file; English is what was translated."""
    return {path.name.split(".")[1]: path for path in sorted(folder.glob("newstest2019-*.*.txt"))}


calibration("ntrex")(Ntrex())
