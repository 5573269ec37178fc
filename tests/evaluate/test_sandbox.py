import pytest

from pennyweight.evaluate.sandbox import run_program


def test_a_program_that_comes_to_its_end_passes():
    found = run_program("def f(x):\n    return x + 1\nassert f(1) == 2\nprint('said')")
    assert found.passed
    assert found.reason == ""


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit(0)", "before its tests did"),
        ("import os\nos._exit(0)", "before its tests did"),
        ("x = 'a' * (2 << 30)", "MemoryError"),
        ("import os\nassert 'HOME' not in os.environ and os.environ.get('PATH') is None\n1 / 0",
         "ZeroDivisionError: division by zero"),
        ("import pennyweight", "ModuleNotFoundError: No module named 'pennyweight'"),
    ],
)  # fmt: skip
def test_what_fails_says_why(program, reason):
    found = run_program(program)
    assert not found.passed
    assert reason in found.reason


def test_what_does_not_end_is_ended():
    found = run_program("while True:\n    pass", seconds=0.5)
    assert not found.passed
    assert found.reason == "no end in 0.5 s"


def test_files_are_small_and_gone_afterwards(tmp_path):
    # A flood of output is cut off, and so is a large file.
    assert not run_program("open('x', 'w').write('a' * (1 << 22))\nprint('never')").passed
    assert not run_program("print('a' * (1 << 22))").passed
    path = tmp_path / "where"
    run_program(f"import os; open({str(path)!r}, 'w').write(os.getcwd())")
    from pathlib import Path

    assert "pennyweight-" in path.read_text()
    assert not Path(path.read_text()).exists()


def test_the_network_is_cut_off_or_said_to_be_there():
    connects = "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)"
    found = run_program("pass")
    assert found.network in (True, False)
    if found.network is False:
        # Even the loop back has no route in a namespace of its own: 101, not 111 (refused).
        assert "[Errno 101]" in run_program(connects).reason
