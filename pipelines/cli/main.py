"""`groupvit COMMAND ...`: runs one command, and prints its result or its error.

A user's mistake is a ValueError: one line on stderr, exit code 2.
"""

import json
import os
import shlex
import sys
from collections.abc import Sequence

from pipelines.cli.commands import COMMANDS
from pipelines.cli.flags import one_of
from pipelines.console.terminal import failure_of_output, keep_going
from pipelines.errors import PartlyDone, Stopped, WorkFailedError
from pipelines.provenance import redact_uris

_USAGE = """\
Train GroupViT on image-text pairs, and segment images by words with it.

  groupvit demo                                   all of it in minutes: data, training, evaluation, pictures
  groupvit demo-data shapes --out data/shapes     make a small data set, drawn; or stamps, from real photos
  groupvit download --url-list LIST --out DIR     fetch the images of a list of URLs with captions
  groupvit curate --raw data/raw --out data/cc3m  make one of downloaded images and captions
  groupvit inspect data/shapes/train              look at a data set: counts, histograms, a page of samples
  groupvit forget --data data/cc3m --out data/cc3m-2 --hosts example.org   remove samples; which runs saw them
  groupvit pretrain debug                         train on it; the same command continues a run that was stopped
  groupvit pretrain gcc_yfcc_30e --dry-run --dry-run.gpu H100   check it without GPUs: memory, cores, hours
  groupvit sweep debug --base debug --evaluation.root data/shapes/validation   train variants, compare them
  groupvit evaluate --checkpoint runs/debug --root data/shapes/validation
  groupvit evaluate --checkpoint runs/debug --root data --benchmark voc21   or all; see docs/evaluation.md
  groupvit evaluate --checkpoint runs/debug --root pictures --benchmark folder   your own images and masks
  groupvit evaluate --checkpoint C --root data --benchmark voc21 --explain   what each usual mistake costs in mIoU
  groupvit compare RUN RUN                        evaluations side by side, and whether they differ by chance
  groupvit segment photo.jpg --checkpoint runs/debug --classes "dog, grass"
  groupvit import-weights FILE_OR_FOLDER --out DIR  make a checkpoint of released weights, or of Hugging Face's
  groupvit export --checkpoint runs/debug --to onnx --out DIR   or to hf, or to official
  groupvit register --checkpoint runs/debug --name NAME  put a checkpoint into MLflow, for others to load
  groupvit app --checkpoint runs/debug            the same in the browser, on this machine
  groupvit cost gcc_yfcc_30e --num-gpus 16 --from-run RUN   hours and money a training will take
  groupvit doctor --store s3://bucket/runs        check this machine or a cluster before work is given to it
  groupvit submit pretrain EXPERIMENT ... --follow   the same on a cluster; also sweep, evaluate, curate,
                                                  download; see docs/clusters.md

Commands: {commands}. `groupvit COMMAND --help` explains each. Every command takes --json: the last line of its
output is then one JSON object. Exit codes: 0 done, 1 failed at work, 2 invalid arguments or configuration,
130 or 143 stopped by Ctrl-C or SIGTERM.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    keep_going()
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # otherwise it logs the tables of a new database
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it prints the password in the URI, too
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--json"]
    usage = _USAGE.format(commands=", ".join(COMMANDS))
    exit_code = 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    try:
        result = one_of(COMMANDS, arguments[0], "command")(arguments[1:])
    except (ValueError, OSError, WorkFailedError) as error:  # OSError: a disk, an object store, the network
        if os.environ.get("GROUPVIT_TRACEBACK"):
            raise
        print(f"groupvit: error: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except ModuleNotFoundError as error:
        if os.environ.get("GROUPVIT_TRACEBACK") or (extra := _extra_of(error)) is None:
            raise
        print(
            f"groupvit: error: `{arguments[0]}` needs the package {error.name}, which is not installed: pip install "
            f"'groupvit[{extra}]'",
            file=sys.stderr,
        )
        return 1
    except Stopped as stop:
        command = redact_uris(shlex.join(["groupvit", *arguments, *(["--json"] if as_json else [])]))
        print(f"groupvit: {stop}; to go on: {command}", file=sys.stderr)
        return stop.exit_code
    except PartlyDone as error:
        sys.stdout.flush()
        print(f"groupvit: error: {redact_uris(str(error))}", file=sys.stderr)
        result, exit_code = error.result, error.exit_code
    if as_json:
        sys.stdout.flush()
        print(json.dumps(result), flush=True)
    sys.stdout.flush()
    if failure := failure_of_output():
        print(f"groupvit: error: {failure}; the work itself is done", file=sys.stderr)
        return exit_code or 1
    return exit_code


def _extra_of(error: ModuleNotFoundError) -> str | None:
    """The optional dependencies that a missing package belongs to. None: it is a part of this one."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "groupvit", "pipelines"):
        return None
    return {"spacy": "pipelines,nouns", "onnx": "onnx", "onnxscript": "onnx"}.get(package, "pipelines")


def _one_line(error: ValueError | OSError | WorkFailedError) -> str:
    message = str(error)
    if isinstance(error, UnicodeEncodeError):  # raised for file names and arguments that are not UTF-8
        message = f"{error.object[:200]!a} holds bytes that are not UTF-8: rename the file, or give text in UTF-8"
    elif isinstance(error, UnicodeDecodeError):
        message = f"{error.object[:200]!r} is not UTF-8: rename the file, or convert its text"
    elif isinstance(error, OSError) and error.filename and error.strerror:
        message = f"{error.filename}: {error.strerror}"
    return redact_uris(" ".join(message.split()))
