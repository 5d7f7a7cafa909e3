"""The claims of a run as HTML: a card below the cell that decides one, the scoreboard, and what
the front page says of them.

All is made of the records in the run's `claims.json`; no number is typed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from patchsae_lib.artefacts import VERDICTS
from patchsae_lib.intervals import POWER, holm

Claim = Mapping[str, Any]

LEVEL = 0.05  # of the adjusted p-value, above which the scoreboard warns
VERDICT_WORDS = {"partly": "partly reproduced", "not": "not reproduced"}  # others as they are
BRACKETS = (  # of a receipt
    "In brackets: the first digits of the notebook's SHA-256, and of the hash of an artefact's "
    "files (their names and their SHA-256) by which the build knows it."
)
FIXED = {"before": "Fixed before a look at the data.", "after a look": "Fixed after a look."}
# what the front page says: a finding of the paper, in its words, and the claim that tests it
FINDINGS = {
    "2-patches": "Latents are concepts with a place",
    "4-topk": "Classification rests on few of them",
    "5-gain": "Adaptation re-uses them",
}


def with_family(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Add the p-value by Holm's procedure, `holm`, to the claims that have a p-value: these are
    the family."""
    tested = [claim for claim in claims if claim["p"] is not None]
    adjusted = holm([claim["p"] for claim in tested])
    by_id = {claim["id"]: p for claim, p in zip(tested, adjusted, strict=True)}
    return [{**claim, "holm": by_id.get(claim["id"])} for claim in claims]


def number(value: str | float) -> str:
    """A number to three digits, or a text, with minus signs, and with % on the line of its number.

    >>> number(-0.61803), number("-5% or 2-3")
    ('−0.618', '−5\\xa0% or 2-3')
    """
    text = value if isinstance(value, str) else f"{value:.3g}"
    return re.sub(r"(?<![\w.])-(?=\d)", "−", re.sub(r"(?<=\d) ?%", "\xa0%", text))


def measured(claim: Claim) -> str:
    """What we measured, with its interval, the unit of that, and the p-value.

    >>> measured({"measured": 0.61803, "interval": [0.5, 0.75], "over": "pictures × seeds",
    ...           "interval_of": "rise", "p": 0.01, "holm": 0.04})
    '0.618 (rise 0.5 to 0.75 over pictures × seeds; p = 0.01, adjusted 0.04)'
    """
    parts = []
    if claim["interval"] is not None:
        over = f" over {claim['over']}" if claim["over"] else ""
        words = "{} {} to {}".format(claim.get("interval_of", ""), *map(number, claim["interval"]))
        parts.append(words.strip() + over)
    if claim["p"] is not None:
        parts.append(f"p = {number(claim['p'])}, adjusted {number(claim['holm'])}")
    return number(claim["measured"]) + (f" ({'; '.join(parts)})" if parts else "")


def sentence(text: str) -> str:
    """A text as a sentence: a capital, but of no symbol, and a full stop.

    >>> sentence("λ matters"), sentence("what CLIP sees!")
    ('λ matters.', 'What CLIP sees!')
    """
    first = text[:1].upper() if text[:1].isascii() else text[:1]
    return first + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def rule(claim: Claim) -> tuple[str, str]:
    """The rule of the verdict with the time at which it was fixed, and what else is to be known:
    the smallest effect that the data could show among it.

    >>> rule({"note": "Nine tasks. Rule: above 0.", "rule": "before", "detectable": "a rise of 1"})
    ... # doctest: +NORMALIZE_WHITESPACE
    ('Above 0. Fixed before a look at the data.',
     'Nine tasks. These data would show a rise of 1 or more with a power of 0.8.')
    """
    about, _, text = claim["note"].partition("Rule: ")
    when = FIXED.get(claim.get("rule", ""), "")
    if claim["detectable"]:
        about += f" These data would show {claim['detectable']} or more with a power of {POWER}."
    return " ".join(filter(None, [sentence(text) if text else "", when])), " ".join(about.split())


