//! The words of the corpus, one lexicon per split, and how they inflect.
//!
//! No open-class word (noun, verb, adjective, name) stands in two lexicons. Everything else a
//! sentence needs is written in the templates of [`grammar`](super::grammar) and so is shared.

/// The open-class words of one split.
///
/// Nouns are given as `singular` or `singular/plural`, verbs as `base`, `base/past` or
/// `base/past/participle`; what is left out is regular.
pub(super) struct Lexicon {
    /// Names of women.
    pub women: &'static [&'static str],
    /// Names of men.
    pub men: &'static [&'static str],
    /// Nouns for women, each refused by `himself`.
    pub female: &'static [&'static str],
    /// Nouns for men, each refused by `herself`.
    pub male: &'static [&'static str],
    /// Nouns for people of any gender.
    pub people: &'static [&'static str],
    /// Countable nouns for things that can be owned, mended and stood near.
    pub things: &'static [&'static str],
    /// Uncountable nouns for what people have.
    pub stuff: &'static [&'static str],
    /// Adjectives for people.
    pub moods: &'static [&'static str],
    /// Adjectives for things.
    pub looks: &'static [&'static str],
    /// What people do alone: no object, no passive.
    pub acts: &'static [&'static str],
    /// What people do to things: never without an object, never with a thing as the subject.
    pub handles: &'static [&'static str],
    /// What people do to people, themselves included: never without an object.
    pub treats: &'static [&'static str],
    /// What things do by themselves: no object.
    pub fades: &'static [&'static str],
    /// Verbs with an embedded question (`whether`, `who`, `when`).
    pub asks: &'static [&'static str],
    /// Verbs with an embedded question and with a `that` clause.
    pub learns: &'static [&'static str],
    /// Verbs with a `that` clause.
    pub thinks: &'static [&'static str],
    /// Past, participle (a different word) and what follows.
    pub irregular: &'static [(&'static str, &'static str, &'static str)],
}

/// A countable noun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Noun {
    pub singular: &'static str,
    pub plural: String,
}

impl Noun {
    pub fn new(entry: &'static str) -> Self {
        match entry.split_once('/') {
            Some((singular, plural)) => Noun {
                singular,
                plural: plural.to_owned(),
            },
            None => Noun {
                singular: entry,
                plural: with_s(entry),
            },
        }
    }

    pub fn form(&self, plural: bool) -> &str {
        if plural { &self.plural } else { self.singular }
    }
}

/// A verb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verb {
    pub base: &'static str,
    pub third: String,
    pub past: String,
    pub participle: String,
}

impl Verb {
    pub fn new(entry: &'static str) -> Self {
        let mut parts = entry.split('/');
        let base = parts.next().unwrap_or(entry);
        let past = parts.next().map_or_else(|| with_ed(base), str::to_owned);
        let participle = parts.next().map_or_else(|| past.clone(), str::to_owned);
        Verb {
            base,
            third: with_s(base),
            past,
            participle,
        }
    }

    /// The present tense for a subject of the third person.
    pub fn present(&self, plural: bool) -> &str {
        if plural { self.base } else { &self.third }
    }
}

fn with_s(word: &str) -> String {
    if let Some(stem) = after_consonant(word, 'y') {
        return format!("{stem}ies");
    }
    let hissing = ["s", "x", "z", "ch", "sh"]
        .iter()
        .any(|ending| word.ends_with(ending));
    format!("{word}{}", if hissing { "es" } else { "s" })
}

fn with_ed(word: &str) -> String {
    if let Some(stem) = after_consonant(word, 'y') {
        return format!("{stem}ied");
    }
    format!("{word}{}", if word.ends_with('e') { "d" } else { "ed" })
}

/// What stands before a final `letter` that follows a consonant.
fn after_consonant(word: &str, letter: char) -> Option<&str> {
    word.strip_suffix(letter)
        .filter(|stem| !stem.ends_with(['a', 'e', 'i', 'o', 'u']))
}

