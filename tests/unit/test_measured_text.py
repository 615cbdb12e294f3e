"""Text that is measured on is found again, also where a word was changed."""

from requant.data.overlap import Measured, even, ngrams

SENTENCE = "Return a list of all the names that the given module defines at its top level"


def test_runs_of_words_are_counted_without_case_and_punctuation() -> None:
    assert ngrams("One, two; THREE four!", 3) == {("one", "two", "three"), ("two", "three", "four")}
    assert ngrams("too short", 3) == set()


def test_a_text_with_one_word_changed_is_still_the_measured_one() -> None:
    measured = Measured([even(SENTENCE)])
    assert measured.holds([even(SENTENCE.upper())])
    assert measured.holds(["something else", even(f"{SENTENCE}, sorted.")])
    # Half of the runs of eight words are gone with the word in the middle, and with them the text.
    assert not measured.holds([even(SENTENCE.replace("names that", "packages which"))])
    assert not measured.holds([even("Return a list of all the files that a folder has in it now")])


def test_a_short_text_is_held_against_whole_texts_alone() -> None:
    measured = Measured(["close the file.", even(SENTENCE)])
    assert measured.holds(["close the file."])
    assert not measured.holds(["return a list of all the names"])
