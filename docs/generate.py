"""Write the reference pages that come from the code: `make docs`.

docs/configuration.md has every key of `pipeline/config/schema.py` with its comment there;
docs/commands.md has every verb with the arguments and options of its parser.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from era import cost, named_config
from pipeline.cli import app
from pipeline.config import FROZEN_SECTIONS, load_train_config, schema

DOCS = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from the code: `make docs`. Do not edit. -->\n"
CONFIGURATION = """# Configuration keys

A training configuration is a YAML file, given to `--config` as a path or as the name of a packaged
one (`configs/train/{tiny,light,base,paper}.yaml`), followed by any number of `key=value` overrides.
Keys that neither sets have the defaults below.

```sh
era train --config tiny data.train=data/shards/train data.val=data/shards/val train.steps=5000
```

Unknown keys are errors. Sections marked *frozen* define the result: their values are fixed when a
run starts for the first time, and a later attempt with other values is refused with the difference
shown. All other sections may change between attempts; each attempt's values are recorded in the
run folder ([formats.md](formats.md)).

## The packaged configurations

Choose by the blur of the pictures: a network models radii up to its largest, and wider blur counts
as that. `'model.overrides={radius_max: 12, kernel_size: 25}'` changes it (a kernel has at least
2 x radius + 1 pixels).