pub(super) static TRAIN: Lexicon = Lexicon {
    women: &[
        "Mary", "Linda", "Susan", "Karen", "Nancy", "Lisa", "Emily", "Laura", "Julia", "Anna",
        "Sarah", "Rachel", "Barbara", "Victoria",
    ],
    men: &[
        "John", "Paul", "James", "Robert", "David", "Thomas", "Kevin", "Brian", "George", "Edward",
        "Peter", "Daniel", "Michael", "Jonathan",
    ],
    female: &[
        "woman/women",
        "girl",
        "queen",
        "actress",
        "waitress",
        "grandmother",
        "sister",
        "mother",
        "bride",
        "nun",
    ],
    male: &[
        "man/men",
        "boy",
        "king",
        "grandfather",
        "brother",
        "father",
        "monk",
        "gentleman/gentlemen",
        "wizard",
        "policeman/policemen",
    ],
    people: &[
        "teacher",
        "student",
        "doctor",
        "lawyer",
        "nurse",
        "artist",
        "farmer",
        "baker",
        "pilot",
        "singer",
        "banker",
        "driver",
        "writer",
        "judge",
        "guard",
        "tourist",
        "neighbor",
        "manager",
        "scientist",
        "soldier",
        "visitor",
        "child/children",
        "customer",
        "poet",
        "editor",
        "author",
        "athlete",
        "spy",
    ],
    things: &[
        "lamp",
        "vase",
        "guitar",
        "bicycle",
        "table",
        "chair",
        "clock",
        "mirror",
        "basket",
        "violin",
        "camera",
        "piano",
        "carpet",
        "statue",
        "ladder",
        "bottle",
        "box",
        "sofa",
        "desk",
        "hammer",
        "kettle",
        "drum",
        "bucket",
        "radio",
        "blanket",
        "candle",
        "cup",
        "plate",
        "telescope",
        "umbrella",
        "watch",
        "knife/knives",
    ],
    stuff: &[
        "furniture",
        "sugar",
        "water",
        "sand",
        "rice",
        "luggage",
        "money",
        "bread",
        "salt",
        "butter",
        "clothing",
        "mud",
    ],
    moods: &[
        "tired", "happy", "nervous", "polite", "clever", "hungry", "lonely", "young", "tall",
        "kind", "angry", "famous", "strong", "patient", "rude", "rich",
    ],
    looks: &[
        "old",
        "new",
        "heavy",
        "small",
        "expensive",
        "beautiful",
        "dusty",
        "wooden",
        "blue",
        "large",
        "strange",
        "broken",
        "ugly",
        "white",
        "modern",
    ],
    acts: &[
        "laugh",
        "sleep/slept",
        "cough",
        "sneeze",
        "yawn",
        "smile",
        "shiver",
        "blush",
        "hesitate",
        "snore",
        "giggle",
        "complain",
        "kneel/knelt",
        "faint",
        "cry",
        "mumble",
    ],
    handles: &[
        "repair",
        "describe",
        "mention",
        "damage",
        "borrow",
        "admire",
        "fix",
        "discover",
        "destroy",
        "inspect",
        "purchase",
        "remove",
        "own",
        "examine",
        "bring/brought",
        "cherish",
        "resent",
        "misplace",
    ],
    treats: &[
        "admire",
        "blame",
        "criticize",
        "praise",
        "defend",
        "describe",
        "trust",
        "respect",
        "embarrass",
        "like",
        "protect",
        "surprise",
        "resent",
    ],
    fades: &["vanish", "appear", "emerge", "gleam", "arrive", "glitter"],
    asks: &[
        "wonder",
        "ask",
        "know/knew/known",
        "discover",
        "remember",
        "explain",
        "reveal",
        "recall",
    ],
    learns: &[
        "know/knew/known",
        "discover",
        "remember",
        "explain",
        "reveal",
        "recall",
        "hear/heard",
        "realize",
        "notice",
    ],
    thinks: &[
        "think/thought",
        "believe",
        "claim",
        "say/said",
        "suspect",
        "hope",
        "know/knew/known",
    ],
    irregular: &[
        ("stole", "stolen", "the money"),
        ("wrote", "written", "a letter"),
        ("drove", "driven", "the bus"),
        ("broke", "broken", "a window"),
        ("took", "taken", "the train"),
        ("gave", "given", "a speech"),
        ("spoke", "spoken", "to the crowd"),
        ("ate", "eaten", "the cake"),
        ("sang", "sung", "a song"),
        ("rode", "ridden", "a horse"),
        ("went", "gone", "to the market"),
        ("drew", "drawn", "a map"),
        ("fell", "fallen", "into the river"),
        ("began", "begun", "the lesson"),
    ],
};

