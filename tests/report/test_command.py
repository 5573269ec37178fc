from typer.testing import CliRunner

from pennyweight.cli.main import app


def test_report_writes_the_page_and_says_where(full, tmp_path):
    page = tmp_path / "r.html"
    done = CliRunner().invoke(app, ["report", *map(str, (full.small, full.large)), "-o", str(page)])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{page}\n"
    assert "left out for want of data: Quality" in done.stderr
    assert page.read_text().startswith("<!doctype html>")


def test_all_options(full, tmp_path):
    s, page = full.sources, tmp_path / "r.html"
    done = CliRunner().invoke(app, [
        "report", *map(str, s.directories), "-o", str(page), "--records", str(s.records[0]),
        "--profile", str(s.profile), "--plan", str(s.plan), "--samples", str(s.samples),
        "--diagnosis", str(s.diagnosis), "--budget", "5",
    ])  # fmt: skip
    assert done.exit_code == 0 and done.stderr == "", done.output
    assert "within 5 %" in page.read_text()