def badge(verdict: str) -> str:
    """A verdict in words; the colour only repeats them."""
    kind = verdict.replace(" ", "-")
    return f'<span class="verdict verdict-{kind}">{VERDICT_WORDS.get(verdict, verdict)}</span>'


def parts(claim: Claim) -> dict[str, str]:
    """The texts of a claim by title: of its card, and of its row; none is empty."""
    decided_by, about = rule(claim)
    found = sentence(measured(claim))
    if claim["verdict"] == VERDICTS[0] and (claim.get("holm") or 0) > LEVEL:
        found += " Among so many claims that are tested here this may be chance."
    texts = {"The paper": sentence(number(claim["paper"])), "Here": found}
    texts |= {"Rule": number(decided_by), "Note": number(about)}
    return {title: text for title, text in texts.items() if text}


def receipt(claim: Claim, root: str = "") -> str:
    """Where a claim's number comes from, folded: the cell, the seeds, and the artefacts that the
    notebook has read, with hashes, and of what the interval is. Nothing for a claim without a
    receipt. `root`: the way from the page to that of the front."""
    if "receipt" not in claim:
        return ""
    found = claim["receipt"]
    page = escape(claim["notebook"])
    lines = [
        f'computed by the cell above its <a href="{root}notebooks/{page}.html#claim-'
        f'{escape(claim["id"])}">card</a> in {page} ({escape(found["notebook"])})',
        f"with the profile {escape(found['profile'])}, {found['seeds']} seeds",
    ]
    lines += [
        escape(f"from {name} of {by} ({hash})" if by else f"from {name} ({hash})")
        for name, (by, hash) in found["reads"].items()
    ]
    if claim["interval"] is not None and claim["over"]:
        lines.append(escape(f"its interval is over {claim['over']}"))
    listed = "".join(f"<li>{line}</li>" for line in lines)
    return (
        '<details class="receipt"><summary>Where this number comes from</summary>'
        f"<ul>{listed}</ul><p>{BRACKETS}</p></details>"
    )


def card(claim: Claim) -> str:
    """A claim where it is decided, on the page of a notebook, with a link to the scoreboard."""
    name = escape(claim["id"])
    rows = (f"<dt>{title}</dt><dd>{escape(text)}</dd>" for title, text in parts(claim).items())
    title = f"{escape(sentence(claim['claim']))} <small>{escape(claim['where'])}</small>"
    found = receipt(claim, "../")
    return (
        f'<div class="claim" id="claim-{name}">'
        f"<p>{badge(claim['verdict'])} <b>{title}</b></p><dl>{''.join(rows)}</dl>{found}"
        f'<a href="../scoreboard.html#claim-{name}">On the scoreboard</a></div>\n'
    )


def decided(claims: Sequence[Claim]) -> str:
    """What a page finds, before it begins: a line for each claim, which leads to its card.

    >>> decided([])
    ''
    """
    lines = "".join(
        f'<li>{badge(claim["verdict"])} <a href="#claim-{escape(claim["id"])}">'
        f"{escape(sentence(claim['claim']))}</a></li>"
        for claim in claims
    )
    return f'<div class="decided"><b>Found on this page</b><ul>{lines}</ul></div>' if lines else ""


def counted(claims: Sequence[Claim]) -> str:
    """How many claims of the paper there are, and of which verdict; of those that were
    reproduced, how many by a rule that was fixed before a look.

    >>> counted([{"verdict": "not"}, {"verdict": "partly"}, {"verdict": "not"}])
    '3 claims: 1 partly reproduced, 2 not reproduced'
    >>> counted([{"verdict": "reproduced", "rule": rule} for rule in ("before", "after a look")])
    '2 claims: 2 reproduced (1 by a rule fixed before a look at the data)'
    >>> counted([{"verdict": "not"}, {"verdict": "reproduced", "own": True}])
    '1 claim: 1 not reproduced'
    """
    claims = [claim for claim in claims if not claim.get("own")]
    count = Counter(claim["verdict"] for claim in claims)
    before = Counter(claim["verdict"] for claim in claims if claim.get("rule") == "before")
    words = {v: VERDICT_WORDS.get(v, v) for v in VERDICTS}
    words["reproduced"] += f" ({before['reproduced']} by a rule fixed before a look at the data)"
    texts = ", ".join(f"{count[v]} {words[v]}" for v in VERDICTS if count[v])
    return f"{len(claims)} claim{'s' * (len(claims) != 1)}: {texts or 'none recorded yet'}"


