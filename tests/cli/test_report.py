"""The files of a report: no figure outlives its run, and other files are left alone."""

from __future__ import annotations

from records import counted_checks, synthetic_claims, synthetic_run

from hesstheory.cli.report import write_report
from hesstheory.show import gallery


def test_page_and_figures_are_written(tmp_path):
    records = synthetic_run()
    report = write_report(records, tmp_path)
    assert report.page == tmp_path / "reports" / "index.html"
    assert report.records_shown == counted_checks(records)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == gallery.all_file_names()
    assert [path.name for path in report.page.parent.iterdir()] == ["index.html"]


def test_files_hold_what_was_drawn(tmp_path):
    records = synthetic_claims("power")
    write_report(records, tmp_path)
    (figure,) = gallery.draw_all(records)
    for name, content in figure.files.items():
        written = (tmp_path / "figures" / name).read_bytes()
        assert written == (content if isinstance(content, bytes) else content.encode())


def test_figures_of_an_earlier_run_are_removed_and_other_files_kept(tmp_path):
    folder = tmp_path / "figures"
    write_report(synthetic_claims("power", "tied_bias"), tmp_path)
    (folder / "mine.svg").write_text("kept")
    (folder / "frontier.png").write_text("of another command")
    write_report(synthetic_claims("power"), tmp_path)
    left = {path.name for path in folder.iterdir()}
    power = {f"power_curve.{suffix}" for suffix in ("svg", "png", "csv")}
    assert left == {"mine.svg", "frontier.png", *power}


def test_a_run_without_tables_has_a_page_and_an_empty_folder(tmp_path):
    assert write_report([{"record": "run"}], tmp_path).records_shown == 0
    assert list((tmp_path / "figures").iterdir()) == []


def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path):
    records = synthetic_claims("power", "tied_bias", "budget")
    folders = [tmp_path / str(workers) for workers in (1, 2)]
    for workers, folder in enumerate(folders, 1):
        write_report(records, folder, workers)
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in folders
    )
    assert len(one) == 10
    assert one == two
