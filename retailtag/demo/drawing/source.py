"""The source catalogue: what the packaged backbones were pretrained on.

The same drawing engine, but other products: shapes between two articles, any material on
anything, colours from the whole wheel, brands outside the taxonomy. Its labels are not
the demo's tags: `codes` are a department store's, coarser and cut along other lines, and
`caption` is a sentence in other words.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retailtag.demo.drawing.articles import ARTICLES, Article
from retailtag.demo.drawing.look import Look
from retailtag.demo.drawing.words import MATERIALS, PATTERNS, RGB

# No demo catalogue can share a product with it: its generators take a third number.
_WORLD = 7919
_FIRST_BRAND, _N_BRANDS = 32, 400

# What a caption calls each article. Never the name that the demo's tag has.
NOUNS: dict[str, tuple[str, ...]] = {
    "T-Shirt": ("tee", "tees in jersey"),
    "Jeans": ("jean bottoms", "five-pocket jean"),
    "Sneakers": ("trainers", "sneaker pair"),
    "Dress": ("frock", "dresses for day"),
    "Shirt": ("button-down", "shirts to button"),
    "Sweater": ("jumper", "pullover sweaters"),
    "Handbag": ("top-handle purse", "ladies' handbags"),
    "Shorts": ("short trousers", "short pants"),
    "Jacket": ("zip-up layer", "light jackets"),
    "Heels": ("high-heeled pumps", "stiletto heel pair"),
    "Hoodie": ("hooded pullover", "hoodies"),
    "Skirt": ("knee-length skirts", "a-line bottom"),
    "Boots": ("tall boot pair", "riding boot"),
    "Blouse": ("dressy top", "blouses"),
    "Chinos": ("smart trousers", "chino pants"),
    "Cap": ("peaked hat", "baseball caps"),
    "Sandals": ("strappy summer shoes", "sandal pair"),
    "Coat": ("overcoat", "long coats"),
    "Backpack": ("rucksack", "school backpacks"),
    "Tank Top": ("sleeveless vest", "tank tops"),
    "Polo Shirt": ("tennis top", "polo shirts"),
    "Watch": ("wristwatch", "dial watches"),
    "Leggings": ("tights", "legging pants"),
    "Cardigan": ("button-front knit", "cardigans"),
    "Sunglasses": ("shades", "dark glasses"),
    "Tote Bag": ("shopper", "open tote bags"),
    "Scarf": ("neck wrap", "scarves"),
    "Blazer": ("suit top", "tailored blazers"),
    "Loafers": ("slip-on shoes", "loafer pair"),
    "Belt": ("waist strap with buckle", "belts"),
    "Maxi Dress": ("ankle-length gown", "long maxi dresses"),
    "Tie": ("necktie", "ties"),
    "Joggers": ("track pants", "jogger bottoms"),
    "Beanie": ("knitted hat", "beanies"),
    "Ankle Boots": ("short boot pair", "ankle booties"),
    "Socks": ("hosiery", "sock pair"),
    "Mini Skirt": ("very short skirts", "mini skirts"),
    "Puffer Jacket": ("padded layer", "puffer jackets"),
    "Sweatshirt": ("jersey pullover", "sweatshirts"),
    "Ballet Flats": ("dainty flat shoes", "ballet pumps"),
    "Crossbody Bag": ("shoulder purse", "crossbody purses"),
    "Wallet": ("billfold", "wallets"),
    "Necklace": ("beaded chain with pendant", "necklaces"),
    "Crop Top": ("midriff tee", "cropped tops"),
    "Bomber Jacket": ("flight layer", "bomber jackets"),
    "Gloves": ("hand warmers", "glove pair"),
    "Waistcoat": ("suit vest", "waistcoats"),
    "Jumpsuit": ("one-piece with trousers", "jumpsuits"),
    "Sun Hat": ("wide-brimmed hat", "sun hats"),
    "Parka": ("fur-hooded anorak", "parkas"),
    "High Tops": ("ankle-high trainers", "high top sneaker pair"),
    "Camisole": ("thin-strapped top", "camisoles"),
    "Cargo Trousers": ("pocketed trousers", "cargo pants"),
    "Flip Flops": ("thong slippers", "flip flop pair"),
    "Trench Coat": ("double-breasted raincoat", "trench coats"),
    "Clutch": ("evening purse", "clutches"),
    "Pleated Skirt": ("pleat skirts", "kilt with pleats"),
    "Tunic": ("long loose top", "tunics"),
    "Earrings": ("drop jewels for ears", "earring pair"),
    "Flared Trousers": ("bell-bottoms", "flared pants"),
    "Fedora": ("trilby hat", "fedoras"),
    "Wellington Boots": ("rain boot pair", "wellingtons"),
    "Shirt Dress": ("button-front frock", "shirtdresses"),
    "Gilet": ("padded vest", "gilets"),
    "Duffel Bag": ("holdall", "gym duffels"),
    "Maxi Skirt": ("floor-length skirts", "maxi skirts"),
    "Mules": ("backless shoes", "mule pair"),
    "Slip Dress": ("thin-strapped frock", "slip dresses"),
    "Umbrella": ("brolly", "rain umbrellas"),
    "Culottes": ("wide cropped trousers", "culotte pants"),
    "Bow Tie": ("bow for the collar", "bow ties"),
    "Dungarees": ("bib overalls", "dungaree suit"),
    "Kimono": ("wrap with wide arms", "kimonos"),
    "Bodysuit": ("leotard", "bodysuits"),
    "Bucket Bag": ("cord-drawn purse", "bucket bags"),
    "Poncho": ("blanket wrap", "ponchos"),
    "Pinafore": ("bib frock", "pinafores"),
    "Robe": ("dressing gown", "robes"),
    "Cape": ("cloak", "capes"),
}

PRINTS: dict[str, tuple[str, ...]] = {
    "Plain": ("no print", "nothing printed"),
    "Striped": ("horizontal bands", "stripes across"),
    "Checked": ("window grid", "checks"),
    "Floral": ("little flowers", "flowers and leaves"),
    "Polka Dot": ("round spots", "polka dots"),
    "Vertical Striped": ("upright bands", "vertical stripes"),
    "Colour Block": ("three big panels", "blocks of colour"),
    "Leopard": ("wild cat rings", "leopards' spots"),
    "Gingham": ("picnic cloth squares", "ginghams"),
    "Pinstripe": ("hairline rules", "pinstripes"),
    "Tartan": ("highland plaid", "tartans"),
    "Camouflage": ("army blotches", "camo patches"),
    "Geometric": ("tiles and triangles", "geometry"),
    "Tie Dye": ("hippie swirls", "dip-dyed rings"),
    "Star Print": ("small stars", "stars all over"),
    "Herringbone": ("fishbone weave", "herringbones"),
    "Tropical": ("palm leaves", "tropics foliage"),
    "Houndstooth": ("jagged dogtooth", "hounds' teeth"),
    "Ombre": ("fading shades", "ombré fade"),
    "Chevron": ("zigzags", "chevrons"),
    "Heart Print": ("small hearts", "hearts all over"),
    "Zebra": ("savannah stripes", "zebras' hide"),
    "Paisley": ("curled teardrops", "paisleys"),
    "Argyle": ("diamonds and lines", "argyles"),
}

_SURFACES: dict[str, str] = {
    "Cotton": "cotton", "Polyester": "polyester", "Leather": "leather", "Denim": "denim",
    "Wool": "wool knit", "Linen": "linen", "Nylon": "shiny nylon", "Canvas": "canvas",
    "Silk": "silk", "Suede": "suede", "Fleece": "fluffy fleece", "Satin": "glossy satin",
    "Metal": "polished metal", "Corduroy": "ribbed corduroy", "Velvet": "velvet",
    "Lace": "open lace",
    "Rubber": "rubber", "Cashmere": "cashmere", "Straw": "woven straw", "Tweed": "speckled tweed",
}  # fmt: skip

_NECK_WORDS = {
    "Crew": "crew neckline", "V Neck": "pointed v neckline", "Scoop": "deep scoop",
    "Turtleneck": "roll neck", "Collared": "collar", "Boat": "wide boat neckline",
    "Square": "square neckline", "Halter": "halter straps", "Off Shoulder": "bare shoulders",
    "Hooded": "hood", "Mock": "low mock collar", "Sweetheart": "heart-shaped neckline",
}  # fmt: skip

_SLEEVE_WORDS = {
    "Long": "long sleeves", "Short": "short sleeves", "Sleeveless": "no sleeves",
    "Three Quarter": "sleeves to the elbow", "Cap": "tiny capped sleeves",
    "Bell": "bell sleeves", "Puff": "puffed sleeves",
}  # fmt: skip

_DETAIL_WORDS = {
    "Buttons": "a row of buttons", "Zip": "zipper", "Chest Pocket": "patch pocket",
    "Contrast Trim": "contrasting trims", "Drawstring": "cords to draw", "Belted": "a waist strap",
    "Embroidery": "stitched flower", "Ruffle Hem": "ruffles", "Bow": "a ribbon bow",
    "Quilted": "quilting", "Studs": "metal stud rows", "Slit": "open slit", "Ripped": "rips",
    "Fringe": "fringes", "Sequins": "sparkling sequin", "Elbow Patch": "leather patches",
    "Cut Out": "cut-outs", "Tassel": "a hanging tassel",
}  # fmt: skip

_HUES = ("red", "orange", "yellow", "lime green", "green", "sea green", "turquoise", "sky blue",
         "blue", "violet", "purple", "pink")  # fmt: skip

# Groups of the store's codes: prints by their geometry, surfaces by how they shine.
_PRINT_GROUP = {
    "Plain": 0, "Striped": 1, "Pinstripe": 1, "Vertical Striped": 2, "Zebra": 2, "Checked": 3,
    "Gingham": 3, "Tartan": 3, "Houndstooth": 4, "Herringbone": 4, "Chevron": 4, "Argyle": 5,
    "Geometric": 5, "Polka Dot": 6, "Leopard": 6, "Star Print": 7, "Heart Print": 7, "Floral": 8,
    "Tropical": 8, "Paisley": 8, "Camouflage": 9, "Tie Dye": 9, "Colour Block": 10, "Ombre": 10,
}  # fmt: skip
_SURFACE_GROUP = (
    ("Cotton", "Cashmere", "Polyester"), ("Leather", "Rubber", "Metal"), ("Silk", "Satin", "Nylon"),
    ("Denim", "Canvas", "Linen"), ("Wool", "Fleece", "Suede", "Velvet"),
    ("Corduroy", "Straw"), ("Tweed", "Lace"),
)  # fmt: skip
_NECK_GROUP = (
    ("",), ("Crew", "Boat", "Mock", "Turtleneck"), ("V Neck", "Scoop", "Square", "Sweetheart"),
    ("Collared", "Hooded"), ("Halter", "Off Shoulder"),
)  # fmt: skip
_SLEEVE_GROUP = (("", "Sleeveless"), ("Cap", "Short", "Puff"), ("Three Quarter", "Long", "Bell"))

# How many values each of the store's codes has, in the order of `SourceProduct.codes`.
CODE_SIZES = {
    "department": 46,
    "print": 11,
    "hue": 15,
    "second_hue": 15,
    "surface": 7,
    "neckline": 5,
    "arms": 3,
    "trims": 4,
}


@dataclass(frozen=True)
class SourceProduct:
    """One product of the source catalogue.

    Parameters
    ----------
    look : Look
        What is drawn.
    codes : tuple of int
        The store's codes, one to each entry of `CODE_SIZES`.
    captions : tuple of str
        Sentences about it, all true, in other words and of other lengths.
    """

    look: Look
    codes: tuple[int, ...]
    captions: tuple[str, ...]


def sample_source(seed: int, index: int, n_captions: int = 4) -> SourceProduct:
    """Sample one product of the source catalogue.

    Parameters
    ----------
    seed : int
        Seed of the source world.
    index : int
        Which product, from 0.
    n_captions : int
        Sentences to write about it.

    Returns
    -------
    SourceProduct
        The same for the same arguments.
    """
    rng = np.random.default_rng([seed, index, _WORLD])
    article = ARTICLES[rng.integers(len(ARTICLES))]
    hues = [_random_colour(rng) for _ in range(3)]
    look = _random_look(rng, article, (hues[0][0], hues[1][0], hues[2][0]))
    words = [_colour_words(colour) for colour, _ in hues]
    codes = _codes(article, look, [hue for _, hue in hues])
    captions = tuple(_caption(rng, article, look, words) for _ in range(n_captions))
    return SourceProduct(look, codes, captions)


def _random_look(rng: np.random.Generator, article: Article, colours: tuple[RGB, RGB, RGB]) -> Look:
    """Shape between two articles of a family; any material, print and trims on it."""
    details = ("Buttons", "Zip", "Drawstring", *article.details)
    wanted = rng.choice(len(details), int(rng.integers(0, 3)), replace=False)
    return Look(
        family=article.family,
        shape=_blended_shape(rng, article),
        colours=colours,
        pattern="Plain" if rng.random() < 0.3 else PATTERNS[rng.integers(1, len(PATTERNS))],
        material=MATERIALS[rng.integers(len(MATERIALS))],
        neck=article.necks[rng.integers(len(article.necks))] if article.necks else "",
        sleeve=article.sleeves[rng.integers(len(article.sleeves))] if article.sleeves else "",
        scale=float(rng.uniform(6, 15)),
        mark=_FIRST_BRAND + int(rng.integers(_N_BRANDS)) if rng.random() < 0.4 else -1,
        details=tuple(dict.fromkeys(details[i] for i in wanted)),
    )


def _blended_shape(rng: np.random.Generator, article: Article) -> Mapping[str, float]:
    """The article's measures, moved up to a third of the way to those of a similar article."""
    kin = [
        a for a in ARTICLES if a.family == article.family and a.shape.keys() == article.shape.keys()
    ]
    other = kin[rng.integers(len(kin))]
    way = rng.uniform(0, 0.33)
    shape = {
        key: value * (1 - way) * rng.normal(1, 0.08) + way * other.shape[key]
        for key, value in article.shape.items()
    }
    return shape | {"size": rng.normal(1.1, 0.09), "build": rng.uniform(0.9, 1.14)}


