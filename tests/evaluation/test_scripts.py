"""Scripts of letters and texts, and when a text counts as having switched."""

from __future__ import annotations

import pytest

from steerling_jax.evaluation.scripts import letter_scripts, longest_other_run, main_scripts, script_of, switching

LATIN, HANGUL = frozenset({"Latin"}), frozenset({"Hangul"})


@pytest.mark.parametrize(
    ("letters", "script"),
    [
        ("aÉßＡ", "Latin"),
        ("яЖ", "Cyrillic"),
        ("한ㅎ", "Hangul"),
        ("中々", "Han"),
        ("カﾊ", "Katakana"),
        ("ひ", "Hiragana"),
        ("ع", "Arabic"),
        ("ह", "Devanagari"),
        ("1 ,。ー�\n", None),
    ],
)
def test_the_script_of_a_letter(letters: str, script: str | None):
    assert {script_of(letter) for letter in letters} == {script}


def test_scripts_of_texts():
    assert letter_scripts("HTML 문서 1") == {"Latin": 4, "Hangul": 2}
    japanese = ["これは日本語のテキストです、", "ペンを持っています。A"]
    assert main_scripts(japanese) == {"Hiragana", "Han", "Katakana"}  # one Latin letter of 22 is no script of it
    assert main_scripts(["123"]) == frozenset()


def test_a_name_in_other_letters_is_no_switch():
    named = "LibreOffice Writer에서 문서를 엽니다"
    turned = "문서를 엽니다. Opens the document in a window"
    assert longest_other_run(named, HANGUL) == 17
    assert longest_other_run("가 abc 나 de", HANGUL) == 3
    result = switching([named, turned, "Opens a document", ""], [HANGUL, HANGUL, LATIN, HANGUL])
    assert result.switched == (False, True, False, False)
    assert result.other[0] == pytest.approx(17 / 25)
    assert result.other[2:] == (0, 0)
    assert switching([named], [HANGUL], least=17).switched == (True,)
