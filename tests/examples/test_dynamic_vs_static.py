"""Both designs train alike, and the example says so."""


def test_main_contrasts(load_example, tmp_path, capsys):
    path = tmp_path / "contrast.png"
    table = load_example("dynamic_vs_static").main(["--tiny", "--png", str(path)])
    told = {what: cells for what, *cells in table}
    assert float(told["losses apart, at most"][1]) < 1e-3
    assert told["a loop that values decide"] == ["runs", "an error at its line"]
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert str(path) in capsys.readouterr().out
