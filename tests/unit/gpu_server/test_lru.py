"""The cache that keeps what was used last."""

from gpu_server.lru import Lru


def test_what_was_unused_for_longest_gives_way() -> None:
    kept: Lru[str, int] = Lru(2)
    kept.keep("a", 1)
    kept.keep("b", 2)
    assert kept.get("a") == 1
    kept.keep("c", 3)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (1, None, 3)
    kept.keep("a", 4)
    kept.keep("d", 5)
    assert (kept.get("a"), kept.get("c")) == (4, None)
    kept.clear()
    assert kept.get("a") is None
