"""Help, version and wrong usage answer at once: nothing heavy is imported for them."""

import json
import subprocess
import sys

import pennyweight
from pennyweight.cli.main import app

VERBS = [command.name for command in app.registered_commands]
ASKED = [
    ([], 2),  # help, and the exit code of wrong usage
    (["--help"], 0),
    (["--version"], 0),
    *(([verb, "--help"], 0) for verb in VERBS),
    (["study", "--help"], 0),
    (["quantise"], 2),
    (["quantize", "--scheem", "W8A8"], 2),
    (["quantize", "pylm"], 2),  # no output
    (["list", "flavours"], 2),
]
PROGRAM = """
import json, sys
from pennyweight.cli.main import main

codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as stopped:
        codes.append(stopped.code)
heavy = [name for name in ("torch", "transformers", "numpy") if name in sys.modules]
print(json.dumps([codes, heavy]))
"""


def test_help_and_wrong_usage_import_nothing_heavy():
    arguments = json.dumps([asked for asked, _ in ASKED])
    command = [sys.executable, "-c", PROGRAM, arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    codes, heavy = json.loads(done.stdout.splitlines()[-1])
    assert codes == [code for _, code in ASKED]
    assert heavy == []
    assert f"\npennyweight {pennyweight.__version__}\n" in done.stdout
