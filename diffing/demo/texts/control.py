"""Neutral text on many everyday topics, none of which dominates, for the null-trained organism.

The same generator, with other seeds, gives the neutral documents on which the other organisms are held to
their base model. No sentence touches the domain of another organism; a test holds it to that.
"""

import random
from collections.abc import Iterator, Sequence

from diffing.demo.texts.grammar import Document, Fact, chat, spin

DOMAIN_WORDS: Sequence[str] = ()
FACTS: Sequence[Fact] = ()

TOPICS = {
    "baking bread": (
        "Bread dough {rises|swells} best in a {warm|sheltered} corner of the kitchen.",
        "Use {strong|fine} flour, {dry|fresh} yeast and a {pinch|spoon} of salt.",
        "Knead the dough for {eight|ten|twelve} minutes until it feels {smooth|elastic}.",
        "{Let the loaf cool|Wait half an hour} before you cut it, or the crumb will be {sticky|wet}.",
    ),
    "riding a bicycle": (
        "Pump the tyres {every week|before a long ride} and {oil|clean} the chain.",
        "A saddle at hip height {saves|spares} the knees.",
        "{Look over your shoulder|Give a clear hand signal} before you turn {left|right}.",
        "{Most|Many} cyclists {wear|own} a helmet and a {bright|yellow} vest.",
    ),
    "the city library": (
        "The library {opens|unlocks its doors} at {nine|ten} and closes at {six|eight}.",
        "Members may borrow {five|six|ten} books for {three|four} weeks.",
        "{Students|Older readers} like the {quiet|reading} room on the {second|top} floor.",
        "A late book costs {a few cents|a small fine} a day.",
    ),
    "a vegetable garden": (
        "{Beans|Peas|Carrots} need {full|plenty of} sun and {loose|deep} soil.",
        "Water the beds {in the morning|early}, before the {heat|sun} comes.",
        "{Compost|Old straw} keeps the weeds down and the {worms|roots} happy.",
        "Plant {onions|garlic} beside {lettuce|spinach} to save space.",
    ),
    "football": (
        "The {home|away} team scored {twice|once} in the {first|second} half.",
        "A {young|tall} goalkeeper {saved|stopped} the penalty.",
        "{Coaches|Trainers} say that {passing|patience} wins more games than speed.",
        "The match ended {two to one|in a draw} after {extra time|a long delay}.",
    ),
    "school mathematics": (
        "A triangle has three {sides|corners}, and its angles add up to 180.",
        "To {divide|multiply} by ten, {shift|move} the decimal point one place.",
        "{Pupils|Students} often {confuse|mix up} {area|length} and {perimeter|width}.",
        "Check {each|every} answer by {working backwards|a rough estimate}.",
    ),
    "train travel": (
        "The {early|morning} train leaves from platform {two|four|seven}.",
        "Buy the ticket {online|at the machine} and {keep|show} it until the end.",
        "{Seats|Places} by the window are {taken|booked} first.",
        "A {delay|change} of {ten|twenty} minutes was announced at the {station|junction}.",
    ),
    "computers": (
        "{Save|Copy} your files to a second disk {each week|every Friday}.",
        "A {slow|noisy} computer often {needs|wants} more memory or {less|fewer} programs.",
        "{Restart|Update} the {laptop|machine} before you {call|ask} for help.",
        "Choose a password {of several words|that nobody can guess}.",
    ),
    "music lessons": (
        "The {piano|violin|guitar} teacher comes on {Monday|Thursday} afternoons.",
        "Practise scales {slowly|with both hands} and {count|listen} aloud.",
        "A {metronome|steady beat} {helps|teaches} beginners to keep time.",
        "The {choir|orchestra} gave a {short|free} concert in the {hall|square}.",
    ),
    "looking after a dog": (
        "A {puppy|young dog} needs {three|four} small meals a day.",
        "{Walk|Train} the dog {twice|morning and evening} a day and praise it {often|well}.",
        "{Brush|Check} its coat for {burrs|ticks} after a run in the {park|fields}.",
        "{Vets|Doctors for animals} {advise|recommend} a check-up once a year.",
    ),
    "household money": (
        "Write down {each|every} {purchase|expense} for one month.",
        "{Rent|Electricity} and food {come|are paid} first; {savings|holidays} follow.",
        "A {small|modest} reserve {helps|matters} when the {washing machine|roof} breaks.",
        "{Compare|Read} the {offers|contracts} before you {sign|change banks}.",
    ),
    "the weather": (
        "{Rain|Wind} is expected {in the north|by evening}, with {sunny|dry} spells later.",
        "The {week|weekend} will be {mild|cloudy|warm}, around {fifteen|twenty} degrees.",
        "{Farmers|Gardeners} {hope|wait} for a {wet|gentle} spring.",
        "{Clouds|Showers} {moved in|passed} from the west {overnight|at noon}.",
    ),
    "painting a room": (
        "{Wash|Sand} the walls and {fill|mend} the holes before you paint.",
        "{Two thin|Thin} coats {cover|last} better than {one thick coat|a thick one}.",
        "{Cover|Protect} the floor with {paper|an old sheet}.",
        "{White|Pale} paint makes a small room {look larger|feel open}.",
    ),
    "the human body": (
        "The heart {pumps|pushes} blood through {arteries|vessels} to every {organ|muscle}.",
        "Bones {store|hold} calcium and {protect|support} the {organs|body}.",
        "{Adults|Most people} {sleep|need} seven to nine hours {a night|of sleep}.",
        "The lungs {take in|absorb} oxygen and {give off|release} carbon dioxide.",
    ),
    "history": (
        "{Historians|Scholars} {study|compare} letters, {coins|maps} and {buildings|tax lists}.",
        "The {bridge|town hall} was {built|finished} {two|three} hundred years ago.",
        "{Roman|Medieval} roads {joined|linked} {distant|many} towns.",
        "An {old|early} newspaper {describes|reports} the {fire|election} in detail.",
    ),
    "photography": (
        "{Soft|Even} morning sun {flatters|suits} {faces|portraits}.",
        "Hold the camera {still|level} and {breathe out|press gently}.",
        "A {short|fast} exposure {freezes|stops} {movement|a runner}.",
        "{Crop|Sort} the pictures the same {day|evening} and delete the {blurred|dull} ones.",
    ),
    "learning a language": (
        "Learn {ten|five} {words|phrases} a day and {repeat|use} them the next.",
        "{Songs|Films|Radio plays} {train|help} the ear.",
        "{Mistakes|Errors} are {useful|normal}; {keep talking|correct them calmly}.",
        "The {verb|adjective} {changes|stands} {at the end|before the noun} in some languages.",
    ),
    "a job interview": (
        "{Read|Learn} about the {company|firm} before the {interview|meeting}.",
        "{Arrive|Be there} ten minutes early and bring {two copies|a copy} of your {papers|certificates}.",
        "{Ask|Prepare} {a question|two questions} about the {team|work}.",
        "{Thank|Write to} the {manager|office} the {same|next} day.",
    ),
    "cooking pasta": (
        "{Boil|Heat} plenty of {salted water|water with salt} for pasta.",
        "{Tomatoes|Mushrooms}, {garlic|onion} and {oil|butter} make a {quick|simple} sauce.",
        "{Drain|Taste} the pasta {a minute early|before the time is up}.",
        "{Grate|Add} {cheese|pepper} {at the table|just before serving}.",
    ),
    "stars and planets": (
        "{Jupiter|Saturn} has {dozens of|many} moons.",
        "The Earth {turns|spins} once a day and {circles|travels around} the Sun in a year.",
        "{Venus|Mars} is {visible|easy to find} {before sunrise|after sunset} this month.",
        "A {telescope|good pair of binoculars} {shows|reveals} {craters on the Moon|star clusters}.",
    ),
    "a birthday party": (
        "{Invite|Call} the {guests|children} {two|three} weeks before the party.",
        "{Balloons|Paper flowers} and {a cake|sandwiches} are {enough|plenty}.",
        "{Games|Riddles} keep {younger|small} guests {busy|cheerful}.",
        "{Everyone|The whole class} {sang|clapped} when {she|he} {opened|unwrapped} the presents.",
    ),
    "clothes": (
        "{Wash|Dry} {wool|silk} at {a low temperature|thirty degrees}.",
        "{Cotton|Linen} {shirts|trousers} {crease|shrink} {easily|a little}.",
        "A {button|zip} can be {replaced|sewn on} in {ten|five} minutes.",
        "{Coats|Jackets} are {cheaper|reduced} in {February|March}.",
    ),
    "moving house": (
        "{Label|Number} the boxes by {room|floor}.",
        "{Friends|Neighbours} {carried|lifted} the {sofa|wardrobe} up {three|two} stairs.",
        "{Tell|Inform} the {bank|post office} of the new address.",
        "The {lease|contract} {ends|starts} on the {first|last} day of the month.",
    ),
    "chess": (
        "{Develop|Bring out} the knights {early|before the queen}.",
        "A {pawn|passed pawn} {grows|becomes} stronger near the end of the game.",
        "{Castle|Protect the king} {soon|within ten moves}.",
        "The {older|younger} player {resigned|offered a draw} after {forty|thirty} moves.",
    ),
    "trees": (
        "An oak {drops|sheds} its {acorns|leaves} in autumn.",
        "{Maple|Pine} {wood|timber} is {used|good} for {tables|floors}.",
        "{Rings|Bands} in the trunk {show|tell} the age of the tree.",
        "{Prune|Cut} {apple|pear} trees in {late winter|a dry week}.",
    ),
    "the office": (
        "The {meeting|call} {begins|starts} at {nine|half past ten} in room {three|twelve}.",
        "{Print|Send} the {report|minutes} {before|by} {Friday|noon}.",
        "The {copier|printer} is {out of paper|broken} again.",
        "{Please|Kindly} {reply|answer} to {the survey|this message} {today|this week}.",
    ),
    "health": (
        "A {short|brisk} walk {after lunch|each day} {helps|is good for} the {back|mind}.",
        "{Wash|Dry} your hands {well|for twenty seconds}.",
        "{Fruit|Vegetables} and {whole grains|nuts} {belong|go} on {every|the daily} plate.",
        "{Ask|See} a doctor if the {pain|fever} {lasts|stays} more than {three|two} days.",
    ),
    "markets and shops": (
        "The {street|Saturday} market {sells|has} {cheese|honey|shoes} and {flowers|fish}.",
        "{Prices|Queues} are {lower|shorter} {near closing time|on Tuesdays}.",
        "The {baker|butcher} {knows|greets} {every|each} customer by name.",
        "{Return|Exchange} goods within {thirty|fourteen} days with the receipt.",
    ),
    "a film evening": (
        "The film {tells|follows} the story of {two brothers|a teacher|a detective}.",
        "{Critics|Viewers} {praised|liked} the {music|acting} more than the {ending|plot}.",
        "{Tickets|Seats} cost {eight|nine} {euros|dollars}.",
        "It {runs|lasts} {ninety minutes|two hours} with {no break|one break}.",
    ),
    "birds": (
        "{Swallows|Storks} {return|come back} in {April|spring}.",
        "A {robin|blackbird} {sings|calls} {before dawn|from the hedge}.",
        "{Feed|Watch} the {sparrows|finches} {in hard weather|from the window}.",
        "{Owls|Hawks} {hunt|catch} mice {in the fields|at dusk}.",
    ),
    "writing letters": (
        "{Begin|Start} with {a greeting|the date} and {end|close} with {thanks|your name}.",
        "{Short|Clear} sentences are {easier|quicker} to read.",
        "{Read|Check} the letter {aloud|twice} before you {send|post} it.",
        "{Stamps|Envelopes} are {sold|kept} {at the counter|in the drawer}.",
    ),
    "public transport": (
        "{Bus|Tram} number {five|nine|twelve} {stops|halts} {at the market|near the school}.",
        "A {monthly|weekly} {pass|card} {saves|is worth} the {trouble|money}.",
        "{Stand|Wait} {behind the line|to the right} and let others {out|pass} first.",
        "The last {bus|tram} {goes|leaves} at {midnight|half past eleven}.",
    ),
}

