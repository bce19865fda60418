"""What is said of figures that are held to bounds of their own."""

from benchmarks.figures import Figure, Row, to_markdown


def test_a_bound_is_met_or_missed_only_if_all_of_the_interval_says_so() -> None:
    def verdict(*values: float, at_most: bool = True) -> str:
        return Figure(what="", unit="", limit=5, at_most=at_most, values=[*values]).verdict()

    assert verdict(1, 2, 3) == "met"
    assert verdict(6, 7, 8) == "missed"
    assert verdict(1, 9, 1) == "undecided"
    assert verdict(6, 7, 8, at_most=False) == "met"
    assert verdict() == "invalid"


def test_a_row_holds_if_nothing_is_missed_invalid_or_broken() -> None:
    met = Figure(what="", unit="", limit=5, values=[1])
    assert Row(title="", figures=[met]).held()
    assert not Row(title="", figures=[met, Figure(what="", unit="", limit=5, values=[6])]).held()
    assert not Row(title="", figures=[met, Figure(what="", unit="", limit=5)]).held()
    assert not Row(title="", figures=[met], broken=["a shard has died"]).held()


def test_a_short_run_is_not_failed_by_a_figure_of_which_nothing_can_be_said() -> None:
    nothing = Figure(what="", unit="", limit=5, left_out=["the machine was busy"])
    assert Row(title="", figures=[nothing]).held(quick=True)
    assert not Row(title="", figures=[nothing], broken=["a stream broke"]).held(quick=True)
    missed = Figure(what="", unit="", limit=5, values=[6])
    assert not Row(title="", figures=[missed]).held(quick=True)


def test_the_tables_tell_why_a_round_says_nothing() -> None:
    figure = Figure(what="lateness", unit="ms", limit=5, left_out=["the server was late"])
    table = to_markdown([Row(title="1,000 users", figures=[figure])])
    assert "| lateness | at most 5 ms | nothing             | invalid |" in table
    assert "A round says nothing: the server was late." in table