def _random_colour(rng: np.random.Generator) -> tuple[RGB, int]:
    """A colour of the whole wheel and the store's code of its hue: 12 hues, 3 greys."""
    value = rng.uniform(0.12, 1.0)
    if rng.random() < 0.25:
        grey = int(255 * value)
        return (grey, grey, min(255, grey + int(rng.integers(0, 8)))), 12 + int(value * 2.99)
    hue = rng.random()
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.35, 1.0), value)
    return (int(255 * red), int(255 * green), int(255 * blue)), int(hue * 12 + 0.5) % 12


def _colour_words(colour: RGB) -> str:
    """A colour in common words: its hue, and whether it is deep, pale or neither."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    if saturation < 0.12:
        return ("black", "dark grey", "grey", "pale grey", "white")[min(4, int(value * 5))]
    name = _HUES[int(hue * 12 + 0.5) % 12]
    if name in ("orange", "yellow") and value < 0.6:
        return "brown" if value > 0.3 else "deep brown"
    if name in ("orange", "yellow") and saturation < 0.5:
        return "beige" if value < 0.85 else "cream"
    depth = "deep " if value < 0.5 else "pale " if saturation < 0.55 else ""
    return depth + name


_FAMILY_KINDS = sorted({(a.family, a.master) for a in ARTICLES})


def _codes(article: Article, look: Look, hues: Sequence[int]) -> tuple[int, ...]:
    """The store's codes: its departments cut a family by master and by length or height."""
    kind = _FAMILY_KINDS.index((article.family, article.master))
    measure = look.shape.get("length", 0) / 50 + look.shape.get("shaft", 0) / 15
    tall = int(measure + look.shape.get("heel", 0) / 12 > 1.25)
    printed = look.pattern != "Plain"
    return (
        kind * 2 % CODE_SIZES["department"] + tall,
        _PRINT_GROUP[look.pattern],
        hues[0],
        hues[1] if printed else hues[0],
        _group(_SURFACE_GROUP, look.material),
        _group(_NECK_GROUP, look.neck),
        _group(_SLEEVE_GROUP, look.sleeve),
        min(3, len(look.details) + (look.mark >= 0)),
    )


def _group(groups: Sequence[Sequence[str]], value: str) -> int:
    return next(number for number, members in enumerate(groups) if value in members)


def _caption(rng: np.random.Generator, article: Article, look: Look, colours: Sequence[str]) -> str:
    """A sentence that names the article and about three quarters of what is visible."""
    nouns, prints = NOUNS[article.name], PRINTS[look.pattern]
    parts = [f"in {colours[0]}", f"with {prints[rng.integers(len(prints))]}"]
    if look.pattern != "Plain":
        parts[1] += f" in {colours[1]}"
    parts += [_SURFACES[look.material]]
    parts += [_NECK_WORDS[look.neck]] if look.neck else []
    parts += [_SLEEVE_WORDS[look.sleeve]] if look.sleeve else []
    parts += [_DETAIL_WORDS[detail] for detail in look.details]
    kept = [part for part in parts if rng.random() < 0.75]
    rng.shuffle(kept)
    return ", ".join([nouns[rng.integers(len(nouns))], *kept])
