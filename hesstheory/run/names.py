"""Names, as users give them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches


def check_list_of_names(
    argument: str, names: object, refusal: type[ValueError] = ValueError
) -> None:
    """Refuses a text where a list of names is asked: it would be taken letter by letter.

    Parameters
    ----------
    argument
        What the user calls it, such as `rests_on`.
    names
        What was given.
    refusal
        The exception that is raised.

    Raises
    ------
    ValueError
        A text, or no list of texts.

    Examples
    --------
    >>> check_list_of_names("checks", "mean")
    Traceback (most recent call last):
    ...
    ValueError: checks is the text 'mean': pass a list of names, ['mean']
    """
    if isinstance(names, str):
        raise refusal(f"{argument} is the text {names!r}: pass a list of names, [{names!r}]")
    if not isinstance(names, Collection):
        raise refusal(f"{argument} is {names!r}: pass a list of names")
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise refusal(f"{argument} holds {wrong[0]!r}: pass a list of names, each of them a text")


def no_such(kind: str, name: object, known: Iterable[object]) -> str:
    """The message for a name that is unknown: those that are known, and the closest of them.

    Examples
    --------
    >>> no_such("block", "fc", ["conv1", "fc1"])
    "no block 'fc': choose one of conv1, fc1; the closest is 'fc1'"
    """
    names = list(map(str, known))
    closest = get_close_matches(str(name), names, n=1)
    hint = f"; the closest is {closest[0]!r}" if closest else ""
    return f"no {kind} {name!r}: choose one of {', '.join(names)}{hint}"
