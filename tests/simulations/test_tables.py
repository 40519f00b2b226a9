from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from distillation.data import DataError
from distillation.inputs import fit_table
from simulations.datasets import load_source
from simulations.datasets.source import Source
from simulations.sections import DataSection


def read(name: str, path: Path | str = "", **settings: Any) -> Source:
    return load_source(DataSection.model_validate({"name": name, "path": str(path), **settings}))


def csv(folder: Path, text: str | bytes, **settings: Any) -> Source:
    path = folder / "rows.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read("csv", path, **{"target": "y", **settings})


def test_columns_are_sorted_into_numbers_and_names(tmp_path: Path) -> None:
    source = csv(
        tmp_path,
        "\ufeffage,town,code,smoker,junk,site,y\n41,Bonn,7,True,x,B,no\n,Ulm,8,False,x,A,yes\n52.5,,7,,x,A,no\n",
        categorical=["code"],
        drop=["junk"],
        site_column="site",
    )
    assert source.table is not None
    assert source.sites is not None
    assert list(source.table.columns) == ["age", "town", "code", "smoker"]  # the byte order mark is gone
    assert source.categorical == {"town", "code", "smoker"}
    assert source.table["age"].dropna().tolist() == [41.0, 52.5]
    assert source.table["code"].tolist() == ["7", "8", "7"]
    assert source.table["smoker"].dropna().tolist() == ["True", "False"]
    assert source.classes == ("no", "yes")
    assert source.labels.tolist() == [0, 1, 0]
    assert source.sites.tolist() == ["B", "A", "A"]


def test_text_that_is_all_numbers_is_a_column_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"a": ["1", " 2.5 ", None], "y": [0, 1, 0]}).to_parquet(path)
    table = read("parquet", path, target="y").table
    assert table is not None
    assert table["a"].dropna().tolist() == [1.0, 2.5]


