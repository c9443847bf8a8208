"""The page: numbers land in it, user text stays text, nothing is fetched, partial runs say what they lack."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from kshot.config import ExpertsConfig
from kshot.errors import RunFolderError
from kshot.report import write_report
from kshot.report.listing import FIRST_PAGE
from kshot.report.read import read_contents
from kshot.report.render import render_page
from kshot.run_folder import (
    CHOICE,
    CONFIG,
    DATA_MAP,
    REPORT,
    SCORES,
    SELECTED,
    SELECTION,
    TOKEN_EXPERTS,
    RunFolder,
)

from .conftest import ALL_PARTS

MakeRun = Callable[..., RunFolder]
MAX_BYTES = 6_000_000
EVIL = "</td></script><script>alert('x')</script><img src=https://evil.example/x.png onerror=alert(1)>&amp;"


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text in one line."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self._code = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._code = tag in ("script", "style")
        self.pieces.append(" " if tag in ("td", "th", "dt", "dd") else "")

    def handle_endtag(self, tag: str) -> None:
        self._code = False

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def _page(run: RunFolder) -> Page:
    """The page without pictures, which is fast."""
    return Page(render_page(read_contents(run), pictures=False))


def test_golden_numbers_land_in_the_page(make_run: MakeRun) -> None:
    text = _page(make_run()).text
    # 8 and 32 of 40: sqrt(0.2 * 0.8 / 39) = 6.4; 24 wins and no loss: sqrt((0.6 - 0.36) / 39) = 7.8
    assert (
        "It worked: the tuned mixture answers 80.0 ± 6.4 % of 40 test rows right, "
        "the base model 20.0 ± 6.4 %: 60.0 ± 7.8 points more, p < 0.001." in text
    )
    assert "best single expert (by the shots) 30.0 ± 7.3 % +50.0 ± 8.0 < 0.001 40" in text
    assert "Of 40 test rows, 8 are answered right by all arms, 8 wrong by all, and 24 are mixed." in text
    assert "1 arithmetic expert, best single 75.0 % 2.125 2.250 0.5000 1 1 2" in text
    assert "out of 6 adapters: sum of ranks" in text
    assert "mixture 11 4 2.500 0.500 4,321 98,765 1 min 1 s" in text
    assert "3 rows of 3,456 were kept. 8 rows were not allowed (5 without a rationale), 1 row dropped" in text
    assert "1 exact copy skipped" in text
    assert "0.912 What is 2 + 3? row 0 open-maths nearest shot shot-2 response answer 0" in text
    assert "pool-7 asks the same as shot shot-1" in text
    assert "pool-5 near-copy of pool-0, cosine 0.988" in text
    assert "1 row: asks what a shot asks" in text
    assert "Tuned mixture: least loss on the shots." in text
    assert "base model 1.125 ± 0.1250 50.0 % 0.1250 ± 0.06250" in text
    assert "Over all layers and tokens: arithmetic 37.5 %, chain-sum 62.5 %." in text
    assert "of computing: scoring the adapters 0 s, selecting rows 0 s, tuning the best" in text
    assert "packages.torch 2.13.0" in text
    assert "num_candidates: 8" in text
    assert "tuned mixture: right tuned_mixture says What is 2 + 3?" in text
    assert "At most" in text  # memory


def test_invariant_text_of_users_stays_text(make_run: MakeRun) -> None:
    plain, evil = _page(make_run()), _page(make_run(text=EVIL))
    assert EVIL in evil.text
    assert evil.tags == plain.tags


def test_page_is_whole_and_fetches_nothing(make_run: MakeRun) -> None:
    run = make_run(text=EVIL)
    path = write_report(run)
    assert path == run.path(REPORT)
    page = Page(path.read_text(encoding="utf-8"))
    addresses = [
        value or ""
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster")
    ]
    assert addresses
    assert all(address.startswith("#") for address in addresses)
    assert not {"link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert page.count("script") == 3  # rows and pictures, plotly.js, the page's own
    policy = next(one["content"] for tag, one in page.tags if tag == "meta" and "http-equiv" in one)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_invariant_links_lead_somewhere(make_run: MakeRun) -> None:
    page = _page(make_run())
    ids = [one["id"] for _, one in page.tags if "id" in one]
    assert len(ids) == len(set(ids))
    assert {(one["href"] or "")[1:] for _, one in page.tags if "href" in one} <= set(ids)


def test_big_run_stays_small(make_run: MakeRun) -> None:
    many = {"base": 1, "best_single": 2, "best_single_tuned": 3, "uniform_mixture": 4, "tuned_mixture": 5}
    run = make_run(
        text="long " * 1000, n=2000, hits=many, budget=1000, losses=[1.0] * 2000, pool_sample=10_000
    )
    assert write_report(run).stat().st_size < MAX_BYTES
    page = _page(run)
    assert f"First {FIRST_PAGE} of 2,000 test rows" in page.text
    assert f"First {FIRST_PAGE} of 1,000 kept rows" in page.text
    assert page.count("dl") == 2 * FIRST_PAGE + 1  # the numbers at the top are one


def test_same_run_gives_same_bytes(make_run: MakeRun) -> None:
    run = make_run()
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


@pytest.mark.parametrize(
    ("parts", "commands"),
    [
        ((), ["select", "augment", "train", "eval"]),
        (("experts",), ["augment", "train", "eval"]),
        (("experts", "data"), ["train", "eval"]),
        (("experts", "data", "training"), ["eval"]),
        (ALL_PARTS, []),
    ],
)
def test_partial_run_names_the_command(
    make_run: MakeRun, parts: tuple[str, ...], commands: list[str]
) -> None:
    run = make_run(parts)
    text = _page(run).text
    for command in ("select", "augment", "train", "eval"):
        assert (f"kshot {command} task.yaml --out {run.root}" in text) == (command in commands)
    assert ("Not measured." in text) == ("eval" in commands)


def test_run_without_budget_test_rows_and_rationales(make_run: MakeRun) -> None:
    run = make_run(("experts", "data", "training"), budget=0, test=None, num_rationales=0)
    text = _page(run).text
    assert "data.budget is 0, so training saw the shots alone" in text
    assert "The task file names no test rows" in text
    assert "Perplexity is of the answer alone: no shot has a rationale. Ranks" in text


def test_interrupted_evaluation_counts_the_arms(make_run: MakeRun) -> None:
    run = make_run()
    run.path("eval", "results.json").unlink()
    assert "Not every arm is tested yet (so far: base, best_single, best_single_tuned," in _page(run).text


def test_run_of_an_earlier_version_lacks_parts_and_opens(make_run: MakeRun) -> None:
    run = make_run(("experts", "data", "training", "eval"), pool_sample=0)
    path = run.path("experts", SELECTION)
    selection = json.loads(path.read_text())
    for key in ("method", "failures", "flagged", "without_flagged"):
        del selection[key]
    for adapter in selection["ranking"]:
        del adapter["answer_first_ppl"], adapter["near_tie"]
    path.write_text(json.dumps(selection))
    run.path("eval", "tuned_mixture", TOKEN_EXPERTS).unlink()
    run.path("expert", "stage.json").write_text('{"reads": "x", "seconds": 61.2}')
    text = _page(run).text
    assert "It worked" in text
    assert "This run has no record of which expert served which token." in text
    assert "1 arithmetic expert, best single 75.0 % 2.125 ∞" in text


def test_choice_without_comparison_gives_its_reason(make_run: MakeRun) -> None:
    run = make_run()
    run.path("choice", CHOICE).write_text(
        json.dumps({"chosen": "tuned_mixture", "title": "tuned mixture", "reason": "too few", "arms": []})
    )
    page = _page(run)
    assert "Tuned mixture: too few." in page.text
    assert not [one for _, one in page.tags if one.get("aria-label") == "Choice table"]


def test_half_a_surrogate_pair_does_not_stop_the_report(make_run: MakeRun) -> None:
    run = make_run()
    path = run.path("eval", "base", "predictions.json")
    path.write_text(path.read_text().replace("base says", "base \\ud83d says"))
    assert "base ? says" in Page(write_report(run).read_text(encoding="utf-8")).text


@pytest.mark.parametrize("change", ["accuracy", "rows"])
def test_result_table_older_than_answers_is_not_shown(make_run: MakeRun, change: str) -> None:
    run = make_run()
    path = run.path("eval", "base", "predictions.json")
    predictions = json.loads(path.read_text())
    if change == "accuracy":
        predictions["summary"]["accuracy"] = 0.5
    else:
        predictions["predictions"][0]["id"] = "another"
    path.write_text(json.dumps(predictions))
    text = _page(run).text
    assert "The result table is older than the answers" in text
    assert "It worked" not in text


def test_one_test_row_has_no_standard_error(make_run: MakeRun) -> None:
    hits = {"base": 0, "best_single": 0, "best_single_tuned": 0, "uniform_mixture": 0, "tuned_mixture": 1}
    text = _page(make_run(n=1, hits=hits)).text
    assert (
        "No gain is shown: the tuned mixture answers 100.0 % of 1 test row right, the base model 0.0 %"
        in text
    )


def test_multiple_choice_shows_every_rule(make_run: MakeRun) -> None:
    page = _page(make_run(other={"acc": 0.625, "acc_norm": 0.75, "acc_tokens": 0.5}))
    assert "acc acc_norm acc_tokens" in page.text
    assert "< 0.001 40 62.5 % 75.0 % 50.0 %" in page.text
    assert "accuracy is acc_norm" in page.text


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        ("paper", "group sum of ranks mean similarity its rank total arithmetic, commonsense 8 0.250 3 11"),
        (
            "balanced",
            "group sum of ranks mean similarity total, both on [0, 1] arithmetic, commonsense 8 0.250 0.25",
        ),
        ("robust", "group mean loss best member's loss mean similarity total arithmetic, chain-sum −1.0"),
    ],
)
def test_columns_of_each_method(make_run: MakeRun, method: Any, shown: str) -> None:
    experts = ExpertsConfig(method=method, similarity="fingerprint")
    text = _page(make_run(experts=experts)).text
    assert shown in text
    assert ("in standard deviations between adapters" in text) == (method == "robust")
    assert "cosine of their weight changes, estimated to 0.016" in text


def test_infinite_perplexity_and_line_separators(make_run: MakeRun) -> None:
    run = make_run(text="first\u2028second")
    path = run.path("experts", SELECTION)
    selection = json.loads(path.read_text())
    selection["ranking"][-1]["reasoning_ppl"] = None
    path.write_text(json.dumps(selection))
    text = _page(run).text
    assert "12.5 % ∞" in text
    assert "first second" in text


def test_adapters_without_scores_and_those_that_may_have_seen_the_task(make_run: MakeRun) -> None:
    run = make_run()
    path = run.path("experts", SELECTION)
    selection = json.loads(path.read_text())
    selection["failures"] = {"torn": "expected <whole> safetensors"}
    selection["flagged"] = {"seen": "trained on 2 of the shots"}
    path.write_text(json.dumps(selection))
    text = _page(run).text
    assert "Could not be scored: torn: expected <whole> safetensors" in text
    assert "seen: trained on 2 of the shots" in text
    assert "Without them too few adapters are left." in text
    selection["without_flagged"] = {"experts": ["x", "y"]}
    path.write_text(json.dumps(selection))
    assert "Without them the experts would be x, y." in _page(run).text


def test_empty_folder_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    run.path(CONFIG).unlink()
    with pytest.raises(
        RunFolderError, match=r"expected .*config\.yaml, cannot read it.*run 'kshot run' first"
    ):
        write_report(run)
    run.path(CONFIG).write_text("just text")
    with pytest.raises(RunFolderError, match=r"config\.yaml: expected what 'kshot run' writes"):
        write_report(run)


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        (
            CONFIG,
            "name: x",
            r"config\.yaml: expected the key 'base_model', found none; run 'kshot run' again",
        ),
        (f"experts/{SCORES}", '{"scores": [{}]}', r"experts: expected the key 'n', found none"),
        (f"experts/{SELECTION}", "[]", r"experts: expected what 'kshot run' writes, got something else"),
        (f"data/{SELECTED}", "{broken\n", r"selected\.jsonl: expected what 'kshot run' writes"),
        ("eval/results.json", '{"table": []}', r"results\.json: .*no arm tuned_mixture"),
        ("single/stage.json", "{}", r"stage\.json: expected the key 'seconds'"),
        (f"data/{DATA_MAP}", '{"sources": [], "pool": [[1, 2, 9, 0, ""]]}', r"map\.json: expected"),
        (f"eval/tuned_mixture/{TOKEN_EXPERTS}", "{}", r"token_experts\.json: expected the key 'layers'"),
        (f"choice/{CHOICE}", '{"chosen": 1}', r"choice\.json: expected the key 'title'"),
        ("eval/base/predictions.json", "{", r"expected .*predictions\.json, cannot read it"),
    ],
)
def test_damaged_file_is_named_and_the_old_report_stays(
    make_run: MakeRun, file: str, text: str, problem: str
) -> None:
    run = make_run()
    run.write_text(REPORT, "old")
    run.path(file).write_text(text)
    with pytest.raises(RunFolderError, match=problem):
        write_report(run)
    assert run.path(REPORT).read_text() == "old"
