"""Files of other tools: which there are, and their rows in the form of the data layout.

`reference`: FlagEmbedding's llm_embedder. One file of training rows, or a folder with `train*.json`, `test*.json` and
`corpus.json` (all JSON Lines, also as .jsonl), as its README ships them: `pos_index` counts lines of the corpus from 0,
PopQA has `possible_answers`, MMLU `choices` and the position of the right one, the example sets `options` and the
position of the right one as a text, long texts are `text` alone.
`beir`: corpus.jsonl and queries.jsonl with `_id`, and qrels/SPLIT.tsv (Thakur et al. 2021). A passage is its title, a
space and its text in both.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from embedder.config.prepare import Source
from embedder.data.records import Split
from embedder.data.rows import Prepared, Row, RowError, query_row, read_lines, required_text
from embedder.errors import DataError
from embedder.hashing import content_id
from embedder.storage.fetched import local_copy

SPLITS: tuple[Split, ...] = ("train", "dev", "test")
BEIR_FILES = ("corpus.jsonl", "queries.jsonl")


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source, all of which exist."""

    corpus: Path | None
    splits: dict[Split, Path]
    """Rows of queries; for beir the relevance judgements."""

    @property
    def size(self) -> int:
        """Bytes of rows."""
        paths = [*self.splits.values(), *([self.corpus] if self.corpus else [])]
        return sum(path.stat().st_size for path in paths)


def source_files(source: Source) -> SourceFiles:
    """The files of a source.

    Raises:
        DataError: the path is missing, or no split is in it.
    """
    where = f"source {source.dataset}: {source.path}"
    path = local_copy(source.path)
    if source.format == "reference" and path.is_file():
        return SourceFiles(_corpus(source, None), {"train": path})
    if not path.is_dir():
        kind = "no file and no folder" if source.format == "reference" else "no folder"
        raise DataError(f"{where} is {kind}; correct prepare.sources.path")
    candidates = {split: _split_files(source, split) for split in SPLITS}
    splits = {split: found for split, found in candidates.items() if found is not None}
    if not splits:
        wanted = {"beir": "qrels/train.tsv, dev.tsv nor test.tsv", "layout": "train.jsonl nor test.jsonl"}
        raise DataError(f"{where} has neither {wanted.get(source.format, 'a train nor a test file (.json, .jsonl)')}")
    if source.format == "beir" and not all((path / name).is_file() for name in BEIR_FILES):
        raise DataError(f"{where} lacks one of {BEIR_FILES}, which `format: beir` needs")
    return SourceFiles(_corpus(source, path), splits)


def _split_files(source: Source, split: Split) -> Path | None:
    """The file of one split, such as train.jsonl, qrels/train.tsv, train.json or train.concat.json.

    Raises:
        DataError: there are several.
    """
    folder = local_copy(source.path)
    match source.format:
        case "layout":
            found = [folder / f"{split}.jsonl"]
        case "beir":
            found = [folder / "qrels" / f"{split}.tsv"]
        case "reference":
            found = sorted(path for path in folder.glob(f"{split}*") if path.suffix in {".json", ".jsonl"})
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        names = [path.name for path in found]
        raise DataError(f"{folder}: {names} may all be the {split} split; leave one of them in the folder")
    return found[0] if found else None


def _corpus(source: Source, folder: Path | None) -> Path | None:
    """The source's corpus, or that of its folder; None where rows bring their own candidates.

    Raises:
        DataError: it is missing or empty.
    """
    path = None if source.corpus is None else local_copy(source.corpus)
    if path is None and folder is not None:
        path = next((folder / name for name in ("corpus.jsonl", "corpus.json") if (folder / name).is_file()), None)
    if path is None:
        return None
    if not path.is_file():
        raise DataError(f"source {source.dataset}: {path} is no file; correct prepare.sources.corpus")
    if path.stat().st_size == 0:
        raise DataError(f"source {source.dataset}: {path} is empty; a corpus needs at least one passage")
    return path


def corpus_row(row: Row, number: int, form: str) -> Row:
    """A line of a corpus (`number` from 1) with `id` and `text`."""
    if form == "layout":
        return row
    texts = [row.get("title"), next((row[key] for key in ("text", "contents", "content") if row.get(key)), None)]
    joined = " ".join(text.strip() for text in texts if isinstance(text, str) and text.strip())
    passage_id = str(row.get("_id", "")) if form == "beir" else str(number - 1)
    return {"id": passage_id, "text": joined, "title": row.get("title")}


