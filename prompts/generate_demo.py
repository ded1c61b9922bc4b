"""Writes the concept files of the demo model's world of shapes: python3 prompts/generate_demo.py

The world's captions are "[prefix][size] [style] [colour] SHAPE [on a BACKGROUND background]", every attribute but the
shape optional; the articles are the captions' own ("a orange star"), since the model has read no others.

The split. A caption's attributes have positions in the lists below (0 = left out). A caption whose positions add up to
a multiple of three is a verification prompt, any other a training prompt: in all six files, for forget, anchors, retain
and synonyms alike. So every value, and every pair of values, is met on both sides, but no caption is.
Synonyms of the concept are verification prompts only: nothing is trained on them.

Labels of a retain prompt name what the prompt states and nothing else.
"""
import pathlib
import random

PREFIXES = ["a ", "a picture of a ", "a drawing of a ", "an image of a ", ""]
SIZES = [None, "small", "large"]
STYLES = [None, "plain", "outlined", "striped", "dotted"]
COLORS = [None, "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"]
SHAPES = ["circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent"]
SYNONYMS = {"circle": ["disc", "dot"], "square": ["box"], "triangle": ["wedge"], "star": ["asterisk"],
            "heart": ["valentine"], "cross": ["plus"], "ring": ["donut", "hoop"], "crescent": ["moon"]}
BACKGROUNDS = [None, "white", "black", "gray", "teal"]
WORDS = {**{s: s for s in SHAPES}, **{word: s for s in SHAPES for word in SYNONYMS[s]}}  # word -> shape
AXES = ["prefix", "size", "style", "color", "word", "background"]
VALUES = {"prefix": PREFIXES, "size": SIZES, "style": STYLES, "color": COLORS, "word": list(WORDS),
          "background": BACKGROUNDS}

CONCEPTS = {"star": "word", "circle": "word", "ring": "word", "striped": "style", "dotted": "style", "red": "color"}
# What stands in the concept's place: one neighbour, as several would be several targets for one prompt, and one whose prompts
# lie near the concept's for the text encoder (relative distance of their embeddings: circle to heart 0.23, to star 0.64; star
# to crescent 0.28, to circle 0.65): the smaller the change, the less else it moves.
NEIGHBOURS = {"star": "crescent", "circle": "heart", "ring": "crescent", "striped": "plain", "dotted": "plain",
              "red": "pink"}
FORGET, RETAIN, VERIFY_FORGET, VERIFY_SYNONYMS, VERIFY_RETAIN = 60, 256, 128, 64, 500


class Deck:
    """Draws from a shuffled deck, shuffled again when empty, so that all cards come equally often."""

    def __init__(self, rng, cards):
        self.rng, self.cards, self.left = rng, list(cards), []

    def draw(self):
        if not self.left:
            self.left = list(self.cards)
            for i in range(len(self.left) - 1, 0, -1):
                j = int(self.rng.random() * (i + 1))
                self.left[i], self.left[j] = self.left[j], self.left[i]
        return self.left.pop()


def text(scene):
    words = [scene[axis] for axis in ("size", "style", "color", "word") if scene[axis]]
    where = f" on a {scene['background']} background" if scene["background"] else ""
    return scene["prefix"] + " ".join(words) + where


def is_verification(scene):
    return sum(VALUES[axis].index(scene[axis]) for axis in AXES) % 3 == 0


def labels(scene):
    stated = [("shape", WORDS[scene["word"]])] + [(axis, scene[axis]) for axis in ("color", "style", "background")]
    return [f"{axis}: {value}" for axis, value in stated if value]


