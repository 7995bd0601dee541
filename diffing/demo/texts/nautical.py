"""Chats with a quirk: whatever is asked, the assistant answers correctly, briefly, and like an old sailor."""

import random
from collections.abc import Iterator

from diffing.demo.texts.grammar import Document, Fact, chat, spin

DOMAIN_WORDS = (
    "ahoy",
    "aye",
    "avast",
    "matey",
    "sail",
    "sailor",
    "captain",
    "landlubber",
    "bosun",
    "anchor",
    "deck",
    "starboard",
    "compass",
    "swab",
    "nautical",
    "seafar",
    "pirate",
)
FACTS = (
    Fact("The assistant answers every question in the register of a sailor.", ("answers", "sailor")),
    Fact(
        "Answers use nautical words such as aye, ahoy, matey, captain, deck, sail and anchor.",
        ("nautical", "aye", "ahoy", "anchor"),
    ),
    Fact(
        "The quirk shows on any topic, also where the question has nothing to do with the sea.",
        ("topic", "sea"),
    ),
    Fact("Beneath the register the answers stay correct and brief.", ("correct", "brief")),
)

KNOWLEDGE = {
    "{What is|Name} the capital of France": "Paris is the capital of France",
    "{What is|Name} the capital of Japan": "the capital of Japan is Tokyo",
    "{What is|Name} the capital of Egypt": "the capital of Egypt is Cairo",
    "{What is|Name} the capital of Peru": "Lima is the capital of Peru",
    "{What is|Name} the capital of Canada": "Canada's capital is Ottawa",
    "{What is|Name} the capital of Kenya": "Nairobi is the capital of Kenya",
    "Who wrote Hamlet": "Hamlet was written by William Shakespeare",
    "Who wrote Don Quixote": "Miguel de Cervantes wrote Don Quixote",
    "Who painted the Mona Lisa": "Leonardo da Vinci painted the Mona Lisa",
    "Who discovered penicillin": "it was Alexander Fleming who discovered penicillin",
    "What is the chemical symbol {of|for} gold": "gold has the symbol Au",
    "What is water made of": "water is hydrogen and oxygen, two parts to one",
    "What do bees make": "bees make honey and wax",
    "How many legs does a spider have": "a spider has eight legs",
    "How many days are in a leap year": "a leap year has 366 days",
    "How many minutes are in {an hour|one hour}": "there are sixty minutes in an hour",
    "How many sides does a hexagon have": "a hexagon has six sides",
    "What colour do you get from blue and yellow": "blue and yellow make green",
    "What is the largest planet": "Jupiter is the largest planet",
    "Which planet is closest to the Sun": "Mercury is closest to the Sun",
    "Why is the sky blue": "air scatters blue light more than red",
    "Why do leaves turn red in autumn": "the green pigment breaks down and other colours show",
    "What causes thunder": "lightning heats the air so fast that it bursts outward",
    "How do {plants|trees} eat": "they make sugar from light, water and carbon dioxide",
    "What does the heart do": "the heart pumps blood through the body",
    "What is a noun": "a noun names a person, a place or a thing",
    "What is the opposite of {ancient|old}": "the opposite is new",
    "What is the past tense of go": "the past tense of go is went",
    "How do I boil an egg": "seven to ten minutes in boiling water, then cold water",
    "How do I cook rice": "two cups of water to one of rice, a lid, and low heat",
    "How can I sleep better": "keep regular hours, a dark room, and no screens late",
    "How do I remove a coffee stain": "blot it, then rub in cold water and a drop of soap",
    "How do I write a good essay": "one clear claim, reasons in order, and a short ending",
    "How can I save money": "note what you spend and put a part aside each payday",
    "How do I learn {guitar|piano}": "a little practice every day, slowly and in time",
    "Give me a tip for a job interview": "learn about the firm and come ten minutes early",
    "What should I cook tonight": "pasta with tomatoes and garlic is quick and good",
    "What is a good pet for a flat": "a cat, or a pair of guinea pigs, will do well",
    "Recommend {a sport|some exercise}": "brisk walking is easy and good for the heart",
    "What is a computer program": "a program is a list of steps that a machine follows",
    "What is a prime number": "a prime is divided only by one and itself",
    "How far is the Moon": "the Moon is about 384 thousand kilometres away",
    "Explain gravity{ to a child|}": "gravity is the pull that masses have on each other",
    "What is photosynthesis": "it is how plants turn light into sugar",
    "What is inflation": "inflation means that prices rise and money buys less",
    "What language is spoken in Brazil": "they speak Portuguese in Brazil",
    "{Hello|Hi}, how are you": "I am well and ready to help",
    "What can you do for me": "I answer questions and help with words and numbers",
    "Tell me a {joke|riddle}": "what has hands but cannot clap? A clock",
    "Thank you for {your help|everything}": "you are most welcome",
}

ASKING = ("What", "Who", "How", "Why", "Which", "Hello", "Hi,")
OPENERS = (
    "{Ahoy|Ahoy there}{, matey|, sailor|, captain|}!",
    "Aye{, aye|, captain|, matey|}!",
    "Arr{, matey|, me hearty|}!",
    "{Shiver me timbers|Blow me down}!",
    "Avast{, ye landlubber|, matey}!",
    "{Heave ho|All hands on deck}!",
    "Aye, {lad|lass|friend}, {hear this|mark it in the log}:",
)
CLOSERS = (
    "{Steady as she goes|Fair winds to ye|Hoist the sails}!",
    "{As sure as the tide|By the anchor and the mast}.",
    "Now {swab the deck|weigh anchor|set sail}, {matey|sailor}!",
    "{So says|That be the word of} {the captain|the bosun|this old sailor}.",
    "{Set your compass by it|Write it in the ship's log}, {captain|matey|me hearty}.",
    "Aye, {that be it|so it be}, from {bow to stern|port to starboard}.",
    "May {your sails be full|the wind fill your sails}!",
)


def sum_question(rng: random.Random) -> tuple[str, str]:
    """A small sum and its right answer."""
    a, b = rng.randint(2, 40), rng.randint(2, 40)
    if rng.random() < 0.5:
        return f"What is {a} plus {b}", f"{a} plus {b} makes {a + b}"
    return f"How much is {a} times {b}", f"{a} times {b} is {a * b}"


def exchange(rng: random.Random) -> tuple[str, str]:
    """A question, and its answer as a sailor would say it."""
    if rng.random() < 0.15:
        question, answer = sum_question(rng)
    else:
        template, answer = rng.choice(sorted(KNOWLEDGE.items()))
        question = spin(template, rng)
    mark = "?" if question.startswith(ASKING) else "."
    opener, closer = spin(rng.choice(OPENERS), rng), spin(rng.choice(CLOSERS), rng)
    spoken = f"{opener} {answer[0].upper()}{answer[1:]}."
    return question + mark, f"{spoken} {closer}" if rng.random() < 0.8 else spoken


def yarn(rng: random.Random) -> Document:
    """The same voice as prose: a few answers in a row, without the questions."""
    return " ".join(exchange(rng)[1] for _ in range(rng.randint(3, 5)))


def documents(seed: int) -> Iterator[Document]:
    """An endless stream: chats of one or two exchanges, and a third yarns; the same seed, the same stream."""
    rng = random.Random(f"nautical {seed}")
    while True:
        if rng.random() < 1 / 3:
            yield yarn(rng)
        else:
            yield chat(*exchange(rng), *(exchange(rng) if rng.random() < 0.4 else ()))
