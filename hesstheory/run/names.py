"""Lists of names, as users give them."""

from __future__ import annotations

from collections.abc import Collection


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
