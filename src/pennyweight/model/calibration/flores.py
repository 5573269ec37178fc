"""One text in many languages: the sentences of FLORES+, translated by people.

As with NTREX the content is the same in all languages. NLLB Team 2022,
https://arxiv.org/abs/2207.04672; kept by the Open Language Data Initiative, who ask that its text
is not put where crawlers find it: https://huggingface.co/datasets/openlanguagedata/flores_plus
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

from pennyweight.core import DataError
from pennyweight.model.calibration.base import Request, calibration
from pennyweight.model.textfiles import Document, TokenDocument, read_file

DATASET = "openlanguagedata/flores_plus"
FOLDER = "FLORES_PLUS"  # environment variable: where a copy lies
SUFFIXES = (".jsonl", ".txt")  # lines of JSON with `text` as on the Hub, or a sentence a line


@dataclass(frozen=True)
class Flores:
    name: str
    split: str  # its folder in the data set
    about: str
    source: str = "NLLB Team 2022, FLORES+"
    generated: bool = False
    gives_ids: bool = False

    def __call__(
        self, argument: str, request: Request | None
    ) -> list[Document] | list[TokenDocument]:
        """All sentences of the language as one text, a sentence a line."""
        language, _, place = argument.partition("@")
        asked, copy = f"{self.name}:{argument}", os.environ.get(FOLDER)
        # Where there is a copy nothing is fetched: what is not in it is an error.
        if place:
            inside = Path(place) / self.split
            path = self._local(language, inside if inside.is_dir() else Path(place), asked)
        elif copy:
            path = self._local(language, Path(copy) / self.split, asked)
        else:
            path = self._fetched(language, asked)
        lines = [d.text.strip("\n") for d in read_file(path) if isinstance(d, Document)]
        return [Document(name=f"{self.name}:{language}", text="\n".join(lines))]

    def _local(self, language: str, folder: Path, asked: str) -> Path:
        files = languages(folder)
        if not files:
            raise DataError(
                f"{asked}: {folder} holds no file as deu_Latn.jsonl or deu_Latn.txt; say where "
                f"they are: {self.name}:deu_Latn@FOLDER, or {FOLDER}=FOLDER with "
                f"FOLDER/{self.split} in it"
            )
        if language not in files:
            close = difflib.get_close_matches(language, files, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(files))}"
            raise DataError(f"{asked}: no language {language!r} in {folder}; {hint}")
        return files[language]

    def _fetched(self, language: str, asked: str) -> Path:
        """From the Hub, or its cache."""
        if not language:
            raise DataError(
                f"{asked}: names no language; expected a code as in {self.name}:deu_Latn"
            )
        copy = f"or name a copy: {asked}@FOLDER, or the environment variable {FOLDER}"
        try:
            return Path(
                hf_hub_download(DATASET, f"{self.split}/{language}.jsonl", repo_type="dataset")
            )
        except GatedRepoError:
            raise DataError(
                f"{asked}: the Hub gives {DATASET} to who accepted its conditions: accept them at "
                f"https://huggingface.co/datasets/{DATASET} and run `hf auth login`, {copy}"
            ) from None
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(
                f"{asked}: the Hub did not give {self.split}/{language}.jsonl of {DATASET} "
                f"({reason}); try again with a network and a code that it has, {copy}"
            ) from None


def languages(folder: Path) -> Mapping[str, Path]:
    """Code as in FLORES+ -> its file; JSON lines before plain text."""
    found = [path for s in reversed(SUFFIXES) for path in sorted(folder.glob(f"???_????*{s}"))]
    return {path.stem: path for path in found}


calibration("flores")(
    Flores("flores", "dev", "sentences in a language, flores:deu_Latn[@FOLDER], else from the Hub")
)
calibration("flores-devtest")(
    Flores("flores-devtest", "devtest", "the other half of FLORES+, to be evaluated on")
)