def common_row(row: Row, form: str, has_corpus: bool, labels: list[str] | None) -> Row:
    """A row of the layout or the reference with the fields of the layout.

    `labels` are the options of a row that has none of its own. In the reference `pos_index` stands for `pos` where
    there is a corpus, and `neg` is not read.

    Raises:
        RowError: a position of the right choice leaves the choices.
    """
    common = {"options": labels, **row}
    if form == "reference":
        return _reference_row(row, common, has_corpus)
    if has_corpus and not row.get("pos") and not row.get("neg"):
        common.setdefault("pos_ids", [])
    return common


def _reference_row(row: Row, common: Row, has_corpus: bool) -> Row:
    common["pos_ids"] = [str(line) for line in row.get("pos_index") or []] if has_corpus else None
    if row.get("possible_answers"):
        common["answers"] = _answers(row["possible_answers"])
    if row.get("choices"):
        common["options"] = [str(choice) for choice in row["choices"]]
        common["answers"] = [_choice(common["options"], row.get("answer"))]
    elif row.get("options") and row.get("answers") and row["answers"][0] not in row["options"]:
        common["answers"] = [_choice(row["options"], row["answers"][0])]
    common.setdefault("category", row.get("task_name"))
    if "text" in row:
        common.setdefault("query_id", content_id(row["text"]))
    return common


def _answers(value: object) -> object:
    """PopQA keeps its accepted answers as a list, or as JSON in a text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise RowError(f"possible_answers is {value!r:.200}; a list is needed") from error


def _choice(options: list[str], place: object) -> str:
    letters = {letter: i for i, letter in enumerate("ABCDEFGHIJ")}
    known = letters.get(place, place) if isinstance(place, str) else place
    if isinstance(known, str) and known.isdigit():
        known = int(known)
    if not isinstance(known, int) or not 0 <= known < len(options):
        raise RowError(f"the answer is {place!r:.200}; a position in the {len(options)} options is needed")
    return str(options[known])


def read_beir(source: Source, files: SourceFiles, prepared: Prepared) -> dict[Split, list[list[Row]]]:
    """The queries of each split that have a relevant passage, one a line; judgements of 0 say that there is none.

    Judgements are rows too: each is kept or rejected.
    """
    texts: dict[str, str] = {}
    uses: Counter[str] = Counter()
    path = local_copy(source.path) / "queries.jsonl"
    for number, row in read_lines(path, prepared):
        try:
            query_id = str(row.get("_id", ""))
            if not query_id or query_id in texts:
                raise RowError(f"_id {query_id!r} is {'missing' if not query_id else 'seen before'}")
            texts[query_id] = required_text(row, "text")
        except RowError as error:
            prepared.set_aside(path, number, str(error), row)
    splits: dict[Split, list[list[Row]]] = {}
    for split, qrels in files.splits.items():
        grades = _read_qrels(qrels, texts, prepared)
        splits[split] = [[_judged_query(source, one, texts[one], found)] for one, found in grades.items()]
        uses.update(list(grades))
    # A query of two splits counts as two rows, one of none is left out.
    prepared.rows_in += uses.total() - len(uses)
    prepared.left_out += len(texts) - len(uses)
    return splits


def _judged_query(source: Source, query_id: str, text: str, grades: Mapping[str, int]) -> Row:
    known = {"positive_ids": list(grades), "positive_grades": list(grades.values())}
    return query_row(source, query_id, text, **known)


def _read_qrels(path: Path, texts: Mapping[str, str], prepared: Prepared) -> dict[str, dict[str, int]]:
    """By query id the grades above 0 of its passages."""
    grades: dict[str, dict[str, int]] = {}
    for number, line in _qrel_lines(path):
        prepared.rows_in += 1
        try:
            query_id, passage_id, grade = _qrel(line)
            if query_id not in texts:
                raise RowError(f"query {query_id!r} is not in queries.jsonl")
            if passage_id not in prepared.passages:
                raise RowError(f"passage {passage_id!r} is not in corpus.jsonl")
        except RowError as error:
            prepared.set_aside(path, number, str(error), line)
            continue
        prepared.rows_out += 1
        if grade > 0:
            grades.setdefault(query_id, {})[passage_id] = grade
    return grades


def _qrel_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines behind the heading."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip() and not (number == 1 and line.lower().startswith("query-id")):
                yield number, line


def _qrel(line: str) -> tuple[str, str, int]:
    parts = line.rstrip("\r\n").split("\t")
    if len(parts) != 3:
        raise RowError(f"{len(parts)} columns; query-id, corpus-id and score with tabs between them are needed")
    try:
        return parts[0], parts[1], int(parts[2])
    except ValueError as error:
        raise RowError(f"score is {parts[2]!r}; a whole number is needed") from error
