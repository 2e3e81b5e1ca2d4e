"""A workflow small enough to stand in the documentation, its inputs marked in it."""

from pydantic import JsonValue

EXAMPLE: dict[str, JsonValue] = {
    "name": "half-size",
    "graph": {
        "1": {
            "class_type": "LoadImage",
            "inputs": {"image": "example.png"},
            "_meta": {"title": "input: picture"},
        },
        "2": {
            "class_type": "ImageScaleBy",
            "inputs": {"image": ["1", 0], "upscale_method": "lanczos", "scale_by": 0.5},
            "_meta": {"title": "input: factor.scale_by"},
        },
        "3": {
            "class_type": "SaveImage",
            "inputs": {"images": ["2", 0], "filename_prefix": "half"},
            "_meta": {"title": "output: smaller"},
        },
    },
}
