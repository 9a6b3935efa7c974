"""`adm samplers`."""


def samplers() -> None:
    """List the samplers, with the cost of each and when to choose it."""
    from rich.console import Console
    from rich.table import Table

    from jobs.contract.samplers import SAMPLER_NOTES

    table = Table("Sampler", "Order", "Cost", "Draws noise", "Choose it for", show_lines=True)
    for each in SAMPLER_NOTES:
        table.add_row(each.name, str(each.order), each.cost, each.noise, each.choose_when)
    Console().print(table)
