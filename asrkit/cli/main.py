"""`asrkit <command> …`: finds the command's module, and turns every outcome into an exit status.

A command `name` is the module `asrkit.cli.name` with a `main(argv)` that hands a typed function, or a dict of
functions (subcommands), to `run`. Parameters before a bare `*` are positional, those after it are `--options`; the
docstring is the help. Only the chosen module is imported, so `asrkit --help` needs no torch.
"""

import importlib
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, get_args, get_origin

from asrkit.errors import InputError

DATA_FOLDERS = ("ASRKIT_CORPORA", "ASRKIT_IMAGES")

COMMANDS = {
    "data": "prepare, validate, describe and compare corpora",
    "lang": "make the tokens and the lexicon of a language",
    "train": "train a model",
    "lm": "train and measure language models",
    "speaker": "train and measure speaker embeddings",
    "decode": "transcribe audio",
    "serve": "transcribe live, for web pages and programs",
    "diarise": "find out who speaks when and where in a meeting",
    "tune": "find the weights of language models that decode best",
    "score": "word error rate of hypotheses, with its interval and alignments",
    "der": "diarisation error rate of who spoke when and where",
    "results": "write RESULTS.md from scored experiments",
    "vision": "train and measure image classifiers, to be compressed",
    "compress": "make networks smaller and faster: pruning schemes, mapped, trained and compiled",
    "export": "make a trained model into files that run elsewhere",
    "bench": "compare how fast engines run models here",
    "plot": "draw learning curves, alignments and latencies",
}

USAGE = "usage: asrkit <command> [--help] [options]\n\ncommands:\n" + "".join(
    f"  {name:<9} {text}\n" for name, text in COMMANDS.items()
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit status.

    Status 0: done; 1: bad input (one line on standard error); 2: wrong usage; 130: interrupted; 141: the reader of
    standard output went away. Any other exception is a defect of asrkit and keeps its traceback.
    """
    argv = [_underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if not argv or argv[0] not in COMMANDS:
        problem = f"unknown command '{argv[0]}'" if argv else "no command given"
        print(f"asrkit: {problem}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        importlib.import_module(f"asrkit.cli.{argv[0]}").main(argv[1:])
        sys.stdout.flush()
    except InputError as error:
        print(f"asrkit {argv[0]}: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is still buffered has no reader either: send it nowhere, or the interpreter complains while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def run(components: Callable | dict[str, Any], argv: list[str]) -> Any:
    """Call a function, or one of a nested dict of functions, with arguments parsed from `argv` by its signature.

    A parameter `list[X]` or `Sequence[X]` takes one or more words (`--by speaker domain`); a `bool` is a flag
    (`--streaming`, `--no_streaming`); a dataclass gives dotted options. In a dict, "_help" describes it. The name in
    messages is that of the calling module: one module a command.

    Raises:
        SystemExit: status 2 and one line on standard error for a wrong argument; status 0 after `--help`.
    """
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None):
            program = (getattr(ex, "subcommand_parser", None) or self).prog.replace(" [options]", "")
            self.exit(2, f"{program}: {_one_line(message)} (see {program} --help)\n")

    command = inspect.currentframe().f_back.f_globals["__name__"].rpartition(".")[2]
    parser = Parser(prog=f"asrkit {command}", description=_description(components))
    _add(parser, components)
    try:
        values = parser.instantiate(parser.parse_args(argv))
    except ValueError as error:  # a dataclass refuses its values
        parser.error(str(error))
    while isinstance(components, dict):
        name = values["subcommand"]
        components, values = components[name], values[name]
    return components(**values)


def command_line() -> str:
    """Return the running command as a shell would take it, for the files that tell how they were made.

    Folders that the environment names are named so, since they lie elsewhere on other machines.
    """
    line = shlex.join(["asrkit", *sys.argv[1:]])
    for name in DATA_FOLDERS:
        if folder := os.environ.get(name, "").rstrip("/"):
            line = line.replace(f"{folder}/", f"${name}/")
    return line


def _add(parser: Any, components: Callable | dict[str, Any]) -> None:
    """Add the arguments of a function, or subcommands, to a parser."""
    if isinstance(components, dict):
        subcommands = parser.add_subcommands(required=True)
        for name, component in components.items():
            if name != "_help":
                child = type(parser)(description=_description(component))
                subcommands.add_subcommand(name, child, help=child.description.partition("\n")[0])
                _add(child, component)
        return
    ours = _lists_and_flags(components)
    parser.add_function_arguments(components, as_group=False, as_positional=True, skip=set(ours))
    for name, options in ours.values():
        parser.add_argument(name, **options)


def _description(components: Callable | dict[str, Any]) -> str:
    from docstring_parser import parse

    if isinstance(components, dict):
        return components.get("_help", "")
    return parse(components.__doc__ or "").description or ""


def _lists_and_flags(function: Callable) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return parameter -> (its argument, options of `add_argument`) of the parameters that are lists or flags.

    jsonargparse alone would take them as "[a, b]" and "true".
    """
    from docstring_parser import parse
    from jsonargparse import ActionYesNo

    texts = {entry.arg_name: entry.description for entry in parse(function.__doc__ or "").params}
    found = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        item = _list_item(parameter.annotation)
        if item is None and parameter.annotation is not bool:
            continue
        options = {"action": ActionYesNo(no_prefix="no_")} if item is None else {"type": item, "nargs": "+"}
        required = parameter.default is inspect.Parameter.empty
        positional = required and parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        if not positional:
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            options |= {"required": True} if required else {"default": default}
        found[name] = (name if positional else f"--{name}", options | {"help": texts.get(name)})
    return found


def _list_item(annotation: Any) -> Any:
    """Return X of `list[X]`, `Sequence[X]` and either `| None`, None of all else."""
    optional = get_args(annotation) if NoneType in get_args(annotation) else ()
    return next((get_args(kind)[0] for kind in (annotation, *optional) if get_origin(kind) in (list, Sequence)), None)


def _underscored(word: str) -> str:
    """Write an option's name as the parameter is called: `--vocab-size=8` as `--vocab_size=8`."""
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else word


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


if __name__ == "__main__":
    sys.exit(main())
