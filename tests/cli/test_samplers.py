from typer.testing import CliRunner

from cli.main import app
from jobs.contract.samplers import SAMPLER_NOTES


def test_samplers_are_listed_with_their_cost() -> None:
    result = CliRunner().invoke(app, ["samplers"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for each in SAMPLER_NOTES:
        assert each.name in result.stdout
    assert "2 network evaluations" in result.stdout
