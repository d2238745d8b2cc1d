"""The sentences of the corpus `mini`: one small grammar for each text domain.

A rule `name: this | that` gives alternatives, equally likely; `<name>` stands for a rule, `[name]` for a rule that
comes every other time, and all else is a word. No two words sound alike (so no `to` beside `two`, no `be` beside the
letter `b`), and the only article is `the`, because `a` is a letter.
"""

import random
import re
from functools import lru_cache

_SHARED = """
digit: one | two | three | four | five | six | seven | eight | nine
teen: ten | eleven | twelve | thirteen | fourteen | fifteen | sixteen | seventeen | eighteen | nineteen
tens: twenty | thirty | forty | fifty | sixty | seventy | eighty | ninety
number: <digit> | <teen> | <tens> | <tens> <digit>
weekday: monday | tuesday | wednesday | thursday | friday | saturday | sunday
month: january | february | march | april | may | june | july | august | september | october | november | december
ordinal: first | second | third | fourth | fifth | sixth | seventh | eighth | ninth | tenth | eleventh | twelfth |
    thirteenth | twentieth | twenty <unit_ordinal> | thirty first
unit_ordinal: first | second | third | fourth | fifth | sixth | seventh | eighth | ninth
hour: one | two | three | four | five | six | seven | eight | nine | ten | eleven | twelve
daytime: morning | afternoon | evening
clock: <hour> <minutes> | half past <hour> | quarter past <hour> | quarter before <hour> | <hour> in the <daytime>
minutes: fifteen | twenty | thirty | forty five | ten | fifty
name: anna | david | laura | peter | susan | martin | helen | victor | julia | oscar | emma | simon | nora | felix |
    clara | thomas
"""

