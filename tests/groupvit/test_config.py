"""Configs: wrong ones are refused with the field, the value and the fix; they survive JSON."""

import json

import pytest

from groupvit.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig, from_dict, to_dict
from tests.support.small_model import SMALL


@pytest.mark.parametrize("config", [ModelConfig(), SMALL])
def test_json_round_trip(config: ModelConfig) -> None:
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match="TextEncoderConfig has no field wdith"):
        from_dict(TextEncoderConfig, {"wdith": 3})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": (6, 6)}, r"image.num_heads=\(6, 6\) has 2 entries.*give 3"),
        ({"num_output_groups": (64, 8, 4)}, r"num_output_groups=\(64, 8, 4\) has 3 entries.*give 2"),
        ({"num_group_tokens": (64, 0, 0)}, "stage 1 has 0 group tokens"),
        ({"num_heads": (6, 6, 5)}, "5 does not divide image.width=384"),
        ({"image_size": 225}, "image_size=225 is not a multiple"),
        ({"stem": "convolutional", "patch_size": 28}, "power of two"),
    ],
)
def test_bad_image_encoders_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageEncoderConfig(**fields)