def scoreboard(claims: Sequence[Claim], profile: Claim) -> str:
    """The claims as an HTML table, which a narrow page shows as cards, and a line that sums it up.
    With JavaScript its rows can be filtered by verdict and page."""
    n_own = sum(claim.get("own", False) for claim in claims)
    own = f" Not counted: {n_own} question{'s' * (n_own != 1)} of this book." if n_own else ""
    head = (
        f"<p><b>{counted(claims)}.</b>{own} Measured with the profile "
        f"<code>{escape(profile['name'])}</code>: model "
        f"<code>{escape(profile['model']['name'])}</code>, pictures "
        f"<code>{escape(profile['pictures']['spec'])}</code>, {profile['seeds']} seeds.</p>"
    )
    if not claims:
        return head
    titles = "".join(f'<th scope="col">{x}</th>' for x in ("Claim", "The paper", "Here", "Rule"))
    rows = "".join(map(row, with_family(claims)))
    table = f'<table class="table scoreboard"><thead><tr>{titles}</tr></thead>'
    return f"{head}\n{table}<tbody>{rows}</tbody></table>"


def row(claim: Claim) -> str:
    """A claim's row of the scoreboard: its cells are what its card says."""
    name, page, texts = escape(claim["id"]), escape(claim["notebook"]), parts(claim)
    shown = {title: f"<p>{escape(texts.get(title, ''))}</p>" for title in ("The paper", "Here")}
    shown["Here"] += receipt(claim)
    decided = "".join(f"<p>{escape(texts[x])}</p>" for x in ("Rule", "Note") if x in texts)
    cells = "".join(f'<td data-title="{title}">{text}</td>' for title, text in shown.items())
    link = f'<a href="notebooks/{page}.html#claim-{name}">{page.partition("_")[0]}</a>'
    where = f"{escape(claim['where'])}{f' · page {link}' if page else ''}"
    verdict = VERDICT_WORDS.get(claim["verdict"], claim["verdict"])
    return (
        f'<tr id="claim-{name}" data-verdict="{verdict}" data-page="{page}">'
        f"<td><p><b>{escape(sentence(claim['claim']))}</b></p><p>{badge(claim['verdict'])}</p>"
        f'<p class="where">{where}</p></td>{cells}<td data-title="Rule">{decided}</td></tr>'
    )


def findings(claims: Sequence[Claim]) -> str:
    """The front page's three findings: what the paper says, what was measured, the verdict."""
    by_id = {claim["id"]: claim for claim in with_family(claims)}
    cards = (finding(title, by_id.get(name)) for name, title in FINDINGS.items())
    return f'<div class="findings">{"".join(cards)}</div>'


def finding(title: str, claim: Claim | None) -> str:
    """One of them, as a card that leads to the place where it is decided."""
    head = f'<div class="claim"><p><b>{title}</b></p>'
    if claim is None:
        return f"{head}<p>This run did not test it.</p></div>"
    texts, place = parts(claim), f"notebooks/{claim['notebook']}.html#claim-{claim['id']}"
    rows = (f"<dt>{x}</dt><dd>{escape(texts[x])}</dd>" for x in ("The paper", "Here"))
    link = f'<a href="{escape(place)}">How it was measured</a>'
    return f"{head}<dl>{''.join(rows)}</dl><p>{badge(claim['verdict'])} {link}</p></div>"
