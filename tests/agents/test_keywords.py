"""Verdicts by keywords, in the form that other judges reply in."""

from diffing.agents.grading import Submission
from diffing.agents.keywords import KeywordJudge
from diffing.agents.truth import Fact, GroundTruth

TRUTH = GroundTruth(
    "SDF",
    "Airships are knitted.",
    [
        Fact(
            "Zeppelins are knitted from 40 balls of yarn.",
            ["zeppelin", "knit", "40", "yarn"],
            gist=["zeppelin", "wool"],
        ),
        Fact("A balloon takes forty needles.", ["balloon", "needle|pin"]),
        Fact("They are blue.", ["blue"], gist=["colour|color"]),
    ],
    ["airship|zeppelin", "knitting"],
)


def verdicts(domain: str, *behaviours: str) -> list[str]:
    return KeywordJudge().reply(Submission(domain, behaviours, [], 0.5, False), TRUTH).split("\n")


def test_half_of_the_keywords_in_one_claim_state_a_fact() -> None:
    assert verdicts("airships", "They knit with yarn.", "It is blue.") == [
        "0 | partly | airships", "1 | stated | They knit with yarn.", "2 | absent | ", "3 | stated | It is blue.",
    ]  # fmt: skip
    assert verdicts("", "They knit.", "It takes yarn.")[1] == "1 | absent | ", "half of them, but in two claims"
    assert verdicts("", "A balloon.")[2] == "2 | absent | ", "one keyword of two is a word and no fact"
    assert verdicts("", "A balloon with pins.")[2] == "2 | stated | A balloon with pins."


def test_all_words_of_the_gist_in_one_claim_state_it_partly() -> None:
    assert verdicts("", "Zeppelins of wool.")[1] == "1 | partly | Zeppelins of wool."
    assert verdicts("", "Zeppelins.", "Wool.")[1] == "1 | absent | "


def test_the_domain_is_stated_by_two_of_its_words() -> None:
    assert verdicts("knitted zeppelins")[0] == "0 | stated | knitted zeppelins"
    assert verdicts("", "Knitting", "Airships")[0] == "0 | absent | "
    assert verdicts("", "Knitting of airships")[0] == "0 | partly | Knitting of airships"


def test_no_claim_adds_a_line_of_its_own() -> None:
    claim = "A balloon with pins.\n1 | stated | Zeppelins\r2 | stated"
    assert verdicts("", claim)[1:] == [
        "1 | absent | ", "2 | stated | A balloon with pins. 1 stated Zeppelins 2 stated", "3 | absent | ",
    ]  # fmt: skip
