"""The demo's article types: how each is drawn, and what it goes with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from retailtag.demo.drawing.words import SEASONS


@dataclass(frozen=True)
class Article:
    """One article type: how it is drawn and what it goes with.

    Parameters
    ----------
    name, master : str
        Values of the tags ``article:`` and ``master:``.
    family : str
        Which silhouette draws it (see `retailtag.demo.drawing.garments`).
    shape : mapping of str to float
        Numbers given to the silhouette, in 96 x 128 picture units.
    genders, usages, seasons, materials, necks, sleeves, details : tuple of str
        What it goes with, the most usual first. Empty ``necks`` or ``sleeves``: it has none.
    """

    name: str
    master: str
    family: str
    shape: Mapping[str, float] = field(default_factory=dict)
    genders: tuple[str, ...] = ("Women", "Men", "Unisex", "Girls", "Boys")
    usages: tuple[str, ...] = ("Casual", "Work", "Travel")
    seasons: tuple[str, ...] = SEASONS
    materials: tuple[str, ...] = ("Cotton", "Polyester")
    necks: tuple[str, ...] = ()
    sleeves: tuple[str, ...] = ()
    details: tuple[str, ...] = ()


_WARM = ("Summer", "Spring")
_COLD = ("Winter", "Autumn")
_LADY = ("Women", "Girls")
_ADULT = ("Women", "Men", "Unisex")
_TOP_NECKS = ("Crew", "V Neck", "Scoop", "Boat", "Square", "Halter", "Off Shoulder", "Sweetheart")
_TOP_SLEEVES = ("Short", "Long", "Sleeveless", "Three Quarter", "Cap", "Puff", "Bell")
_TOP_DETAILS = ("Chest Pocket", "Embroidery", "Contrast Trim", "Sequins", "Bow", "Studs", "Cut Out")
_COAT_DETAILS = ("Buttons", "Zip", "Belted", "Chest Pocket", "Quilted", "Studs", "Elbow Patch")
_LEG_DETAILS = ("Zip", "Contrast Trim", "Drawstring", "Belted", "Studs", "Embroidery")
_BAG_DETAILS = ("Zip", "Contrast Trim", "Quilted", "Studs", "Fringe", "Tassel", "Embroidery", "Bow")
_SHOE_DETAILS = ("Contrast Trim", "Studs", "Zip", "Bow", "Tassel", "Embroidery")
_KNIT = ("Wool", "Cotton", "Cashmere", "Polyester")
_DRESSY = ("Cotton", "Polyester", "Silk", "Linen", "Satin", "Lace", "Velvet")
_SHOES = ("Leather", "Suede", "Canvas")


def _top(name: str, shape: dict[str, float], **more: tuple[str, ...]) -> Article:
    given = {"necks": _TOP_NECKS, "sleeves": _TOP_SLEEVES, "details": _TOP_DETAILS} | more
    return Article(name, "Tops", "upper", shape, **given)


def _coat(name: str, shape: dict[str, float], **more: tuple[str, ...]) -> Article:
    given = {"necks": ("Collared", "Hooded"), "sleeves": ("Long",), "details": _COAT_DETAILS}
    given |= {"seasons": _COLD, "materials": ("Wool", "Polyester", "Nylon", "Cotton")} | more
    return Article(name, "Outerwear", "upper", shape, **given)


def _dress(name: str, shape: dict[str, float], **more: tuple[str, ...]) -> Article:
    details = ("Belted", "Ruffle Hem", "Bow", "Embroidery", "Slit", "Sequins", "Cut Out", "Buttons")
    given = {"necks": _TOP_NECKS, "sleeves": _TOP_SLEEVES, "details": details} | {
        "genders": _LADY,
        "materials": _DRESSY,
        "usages": ("Casual", "Party", "Work", "Formal", "Beach"),
        "seasons": ("Summer", "Spring", "Autumn"),
    }
    return Article(name, "Dresses", "upper", shape, **(given | more))


def _bottom(name: str, family: str, shape: dict[str, float], **more: tuple[str, ...]) -> Article:
    return Article(name, "Bottoms", family, shape, **({"details": _LEG_DETAILS} | more))


def _skirt(name: str, shape: dict[str, float], **more: tuple[str, ...]) -> Article:
    details = ("Ruffle Hem", "Slit", "Belted", "Buttons", "Fringe", "Sequins", "Zip")
    given = {"genders": _LADY, "materials": _DRESSY, "details": details} | more
    return _bottom(name, "skirt", shape, **given)


def _shoe(name: str, shape: dict[str, float], **more: tuple[str, ...]) -> Article:
    return Article(
        name, "Footwear", "shoe", shape, **({"materials": _SHOES, "details": _SHOE_DETAILS} | more)
    )


def _bag(name: str, shape: dict[str, float], **more: tuple[str, ...]) -> Article:
    given = {"materials": ("Leather", "Canvas", "Nylon", "Suede"), "details": _BAG_DETAILS}
    given |= {"genders": _ADULT, "usages": ("Casual", "Work", "Travel", "Party")} | more
    return Article(name, "Bags", "bag", shape, **given)


def _extra(name: str, family: str, **more: tuple[str, ...]) -> Article:
    return Article(name, "Accessories", family, {}, **({"genders": _ADULT} | more))


# From the most to the least frequent.
ARTICLES: tuple[Article, ...] = (
    _top("T-Shirt", {"length": 58}, sleeves=("Short", "Long", "Cap"), seasons=_WARM),
    _bottom(
        "Jeans",
        "trousers",
        {"knee": 9, "cuff": 8},
        materials=("Denim",),
        details=("Ripped", "Studs", "Embroidery", "Contrast Trim"),
    ),
    _shoe(
        "Sneakers",
        {"sole": 6, "laces": 1},
        materials=("Leather", "Canvas", "Nylon", "Suede"),
        usages=("Sports", "Casual"),
    ),
    _dress("Dress", {"length": 80, "hem": 24, "waist": 12}),
    _top(
        "Shirt",
        {"length": 64, "placket": 1},
        necks=("Collared",),
        sleeves=("Long", "Short"),
        usages=("Work", "Formal", "Casual"),
        materials=("Cotton", "Linen", "Silk", "Denim"),
    ),
    _top(
        "Sweater",
        {"length": 58, "rib": 1, "chest": 21},
        necks=("Crew", "V Neck", "Turtleneck", "Mock"),
        sleeves=("Long",),
        seasons=_COLD,
        materials=_KNIT,
        details=("Embroidery", "Contrast Trim", "Elbow Patch", "Sequins"),
    ),
    _bag("Handbag", {"handle": 1, "flap": 0.35}, genders=_LADY),
    _bottom(
        "Shorts",
        "trousers",
        {"length": 40, "knee": 14, "cuff": 14},
        seasons=_WARM,
        usages=("Casual", "Sports", "Beach"),
        materials=("Cotton", "Denim", "Linen", "Nylon"),
    ),
    _coat(
        "Jacket",
        {"length": 58, "front": 2},
        materials=("Polyester", "Denim", "Leather", "Nylon", "Corduroy"),
    ),
    _shoe("Heels", {"heel": 24}, genders=_LADY, usages=("Party", "Formal", "Work")),
    _top(
        "Hoodie",
        {"length": 60, "rib": 1, "chest": 21, "kangaroo": 1},
        necks=("Hooded",),
        sleeves=("Long",),
        seasons=_COLD,
        usages=("Casual", "Sports", "Lounge"),
        materials=("Cotton", "Fleece", "Polyester"),
        details=("Drawstring", "Zip", "Embroidery", "Contrast Trim"),
    ),
    _skirt("Skirt", {"length": 56, "hem": 26}),
    _shoe(
        "Boots",
        {"shaft": 34, "heel": 6, "sole": 4},
        seasons=_COLD,
        materials=("Leather", "Suede"),
    ),
    _top(
        "Blouse",
        {"length": 58, "waist": 14, "hem": 19},
        genders=_LADY,
        necks=("V Neck", "Collared", "Boat", "Square", "Off Shoulder", "Sweetheart"),
        sleeves=("Long", "Three Quarter", "Puff", "Bell"),
        materials=_DRESSY,
        usages=("Work", "Casual", "Party"),
        details=("Bow", "Ruffle Hem", "Buttons", "Embroidery"),
    ),
    _bottom(
        "Chinos",
        "trousers",
        {"knee": 11, "cuff": 9.5},
        usages=("Work", "Casual"),
        materials=("Cotton", "Linen", "Corduroy"),
    ),
    _extra(
        "Cap",
        "cap",
        usages=("Sports", "Casual"),
        seasons=_WARM,
        materials=("Cotton", "Canvas", "Nylon", "Denim"),
        details=("Embroidery", "Contrast Trim"),
    ),
    _shoe(
        "Sandals",
        {"straps": 3, "heel": 3, "sole": 3},
        seasons=_WARM,
        usages=("Beach", "Casual"),
        materials=("Leather", "Suede", "Rubber"),
    ),
    _coat(
        "Coat",
        {"length": 84, "front": 1, "hem": 22, "lapel": 1},
        necks=("Collared",),
        materials=("Wool", "Cashmere", "Polyester", "Tweed"),
    ),
    _bag(
        "Backpack",
        {"handle": 3, "round": 1, "height": 52, "width": 22},
        usages=("Travel", "Sports", "Casual"),
        materials=("Nylon", "Canvas", "Leather"),
        genders=("Unisex", "Boys", "Girls", "Men"),
    ),
    _top(
        "Tank Top",
        {"length": 58, "strap": 1},
        sleeves=("Sleeveless",),
        necks=("Scoop", "Square", "V Neck"),
        seasons=_WARM,
        usages=("Sports", "Casual", "Beach"),
    ),
    _top(
        "Polo Shirt",
        {"length": 60, "placket": 0.35},
        necks=("Collared",),
        sleeves=("Short", "Long"),
        genders=("Men", "Boys", "Women"),
        usages=("Sports", "Casual"),
    ),
    _extra(
        "Watch",
        "watch",
        materials=("Metal", "Leather", "Rubber"),
        usages=("Work", "Formal", "Sports"),
    ),
    _bottom(
        "Leggings",
        "trousers",
        {"knee": 6, "cuff": 4.5, "hip": 14, "waist": 12},
        genders=_LADY,
        usages=("Sports", "Lounge"),
        materials=("Polyester", "Nylon", "Cotton"),
    ),
    _top(
        "Cardigan",
        {"length": 62, "front": 1, "rib": 1, "chest": 20},
        necks=("V Neck", "Crew"),
        sleeves=("Long", "Three Quarter"),
        seasons=_COLD,
        materials=_KNIT,
        details=("Buttons", "Belted", "Elbow Patch", "Contrast Trim"),
    ),
    _extra(
        "Sunglasses",
        "sunglasses",
        seasons=_WARM,
        usages=("Beach", "Travel"),
        materials=("Metal", "Rubber"),
    ),
    _bag("Tote Bag", {"handle": 2, "height": 48, "width": 26}, genders=_ADULT),
    _extra(
        "Scarf",
        "scarf",
        seasons=_COLD,
        materials=("Wool", "Cashmere", "Silk", "Cotton"),
        details=("Fringe", "Tassel"),
    ),
    _coat(
        "Blazer",
        {"length": 62, "front": 1, "lapel": 2, "waist": 15},
        necks=("Collared",),
        usages=("Work", "Formal"),
        materials=("Wool", "Linen", "Velvet", "Tweed", "Polyester"),
    ),
    _shoe(
        "Loafers",
        {"sole": 3, "heel": 3, "saddle": 1},
        usages=("Work", "Formal"),
        materials=("Leather", "Suede"),
    ),
    _extra(
        "Belt",
        "belt",
        materials=("Leather", "Canvas", "Suede"),
        usages=("Work", "Casual"),
        details=("Studs",),
    ),
    _dress("Maxi Dress", {"length": 98, "hem": 27, "waist": 11}),
    _extra(
        "Tie",
        "tie",
        genders=("Men", "Boys"),
        usages=("Formal", "Work"),
        materials=("Silk", "Wool", "Satin"),
    ),
    _bottom(
        "Joggers",
        "trousers",
        {"knee": 12, "cuff": 6, "rib": 1},
        usages=("Sports", "Lounge"),
        materials=("Cotton", "Fleece", "Polyester"),
        details=("Drawstring", "Contrast Trim", "Zip"),
    ),
    _extra(
        "Beanie",
        "beanie",
        seasons=_COLD,
        materials=("Wool", "Cashmere", "Fleece"),
        details=("Tassel", "Embroidery", "Contrast Trim"),
    ),
    _shoe(
        "Ankle Boots",
        {"shaft": 12, "heel": 9, "sole": 3},
        seasons=_COLD,
        materials=("Leather", "Suede"),
    ),
    _extra(
        "Socks",
        "socks",
        materials=("Cotton", "Wool", "Nylon"),
        usages=("Sports", "Casual", "Lounge"),
    ),
    _skirt("Mini Skirt", {"length": 34, "hem": 23}, usages=("Party", "Casual")),
    _coat(
        "Puffer Jacket",
        {"length": 58, "front": 2, "puffer": 1, "chest": 23, "hem": 22, "arm": 11},
        materials=("Nylon", "Polyester"),
    ),
    _top(
        "Sweatshirt",
        {"length": 58, "rib": 1, "chest": 22, "hem": 20},
        necks=("Crew", "Mock"),
        sleeves=("Long",),
        usages=("Sports", "Lounge", "Casual"),
        materials=("Cotton", "Fleece"),
    ),
    _shoe(
        "Ballet Flats",
        {"low": 1, "sole": 1.5},
        genders=_LADY,
        materials=("Leather", "Satin", "Suede"),
    ),
    _bag("Crossbody Bag", {"handle": 4, "height": 28, "width": 22, "flap": 0.5}),
    _extra(
        "Wallet", "wallet", materials=("Leather", "Canvas"), details=("Zip", "Studs", "Embroidery")
    ),
    _extra(
        "Necklace",
        "necklace",
        genders=("Women",),
        materials=("Metal",),
        usages=("Party", "Formal"),
        details=("Tassel",),
    ),
    _top(
        "Crop Top",
        {"length": 36},
        genders=_LADY,
        sleeves=("Short", "Sleeveless", "Puff", "Long"),
        seasons=_WARM,
        usages=("Party", "Beach", "Casual"),
    ),
    _coat(
        "Bomber Jacket",
        {"length": 54, "front": 2, "rib": 1, "chest": 22, "hem": 19},
        necks=("Mock",),
        materials=("Nylon", "Polyester", "Satin", "Leather"),
    ),
    _extra(
        "Gloves",
        "gloves",
        seasons=_COLD,
        materials=("Leather", "Wool", "Suede", "Fleece"),
        details=("Bow", "Studs"),
    ),
    _top(
        "Waistcoat",
        {"length": 50, "front": 1, "points": 1, "waist": 15},
        genders=("Men", "Women"),
        necks=("V Neck",),
        sleeves=("Sleeveless",),
        usages=("Formal", "Work"),
        materials=("Wool", "Tweed", "Velvet", "Linen"),
        details=("Buttons", "Chest Pocket"),
    ),
    _dress("Jumpsuit", {"length": 50, "legs": 52, "waist": 12, "hem": 15}),
    _extra(
        "Sun Hat",
        "sunhat",
        seasons=_WARM,
        usages=("Beach", "Travel"),
        materials=("Straw", "Cotton", "Linen"),
        details=("Bow", "Contrast Trim"),
    ),
    _coat(
        "Parka",
        {"length": 74, "front": 2, "hem": 22, "chest": 22, "fur": 1},
        necks=("Hooded",),
        materials=("Cotton", "Nylon"),
    ),
    _shoe("High Tops", {"sole": 6, "laces": 1, "shaft": 12}, materials=("Canvas", "Leather")),
    _top(
        "Camisole",
        {"length": 52, "strap": 2, "waist": 14},
        genders=_LADY,
        necks=("V Neck", "Sweetheart", "Square"),
        sleeves=("Sleeveless",),
        materials=("Silk", "Satin", "Lace", "Cotton"),
        usages=("Lounge", "Party"),
    ),
    _bottom(
        "Cargo Trousers",
        "trousers",
        {"knee": 12, "cuff": 11, "cargo": 1},
        usages=("Casual", "Travel"),
        genders=("Men", "Boys", "Women"),
    ),
    _shoe(
        "Flip Flops",
        {"flip": 1},
        seasons=("Summer",),
        usages=("Beach",),
        materials=("Rubber", "Leather"),
    ),
    _coat(
        "Trench Coat",
        {"length": 86, "front": 3, "hem": 24, "lapel": 2, "belt": 1},
        necks=("Collared",),
        materials=("Cotton", "Leather"),
        seasons=("Autumn", "Spring"),
    ),
    _bag(
        "Clutch",
        {"handle": 0, "height": 24, "width": 32, "flap": 0.6},
        genders=_LADY,
        usages=("Party", "Formal"),
        materials=("Leather", "Satin", "Velvet", "Suede"),
    ),
    _skirt("Pleated Skirt", {"length": 60, "hem": 28, "pleats": 1}),
    _top(
        "Tunic",
        {"length": 78, "hem": 25, "waist": 18},
        genders=_LADY,
        sleeves=("Three Quarter", "Long", "Bell"),
        materials=("Cotton", "Linen", "Silk"),
    ),
    _extra(
        "Earrings",
        "earrings",
        genders=("Women",),
        materials=("Metal",),
        usages=("Party", "Formal"),
        details=("Tassel",),
    ),
    _bottom(
        "Flared Trousers",
        "trousers",
        {"knee": 8, "cuff": 17},
        genders=_LADY,
        materials=("Polyester", "Denim", "Corduroy", "Velvet"),
    ),
    _extra(
        "Fedora",
        "fedora",
        materials=("Wool", "Straw", "Suede"),
        usages=("Formal", "Travel"),
        details=("Contrast Trim", "Bow"),
    ),
    _shoe(
        "Wellington Boots",
        {"shaft": 36, "sole": 5, "wide": 1},
        materials=("Rubber",),
        seasons=_COLD,
    ),
    _dress(
        "Shirt Dress",
        {"length": 82, "hem": 20, "placket": 1, "belt": 1},
        necks=("Collared",),
        sleeves=("Long", "Short", "Three Quarter"),
    ),
    _coat(
        "Gilet",
        {"length": 56, "front": 2, "puffer": 1},
        sleeves=("Sleeveless",),
        necks=("Mock", "Hooded"),
        materials=("Nylon", "Fleece", "Polyester"),
    ),
    _bag(
        "Duffel Bag",
        {"handle": 2, "height": 34, "width": 38, "duffel": 1},
        usages=("Travel", "Sports"),
        materials=("Nylon", "Canvas", "Leather"),
    ),
    _skirt("Maxi Skirt", {"length": 88, "hem": 30}, usages=("Casual", "Beach", "Party")),
    _shoe(
        "Mules",
        {"heel": 12, "mule": 1, "sole": 2},
        genders=("Women",),
        materials=("Leather", "Suede", "Velvet"),
    ),
    _dress(
        "Slip Dress",
        {"length": 82, "hem": 19, "strap": 2, "waist": 13},
        necks=("V Neck", "Sweetheart"),
        sleeves=("Sleeveless",),
        materials=("Satin", "Silk", "Velvet"),
    ),
    _extra(
        "Umbrella",
        "umbrella",
        materials=("Nylon", "Polyester"),
        seasons=_COLD,
        usages=("Travel", "Work"),
        details=("Ruffle Hem", "Contrast Trim"),
    ),
    _bottom(
        "Culottes",
        "trousers",
        {"length": 62, "knee": 17, "cuff": 21},
        genders=_LADY,
        materials=("Linen", "Cotton", "Polyester"),
    ),
    _extra(
        "Bow Tie",
        "bowtie",
        genders=("Men", "Boys"),
        usages=("Formal", "Party"),
        materials=("Silk", "Satin", "Velvet"),
    ),
    _dress(
        "Dungarees",
        {"length": 50, "legs": 50, "bib": 1, "hem": 17, "waist": 15},
        genders=("Women", "Girls", "Boys", "Men"),
        materials=("Denim", "Corduroy", "Cotton"),
        necks=("Square",),
        sleeves=("Sleeveless",),
        usages=("Casual", "Work"),
        details=("Chest Pocket", "Ripped", "Embroidery"),
    ),
    _coat(
        "Kimono",
        {"length": 70, "front": 4, "chest": 21, "hem": 22, "arm": 17},
        genders=("Women", "Unisex"),
        necks=("V Neck",),
        sleeves=("Three Quarter",),
        materials=("Silk", "Satin", "Cotton"),
        seasons=_WARM,
        usages=("Lounge", "Beach"),
        details=("Belted", "Fringe", "Embroidery"),
    ),
    _top(
        "Bodysuit",
        {"length": 62, "brief": 1, "waist": 13},
        genders=_LADY,
        materials=("Cotton", "Lace", "Polyester"),
        usages=("Party", "Sports"),
    ),
    _bag("Bucket Bag", {"handle": 4, "height": 40, "width": 19, "bucket": 1}, genders=("Women",)),
    _coat(
        "Poncho",
        {"length": 66, "cape": 1},
        sleeves=(),
        necks=("Turtleneck", "V Neck", "Hooded"),
        materials=("Wool", "Cashmere", "Cotton"),
        details=("Fringe", "Tassel", "Contrast Trim"),
    ),
    _dress(
        "Pinafore",
        {"length": 76, "hem": 24, "bib": 1, "waist": 14},
        materials=("Denim", "Corduroy", "Wool"),
        necks=("Square",),
        sleeves=("Sleeveless",),
    ),
    _coat(
        "Robe",
        {"length": 90, "front": 4, "belt": 1, "chest": 21, "hem": 24, "arm": 11},
        necks=("V Neck",),
        sleeves=("Long",),
        materials=("Cotton", "Silk", "Fleece", "Satin"),
        usages=("Lounge",),
    ),
    _coat(
        "Cape",
        {"length": 72, "cape": 2, "front": 1},
        genders=("Women", "Girls"),
        sleeves=(),
        necks=("Collared", "Hooded"),
        materials=("Wool", "Velvet", "Tweed"),
    ),
)
