"""What happens in a story: eight plots, each a short sequence of events that later sentences must agree with."""

from jaxablate.data.corpus import words
from jaxablate.data.corpus.narrator import NO_ONE, Page, Thing

_OF_USE = {use: tuple(i for i, noun in enumerate(words.NOUNS) if noun.use == use)
           for use in ("play", "eat", "wear", "keep")}
_ANY = tuple(range(len(words.NOUNS)))
_LASTING = tuple(i for i in _ANY if words.NOUNS[i].use != "eat")
_LIES_AT = {place.word: tuple(i for i in _ANY if words.NOUNS[i].word in place.finds) for place in words.PLACES}
_OWN = {"play": "OWN_TOY", "eat": "OWN_FOOD", "wear": "OWN_CLOTHES", "keep": "OWN_TREASURE"}
_RECALL = ("HOME_WITH", "TELL_WHERE", "NOW_HAS")
_RECALL_TRADE = ("HOME_WITH", "TELL_WHERE", "ASK_WHO", "ASK_WHERE")
_RECALL_GIFT = (*_RECALL_TRADE, "NOW_HAS")
_USING = {"play": "PLAY", "eat": "EAT", "wear": "WEAR", "keep": "KEEP"}


def write_story(page: Page) -> str:
    """Writes a whole story on an empty page and returns the name of its plot."""
    plot = PLOTS[page.chance(_PLOT_CUMULATIVE)]
    a = page.draw(len(words.NAMES))
    b = page.pick(words.partners(a))
    page.stage = (a,)
    page.tell("INTRO", A=a)
    if page.draw(2):
        page.tell("LIFE", A=a)
    plot(page, a, b)
    return plot.__name__.removeprefix("_")


# Parts of plots ------------------------------------------------------------------------------------------------------


def _owner(page: Page, a: int, nouns=_ANY) -> Thing:
    """A has something of their own."""
    thing = page.thing(nouns, a, always_described=True)
    page.tell(_OWN[words.NOUNS[thing.noun].use], A=a, o=thing)
    return thing


def _friend(page: Page, a: int, b: int) -> None:
    page.tell("FRIEND", A=a, B=b)
    page.stage = (a, b)


def _order(page: Page, a: int, b: int) -> tuple[int, int]:
    """Who is named first."""
    return (a, b) if page.draw(2) else (b, a)


def _outing(page: Page, a: int, b: int) -> None:
    """Opens a paragraph: the two are somewhere together."""
    page.paragraph()
    page.place = page.pick(words.PLACES)
    first, second = _order(page, a, b)
    page.tell("OUTING", A=first, B=second)


def _gift(page: Page, a: int, b: int) -> tuple[Thing, int, int]:
    """The indirect-object paragraph: the two are somewhere, and one of them, either, gives the other something new."""
    giver, receiver = _order(page, a, b)
    page.paragraph()
    page.place = page.pick(words.PLACES)
    first, second = _order(page, a, b)
    shape = page.draw(5)
    nouns = _LIES_AT[page.place.word] if shape == 1 else _ANY
    thing = page.thing(nouns, NO_ONE if shape == 1 else giver)
    cast = {"A": first, "B": second, "S": giver, "R": receiver, "o": thing}
    if shape == 0:
        page.tell("OUTING_AND_GIFT", **cast)
    elif shape == 1:
        page.tell("OUTING_AND_FIND", **cast)
    elif shape == 2:
        page.tell("PLAN_AND_OFFER", **cast)
        page.tell("ACCEPT", R=receiver, o=thing)
    else:
        page.tell("OUTING", A=first, B=second)
        _give_new(page, thing, giver, receiver)
    thing.holder = giver
    page.hand(thing, receiver)
    if shape == 2:
        page.tell("GO_AFTER_ALL", S=giver, R=receiver)
    return thing, giver, receiver


def _give_new(page: Page, thing: Thing, giver: int, receiver: int) -> None:
    if page.draw(3):
        page.tell("GIVE", S=giver, R=receiver, o=thing)
    else:
        page.tell("OFFER", S=giver, R=receiver, o=thing)
        page.tell("ACCEPT", R=receiver, o=thing)


def _thanks(page: Page, giver: int, receiver: int) -> None:
    page.tell("THANKS", S=giver, R=receiver)
    if page.draw(3) == 0:
        page.tell("GIVER_FEELS", S=giver, R=receiver)


def _use(page: Page, thing: Thing, giver: int, receiver: int) -> None:
    use = words.NOUNS[thing.noun].use
    page.tell(_USING[use], S=giver, R=receiver, o=thing)
    if use == "eat":
        page.got(thing, NO_ONE)


def _ending(page: Page, a: int, b: int, thing: Thing, recall: tuple[str, ...]) -> None:
    """Last paragraph; unless the thing was eaten, it needs who has it, from whom, or where they were.

    `recall` names the groups of lines that would be true here.
    """
    page.paragraph()
    owner = thing.holder
    last = owner == NO_ONE or page.draw(3) == 0
    if last:
        first, second = _order(page, a, b)
        page.tell("LAST_HOURS", A=first, B=second)
    if owner == NO_ONE:
        return
    page.tell(page.pick(recall), R=owner, S=b if owner == a else a, o=thing)
    if not last and page.draw(2):
        first, second = _order(page, a, b)
        page.tell("LAST_WORDS", A=first, B=second)


# Plots ---------------------------------------------------------------------------------------------------------------


def _a_gift(page: Page, a: int, b: int) -> None:
    """One gives the other something new."""
    _friend(page, a, b)
    thing, giver, receiver = _gift(page, a, b)
    _thanks(page, giver, receiver)
    if page.draw(2):
        _use(page, thing, giver, receiver)
    _ending(page, a, b, thing, _RECALL_GIFT)