def test_numbers_with_gaps_keep_their_gaps_in_every_parquet_type(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame(
        {"whole": pd.array([1, None], dtype="Int64"), "single": np.array([np.nan, 2], "f4"), "y": ["u", "v"]},
        index=[7, 3],
    ).to_parquet(path)
    source = read("parquet", path, target="y")
    assert source.table is not None
    assert source.table["whole"].isna().tolist() == [False, True]
    assert source.table["single"].isna().tolist() == [True, False]
    assert source.categorical == frozenset()


def test_a_column_half_of_numbers_is_still_one_of_names(tmp_path: Path) -> None:
    # 2 of 4 parse: not more than half
    assert csv(tmp_path, "a,y\n1,u\n2,v\nx,u\nz,v\n").categorical == {"a"}


def test_whole_numbers_as_classes_are_named_without_a_fraction(tmp_path: Path) -> None:
    source = csv(tmp_path, "a,y\n1,10\n2,2.0\n3,10.0\n")
    assert source.classes == ("10", "2")  # sorted as text
    assert source.labels.tolist() == [0, 1, 0]


def test_the_order_of_rows_in_the_file_changes_nothing_but_the_order(tmp_path: Path) -> None:
    lines = [f"{row},{'xyz'[row % 3]},{'uvw'[row % 3]}\n" for row in range(9)]
    forth = csv(tmp_path, "a,b,y\n" + "".join(lines))
    back = csv(tmp_path, "a,b,y\n" + "".join(lines[::-1]))
    assert forth.table is not None
    assert back.table is not None
    assert forth.classes == back.classes
    assert forth.labels.tolist() == back.labels[::-1].tolist()
    pd.testing.assert_frame_equal(forth.table, back.table[::-1].reset_index(drop=True))


def test_a_line_number_counts_quoted_line_breaks_and_empty_lines(tmp_path: Path) -> None:
    # 1 header, 2-3 one record, 4 empty, 5 a record, 6 the offender
    text = 'a,b,y\n1,"two\nlines",u\n\n2,x,v\n?,x,v\n'
    with pytest.raises(
        DataError, match=r"column 'a' .* 1 of 3 values are text, the first in line 6: .*categorical"
    ) as told:
        csv(tmp_path, text)
    assert "?" not in str(told.value)  # a cell is private
    assert csv(tmp_path, text, categorical=["a"]).categorical == {"a", "b"}


def test_what_has_no_end_is_no_number(tmp_path: Path) -> None:
    says = r"column 'a' holds 2 infinite values, the first in line 3: leave such cells empty"
    with pytest.raises(DataError, match=says):
        csv(tmp_path, "a,b,y\n1,2,u\ninf,3,v\n-Infinity,4,u\n")


MANY = "".join(f"{row},{row}\n" for row in range(51))

WRONG_TABLES: list[tuple[str, str | bytes, dict[str, Any], str]] = [
    ("no target named", "a,y\n1,u\n2,v\n", {"target": ""}, "data.target is empty.*'a', 'y'"),
    ("no target column", "a,y\n1,u\n2,v\n", {"target": "z"}, "data.target: .*no column 'z'; it has 'a', 'y'"),
    ("no site column", "a,y\n1,u\n2,v\n", {"site_column": "z"}, "data.site_column: .*no column 'z'"),
    ("no dropped column", "a,y\n1,u\n2,v\n", {"drop": ["z"]}, "data.drop: .*no column 'z'"),
    ("no categorical column", "a,y\n1,u\n2,v\n", {"categorical": ["z"]}, "data.categorical: .*no column 'z'"),
    ("many columns", ",".join("abcdefghijklmnopqrstuvw") + "\n", {}, "'t' and 3 more"),
    ("missing targets", "a,y\n1,u\n2,\n3,NA\n", {}, "data.target='y': 2 of 3 rows"),
    ("missing sites", "a,y,s\n1,u,h\n2,v,\n", {"site_column": "s"}, "data.site_column='s': 1 of 2 rows"),
    ("regression", "a,y\n" + MANY, {}, "51 different numbers, over 50: this is classification"),
    ("one class", "a,y\n1,u\n2,u\n", {}, "1 different values"),
    ("no rows", "a,y\n", {}, "0 different values"),
    ("no features", "y\nu\nv\n", {}, "no column beside target"),
    ("text in numbers", "a,y\n1,u\n2,v\nx,u\n", {}, "column 'a' .* 1 of 3 .* the first in line 4"),
    ("identifiers", "a,y\n" + "".join(f"n{row},{row % 2}\n" for row in range(1001)), {}, "1001 different names"),
    ("all rows too long", "a,y\n1,u,3\n2,v,3\n", {}, "more fields than the header"),
    ("one row too long", "a,y\n1,u\n2,v,3\n", {}, "cannot be read as CSV.*line 3"),
    ("empty", "", {}, "cannot be read as CSV"),
    ("not UTF-8", b"a,y\n\xff,u\n", {}, "save it as UTF-8"),
]


@pytest.mark.parametrize(
    ("text", "settings", "message"), [row[1:] for row in WRONG_TABLES], ids=[row[0] for row in WRONG_TABLES]
)
def test_a_wrong_table_is_refused_in_one_sentence(
    text: str | bytes, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        csv(tmp_path, text, **settings)
    assert "\n" not in str(caught.value)


def test_dates_are_neither_numbers_nor_names(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    frame = pd.DataFrame({"a": [1, 2], "when": pd.date_range("2024-01-01", periods=2), "y": ["u", "v"]})
    frame.to_parquet(path)
    with pytest.raises(DataError, match=r"column 'when' holds datetime64.*data\.drop"):
        read("parquet", path, target="y")
    assert read("parquet", path, target="y", drop=["when"]).table is not None


def test_lists_in_a_column_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"a": [[1], [2]], "y": ["u", "v"]}).to_parquet(path)
    with pytest.raises(DataError, match="column 'a' holds object, neither numbers nor names"):
        read("parquet", path, target="y")


def test_a_constant_public_column_leaves_other_values_in_sight() -> None:
    # seven times 0.1 has a mean of 0.09999999999999999 and a spread of 1e-17, not 0
    inputs = fit_table(pd.DataFrame({"a": [0.1] * 7}), set())
    assert inputs.encode(pd.DataFrame({"a": [0.6]}))[0, 0] == pytest.approx(0.5)


def test_numbers_beyond_float32_count_as_missing() -> None:
    inputs = fit_table(pd.DataFrame({"a": [1.0, 3.0, 1e300, np.inf]}), set())
    assert (inputs.columns[0].mean, inputs.columns[0].std) == (2.0, 1.0)
    assert inputs.encode(pd.DataFrame({"a": [4.0, -1e300]})).tolist() == [[2.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([f"p-{row}" for row in range(60)], "another name in each of its 60 rows.*data.drop"),
        ([f"{row % 7},5" for row in range(60)], "decimal comma"),
    ],
)
def test_identifiers_and_decimal_commas_are_no_names(tmp_path, values, says):
    lines = [f'"{value}",{row % 3},{"ab"[row % 2]}' for row, value in enumerate(values)]
    (tmp_path / "own.csv").write_text("odd,x,y\n" + "\n".join(lines) + "\n")
    settings = DataSection(name="csv", path=str(tmp_path / "own.csv"), target="y")
    with pytest.raises(DataError, match=says):
        load_source(settings)
    assert load_source(settings.model_copy(update={"drop": ("odd",)})).table.columns.tolist() == ["x"]
