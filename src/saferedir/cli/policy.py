"""`saferedir policy`: explain a policy file, and say what another version of it changes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saferedir.cli.common import console, errors, escape, load_model, new_table, print_json, quiet
from saferedir.cli.options import AsJson, Device

if TYPE_CHECKING:
    from saferedir.policy.rules import ConceptRule, Policy

policy_app = typer.Typer(
    name="policy", no_args_is_help=True, help="Policy files: concepts, guards and actions. Check one, compare two."
)
PolicyFile = Annotated[Path, typer.Argument(metavar="FILE", help="A policy, TOML or JSON.")]


@policy_app.command("check", no_args_is_help=True)
def check(
    file: PolicyFile,
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="A model; also look for anchors on which another guard acts.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Explain a policy in a table; exit code 1 if a guard is missing, cannot do its action, or redirects into another concept,
    as the policy is written or in one of its profiles. Warns where no image would come out without a verifier of yours, because
    by its own record a guard cannot tell whether an image shows the concept.

    Example:  `saferedir policy check shop.toml --model pictoworld`
    """
    quiet()
    from saferedir.policy.checking import all_named_conflicts, all_weak_verdict_texts, checked_policies, forms_of
    from saferedir.policy.conflicts import anchor_conflicts, anchor_of
    from saferedir.policy.rules import Policy
    from saferedir.protect import prompt_decisions

    policy = Policy.from_file(file)
    checked = checked_policies(forms_of(policy))
    conflicts = all_named_conflicts(list(checked.values()))
    if model:
        decide = partial(prompt_decisions, load_model(model, device=device))
        acting = {tuple((rule.concept, rule.action != "log") for rule in each.rules): each for each in checked.values()}
        measured = [c for each in acting.values() for c in anchor_conflicts(decide, each.guards, each.rules)]
        conflicts += [conflict for conflict in dict.fromkeys(measured) if conflict not in conflicts]
    weak = all_weak_verdict_texts(checked)
    if as_json:
        rows = [conflict._asdict() for conflict in conflicts]
        print_json({**policy.to_dict(), "fingerprint": policy.fingerprint, "conflicts": rows, "warnings": weak})
    else:
        table = new_table("", "concept", "category", "guard", "anchor", "action", *policy.profiles, "grades", "allowed")
        loaded = {
            rule.concept: guard
            for each in checked.values()
            for guard, rule in zip(each.guards, each.rules, strict=True)
        }
        for rule in policy.concepts:
            of_profiles = [_action_in(policy, profile, rule.concept) for profile in policy.profiles]
            guard = loaded.get(rule.concept)
            of = ", ".join(part for part in ("" if guard is None else guard.method, rule.row) if part)
            table.add_row(
                *map(escape, (rule.concept, rule.category, f"{rule.guard} ({of})" if of else rule.guard)),
                "" if guard is None else escape(anchor_of(guard, rule)), rule.action, *of_profiles, _grades(rule),
                escape(", ".join(map(repr, rule.allow))),
            )  # fmt: skip
        console.print(table)
        console.print(f"{policy.name}, version {policy.version}, {policy.fingerprint[:16]}", highlight=False)
    for text in (*(conflict.sentence for conflict in conflicts), *weak):
        errors.print(text, soft_wrap=True, highlight=False, markup=False)
    if conflicts:
        raise typer.Exit(1)


@policy_app.command("diff", no_args_is_help=True)
def diff(
    before: PolicyFile,
    after: Annotated[Path, typer.Argument(metavar="OTHER", help="The policy to compare it with.")],
    as_json: AsJson = False,
) -> None:
    """Say what another version changes; exit code 1 if it lets more through somewhere.

    Example:  `saferedir policy diff shop.toml shop-2.toml`
    """
    from saferedir.policy.rules import Policy

    changes = Policy.from_file(before).changes(Policy.from_file(after))
    if as_json:
        print_json([change._asdict() for change in changes])
    elif not changes:
        console.print("The policies say the same.")
    else:
        table = new_table("", "what", before.name, after.name, "")
        for change in changes:
            table.add_row(*map(escape, change[:3]), "weaker" if change.is_weaker else "")
        console.print(table)
    if any(change.is_weaker for change in changes):
        raise typer.Exit(1)


def _action_in(policy: Policy, profile: str, concept: str) -> str:
    return next(rule.action for rule in policy.for_profile(profile).concepts if rule.concept == concept)


def _grades(rule: ConceptRule) -> str:
    parts: list[Any] = [
        f"{name} ≥ {limit:g}{' (blocked)' if rule.blocks(name) else ''}" for name, limit in rule.grades.items()
    ]
    return ", ".join(parts)
