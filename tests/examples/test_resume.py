"""The example that can be killed goes on where it was, with the losses of a quiet run."""


def lines(path):
    return dict(line.split() for line in path.read_text().splitlines())


def test_it_goes_on_where_it_stopped(load_example, tmp_path, capsys):
    main = load_example("resume").main
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main(["--tiny", f"--out={whole}"])
    for steps in (15, 30, 40):
        main([f"--out={parts}", f"--steps={steps}"])
    assert lines(parts / "losses.txt") == lines(whole / "losses.txt")
    told = capsys.readouterr().out
    for begun in ("0 of 40", "0 of 15", "10 of 30", "30 of 40"):
        assert f"begins at step {begun}" in told
    losses = [float.fromhex(x) for x in lines(whole / "losses.txt").values()]
    assert len(losses) == 40 and sum(losses[-10:]) < sum(losses[:10])
    main(["--fresh", f"--out={parts}", "--steps=1"])
    assert len(lines(parts / "losses.txt")) == 1
