"""The commands that list what ccnn has: ops, passes, targets."""

from __future__ import annotations

import click

from ccnn.compiler.options import json_option


@click.command("ops")
@json_option
def ops_command(as_json: bool) -> None:
    """List the ops of the graph language."""
    from ccnn.compiler.lists import show_ops

    show_ops(as_json)


@click.command("passes")
@json_option
def passes_command(as_json: bool) -> None:
    """List the passes, in the order in which compile runs them."""
    from ccnn.compiler.lists import show_passes

    show_passes(as_json)


@click.group("targets", invoke_without_command=True)
@click.pass_context
def targets_group(context: click.Context) -> None:
    """List the machines that ship with ccnn, or show one."""
    if context.invoked_subcommand is None:
        context.invoke(targets_list)


@targets_group.command("list")
def targets_list() -> None:
    """List the machines that ship with ccnn."""
    from ccnn.compiler.lists import show_machines

    show_machines()


@targets_group.command("show")
@click.argument("name", metavar="NAME|FILE.yaml")
def targets_show(name: str) -> None:
    """Show a machine: its numbers, units and where its energies come from."""
    from ccnn.compiler.lists import show_machine

    show_machine(name)


@targets_group.command("schema")
def targets_schema() -> None:
    """Print the JSON Schema of machine files, for editors."""
    from ccnn.compiler.lists import show_machine_schema

    show_machine_schema()


COMMANDS = (ops_command, passes_command, targets_group)
"""What cli.py adds to `ccnn`."""
