"""An uploaded X-ray: bounded, decoded, and checked for content."""

import dataclasses

from PIL import Image

from unix_jax.errors import ImageError
from unix_jax.preprocessing.gray_levels import gray_level_problem, warning_text
from unix_jax.preprocessing.images import load_image


@dataclasses.dataclass(frozen=True)
class Upload:
    """A decoded image of mode RGB, and a sentence if it shows almost nothing, else ""."""

    image: Image.Image = dataclasses.field(repr=False)
    warning: str = ""


def read_upload(data: bytes, name: str, *, max_bytes: int, max_pixels: int) -> Upload:
    """Decodes the bytes of a file of any kind that `load_image` reads.

    Raises:
      ImageError: too many bytes or pixels, or not an image; it names `name`.
    """
    if len(data) > max_bytes:
        raise ImageError(
            f"{name}: expected at most {max_bytes / 2**20:g} MB, found {len(data) / 2**20:.1f} MB"
        )
    try:
        image = load_image(data, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(str(error).replace("image bytes", name, 1)) from error
    problem = gray_level_problem(image)
    return Upload(image, warning_text(name, problem) + "." if problem else "")
