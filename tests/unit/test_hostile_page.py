"""The page of hostile addresses and files is what the tests go by."""

from tests.support.hostile_files import HOSTILE_FILES
from tests.support.hostile_page import PAGE, page
from tests.support.hostile_urls import HOSTILE_URLS


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.support.hostile_page"


def test_every_entry_is_in_it_under_a_name_of_its_own() -> None:
    for every, least in ((HOSTILE_URLS, 60), (HOSTILE_FILES, 40)):
        names = [each.name for each in every]
        assert len(set(names)) == len(names) >= least
        assert all(f"| {name} |" in page() for name in names)
