"""The notes that the example agents look things up in: a few facts about mills, by their titles."""

from typing import Final

NOTES: Final = {
    "headrace": (
        "A headrace (also lade or leat) is the channel that carries water from a weir or a pond to a mill's"
        " wheel or turbine. A steady level in the headrace means a steady wheel."
    ),
    "tailrace": (
        "A tailrace carries the water away from the wheel, back to the river. If it backs up, the wheel"
        " stands in water and loses power."
    ),
    "sluice": (
        "A sluice gate at the head of the race lets in as much water as the mill needs. The miller closes it"
        " to stop the wheel, and in a flood."
    ),
    "penstock": (
        "A penstock is a closed pipe that leads water under pressure from the end of the headrace to a"
        " turbine; high heads need one, a mill's wheel does not."
    ),
    "weir": (
        "A weir is a low dam across the river. It raises the water so that the headrace can begin above the"
        " wheel; fish need a pass around it."
    ),
}


def found(query: str) -> list[str]:
    """Return the titles of the notes that have a word of the query, most hits first; at most three."""
    words = {word.strip(".,;:?!").lower() for word in query.split()} - {""}
    hits = {
        title: sum(word in f"{title} {text}".lower() for word in words if len(word) > 3)
        for title, text in NOTES.items()
    }
    return [title for title in sorted(hits, key=lambda title: -hits[title]) if hits[title]][:3]