pub(super) static VALIDATION: Lexicon = Lexicon {
    women: &["Helen", "Diana", "Alice", "Ruth", "Patricia", "Charlotte"],
    men: &["Henry", "Simon", "Walter", "Douglas", "Kenneth", "Stephen"],
    female: &["princess", "mermaid", "niece", "stewardess", "ballerina"],
    male: &["prince", "nephew", "fireman/firemen", "priest", "knight"],
    people: &[
        "engineer",
        "dancer",
        "librarian",
        "guest",
        "sailor",
        "cousin",
        "dentist",
        "mayor",
        "hiker",
        "critic",
        "witness",
    ],
    things: &[
        "bench", "pillow", "flute", "wallet", "wagon", "teapot", "keyboard", "ring", "suitcase",
        "printer", "stove", "fan",
    ],
    stuff: &["equipment", "flour", "wood", "pepper", "ink"],
    moods: &["proud", "shy", "busy", "calm", "stubborn", "lucky"],
    looks: &["cheap", "red", "huge", "dirty", "rusty", "elegant"],
    acts: &[
        "weep/wept",
        "frown",
        "gasp",
        "chuckle",
        "daydream",
        "stutter",
    ],
    handles: &[
        "ruin", "replace", "identify", "acquire", "locate", "dislike",
    ],
    treats: &[
        "introduce",
        "injure",
        "dislike",
        "distrust",
        "amuse",
        "humiliate",
    ],
    fades: &["disappear", "twinkle", "shimmer", "glisten"],
    asks: &[
        "check",
        "forget/forgot/forgotten",
        "announce",
        "see/saw/seen",
    ],
    learns: &["forget/forgot/forgotten", "announce", "see/saw/seen"],
    thinks: &["insist", "suppose", "imagine"],
    irregular: &[
        ("threw", "thrown", "the ball"),
        ("swam", "swum", "across the lake"),
        ("wore", "worn", "a hat"),
        ("shook", "shaken", "the tree"),
        ("blew", "blown", "a whistle"),
    ],
};

pub(super) static TEST: Lexicon = Lexicon {
    women: &[
        "Maria", "Emma", "Sophie", "Martha", "Teresa", "Jessica", "Margaret", "Olivia",
    ],
    men: &[
        "Carl", "Steven", "Andrew", "Philip", "Richard", "Arthur", "Benjamin", "Oliver",
    ],
    female: &["aunt", "daughter", "duchess", "lady", "goddess", "heroine"],
    male: &[
        "uncle",
        "son",
        "duke",
        "cowboy",
        "pope",
        "businessman/businessmen",
    ],
    people: &[
        "plumber",
        "chef",
        "senator",
        "gardener",
        "musician",
        "professor",
        "clerk",
        "hunter",
        "journalist",
        "carpenter",
        "secretary",
        "coach",
        "thief/thieves",
        "surgeon",
    ],
    things: &[
        "bag", "trumpet", "necklace", "tent", "shovel", "couch", "wheel", "rug", "helmet",
        "laptop", "brush", "jar", "flag", "sword", "harp", "trophy",
    ],
    stuff: &[
        "jewelry", "milk", "cheese", "gravel", "homework", "garbage", "coffee",
    ],
    moods: &[
        "cheerful", "brave", "quiet", "jealous", "wealthy", "gentle", "sleepy", "curious",
    ],
    looks: &[
        "tiny", "shiny", "green", "round", "fragile", "ancient", "yellow", "plain",
    ],
    acts: &[
        "sigh",
        "grin/grinned",
        "limp",
        "scream",
        "sob/sobbed",
        "shudder",
        "stumble",
        "misbehave",
    ],
    handles: &[
        "wreck",
        "find/found",
        "obtain",
        "restore",
        "conceal",
        "fetch",
        "seize",
        "recognize",
        "possess",
    ],
    treats: &[
        "insult",
        "ridicule",
        "recognize",
        "scold",
        "punish",
        "comfort",
        "flatter",
    ],
    fades: &["glow", "deteriorate", "reappear", "sparkle", "rot/rotted"],
    asks: &["learn", "guess", "determine", "investigate"],
    learns: &[
        "learn",
        "guess",
        "determine",
        "understand/understood",
        "confirm",
    ],
    thinks: &["assume", "conclude", "guess", "swear/swore/sworn"],
    irregular: &[
        ("flew", "flown", "the kite"),
        ("hid", "hidden", "the treasure"),
        ("drank", "drunk", "the milk"),
        ("tore", "torn", "a curtain"),
        ("rang", "rung", "the bell"),
        ("froze", "frozen", "the soup"),
        ("ran", "run", "across the street"),
        ("bit", "bitten", "the apple"),
    ],
};
