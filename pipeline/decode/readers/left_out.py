"""Which mask files belong to the images of a subset, and which files there belong to nothing."""

from fnmatch import fnmatch
from pathlib import Path

from pipeline.core.config.competition import RleCsv, Subset
from pipeline.core.tables import normal_form
from pipeline.decode.readers.base import WORDS, SubsetName
from pipeline.decode.readers.names import (
    ImageFiles,
    fixed_part,
    image_files_under,
    pattern_expression,
    same_format,
    split_ending,
    told,
)


def mask_files(settings: Subset, folder: Path, files: ImageFiles) -> dict[str, Path]:
    """Returns a mask file of every image, and of every id without one, by id or stem. Images that end otherwise
    than the pattern are taken into `files` where they have one."""
    head, _ = split_ending(settings.mask_files or "")
    expression = pattern_expression(head)
    found: dict[str, list[Path]] = {}
    for path in image_files_under(folder / fixed_part(head)):
        if match := expression.fullmatch(path.relative_to(folder).as_posix().removesuffix(path.suffix)):
            found.setdefault(normal_form(match["id"]), []).append(path)
    for image_id in list(files.others):
        if any(path != files.others[image_id] for path in found.get(mask_key(settings, image_id), [])):
            files.has(image_id)
    images = set(files.paths.values())
    masks = {name: [path for path in paths if path not in images] for name, paths in found.items()}
    return {name: paths[0] for name, paths in masks.items() if paths}


def mask_key(settings: Subset, image_id: str) -> str:
    """Returns what stands for an image in the path of its mask files."""
    return Path(image_id).stem if "{stem}" in (settings.mask_files or "") else image_id


def told_of_files(
    competition: RleCsv, subset: SubsetName, folder: Path, files: ImageFiles, masks: dict[str, Path]
) -> list[str]:
    """Returns what a person should know of files that the patterns do not name: how many are read, and how many not."""
    settings: Subset = getattr(competition, subset)
    ending = split_ending(settings.images)[1]
    otherwise = [path for path in files.paths.values() if ending and not same_format(path.suffix, ending)]
    texts = []
    if otherwise:
        texts.append(
            told(
                otherwise,
                folder,
                lambda n: f"{n} {WORDS[subset]} image{'s' * (n > 1)} end otherwise than `{settings.images}`",
            )
            + " and are read too"
        )
    keys = {mask_key(settings, image_id) for image_id in files.paths}
    alone = [path for name, path in masks.items() if name not in keys]
    if alone:
        text = told(alone, folder, lambda n: f"{n} mask file{'s' * (n > 1)} without an image")
        texts.append(f"{text}; images are `{settings.images}`: are some missing, or elsewhere?")
    unused = _unused(competition, settings, folder, files, set(masks.values()))
    if unused:
        text = told(unused, folder, lambda n: f"{n} image file{'s' * (n > 1)} in {fixed_part(settings.images)}/")
        texts.append(f"{text} not used, because `{settings.images}` does not name them or they have no mask")
    return texts


def _unused(competition: RleCsv, settings: Subset, folder: Path, files: ImageFiles, masks: set[Path]) -> list[Path]:
    """The image files in the folder of a subset's images that are neither images nor masks, nor named by `exclude`."""
    place = fixed_part(settings.images)
    if place == ".":  # the whole competition
        return list(files.others.values())
    patterns = [competition.train.mask_files, competition.test.mask_files]
    of_masks = [pattern_expression(split_ending(pattern)[0]) for pattern in patterns if pattern]
    used = {*files.paths.values(), *(path for _, path in files.further), *masks}
    return [
        path
        for path in image_files_under(folder / place)
        if path not in used
        and not any(fnmatch(path.name, other) for other in settings.exclude)
        and not any(one.fullmatch(path.relative_to(folder).as_posix().removesuffix(path.suffix)) for one in of_masks)
    ]