_DOMAINS = {
    "smart_home": """
start: [polite] <command> | <command> [when] | <command> and <command> | [polite] <command> and then <command> |
    <question>
polite: please | could someone | can we | computer
command: turn <switch> the [room] <device> | turn the [room] <device> <switch> | set the [room] <dial> at <number>
    <unit> | <move> the [room] <opening> | <change> the [room] <dial> by <number> <unit> | play <music> in the <room>
    | <timing> the <kitchen_thing> timer after <number> minutes | dim the <room> lamp | stop the music | start the
    <machine> <when> | remind me about the <machine>
switch: on | off
room: kitchen | bedroom | bathroom | hallway | garage | office | garden | basement | nursery
device: lamp | fan | heating | radio | television | lights | alarm | <machine>
machine: oven | dishwasher | vacuum | kettle | sprinkler
dial: temperature | volume | brightness | thermostat
unit: degrees | percent
move: open | close | lock | unlock
opening: door | window | blinds | curtains
change: raise | lower | increase | reduce
music: jazz | some classical music | the radio | some quiet music | my favorite album
timing: start | set | cancel
kitchen_thing: pasta | coffee | oven | laundry
when: in <number> minutes | at <clock> | when i leave home | after sunset | every <daytime> | every <weekday>
question: is the [room] <opening> <state> | what is the <dial> in the <room> | did i leave the [room] <device>
    <switch> | who left the <room> <opening> open
state: open | closed | locked
""",
    "travel": """
start: <want> <trip> | <trip> please | <question> | <change> my <booking> [reason] | [greeting] <want> <trip>
greeting: hello | good <daytime>
want: please book | please find | i need | i would like | show me | reserve
trip: the <speed> <vehicle> from <city> via <city> <date> | <number> tickets from <city> via <city> | the <class>
    <vehicle> leaving <city> <date> | some hotel near the <place> in <city> | the <size> room with <extra> in <city>
    <nights> | the <vehicle> from <city> arriving at <clock> | the window seat on the <vehicle> leaving <city> at
    <clock> | some taxi between the <place> and the <place>
speed: next | last | fastest | cheapest | direct | <daytime>
vehicle: train | flight | ferry | bus
class: first class | economy | business class | overnight
city: london | paris | berlin | madrid | lisbon | vienna | dublin | oslo | prague | boston | chicago | denver |
    toronto | sydney | tokyo | geneva
date: tomorrow | on <weekday> | on <weekday> <daytime> | on <month> <ordinal> | next <weekday> | tonight
place: airport | station | harbor | museum | city center | castle | stadium
size: double | single | family | quiet
extra: breakfast | parking | balcony | ocean view
nights: until <weekday> | until <month> <ordinal> | from <weekday> until <weekday>
question: when does the <speed> <vehicle> leave <city> | how long is the <vehicle> from <city> | which platform has
    the <vehicle> from <city> | how much is the <class> <vehicle> from <city> <date> | is the <vehicle> from <city>
    delayed | how far is the <place> from the <place>
change: cancel | confirm | move
booking: <vehicle> from <city> | hotel in <city> | trip via <city> | <weekday> <vehicle>
reason: because of <trouble>
trouble: snow | fog | illness | the strike | bad weather
""",
    "dates_amounts": """
start: <transfer> | <appointment> | <bill> | <event> | <number> times <number> makes <large>
transfer: <send> <money> from <account> into <account> [date] | <send> <name> <money> [date] | <send> <money> every
    <month> | withdraw <money> from <account>
send: transfer | send | pay | deposit
money: <large> <currency> | <number> <currency> and <number> cents | <number> <currency>
large: <digit> hundred | <digit> hundred and <number> | <number> thousand | <number> thousand <digit> hundred |
    <digit> million
currency: dollars | pounds | euros | francs | crowns
account: savings | checking | the joint account | the travel fund | my credit card
date: on <weekday> | on the <ordinal> of <month> | before <month> <ordinal> | on <month> <ordinal>
appointment: the <visit> is on <weekday> the <ordinal> of <month> | move the <visit> from <weekday> <daytime> until
    <weekday> at <clock> | the <visit> begins at <clock> and ends at <clock> | cancel the <visit> on <month> <ordinal>
visit: dentist | doctor | haircut | interview | lesson | inspection
bill: the <item> costs <money> | the <item> bill of <money> was due <date> | <name> owes me <money> | the balance of
    <account> is <money> | the <item> rose by <number> percent since <month>
item: rent | electricity | phone | insurance | internet | grocery
event: <name> was born on <month> <ordinal> nineteen <decade> <digit> | the contract ended <date> | it happened in
    <month> twenty <decade> | the shop opens at <clock> until <clock>
decade: forty | fifty | sixty | seventy | eighty | ninety
""",
    "names_addresses": """
start: my name is <name> <surname> | <name> <surname> lives at <address> | [ask] <name> <spelled> | the surname is
    <spelled> | please call <name> <spelled> | please spell <spelled> | ship the <parcel> by mail at <address> |
    <address> in <spelled_town> | the zip code is <digit> <digit> <digit> <digit> <digit> | call <name> on <digit>
    <digit> <digit> <digit> <digit> <digit> | the address is <address> <floor> | <name> <surname> moved from <town> |
    my license plate is <letter> <letter> <digit> <digit> <digit> <letter>
ask: please call | please find | this is | write down
surname: keller | harris | bishop | novak | jensen | porter | wagner | quinn | fisher | dixon | lambert | vega
spelled: keller k e l l e r | harris h a r r i s | bishop b i s h o p | novak n o v a k | jensen j e n s e n | porter
    p o r t e r | wagner w a g n e r | quinn q u i n n | fisher f i s h e r | dixon d i x o n | lambert l a m b e r t
    | vega v e g a
letter: a | b | c | d | e | f | g | h | i | j | k | l | m | n | o | p | q | r | s | t | u | v | w | x | y | z
address: <number> <street> <way> | <digit> hundred <number> <street> <way>
street: maple | oak | river | church | station | garden | cedar | mill | king | lincoln | highland | spring
way: street | avenue | lane | drive | court
town: oxford | salem | bristol | dover | camden | york
spelled_town: oxford o x f o r d | salem s a l e m | bristol b r i s t o l | dover d o v e r | camden c a m d e n |
    york y o r k
parcel: parcel | letter | invoice | package | contract
floor: on the <ordinal> floor | apartment <number> | behind the church
""",
    "meeting": """
start: <open> | <opinion> | <opinion> and <opinion> | <ask> | <name> <plan> | please <act> the <topic> before
    <weekday> at <clock> | <close> | thanks everyone <opinion> | [filler] <opinion>
filler: well | okay | yes | no | sorry | exactly | actually
open: good <daytime> everyone let us <begin> | welcome back everyone | can everyone hear me | <name> has joined the
    call | the first item is the <topic> | let us <begin> with the <topic>
begin: begin | start | continue
opinion: i think the <topic> <judgement> | the <topic> <judgement> | we should <act> the <topic> | i <feel> with
    <name> about the <topic> | <name> said the <topic> <judgement> | we have <quantity> time left | nobody mentioned
    the <topic>
topic: budget | schedule | report | project | prototype | customer survey | release | contract | team | website |
    training | deadline
judgement: looks <quality> | is <quality> | was <quality> last <period> | needs more <need> | will take <number>
    <period_plural>
quality: great | terrible | late | ready | unclear | expensive | almost finished | rather risky
need: work | money | testing | people | attention
period: week | month | quarter | year
period_plural: days | weeks | months
act: review | discuss | postpone | finish | share | update | approve
feel: agree | disagree | talked
quantity: plenty of | very little | very much | about <number> minutes of
ask: who will <act> the <topic> | when will the <topic> finish | what happened with the <topic> last <period> | does
    anyone have questions about the <topic> | could <name> <act> the <topic> before <weekday> | how was the weekend
    <name>
plan: will <act> the <topic> on <weekday> | will send the notes tomorrow | is on holiday until <weekday>
close: let us meet again on <weekday> at <clock> | thanks everyone and enjoy the weekend | any other business | that
    is all from my side | sorry i have another call at <clock>
""",
}

DOMAINS = tuple(_DOMAINS)
_MAX_WORDS = 16


def sample_sentence(domain: str, rng: random.Random) -> list[str]:
    """The words of a random sentence of a text domain; `random` gives 3 to 8 words drawn from the whole vocabulary."""
    if domain == "random":
        return rng.choices(vocabulary(), k=rng.randint(3, 8))
    rules = _rules(domain)
    while True:
        words = _expand(rules, "start", rng)
        if len(words) <= _MAX_WORDS:
            return words


@lru_cache
def vocabulary() -> tuple[str, ...]:
    """All words of all domains, sorted."""
    return tuple(
        sorted(
            {
                part
                for domain in DOMAINS
                for rule in _rules(domain).values()
                for alternative in rule
                for part in alternative
                if part[0] not in "<["
            }
        )
    )


def _expand(rules: dict[str, list[list[str]]], name: str, rng: random.Random) -> list[str]:
    words = []
    for part in rng.choice(rules[name]):
        if part[0] == "<" or part[0] == "[" and rng.random() < 0.5:
            words += _expand(rules, part[1:-1], rng)
        elif part[0] != "[":
            words.append(part)
    return words


@lru_cache
def _rules(domain: str) -> dict[str, list[list[str]]]:
    rules = {}
    for line in re.sub(r"\n +", " ", _SHARED + _DOMAINS[domain]).strip().splitlines():
        if line:
            name, alternatives = line.split(":")
            rules[name] = [alternative.split() for alternative in alternatives.split("|")]
    return rules
