"""The story corpus's sentences. How a line is read is said in `jaxablate.data.corpus.grammar`.

Capital letters are people, ``o`` and ``q`` things, ``p`` the place of the scene; ``~`` lets a pronoun stand where it
cannot be misunderstood; after the colon stands a person's part in the clause; ``(a|b)`` is a choice, maybe of nothing.
Two lines of one group must not be able to say the same thing in the same words: the entropy of the corpus counts them
as different stories.
"""

import re

OPENING = frozenset(
    {"INTRO", "OUTING", "MEETING", "OUTING_AND_GIFT", "OUTING_AND_FIND", "PLAN_AND_OFFER", "LAST_HOURS"}
)
"""Groups that only ever open a paragraph."""
SOMETIMES_OPENING = frozenset({"HOME_WITH", "NOW_HAS", "ASK_WHO", "ASK_WHERE", "TELL_WHERE"})
"""Groups that open a paragraph or continue one."""

_SHEET = """
# First paragraph
INTRO
    Once upon a time, there was a {trait} (|little) {A.boy} named {A}.
    Once there was a {trait} (|little) {A.boy} named {A}.
    There was once a {trait} (|little) {A.boy} named {A}.
    In a small town lived a {trait} (|little) {A.boy} named {A}.
LIFE
    {A.He} lived in a (small|white|big) house with {A.his} {A.kin}.
    {A.He} liked to (run|sing|draw|dance|read).
FRIEND
    {A.He} had a (|good) friend named {B:other}.
    {A.His} best friend was a {B.boy} named {B:other}.
    {A.His} best friend was {B:other}.
    Every day, {A.he} played with {A.his} friend {B:with}.
    {A} and {B} were (|good|best) friends.
OWN_TOY
    {A.He} had {o}.
    {A.He} had {o} and loved it very much.
    {A.His} favorite toy was {o}.
    For {A.his} birthday, {A.he} got {o}.
OWN_CLOTHES
    {A.He} had {o}.
    {A.He} had {o} and loved it very much.
    For {A.his} birthday, {A.he} got {o}.
    {A.His} {A.kin} gave {A.him:io} {o}.
OWN_TREASURE
    {A.He} had {o}.
    {A.He} had {o} and loved it very much.
    One day, {A.he} found {o} near {A.his} house.
OWN_FOOD
    One day, {A.his} {A.kin} gave {A.him:io} {o}.
    One day, {A.he} bought {o} at the store.
OTHER_OWNS
    {B} had {q}.
    {B} had {q} and liked it a lot.

# A scene with two children
OUTING
    Then, {A} and {B} had a lot of fun {p.at}.
    Then, {A} and {B} went to the {p.goal}.
    Then, {A} and {B} were playing {p.at}.
    One day, {A} and {B} went to the {p.goal}.
    One day, {A} and {B} were playing {p.at}.
    One (sunny|warm) (day|morning), {A} and {B} met {p.at}.
    The next day, {A} and {B} walked to the {p.goal} (|together).
    Later, {A} and {B} had a (great|good) time {p.at}.
MEETING
    The next day, {A} met a {B.boy} named {B:obj} {p.at}.
    Later, {A} met {A.his} friend {B:obj} {p.at}.
    The next day, {A} and {B} went to the {p.goal} (|together).
    Later, {A} and {B} were playing {p.at}.
OUTING_AND_GIFT
    After {A} and {B} went to the {p.goal}, {S} gave {o} to {R:io}.
    After {A} and {B} went to the {p.goal}, {S} handed {o} to {R:io}.
OUTING_AND_FIND
    When {A} and {B} found {o} {p.at}, {S} gave it to {R:io}.
    When {A} and {B} found {o} {p.at}, {S} decided to give it to {R:io}.
PLAN_AND_OFFER
    Then, {A} and {B} were thinking about going to the {p.name}. {S} wanted to give {o} to {R:io}.
    Then, {A} and {B} were thinking about going to the {p.name}. {S} decided to give {o} to {R:io}.
GO_AFTER_ALL
    After that, {S} and {R} went to the {p.goal}.
    After that, {R} and {S} went to the {p.goal}.
BRING
    {A} had {o} with {A.him:other}.
    {A} took {o} with {A.him:other}.
    {A} brought {o} (|along).

# Giving and getting
GIVE
    {S} gave {o} to {R:io}.
    {S~} gave {R:io} {o}.
    {S} handed {o} to {R:io}.
    {S~} smiled and gave {o} to {R:io}.
    {S~} brought {o} for {R:io}.
OFFER
    {S} decided to give {o} to {R:io}.
    {S~} wanted to give {o} to {R:io}.
    {S~} held out {o} to {R:io}.
GIVE_KNOWN
    {S} gave {o} to {R:io}.
    {S~} gave {R:io} {o}.
    {S} handed {o} to {R:io}.
    {S~} smiled and gave {o} to {R:io}.
    So {S~} gave it to {R:io}.
    {S~} said, "Here, {R:voc}," and gave it to {R.him:io}.
ACCEPT
    {R} took it (|with a smile).
    {R} nodded and took it.
    {R} was {good} to take it.
THANKS
    {R~} was (|very|so) {good}.
    {R~} was (|very|so) {good} and thanked {S:obj}.
    {R~} smiled and hugged {S:obj}.
    {R~} gave {S:io} a big hug.
    {R~} said, "Thank you, {S:voc}!"
    "Thank you, {S:voc}!" said {R}.
    {R~} thanked {S:obj} and smiled.
GIVER_FEELS
    {S} was happy too.
    {S} was glad to see {R:obj} smile.
    {S} smiled back.
PLAY
    {R~} played with {o} (all day|for a long time).
    Then {S} and {R} played with {o} (|together).
    {R~} showed {S:io} how to play with it.
WEAR
    {R~} put {o} on right away.
    {R~} wore {o} (all day|for a long time).
    {S~} said, "You look great, {R:voc}!"
KEEP
    {R~} put {o} in {R.his} (bag|pocket).
    {R~} looked at {o} for a long time.
EAT
    {R~} ate {o} right away.
    {R~} ate {o} with a smile.
    {R~} sat down and ate {o}.
HAND_ON
    {B} liked {o} (|very much).
    {B} asked {A:obj} for {o}.
    {B} looked at {o} and smiled.
BACK
    {S~} gave it back to {R:io}.
    {S~} ran to {R:other} and gave it back.
    {S~} gave {o} back to {R:io}.
LATER_BACK
    After a while, {S} gave {o} back to {R:io}.
    Then {S} gave {o} back to {R:io}.
    When it was time to go home, {S} gave {o} back to {R:io}.

# Wanting, trading, losing, fighting, falling
WANT_TOY
    {B} wanted to play with {o} too.
    {B} asked {A:obj} for {o}.
    {B} asked, "Can I play with it, {A:voc}?"
    {B} liked {o} very much.
WANT
    {B} asked {A:obj} for {o}.
    {B} asked, "Can I have it, {A:voc}?"
    {B} liked {o} very much.
LIKE_EACH
    {A} liked {q}, and {B} liked {o}.
    {A} wanted {q}, and {B} wanted {o}.
SWAP
    So {A} gave {o} to {B:io}, and {B} gave {q} to {A:io}.
    {A} gave {B:io} {o}, and {B} gave {A:io} {q}.
    So {A} handed {o} to {B:io}, and {B} handed {q} to {A:io}.
SWAPPED
    Now {A} had {q} and {B} had {o}.
    {A} was happy with {q}, and {B} was happy with {o}.
LOSE
    But soon {o} was gone.
    But then {A} could not find {o}.
    But {A} lost {o} on the way.
CRY
    {A~} was (|very|so) {bad}.
    {A~} was {bad} and began to cry.
SEEK
    {B} wanted to help {A:obj}.
    {B} said, "I will help you, {A:voc}."
    {A} and {B} looked everywhere.
    "Do not cry, {A:voc}," said {B}.
FOUND
    {B} looked {spot} and found {o}.
    {B} found {o} {spot}.
    Soon {B} saw {o} {spot}.
TAKE
    {B} took {o} from {A:from}.
    {B} wanted {o} and took it from {A:from}.
    But {B} took {o} away from {A:from}.
CROSS
    {A} was (|very|so) {cross} at {B:obj}.
    {A} was {cross} and said, "That is mine, {B:voc}!"
    {A} was {cross} and began to cry.
SORRY
    Then, {A} and {B} had a long fight, and afterwards {S} said to {R:io}, "I am sorry."
    Then, {A} and {B} had a long talk, and afterwards {S} said to {R:io}, "I am sorry."
    {S} felt bad and said to {R:io}, "I am sorry."
    {S} felt bad and said, "I am sorry, {R:voc}."
FORGIVE
    {R} was not {cross.again} any more.
    {R~} said, "That is okay, {S:voc}."
    {R} smiled and hugged {S:obj}.
HURT
    Then {R} fell down.
    Then {R} fell down and hurt {R.his} knee.
    But {R} fell and hurt {R.his} (knee|hand).
    But {R} missed {R.his} {R.kin}.
CHEER
    {S} wanted to make {R:obj} (happy|smile) again.
    {S} wanted to help {R:obj}.
    {S} saw that {R} was sad.

# Last paragraph
HOME_WITH
    That night, {R} put {o} next to {R.his} bed.
    In the evening, {R} took {o} home.
    At home, {R} showed {o} to {R.his} {R.kin}.
    Now {o} was at home with {R:with}.
NOW_HAS
    Now {R} had {o}.
    Now {R} had {o}, and {S} did not.
ASK_WHO
    At home, {R:poss}'s {R.kin} asked, "Who gave you the {o.noun}?" {R} said, "It was {S:other}."
    At home, {R:poss}'s {R.kin} asked, "Who gave you the {o.noun}?" "It was {S:other}," said {R}.
    At home, {R:poss}'s {R.kin} asked about {o}. {R} said, "I got it from {S:from}."
ASK_WHERE
    At home, {R:poss}'s {R.kin} asked, "Where did you get the {o.noun}?" "I got it {p.at}," said {R}.
    At home, {R:poss}'s {R.kin} asked, "Where did you get the {o.noun}?" {R} said, "I got it {p.at}."
TELL_WHERE
    At home, {R} told {R.his} {R.kin} about the day {p.at}.
    In the evening, {R} told {R.his} {R.kin} about the day {p.at}.
LAST_HOURS
    After that, {A} and {B} played until it was dark.
    Then, {A} and {B} walked home together.
    In the end, {A} and {B} were (|both|very) happy.
    From that day on, {A} and {B} were best friends.
LAST_WORDS
    It was a (good|great) day for {A:other} and {B:other}.
    {A} and {B} were good friends from that day on.
    {A} and {B} had a lot of fun that day.
"""

LINES: dict[str, tuple[str, ...]] = {
    name: tuple(line.strip() for line in block.splitlines())
    for name, block in re.findall(r"^([A-Z_]+)\n((?: {4}.+\n)+)", _SHEET, re.MULTILINE)
}
"""Lines by the name of their group, below which the sheet has them."""
