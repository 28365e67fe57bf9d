"""The columns of a data set, in each version of its schema."""

import pyarrow as pa

SCHEMA_VERSION = 2
"""Of data sets without recaptions."""
RECAPTIONED_VERSION = 3
"""Of data sets with the column `caption_origins`."""

DATASET_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),  # content hash of image and captions
        pa.field("image", pa.binary(), nullable=False),  # JPEG or WebP
        pa.field("captions", pa.list_(pa.string()), nullable=False),  # at least one; cleaned, not lower-cased
        pa.field("nouns", pa.list_(pa.list_(pa.string())), nullable=False),  # nouns of each caption; may be empty
        pa.field("width", pa.int32(), nullable=False),  # of `image`, pixels
        pa.field("height", pa.int32(), nullable=False),
        pa.field("source", pa.dictionary(pa.int32(), pa.string())),  # the data set that the sample came from
        pa.field("url", pa.string()),
        pa.field("license", pa.string()),
        pa.field("sha256", pa.string()),  # of the original file
    ]
)

ONE_CAPTION = {
    "captions": pa.field("caption", pa.string(), nullable=False),
    "nouns": pa.field("nouns", pa.list_(pa.string()), nullable=False),
}
"""Columns that data sets of schema 1 have instead of these."""

ORIGINS = pa.field("caption_origins", pa.list_(pa.string()), nullable=False)  # of each caption; the original ones first


def dataset_schema(version: int) -> pa.Schema:
    """Returns the columns of a data set of schema `version`."""
    if version == SCHEMA_VERSION:
        return DATASET_SCHEMA
    if version == RECAPTIONED_VERSION:
        return pa.schema(
            [column for field in DATASET_SCHEMA for column in ((field, ORIGINS) if field.name == "nouns" else (field,))]
        )
    return pa.schema([ONE_CAPTION.get(field.name, field) for field in DATASET_SCHEMA])


def schema_version_of(*, recaptioned: bool) -> int:
    """Returns the schema version of a new data set, with recaptions or without."""
    return RECAPTIONED_VERSION if recaptioned else SCHEMA_VERSION
