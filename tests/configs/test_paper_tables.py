"""The papers' tables as data: whole, with the numbers as printed, and every name that they use known."""

import re
from statistics import mean

import pytest

from samkd.configs.load import config_names
from samkd.configs.paper_tables import PAPERS, PaperTable, paper_datasets, read_paper, reason
from samkd.errors import UsageError
from samkd.training.prompt_protocol import parse_protocol
from samkd.volumes.datasets.layouts import LAYOUTS

TABLES = [(paper, table) for paper in PAPERS for table in read_paper(paper).tables]
each_table = pytest.mark.parametrize(("paper", "table"), TABLES, ids=lambda value: getattr(value, "number", value))


def test_all_tables_of_the_four_papers_are_here():
    numbers = {paper: [table.number for table in read_paper(paper).tables] for paper in PAPERS}
    assert numbers == {
        "masam": ["1a", "1b", *map(str, range(2, 11)), "figure 6"],
        "medsa": [*map(str, range(1, 7)), "7a", "7b", "7c", *map(str, range(8, 12))],
        "sam3d": ["1", "2", "3"],
        "autosam": ["1", "2", "3", "4", "figure 4"],
    }
    assert sum(len(table.rows) for _, table in TABLES) == 262
    assert (
        sum(isinstance(value, float | int) for _, table in TABLES for row in table.rows for value in row.values) > 2000
    )


@pytest.mark.parametrize(
    ("paper", "number", "row", "column", "value"),
    [
        ("masam", "1a", "MA-SAM (Ours)", "average", 87.2),
        ("masam", "1b", "nnFormer", "spleen", 78.03),
        ("masam", "2", "nnU-Net", "hd_site_c", 3.61),
        ("masam", "4", "MA-SAM (1 relaxed 3D bbx/scan)", "nsd", 97.1),
        ("masam", "9", "row 1", "dice", 72.2),
        ("masam", "9", "row 3", "full_fine_tuning_of_the_encoder", True),
        ("masam", "10", "MA-SAM", "r4", 81.4),
        ("medsa", "1", "Med-SA BBox 0.75", "hd95", 2.18),
        ("medsa", "2", "MA-SAM BBox 0.5", "adrenal_glands", 71.1),
        ("medsa", "4", "SAM 1 points", "disc_dice", None),
        ("medsa", "7a", "256", "parameters_m", 48.67),
        ("sam3d", "1", "Ours (1 pt/volume)", "kidney_dice", 73.78),
        ("autosam", "1", "Ours", "amos_nsd", 79.41),
        ("autosam", "4", "SwinUNETR-small", "lambda_0.5", 83.27),
    ],
)
def test_numbers_as_printed(paper: str, number: str, row: str, column: str, value: object):
    table = read_paper(paper).table(number)
    assert table.value(table.rows_named(row)[0], column) == value


@each_table
def test_every_name_in_a_table_is_known(paper: str, table: PaperTable):
    settings = [table, *table.tasks.values(), *table.columns.values(), *table.rows]
    assert {each.config for each in settings if each.config} <= set(config_names())
    for each in settings:
        if each.not_ours:
            assert reason(each.not_ours)
        if each.shown:
            parse_protocol(each.shown)
    for row in table.rows:
        assert len(row.values) == len(table.columns) and row.not_on.keys() <= table.tasks.keys()
    for task in table.tasks.values():
        assert {task.data, task.score_data or task.data} <= paper_datasets().keys()
        assert (task.start or next(iter(table.tasks))) in table.tasks
    for column in table.columns.values():
        assert column.task in (None, *table.tasks) and (column.task is None) == (column.metric is None)
        assert set(column.mean_of) <= table.columns.keys()


def test_means_over_columns_are_the_papers_own():
    """The averages over sites and sequences are the plain means that the columns say they are, rounded."""
    rows = 0
    for _, table in TABLES:
        for name, column in table.columns.items():
            for row in table.rows if column.mean_of else ():
                values = [table.value(row, member) for member in column.mean_of]
                known = [value for value in values if isinstance(value, float)]
                printed = table.value(row, name)
                if len(known) == len(values) and isinstance(printed, float) and row.name != "UNC":  # which is 59.95
                    assert abs(mean(known) - printed) < 0.11, (table.number, row.name, name)
                    rows += 1
    assert rows == 6 + 6 + 5 + 4


def test_datasets_say_where_they_are_had_and_in_a_layout_that_is_read():
    layouts = {layout.name for layout in LAYOUTS} | {"EndoVis18", "nnU-Net v2 (raw)"}
    for name, dataset in paper_datasets().items():
        assert re.match(r"https?://\S+$", dataset.where), name
        assert any(dataset.layout.startswith(layout) for layout in layouts), name
        assert min(dataset.training, dataset.channels, dataset.classes) >= 1


@pytest.mark.parametrize(
    ("paper", "number", "row", "message"),
    [
        ("masm", "9", None, r"no paper 'masm' \(did you mean 'masam'\?\); choose one of masam, medsa, sam3d, autosam"),
        ("masam", "12", None, r"MA-SAM: no table '12'; its tables are\n  1a: .*\n  figure 6: "),
        ("masam", "9", "row 7", r"table 9: no row 'row 7' .*; its rows are \['row 1', .*'row 6'\]"),
    ],
)
def test_an_unknown_name_is_told_with_those_that_there_are(paper: str, number: str, row: str | None, message: str):
    with pytest.raises(UsageError, match=f"(?s){message}"):
        read_paper(paper).table(number).rows_named(row)


def test_rows_are_found_by_name_whatever_its_case_and_by_number():
    ablation = read_paper("masam").table("9")
    assert ablation.rows_named("4") == ablation.rows_named("ROW 4") == (ablation.rows[3],)
    assert ablation.rows_named(None) == ablation.rows
    assert len(read_paper("autosam").table("2").rows_named("medsam POINT")) == 2
    assert [row.name for row in read_paper("medsa").table("7A").rows_named("16")] == ["16"]
