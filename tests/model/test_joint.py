"""Joints of answers and what stands before them: the quotes of every language."""

import pytest

from jacobian_lab.model.joint import joint

QUOTED = {
    "German": ("Goethe schrieb {}", "„", "“"),
    "German, inverted": ("Er las {}", "»", "«"),
    "German, within": ("Sie sagte {}", "‚", "‘"),
    "Danish": ("Han skrev {}", "»", "«"),
    "Swedish": ("Hon läste {}", "”", "”"),
    "Swedish, within": ("Hon läste {}", "’", "’"),
    "Finnish": ("Hän luki {}", "»", "»"),
    "Polish": ("Czytał {}", "„", "”"),
    "Polish, within": ("Czytał {}", "«", "»"),
    "English": ("She read {}", "“", "”"),
    "English, within": ("She read {}", "‘", "’"),
    "French": ("Il a lu {}", "«", "»"),
    "French, spaced": ("Il a lu {}", "« ", " »"),
    "French, within": ("Il a lu {}", "‹", "›"),
    "Swiss, inverted": ("Er las {}", "›", "‹"),
    "of titles": ("She read {}", "《", "》"),
    "corners": ("She read {}", "「", "」"),
    "straight": ("She read {}", '"', '"'),
}


@pytest.mark.parametrize("language", QUOTED)
def test_a_quote_that_closes_is_followed_by_a_space_and_one_that_opens_is_not(language):
    frame, opening, closing = QUOTED[language]
    quoted = frame.format(f"{opening}Faust{closing}")
    assert joint(quoted) == " "
    assert joint(frame.format(opening)) == ""
    assert joint(f"{quoted} och {opening.strip()}") == ""
    assert joint(f"{quoted} och {opening}Ara{closing}") == " "
    assert joint(f"({opening}Faust{closing}") == " "


@pytest.mark.parametrize(
    ("text", "join"),
    [
        ("„Er las »Faust«", " "),
        ("„Er las »Faust«“", " "),
        ("“She read ‘Faust’", " "),
        ("“It’s in the dogs’", " "),
        ("»In the ’90s«", " "),
        ("the ’90s and the dogs’", " "),
        ("„Faust“ und „", ""),
        ("“‘", ""),
        ("他说“", ""),
        ("白桦湖叫《白桦》", ""),
        ("Goethe schrieb (»Faust«)", " "),
    ],
)
def test_quotes_within_quotes_and_apostrophes(text, join):
    assert joint(text) == join