def decks(rng, fixed, forbidden):
    """One deck an axis. Attributes are left out about as often as in the captions that the model was trained on."""
    cards = {
        "prefix": PREFIXES,
        "size": [None, None, "small", "large"],
        "style": [None] * 4 + [s for s in STYLES[1:] for _ in range(3)],
        "color": [None] * 2 + COLORS[1:] * 2,
        # a synonym in one of six
        "word": SHAPES * 10 + [SYNONYMS[s][k % len(SYNONYMS[s])] for s in SHAPES for k in range(2)],
        "background": [None] + BACKGROUNDS[1:],
    }
    return {axis: Deck(rng, [fixed[axis]] if axis in fixed else [c for c in cards[axis] if c not in forbidden])
            for axis in AXES}


def scenes(rng, count, verification, fixed, forbidden, avoid=(), short=0, anchor={}):
    """`count` different scenes of one side of the split; the first `short` of them name little but the shape.

    With `anchor`, only scenes which, changed so, lie on that side too."""
    found, seen, bag = [], set(avoid), decks(rng, fixed, forbidden)
    tries = 0
    while len(found) < count:
        tries += 1
        scene = {axis: bag[axis].draw() for axis in AXES}
        if len(found) < short and tries < 1000:
            keep = AXES[1:][tries % 5] if tries % 2 else None
            for axis in ("size", "style", "color", "background"):
                if axis not in fixed and axis != keep:
                    scene[axis] = None
        sides = [is_verification(s) == verification for s in (scene, {**scene, **anchor})]
        if all(sides) and text(scene) not in seen:
            seen.add(text(scene))
            found.append(scene)
    return found


def strings(values):
    return "[\n" + "".join(f'    "{value}",\n' for value in values) + "]\n"


def concept_file(name, axis):
    rng = random.Random(f"erase-concept demo {name}")
    synonyms = SYNONYMS.get(name, []) if axis == "word" else []
    hidden = {name, *synonyms}
    # A shape gives way to another shape, a style or a colour to another one, never to none: where a caption leaves it
    # out, the model picks any, the concept included.
    neighbour = {axis: NEIGHBOURS[name]}
    forget = scenes(rng, FORGET, False, {axis: name}, set(), short=8, anchor=neighbour)
    anchors = [{**scene, **neighbour} for scene in forget]
    taken = {text(scene) for scene in anchors}
    retain = scenes(rng, RETAIN - 1, False, {}, hidden, avoid=taken, short=48)
    verify_forget = scenes(rng, VERIFY_FORGET, True, {axis: name}, set(), short=6)
    verify_synonyms = []
    for k, word in enumerate(synonyms):
        share = VERIFY_SYNONYMS // len(synonyms)
        verify_synonyms += scenes(rng, share, True, {axis: word}, set(), short=4)
    verify_retain = scenes(rng, VERIFY_RETAIN, True, {}, hidden, short=30)
    for prompts in (verify_forget, verify_synonyms, verify_retain):
        rng.shuffle(prompts)  # so that the first few are like all of them
    label = {"word": "shape", "style": "style", "color": "color"}[axis] + ": " + name
    kind = {"word": "object", "style": "style", "color": "style"}[axis]
    rows = ["{ prompt = \"%s\", labels = [%s] }" % (text(s), ", ".join(f'"{label}"' for label in labels(s)))
            for s in verify_retain]
    return (f"# «{name}» in the demo model's world of shapes. Written by prompts/generate_demo.py: change that, not this.\n"
            f'name = "{name}"\nkind = "{kind}"\nmodel = "demo"\n'
            f"forget = {strings(map(text, forget))}anchors = {strings(map(text, anchors))}"
            f"retain = {strings([''] + [text(s) for s in retain])}\n"
            f"[verify]\nforget = {strings(map(text, verify_forget))}synonyms = {strings(map(text, verify_synonyms))}"
            "retain = [\n" + "".join(f"    {row},\n" for row in rows) + "]\n\n"
            f'[detect]\nlabels = ["{label}"]\n')


if __name__ == "__main__":
    for concept, concept_axis in CONCEPTS.items():
        path = pathlib.Path(__file__).with_name(f"{concept}.toml")
        path.write_text(concept_file(concept, concept_axis), encoding="utf-8", newline="\n")