def _two_gifts(page: Page, a: int, b: int) -> None:
    """Two gifts on two days, each from either to the other."""
    _friend(page, a, b)
    thing, giver, receiver = _gift(page, a, b)
    _thanks(page, giver, receiver)
    thing, giver, receiver = _gift(page, a, b)
    _thanks(page, giver, receiver)
    _ending(page, a, b, thing, _RECALL_GIFT)


def _passed_on(page: Page, a: int, b: int) -> None:
    """A gift is given on to a third child."""
    _friend(page, a, b)
    thing, giver, owner = _gift(page, a, b)
    if page.draw(2):
        page.tell("THANKS", S=giver, R=owner)
    c = page.pick(words.partners(a, b))
    page.paragraph()
    page.place = page.pick(words.PLACES)
    page.stage = (owner, c)
    page.tell("MEETING", A=owner, B=c)
    page.tell("HAND_ON", A=owner, B=c, o=thing)
    page.tell("GIVE_KNOWN", S=owner, R=c, o=thing)
    page.hand(thing, c)
    _thanks(page, owner, c)
    _ending(page, owner, c, thing, _RECALL_GIFT)


def _shared(page: Page, a: int, b: int) -> None:
    """The friend may have or borrow what the first child brought along."""
    thing = _owner(page, a)
    _friend(page, a, b)
    _outing(page, a, b)
    page.tell("BRING", A=a, o=thing)
    toy = words.NOUNS[thing.noun].use == "play"
    page.tell("WANT_TOY" if toy else "WANT", A=a, B=b, o=thing)
    page.tell("GIVE_KNOWN", S=a, R=b, o=thing)
    page.hand(thing, b)
    _thanks(page, a, b)
    lent = toy and page.draw(2)
    if lent:
        page.tell("PLAY", S=a, R=b, o=thing)
        page.tell("LATER_BACK", S=b, R=a, o=thing)
        page.hand(thing, a, "return")
    elif page.draw(2):
        _use(page, thing, a, b)
    _ending(page, a, b, thing, _RECALL if lent else _RECALL_GIFT)


def _traded(page: Page, a: int, b: int) -> None:
    """Each has something and wants what the other has."""
    mine = _owner(page, a)
    _friend(page, a, b)
    yours = page.thing(tuple(n for n in _ANY if n != mine.noun), b, always_described=True)
    page.tell("OTHER_OWNS", B=b, q=yours)
    _outing(page, a, b)
    (first, one), (second, two) = ((a, mine), (b, yours)) if page.draw(2) else ((b, yours), (a, mine))
    page.tell("LIKE_EACH", A=first, B=second, o=one, q=two)
    (first, one), (second, two) = ((a, mine), (b, yours)) if page.draw(2) else ((b, yours), (a, mine))
    page.tell("SWAP", A=first, B=second, o=one, q=two)
    page.hand(one, second)
    page.hand(two, first)
    page.tell("SWAPPED", A=first, B=second, o=one, q=two)
    _ending(page, a, b, page.pick((mine, yours)), _RECALL_TRADE)


def _lost(page: Page, a: int, b: int) -> None:
    """The first child loses something; the friend finds it and gives it back."""
    thing = _owner(page, a, _LASTING)
    _friend(page, a, b)
    _outing(page, a, b)
    page.tell("BRING", A=a, o=thing)
    page.tell("LOSE", A=a, o=thing)
    page.got(thing, NO_ONE)
    page.tell("CRY", A=a)
    page.tell("SEEK", A=a, B=b)
    page.tell("FOUND", B=b, o=thing)
    page.got(thing, b)
    page.tell("BACK", S=b, R=a, o=thing)
    page.hand(thing, a, "return")
    _thanks(page, b, a)
    _ending(page, a, b, thing, _RECALL)


def _fought(page: Page, a: int, b: int) -> None:
    """The friend takes something away, is sorry, and gives it back."""
    thing = _owner(page, a)
    _friend(page, a, b)
    _outing(page, a, b)
    page.tell("BRING", A=a, o=thing)
    page.tell("TAKE", A=a, B=b, o=thing)
    page.hand(thing, b, "take")
    page.tell("CROSS", A=a, B=b)
    first, second = _order(page, a, b)
    page.tell("SORRY", A=first, B=second, S=b, R=a)
    page.tell("BACK", S=b, R=a, o=thing)
    page.hand(thing, a, "return")
    page.tell("FORGIVE", S=b, R=a)
    _ending(page, a, b, thing, _RECALL)


def _cheered_up(page: Page, a: int, b: int) -> None:
    """One is hurt or sad, and the other helps with a gift."""
    _friend(page, a, b)
    _outing(page, a, b)
    giver, receiver = _order(page, a, b)
    page.tell("HURT", S=giver, R=receiver)
    page.tell("CRY", A=receiver)
    page.tell("CHEER", S=giver, R=receiver)
    thing = page.thing(_ANY, giver)
    _give_new(page, thing, giver, receiver)
    page.hand(thing, receiver)
    _thanks(page, giver, receiver)
    if page.draw(2):
        _use(page, thing, giver, receiver)
    _ending(page, a, b, thing, _RECALL_GIFT)


PLOTS = (_a_gift, _two_gifts, _passed_on, _shared, _traded, _lost, _fought, _cheered_up)
_PLOT_CUMULATIVE = (0.25, 0.40, 0.55, 0.65, 0.73, 0.82, 0.91, 1.0)
"""A gift .25, two gifts .15, passed on .15, shared .1, traded .08, lost .09, fought .09, cheered up .09."""
PLOT_NAMES = tuple(plot.__name__.removeprefix("_") for plot in PLOTS)
