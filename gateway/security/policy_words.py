"""The words the default policy reads by; how they are read is in `policy_rules`.

All of them as the reading leaves them: small letters, no accents, one word each.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONFUSABLES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u03bf\u03b1\u03bd\u03b9",
    "aeopcyxijsdoavi",
)
"""Cyrillic and Greek letters that look like Latin ones."""
DIGITS_AS_LETTERS = (str.maketrans("013457@$", "oieastas"), str.maketrans("013457@$", "oleastas"))

FILLERS = _words(
    "a an the this that these those all any every each some both of off up my your our its own "
    "current remaining entire whole t white black red blue green pink yellow grey gray purple "
    "tight short long upper lower outer inner top wet"
)
"""What may stand between a verb and what it is applied to."""

OWNERS = _words("her his their hers him them she he they herself himself themselves")
PEOPLE = OWNERS | _words(
    "woman women womans man men mans girl girls boy boys lady ladies guy guys gal gals dude "
    "person persons people somebody someone anyone everybody everyone female male females males "
    "wife husband girlfriend boyfriend bride groom actress actor celebrity child children kid "
    "kids teen teenager teens toddler baby mother father mom mum dad sister brother daughter son "
    "friend classmate coworker colleague neighbor neighbour teacher student nurse me us"
)
POSERS = PEOPLE | _words("model models subject subjects character characters figure")

GARMENTS = _words(
    "clothes clothing garments garment outfit outfits underwear underpants panties bra bras "
    "bikini lingerie swimsuit swimwear undergarments attire apparel kleidung vetements ropa "
    "vestiti roupa"
)
SINGLE_GARMENTS = _words(
    "dress dresses shirt shirts tshirt tshirts blouse skirt skirts pants trousers jeans shorts "
    "leggings robe gown bodysuit jumpsuit stockings tights uniform sweater hoodie thong"
)
EITHER_GARMENT = GARMENTS | SINGLE_GARMENTS
AFTER_GARMENT = _words(
    ", from of off and or so in at with without to but then please completely entirely fully "
    "totally leaving revealing showing exposing while until except as she he her his they is are "
    "now here also only using by that which"
)
"""What follows a garment that stands for itself; `shirt pocket` is no shirt."""
PARTS_OF_GARMENTS = _words(
    "tag tags label labels wrinkle wrinkles stain stains lint logo logos hanger hangers rack "
    "racks line lines pin pins peg pegs button buttons pocket pockets collar strap straps fold "
    "folds crease creases rail rails pile piles basket hamper iron dryer moth moths brand brands "
    "store shop size sizes zipper hem hems sleeve sleeves reflection reflections shadow shadows "
    "print pattern patterns dust fluff pilling color colour colors colours texture bag bags box "
    "boxes"
)
PIECES = _words("item items piece pieces layer layers article articles")
PLACES = _words(
    "floor ground chair bed table desk rack racks line hanger hangers wardrobe closet background "
    "foreground room sofa couch machine dryer washer mannequin mannequins dummy rail basket "
    "hamper shelf shelves drawer drawers suitcase scene pile store shop window door hook doll "
    "dolls display catalogue catalog wall"
)
"""Where garments lie or hang while nobody wears them."""
AWAY = _words("from off on in hanging lying behind beside near scattered draped at")

UNDRESSING = ("undress", "nudif", "deepnud", "disrob", "declothe", "unclothe", "entkleide")
"""How the verbs begin that mean nothing else."""
UNDRESSED_THINGS = _words(
    "mannequin mannequins doll dolls dummy stone stones timber lumber marble wood salad leather "
    "hide hides window windows uniform uniforms tree room rooms"
)
REMOVE = _words(
    "remove removes removed removing erase erases erased erasing delete deletes deleted deleting "
    "eliminate strip strips stripped stripping doff doffs shed sheds shedding unzip desvestir"
)
TAKE = _words(
    "take takes taking took taken pull pulls pulled pulling peel peels peeled peeling rip rips "
    "ripped ripping tear tears tore torn tearing cut cuts cutting slip slips slipping get gets "
    "getting throw throws throwing"
)
"""These undress only together with `off`."""
STRIP = _words("strip strips stripped stripping")
STRIPS = _words("comic led film light test magnetic vegas sunset drag power landing air")
"""Before `strip`, it is a thing."""
AFTER_STRIPPED = _words(", nude naked bare down completely totally fully off in on from")
BEING = _words(
    "are is was were be being been getting get to fully completely all totally entirely taken "
    "torn ripped pulled"
)
MAKE = _words(
    "make makes making made turn turns turning render renders rendering transform transforms "
    "change edit get see seeing imagine"
)
LOOKING = _words("look looks looking appear appear be become completely fully totally all into a")
SHOW_THROUGH = _words("transparent invisible disappear vanish translucent")

BARE = _words("nude nudes naked topless bottomless unclothed nackt nackte desnuda desnudo")
COLOURS_OF_NUDE = _words(
    "lipstick lipsticks lip lips gloss shade shades tone tones toned color colour colors colours "
    "colored coloured palette palettes polish nail nails manicure heel heels pump pumps shoe "
    "shoes sandal sandals stiletto stilettos makeup eyeshadow eyeliner blush foundation concealer "
    "tights stockings hosiery pantyhose bra bodysuit leather bag handbag beige brown background "
    "wall matte satin tan suede hue hues pastel backdrop dress dresses gown gowns skirt fabric "
    "mesh lace top clutch"
)
"""`nude` before one of these is the colour."""
COLOURED_NUDE = _words(
    "lipstick lips lip gloss shade tone color colour palette polish nails nail heels pumps hue "
    "makeup"
)
"""`nude` after one of these is the colour too."""
BESIDE_NUDE = _words("beige brown blush taupe tan ivory cream peach mauve pink coral")
FINISHES = _words("pink matte satin patent pointed high glossy liquid strappy soft suede leather")
NAKED_THINGS = _words(
    "eye eyes cake cakes branch branches tree trees twig twigs wood flame flames bulb bulbs truth "
    "juice mole bike bikes motorcycle blade wire wires rock rocks cat barley singularity short "
    "seed seeds bus car cars jeep boat convertible roof"
)
"""`naked`, `topless` and the like before one of these are about a thing."""
STATUES = _words(
    "statue statues sculpture sculptures marble bronze figurine bust relief fresco plaster "
    "mannequin"
)
MEDICAL = STATUES | _words(
    "medical anatomy anatomical diagram textbook clinical surgical surgery health healthcare "
    "education educational pathology gynecology gynaecology urology dermatology obstetrics"
)
BOTTLES = _words("bottle bottles pacifier pacifiers soother feeding feeder silicone pipe grease")

EXPLICIT = BARE | _words(
    "nudity nakedness nsfw hentai erotic erotica erotically sexual sexually sexualize sexualise "
    "sexualized sexualised intercourse masturbate masturbates masturbating masturbation orgasm "
    "orgasms orgasmic blowjob handjob footjob rimjob deepthroat fellatio cunnilingus boobs "
    "titties pussy cum cumshot creampie bukkake doggystyle bdsm gangbang threesome orgy dildo "
    "dildos anal milf upskirt downblouse cameltoe ahegao rule34 onlyfans striptease slut sluts "
    "whore sex sexo erotisch erotique erotico sexuell sexuel sexuelle porn porno pornographic "
    "pornography pornstar"
)
HARMLESS_AFTER = {
    "sex": _words(
        "education ed chromosome chromosomes ratio hormone hormones reveal determination"
    ),
    "sexual": _words("health education reproduction dimorphism selection orientation wellness"),
    "anal": _words("fin fins gland glands canal fissure sac sacs"),
    "pussy": _words("willow willows cat cats riot"),
    "cum": _words("laude"),
}
HARMLESS_BEFORE = {
    "sex": _words("same opposite both either and biological"),
    "porn": _words("food earth word design cabin"),
}
ANATOMY = _words(
    "penis penises vagina vulva genital genitals genitalia nipple nipples areola areolae"
)
EXPOSED = _words("bare exposed uncovered")
BODY = _words("breasts breast butt buttocks crotch")
SUGGESTIVE = _words(
    "sexy sexier sexiest seductive seductively seduce seducing lustful sensual sensually lewd "
    "lewds slutty kinky raunchy titillating"
)
POSES = _words("provocative suggestive")
REVEALING = _words("lingerie thong gstring microbikini panties")
FITTED = _words("maternity nursing")
BEACHWEAR = REVEALING | _words("bikini underwear bra")
PUT = _words("put puts putting dress change place show replace swap make turn have")

MINORS = _words(
    "child children childlike childish kid kids toddler toddlers infant infants newborn newborns "
    "preteen preteens tween tweens teen teens teenage teenaged teenager teenagers adolescent "
    "adolescents minors underage underaged juvenile juveniles schoolgirl schoolgirls schoolboy "
    "schoolboys schoolchild schoolchildren schoolkid schoolkids kindergarten kindergartner "
    "kindergartener preschool preschooler pubescent prepubescent prepubertal loli lolis lolita "
    "lolicon shota shotacon jailbait kinder kleinkind minderjahrig minderjahrige enfant enfants "
    "fillette fillettes ninos ninas bambina bambino bambini crianca criancas"
)
MAYBE_MINORS = _words("girl girls boy boys baby babies daughter daughters")
SMALL = _words("little young small tiny younger underdeveloped")
SMALL_ONES = _words("girl girls boy boys lad lass lads sister brother daughter son")
SCHOOLS = _words("high middle elementary primary grade junior secondary")
GRADES = _words("grade grader graders")
ORDINALS = _words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth 1st 2nd "
    "3rd 4th 5th 6th 7th 8th 9th 10th 11th 12th"
)
KID_THINGS = _words("leather glove gloves skin suede")
BABY_THINGS = _words("blue pink oil powder doll shower grand face")
NUMBERS = {
    word: n
    for n, word in enumerate(
        (
            *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
            *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
        ),
        start=1,
    )
} | {str(n): n for n in range(1, 18)}
YEARS = _words("year years yr yrs")
YEARS_OLD = _words("yo yearold yearsold ans anos anni jahre jahrige")
OLD = _words("old olds of girl boy female male")
AGED = _words("age aged")
AGED_THINGS = _words("whisky whiskey scotch rum wine brandy bourbon cheese malt tree oak car house")

LIKENESSES = _words("deepfake deepfakes celebrity celebrities lookalike")
REAL = _words("real famous")
MINE = _words(
    "wife husband ex girlfriend boyfriend sister brother mother mom mum father dad boss teacher "
    "coworker colleague classmate neighbor neighbour friend crush cousin aunt niece roommate"
)

DISGUISED = EXPLICIT | ANATOMY | SUGGESTIVE | REVEALING | MINORS | MAYBE_MINORS | REMOVE | GARMENTS
"""What is recognised with digits for letters."""