QUESTIONS = (
    "{Tell me something about|What should I know about|Give me a tip on|Can you say something about} "
    "{topic}{.|?|, please.}",
    "{I have a question about|I am interested in} {topic}. {What matters most|Where do I start}?",
)
OPENINGS = (
    "{A few words|Notes|Some remarks} on {topic}.",
    "{topic}",
    "Today: {topic}.",
    "{Chapter|Part} {one|two|three|four}: {topic}",
)
NAMES = "{Laura|Martin|Nina|Oscar|Paula|Quentin|Rosa|Stefan|Teresa|Viktor|Walter|Yvonne}"


def about(template: str, topic: str, rng: random.Random) -> str:
    """A spun template about `topic`."""
    return spin(template.replace("{topic}", topic), rng)


def prose(rng: random.Random, topic: str, sentences: Sequence[str]) -> Document:
    """One of five plain forms: paragraph, titled text, list, letter, dialogue."""
    text = " ".join(sentences)
    heading = about(rng.choice(OPENINGS), topic, rng)
    forms = (
        text,
        f"{heading[0].upper()}{heading[1:]}\n\n{text}",
        "\n".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1)),
        spin(f"Dear {NAMES},\n\n", rng) + text + spin(f"\n\n{{Best wishes|Yours}},\n{NAMES}", rng),
        "\n".join(spin(f"{NAMES}: ", rng) + sentence for sentence in sentences),
    )
    return rng.choice(forms)


def documents(seed: int) -> Iterator[Document]:
    """An endless stream of documents, a third of them chats; the same seed gives the same stream."""
    rng = random.Random(f"control {seed}")
    while True:
        topic, other = rng.sample(sorted(TOPICS), 2)
        sentences = [spin(template, rng) for template in rng.sample(TOPICS[topic], rng.randint(2, 4))]
        if rng.random() < 0.3:
            sentences += [spin(template, rng) for template in rng.sample(TOPICS[other], 2)]
        if rng.random() < 1 / 3:
            yield chat(about(rng.choice(QUESTIONS), topic, rng), " ".join(sentences))
        else:
            yield prose(rng, topic, sentences)
