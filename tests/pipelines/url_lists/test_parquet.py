import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.url_list_files import rows_of


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"url": ["u"], "caption": [{"en": "c"}]}, "column caption holds struct<en: string>, not captions"),
        ({"url": ["u"], "caption": [[{"raw": "c"}]]}, "column caption holds list<element: struct<raw: string>>"),
        ({"url": [["u"]], "caption": ["c"]}, "column url holds list<element: string>, not URLs"),
        ({"url": [1], "caption": ["c"]}, "column url holds int64, not URLs"),
    ],
)
def test_columns_of_parquet_that_cannot_be_used_are_named(tmp_path, table, message):
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "texts",
    [
        pa.array(["a", None]),
        pa.array(["a", None], pa.large_string()),
        pa.array(["a", None], pa.string_view()),
        pa.array(["a", None]).dictionary_encode(),
        pa.array([b"a", None]),
    ],
)
def test_texts_of_parquet_may_be_of_any_type(tmp_path, texts):
    table = pa.table({"URL": pa.array(["a", "b"]).cast(pa.large_string()), "TEXT": texts, "NSFW": [True, False]})
    pq.write_table(table, tmp_path / "x.parquet")
    rows = rows_of(tmp_path / "x.parquet")
    assert [(row["url"], row["captions"], row["nsfw"].lower()) for row in rows] == [
        ("a", ["a"], "true"),
        ("b", [], "false"),
    ]