"""
PACKAGED = {  # what for, and what one needs
    "tiny": ("a first try, in minutes: small pictures, blur of a few pixels", "2 processors"),
    "light": ("as `base`, at a fifth of its cost", "1 GPU"),
    "base": ("DPDD, and pictures of its size (1680x1120)", "1 GPU"),
    "paper": ("the poster's network, as far as it is known", "8 GPUs"),
}
TRAINED = """
Only `tiny` was trained as a whole by us. Single steps of `light` and `base` ran on one GPU; `paper`
was never run. Memory, time and checkpoints of these three, by a model:
[operations.md](operations.md#sizing-a-model).

"""
COMMANDS = """# Commands

`era VERB ...` is the same as `python -m pipeline VERB ...`. Places are local paths or URLs such as
`s3://bucket/key`. Credentials come from the environment (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, ...; `AWS_ENDPOINT_URL` where the store is not AWS) or from where botocore
looks for them (a profile, the role of the instance or pod), never from options or URLs.

Every verb has `--help` and `--json`, which prints one JSON object as the last line of standard
output ([json.md](json.md)); logs and progress go to standard error.

| exit code | meaning |
|---|---|
| 0 | done; also a run that was finished before, and a sweep with failed trials set aside |
| 1 | an error of the program (one line that names a report file) or of a service it needs |
| 2 | an error in the input; also `restore` and `preprocess` that finished all other inputs |
| 130, 143 | stopped by Ctrl-C or SIGTERM; the same command continues |
| 141 | the reader of standard output closed it early; a full standard output is 2 |

"""


def configuration() -> str:
    """docs/configuration.md: the keys, section by section."""
    source = inspect.getsource(schema)
    classes = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)}
    parts = [CONFIGURATION, _packaged(), TRAINED]
    for field in _fields(classes["TrainConfig"], source):
        section = classes[field["type"]]
        frozen = " (frozen)" if field["key"] in FROZEN_SECTIONS else ""
        about = ast.get_docstring(section)
        parts.append(f"## `{field['key']}`{frozen}\n\n{about}\n\n")
        rows = [
            (f"`{field['key']}.{row['key']}`", f"`{row['default']}`", row["about"])
            for row in _fields(section, source)
        ]
        parts.append(_table(("key", "default", "meaning"), rows) + "\n")
    return NOTE + "\n" + "".join(parts).rstrip() + "\n"


def _packaged() -> str:
    """The table of the packaged configurations."""
    rows = []
    for name, (purpose, hardware) in PACKAGED.items():
        config = load_train_config(name)
        network = named_config(config.model.size, **config.model.overrides)
        parameters = cost(network, 64, 64).parameters / 1e6
        samples = f"{config.train.steps} x {config.train.global_batch}"
        radius = f"{network.radius_max:g} pixels"
        rows.append((f"`{name}`", purpose, radius, f"{parameters:.1f} M", samples, hardware))
    head = ("`--config`", "for", "largest radius", "parameters", "steps x batch", "hardware")
    return _table(head, rows)


def _fields(node: ast.ClassDef, source: str) -> Iterator[dict[str, str]]:
    lines = source.splitlines()
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        last = lines[item.end_lineno - 1] if item.end_lineno else ""
        comments = [last[item.end_col_offset or 0 :].strip().removeprefix("#").strip()]
        above = item.lineno - 2
        while lines[above].strip().startswith("#"):
            comments.insert(0, lines[above].strip().removeprefix("#").strip())
            above -= 1
        yield {
            "key": item.target.id,
            "type": ast.unparse(item.annotation),
            "default": _default(item.value),
            "about": " ".join(filter(None, comments)),
        }


def _default(value: ast.expr | None) -> str:
    """A default as YAML would have it."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Workers":
        return _default(value.args[0])
    if isinstance(value, ast.Attribute):  # a member of an enumeration
        return value.attr.lower()
    if isinstance(value, ast.Tuple):
        return f"[{', '.join(map(_default, value.elts))}]"
    if isinstance(value, ast.Call):  # field(default_factory=...)
        factory = next(k.value for k in value.keywords if k.arg == "default_factory")
        if isinstance(factory, ast.Lambda):
            return _default(factory.body)
        return {"dict": "{}", "list": "[]"}.get(ast.unparse(factory), "")
    if isinstance(value, ast.Constant):
        if value.value == "":
            return '""'
        names = {True: "true", False: "false"}
        return names[value.value] if isinstance(value.value, bool) else str(value.value)
    return ast.unparse(value) if value else ""


def commands() -> str:
    """docs/commands.md: the verbs in the order of `era --help`."""
    root: Any = typer.main.get_command(app)
    parts = [COMMANDS]
    for name, verb in root.commands.items():
        parts.extend(_verb(f"era {name}", verb))
    return NOTE + "\n" + "".join(parts).rstrip() + "\n"


def _verb(name: str, verb: Any) -> Iterator[str]:
    heading = "##" if name.count(" ") == 1 else "###"
    about = inspect.cleandoc(verb.help or "").replace("\f", "")
    yield f"{heading} `{name}`\n\n{_examples(about)}\n\n"
    for part, command in getattr(verb, "commands", {}).items():
        yield from _verb(f"{name} {part}", command)
    shown = [p for p in verb.params if p.name not in ("help", "as_json") and not _hidden(p)]
    rows = [(_spelling(p), _value(p), _escaped(p.help or "")) for p in shown]
    if rows and not hasattr(verb, "commands"):
        yield _table(("argument or option", "default", "meaning"), rows) + "\n"


def _examples(text: str) -> str:
    """A docstring with its `Example: era ...` as code."""
    lines = []
    for paragraph in text.split("\n\n"):
        flat = " ".join(paragraph.split())
        if flat.startswith("Example: "):
            flat = f"```sh\n{flat.removeprefix('Example: ')}\n```"
        lines.append(flat)
    return "\n\n".join(lines)


def _hidden(param: Any) -> bool:
    return bool(getattr(param, "hidden", False))


def _spelling(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{param.metavar or param.name.upper()}`"
    value = "" if param.is_flag else f" {(param.metavar or param.name).upper().replace('_', '-')}"
    return f"`{param.opts[0]}{value}`"


def _value(param: Any) -> str:
    if param.required:
        return "required"
    shown = isinstance(param.default, (str, int, float)) and param.default != ""
    return f"`{param.default}`" if shown and param.default is not False else ""


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(_cell(c) for c in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|") if "\\|" not in text else text


PAGES = {"configuration.md": configuration, "commands.md": commands}


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
