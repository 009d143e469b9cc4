//! The templates: each writes one minimal pair, the acceptable sentence first.
//!
//! The phenomena follow BLiMP (Warstadt et al. 2020, "BLiMP: The Benchmark of Linguistic Minimal
//! Pairs for English", TACL 8); templates and words are our own. Two rules keep the words themselves
//! from giving the answer away. Where it can be, both sentences of a pair hold the same words in
//! another order. Where it cannot, the number is drawn by a coin, or a second template of the same
//! phenomenon makes the words that were wrong in the first one right.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use super::lexicon::{Lexicon, Noun, Verb};

/// An acceptable sentence and its unacceptable twin, without capital and full form of `a`.
pub(super) type Pair = (String, String);

/// The templates of one phenomenon. They are used in turn, in equal numbers.
pub(super) struct Phenomenon {
    /// Its name, in snake case.
    pub name: &'static str,
    /// Its templates.
    pub templates: &'static [fn(&mut Writer) -> Pair],
}

/// Every phenomenon of the corpus.
pub(super) static PHENOMENA: &[Phenomenon] = &[
    Phenomenon {
        name: "subject_verb_agreement",
        templates: &[act_agrees, copula_agrees, auxiliary_agrees],
    },
    Phenomenon {
        name: "attractor_agreement",
        templates: &[attractor_in_phrase, attractor_in_clause, attractor_copula],
    },
    Phenomenon {
        name: "determiner_noun_agreement",
        templates: &[demonstrative_varies, noun_varies, numeral_varies],
    },
    Phenomenon {
        name: "anaphor_agreement",
        templates: &[reflexive_of_name, reflexive_of_noun],
    },
    Phenomenon {
        name: "binding",
        templates: &[binding_is_local, binding_commands],
    },
    Phenomenon {
        name: "wh_island",
        templates: &[
            whether_island,
            who_island,
            when_island,
            question_out_of_question,
        ],
    },
    Phenomenon {
        name: "adjunct_island",
        templates: &[adjunct_cleft, adjunct_question],
    },
    Phenomenon {
        name: "complex_np_island",
        templates: &[relative_cleft, relative_question],
    },
    Phenomenon {
        name: "coordinate_structure",
        templates: &[conjunct_cleft, conjunct_question],
    },
    Phenomenon {
        name: "left_branch",
        templates: &[whose_question, whose_embedded],
    },
    Phenomenon {
        name: "transitivity",
        templates: &[object_wanted, object_refused],
    },
    Phenomenon {
        name: "causative",
        templates: &[causer_wanted, causer_refused],
    },
    Phenomenon {
        name: "passive",
        templates: &[passive_refused, passive_wanted],
    },
    Phenomenon {
        name: "npi_licensing",
        templates: &[
            ever_under_no,
            ever_under_only,
            ever_under_not,
            any_under_nobody,
        ],
    },
    Phenomenon {
        name: "filler_gap",
        templates: &[
            gap_wanted,
            gap_refused,
            person_gap_wanted,
            person_gap_refused,
        ],
    },
    Phenomenon {
        name: "quantifiers",
        templates: &[
            existential_singular,
            existential_plural,
            many_things,
            much_stuff,
        ],
    },
    Phenomenon {
        name: "ellipsis",
        templates: &[noun_ellipsis],
    },
    Phenomenon {
        name: "irregular_forms",
        templates: &[past_wanted, participle_wanted],
    },
    Phenomenon {
        name: "inversion",
        templates: &[inversion_wanted, inversion_refused],
    },
];

const PLACES: &[&str] = &["near", "behind", "beside", "in front of"];
const TIMES: &[&str] = &[
    "yesterday",
    "again",
    "last night",
    "last week",
    "this morning",
    "on Monday",
    "on Friday",
];
const HABITS: &[&str] = &["often", "never", "always", "sometimes", "rarely"];

/// Draws words from one lexicon.
pub(super) struct Writer<'a> {
    /// The words to draw from.
    pub words: &'static Lexicon,
    /// The only source of chance.
    pub rng: &'a mut ChaCha8Rng,
}

impl Writer<'_> {
    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[below(self.rng, list.len())]
    }

    /// Two different entries of `list`.
    fn two<T: Copy>(&mut self, list: &[T]) -> (T, T) {
        let first = below(self.rng, list.len());
        let step = 1 + below(self.rng, list.len() - 1);
        (list[first], list[(first + step) % list.len()])
    }

    fn coin(&mut self) -> bool {
        below(self.rng, 2) == 0
    }

    fn person(&mut self) -> Noun {
        Noun::new(self.pick(self.words.people))
    }

    fn people(&mut self) -> (Noun, Noun) {
        let (one, other) = self.two(self.words.people);
        (Noun::new(one), Noun::new(other))
    }

    fn thing(&mut self) -> Noun {
        Noun::new(self.pick(self.words.things))
    }

    fn things(&mut self) -> (Noun, Noun) {
        let (one, other) = self.two(self.words.things);
        (Noun::new(one), Noun::new(other))
    }

    fn act(&mut self) -> Verb {
        Verb::new(self.pick(self.words.acts))
    }

    fn handle(&mut self) -> Verb {
        Verb::new(self.pick(self.words.handles))
    }

    fn treat(&mut self) -> Verb {
        Verb::new(self.pick(self.words.treats))
    }

    fn name(&mut self) -> &'static str {
        if self.coin() {
            self.pick(self.words.women)
        } else {
            self.pick(self.words.men)
        }
    }

    fn names(&mut self) -> (&'static str, &'static str) {
        let (she, he) = (self.pick(self.words.women), self.pick(self.words.men));
        if self.coin() { (she, he) } else { (he, she) }
    }

    /// A name or `the` and a noun.
    fn someone(&mut self) -> String {
        match below(self.rng, 3) {
            0 => self.name().to_owned(),
            1 => format!("the {}", self.person().singular),
            _ => format!(
                "the {} {}",
                self.pick(self.words.moods),
                self.person().singular
            ),
        }
    }

    /// A thing in the singular, with an adjective half of the time.
    fn some_thing(&mut self) -> String {
        let thing = self.thing().singular;
        if self.coin() {
            format!("{} {thing}", self.pick(self.words.looks))
        } else {
            thing.to_owned()
        }
    }
}

/// A number below `count`, the same on every machine.
pub(super) fn below(rng: &mut ChaCha8Rng, count: usize) -> usize {
    ((u64::from(rng.next_u32()) * count as u64) >> 32) as usize
}

/// The number that agrees with `plural`, then the one that does not.
fn agree(plural: bool, singular: &'static str, more: &'static str) -> (&'static str, &'static str) {
    if plural {
        (more, singular)
    } else {
        (singular, more)
    }
}

// Agreement.

fn act_agrees(w: &mut Writer) -> Pair {
    let (plural, act) = (w.coin(), w.act());
    let (mood, person, often) = (w.pick(w.words.moods), w.person(), w.pick(HABITS));
    let start = format!("the {mood} {} {often}", person.form(plural));
    (
        format!("{start} {}.", act.present(plural)),
        format!("{start} {}.", act.present(!plural)),
    )
}

fn copula_agrees(w: &mut Writer) -> Pair {
    let (plural, past) = (w.coin(), w.coin());
    let (person, mood, time) = (w.person(), w.pick(w.words.moods), w.pick(TIMES));
    let (right, wrong, time) = if past {
        let (right, wrong) = agree(plural, "was", "were");
        (right, wrong, time)
    } else {
        let (right, wrong) = agree(plural, "is", "are");
        (right, wrong, "today")
    };
    let noun = person.form(plural);
    (
        format!("the {noun} {right} {mood} {time}."),
        format!("the {noun} {wrong} {mood} {time}."),
    )
}

fn auxiliary_agrees(w: &mut Writer) -> Pair {
    let (plural, handle) = (w.coin(), w.handle());
    let (right, wrong) = agree(plural, "has", "have");
    let (person, thing) = (w.person(), w.some_thing());
    let noun = person.form(plural);
    let end = format!("{} the {thing}", handle.participle);
    (
        format!("the {noun} {right} {end}."),
        format!("the {noun} {wrong} {end}."),
    )
}

fn attractor_in_phrase(w: &mut Writer) -> Pair {
    let (plural, act, often) = (w.coin(), w.act(), w.pick(HABITS));
    let ((person, other), place) = (w.people(), w.pick(PLACES));
    let start = format!(
        "the {} {place} the {} {often}",
        person.form(plural),
        other.form(!plural)
    );
    (
        format!("{start} {}.", act.present(plural)),
        format!("{start} {}.", act.present(!plural)),
    )
}

fn attractor_in_clause(w: &mut Writer) -> Pair {
    let (plural, act, treat) = (w.coin(), w.act(), w.treat());
    let ((person, other), often) = (w.people(), w.pick(HABITS));
    let (noun, near) = (person.form(plural), other.form(!plural));
    let start = format!("the {noun} that the {near} {} {often}", treat.past);
    (
        format!("{start} {}.", act.present(plural)),
        format!("{start} {}.", act.present(!plural)),
    )
}

fn attractor_copula(w: &mut Writer) -> Pair {
    let (plural, past) = (w.coin(), w.coin());
    let ((thing, other), place, look) = (w.things(), w.pick(PLACES), w.pick(w.words.looks));
    let (right, wrong) = if past {
        agree(plural, "was", "were")
    } else {
        agree(plural, "is", "are")
    };
    let start = format!(
        "the {} {place} the {}",
        thing.form(plural),
        other.form(!plural)
    );
    (
        format!("{start} {right} {look}."),
        format!("{start} {wrong} {look}."),
    )
}

fn demonstrative_varies(w: &mut Writer) -> Pair {
    let (plural, near, handle) = (w.coin(), w.coin(), w.handle());
    let (right, wrong) = if near {
        agree(plural, "this", "these")
    } else {
        agree(plural, "that", "those")
    };
    let (someone, look, thing) = (w.someone(), w.pick(w.words.looks), w.thing());
    let (start, noun) = (format!("{someone} {}", handle.past), thing.form(plural));
    let look = if w.coin() {
        format!("{look} ")
    } else {
        String::new()
    };
    (
        format!("{start} {right} {look}{noun}."),
        format!("{start} {wrong} {look}{noun}."),
    )
}

fn noun_varies(w: &mut Writer) -> Pair {
    let (plural, handle, thing, name) = (w.coin(), w.handle(), w.thing(), w.name());
    let (these, _) = if w.coin() {
        agree(plural, "this", "these")
    } else {
        agree(plural, "that", "those")
    };
    let start = format!("{name} {} {these} {}", handle.past, w.pick(w.words.looks));
    (
        format!("{start} {}.", thing.form(plural)),
        format!("{start} {}.", thing.form(!plural)),
    )
}

fn numeral_varies(w: &mut Writer) -> Pair {
    let (plural, handle, thing, someone) = (w.coin(), w.handle(), w.thing(), w.someone());
    let many = w.pick(&["two", "three", "four", "several"]);
    let number = if plural {
        many
    } else {
        w.pick(&["one", "another"])
    };
    let start = format!("{someone} {} {number}", handle.past);
    let time = w.pick(TIMES);
    (
        format!("{start} {} {time}.", thing.form(plural)),
        format!("{start} {} {time}.", thing.form(!plural)),
    )
}

// Anaphors.

const REFLEXIVES: &[&str] = &["himself", "herself", "themselves"];

/// A reflexive other than `right`.
fn other_reflexive(w: &mut Writer, right: &str) -> &'static str {
    let right = REFLEXIVES
        .iter()
        .position(|&word| word == right)
        .unwrap_or(0);
    REFLEXIVES[(right + 1 + below(w.rng, 2)) % 3]
}

fn reflexive_of_name(w: &mut Writer) -> Pair {
    let (she, he) = (w.pick(w.words.women), w.pick(w.words.men));
    let (subject, right) = match below(w.rng, 4) {
        0 => (she.to_owned(), "herself"),
        1 => (he.to_owned(), "himself"),
        2 => (format!("{she} and {he}"), "themselves"),
        _ => (format!("{he} and {she}"), "themselves"),
    };
    reflexive(w, &subject, right)
}

fn reflexive_of_noun(w: &mut Writer) -> Pair {
    let (subject, right) = match below(w.rng, 3) {
        0 => (
            Noun::new(w.pick(w.words.female)).singular.to_owned(),
            "herself",
        ),
        1 => (
            Noun::new(w.pick(w.words.male)).singular.to_owned(),
            "himself",
        ),
        _ if w.coin() => (Noun::new(w.pick(w.words.female)).plural, "themselves"),
        _ => (Noun::new(w.pick(w.words.male)).plural, "themselves"),
    };
    let mood = w.pick(w.words.moods);
    reflexive(w, &format!("the {mood} {subject}"), right)
}

fn reflexive(w: &mut Writer, subject: &str, right: &str) -> Pair {
    let (treat, time, wrong) = (w.treat(), w.pick(TIMES), other_reflexive(w, right));
    let start = format!("{subject} {}", treat.past);
    (
        format!("{start} {right} {time}."),
        format!("{start} {wrong} {time}."),
    )
}

fn binding_is_local(w: &mut Writer) -> Pair {
    // The names differ in gender, so only the nearer one can be what the reflexive means.
    let ((outer, inner), treat) = (w.names(), w.treat());
    let (right, wrong) = if w.words.women.contains(&inner) {
        ("herself", "himself")
    } else {
        ("himself", "herself")
    };
    let think = Verb::new(w.pick(w.words.thinks));
    let start = format!("{outer} {} that {inner} {}", think.past, treat.past);
    (format!("{start} {right}."), format!("{start} {wrong}."))
}

fn binding_commands(w: &mut Writer) -> Pair {
    // The name inside the relative clause is no antecedent for what stands outside it.
    let (visit, treat, time) = (w.treat(), w.treat(), w.pick(TIMES));
    let (subject, name, right, wrong) = if w.coin() {
        (
            w.pick(w.words.female),
            w.pick(w.words.men),
            "herself",
            "himself",
        )
    } else {
        (
            w.pick(w.words.male),
            w.pick(w.words.women),
            "himself",
            "herself",
        )
    };
    let subject = Noun::new(subject).singular;
    let start = format!("the {subject} that {name} {} {}", visit.past, treat.past);
    (
        format!("{start} {right} {time}."),
        format!("{start} {wrong} {time}."),
    )
}

// Islands. The acceptable sentence asks for, or clefts, the subject of the main clause; the
// unacceptable one takes the same words and moves something out of the island.

fn whether_island(w: &mut Writer) -> Pair {
    let ((mary, john), handle, thing) = (w.names(), w.handle(), w.some_thing());
    let (ask, bought) = (Verb::new(w.pick(w.words.asks)).past, handle.past);
    (
        format!("it was {mary} that {ask} whether {john} {bought} the {thing}."),
        format!("it was the {thing} that {mary} {ask} whether {john} {bought}."),
    )
}

fn who_island(w: &mut Writer) -> Pair {
    let (someone, handle, thing) = (w.someone(), w.handle(), w.some_thing());
    let (ask, bought) = (Verb::new(w.pick(w.words.asks)).past, handle.past);
    (
        format!("it was {someone} that {ask} who {bought} the {thing}."),
        format!("it was the {thing} that {someone} {ask} who {bought}."),
    )
}

fn when_island(w: &mut Writer) -> Pair {
    let (name, other, handle, thing) = (w.name(), w.person(), w.handle(), w.thing());
    let (ask, bought) = (Verb::new(w.pick(w.words.asks)).past, handle.past);
    let (other, thing, when) = (
        other.singular,
        thing.singular,
        w.pick(&["when", "where", "why"]),
    );
    (
        format!("it was {name} that {ask} {when} the {other} {bought} the {thing}."),
        format!("it was the {thing} that {name} {ask} {when} the {other} {bought}."),
    )
}

fn question_out_of_question(w: &mut Writer) -> Pair {
    let (person, handle, thing) = (w.person().singular, w.handle(), w.thing().singular);
    let (ask, bought) = (Verb::new(w.pick(w.words.asks)).base, handle.past);
    (
        format!("which {person} will {ask} who {bought} the {thing}?"),
        format!("which {thing} will the {person} {ask} who {bought}?"),
    )
}

fn adjunct_cleft(w: &mut Writer) -> Pair {
    let ((mary, john), act, handle, thing) = (w.names(), w.act(), w.handle(), w.some_thing());
    let (left, bought) = (act.past, handle.past);
    let because = w.pick(&["because", "before", "after", "when"]);
    (
        format!("it was {mary} that {left} {because} {john} {bought} the {thing}."),
        format!("it was the {thing} that {mary} {left} {because} {john} {bought}."),
    )
}

fn adjunct_question(w: &mut Writer) -> Pair {
    let (person, name, act) = (w.person().singular, w.name(), w.act().base);
    let (handle, thing, when) = (
        w.handle(),
        w.thing().singular,
        w.pick(&["if", "before", "after", "when"]),
    );
    let buys = handle.present(false);
    (
        format!("which {person} will {act} {when} {name} {buys} the {thing}?"),
        format!("which {thing} will the {person} {act} {when} {name} {buys}?"),
    )
}

fn relative_cleft(w: &mut Writer) -> Pair {
    let (name, person, treat) = (w.name(), w.person().singular, w.treat().past);
    let (handle, thing) = (w.handle().past, w.some_thing());
    (
        format!("it was {name} that {treat} the {person} who {handle} the {thing}."),
        format!("it was the {thing} that {name} {treat} the {person} who {handle}."),
    )
}

fn relative_question(w: &mut Writer) -> Pair {
    let ((person, other), treat) = (w.people(), w.treat().base);
    let (person, other) = (person.singular, other.singular);
    let (handle, thing) = (w.handle().past, w.thing().singular);
    (
        format!("which {person} will {treat} the {other} who {handle} the {thing}?"),
        format!("which {thing} will the {person} {treat} the {other} who {handle}?"),
    )
}

fn conjunct_cleft(w: &mut Writer) -> Pair {
    let (someone, handle, (thing, other)) = (w.someone(), w.handle().past, w.things());
    let (thing, other) = (thing.singular, other.singular);
    let wrong = if w.coin() {
        format!("it was the {thing} that {someone} {handle} and the {other}.")
    } else {
        format!("it was the {other} that {someone} {handle} the {thing} and.")
    };
    (
        format!("it was {someone} that {handle} the {thing} and the {other}."),
        wrong,
    )
}

fn conjunct_question(w: &mut Writer) -> Pair {
    let (person, handle, (thing, other)) = (w.person().singular, w.handle().base, w.things());
    let (thing, other) = (thing.singular, other.singular);
    let wrong = if w.coin() {
        format!("which {thing} will the {person} {handle} and the {other}?")
    } else {
        format!("which {other} will the {person} {handle} the {thing} and?")
    };
    (
        format!("which {person} will {handle} the {thing} and the {other}?"),
        wrong,
    )
}

fn whose_question(w: &mut Writer) -> Pair {
    let (plural, someone, handle, thing) = (w.coin(), w.someone(), w.handle().base, w.thing());
    let (whose, thing) = (w.pick(&["whose", "which"]), thing.form(plural));
    let will = w.pick(&["did", "will"]);
    (
        format!("{whose} {thing} {will} {someone} {handle}?"),
        format!("{whose} {will} {someone} {handle} {thing}?"),
    )
}

fn whose_embedded(w: &mut Writer) -> Pair {
    let (plural, (mary, john), handle, thing) = (w.coin(), w.names(), w.handle().past, w.thing());
    let (ask, thing) = (Verb::new(w.pick(w.words.asks)).past, thing.form(plural));
    (
        format!("{mary} {ask} whose {thing} {john} {handle}."),
        format!("{mary} {ask} whose {john} {handle} {thing}."),
    )
}

// Argument structure.

fn object_wanted(w: &mut Writer) -> Pair {
    let (someone, handle, act, thing) =
        (w.someone(), w.handle().past, w.act().past, w.some_thing());
    (
        format!("{someone} {handle} the {thing}."),
        format!("{someone} {act} the {thing}."),
    )
}

fn object_refused(w: &mut Writer) -> Pair {
    let (someone, handle, act, time) = (w.someone(), w.handle().past, w.act().past, w.pick(TIMES));
    let place = format!("{} the {}", w.pick(PLACES), w.thing().singular);
    let end = if w.coin() { time } else { &place };
    (
        format!("{someone} {act} {end}."),
        format!("{someone} {handle} {end}."),
    )
}

fn causer_wanted(w: &mut Writer) -> Pair {
    let (someone, handle, thing) = (w.someone(), w.handle().past, w.some_thing());
    let fade = Verb::new(w.pick(w.words.fades)).past;
    (
        format!("{someone} {handle} the {thing}."),
        format!("{someone} {fade} the {thing}."),
    )
}

fn causer_refused(w: &mut Writer) -> Pair {
    let (handle, thing, time) = (w.handle().past, w.some_thing(), w.pick(TIMES));
    let fade = Verb::new(w.pick(w.words.fades)).past;
    (
        format!("the {thing} {fade} {time}."),
        format!("the {thing} {handle} {time}."),
    )
}

fn passive_refused(w: &mut Writer) -> Pair {
    let (plural, someone, thing) = (w.coin(), w.someone(), w.thing());
    let (handle, act) = (w.handle().participle, w.act().participle);
    let (was, _) = agree(plural, "was", "were");
    let start = format!("the {} {was}", thing.form(plural));
    (
        format!("{start} {handle} by {someone}."),
        format!("{start} {act} by {someone}."),
    )
}

fn passive_wanted(w: &mut Writer) -> Pair {
    let (someone, place, thing) = (w.someone(), w.pick(PLACES), w.thing().singular);
    let (handle, act) = (w.handle().participle, w.act().participle);
    let had = w.pick(&["had", "has"]);
    (
        format!("{someone} {had} {act} {place} the {thing}."),
        format!("{someone} {had} {handle} {place} the {thing}."),
    )
}

// Negative polarity: the licensor must command the polarity item, not only come before it.

fn ever_under_no(w: &mut Writer) -> Pair {
    scope(w, "no")
}

fn ever_under_only(w: &mut Writer) -> Pair {
    let ((person, other), treat, act) = (w.people(), w.treat().past, w.act().participle);
    let (person, other) = (person.singular, other.singular);
    (
        format!("only the {person} that the {other} {treat} has ever {act}."),
        format!("the {person} that only the {other} {treat} has ever {act}."),
    )
}

fn scope(w: &mut Writer, no: &str) -> Pair {
    let ((person, other), treat, act) = (w.people(), w.treat().past, w.act().participle);
    let (plural, (person, other)) = (w.coin(), (person, other));
    let (has, _) = agree(plural, "has", "have");
    let (person, other) = (person.form(plural), other.form(plural));
    (
        format!("{no} {person} that the {other} {treat} {has} ever {act}."),
        format!("the {person} that {no} {other} {treat} {has} ever {act}."),
    )
}

fn ever_under_not(w: &mut Writer) -> Pair {
    let ((person, other), treat, act) = (w.people(), w.treat().participle, w.act().participle);
    let (person, other) = (person.singular, other.singular);
    (
        format!("the {person} that has {treat} the {other} has not ever {act}."),
        format!("the {person} that has not {treat} the {other} has ever {act}."),
    )
}

fn any_under_nobody(w: &mut Writer) -> Pair {
    let (person, treat, handle) = (w.person().singular, w.treat().past, w.handle().participle);
    let (thing, nobody) = (w.thing().plural, w.pick(&["nobody", "no one"]));
    (
        format!("{nobody} that the {person} {treat} has {handle} any {thing}."),
        format!("the {person} that {nobody} {treat} has {handle} any {thing}."),
    )
}

// Fillers and gaps.

fn gap_wanted(w: &mut Writer) -> Pair {
    let (someone, name, handle, thing) =
        (w.someone(), w.name(), w.handle().past, w.thing().singular);
    let know = Verb::new(w.pick(w.words.learns)).past;
    let start = format!("{someone} {know} what {name} {handle}");
    (format!("{start}."), format!("{start} the {thing}."))
}

fn gap_refused(w: &mut Writer) -> Pair {
    let (someone, name, handle, thing) =
        (w.someone(), w.name(), w.handle().past, w.thing().singular);
    let know = Verb::new(w.pick(w.words.learns)).past;
    let start = format!("{someone} {know} that {name} {handle}");
    (format!("{start} the {thing}."), format!("{start}."))
}

fn person_gap_wanted(w: &mut Writer) -> Pair {
    let ((mary, john), treat, person) = (w.names(), w.treat().past, w.person().singular);
    let know = Verb::new(w.pick(w.words.learns)).past;
    let start = format!("{mary} {know} who {john} {treat}");
    (format!("{start}."), format!("{start} the {person}."))
}

fn person_gap_refused(w: &mut Writer) -> Pair {
    let ((mary, john), treat, person) = (w.names(), w.treat().past, w.person().singular);
    let know = Verb::new(w.pick(w.words.learns)).past;
    let start = format!("{mary} {know} that {john} {treat}");
    (format!("{start} the {person}."), format!("{start}."))
}

// Quantifiers.

fn existential_singular(w: &mut Writer) -> Pair {
    let ((thing, other), place) = (w.things(), w.pick(PLACES));
    let (a, every) = (w.pick(&["a", "another"]), w.pick(&["every", "each"]));
    let (thing, other) = (thing.singular, other.singular);
    (
        format!("there was {a} {thing} {place} {every} {other}."),
        format!("there was {every} {thing} {place} {a} {other}."),
    )
}

fn existential_plural(w: &mut Writer) -> Pair {
    let ((thing, other), place) = (w.things(), w.pick(PLACES));
    let some = w.pick(&["some", "several", "many", "two", "three"]);
    let (all, were) = (w.pick(&["all", "most", "both"]), w.pick(&["were", "are"]));
    let (thing, other) = (thing.plural, other.plural);
    (
        format!("there {were} {some} {thing} {place} {all} {other}."),
        format!("there {were} {all} {thing} {place} {some} {other}."),
    )
}

fn many_things(w: &mut Writer) -> Pair {
    let thing = w.thing().plural;
    counted(w, &thing, "many", "much")
}

fn much_stuff(w: &mut Writer) -> Pair {
    let stuff = w.pick(w.words.stuff);
    counted(w, stuff, "much", "many")
}

fn counted(w: &mut Writer, noun: &str, right: &str, wrong: &str) -> Pair {
    let someone = w.someone();
    match below(w.rng, 3) {
        0 => (
            format!("how {right} {noun} did {someone} have?"),
            format!("how {wrong} {noun} did {someone} have?"),
        ),
        1 => (
            format!("{someone} had too {right} {noun}."),
            format!("{someone} had too {wrong} {noun}."),
        ),
        _ => (
            format!("{someone} did not have {right} {noun}."),
            format!("{someone} did not have {wrong} {noun}."),
        ),
    }
}

// Ellipsis: a noun may go unsaid after a numeral, not after an adjective.

fn noun_ellipsis(w: &mut Writer) -> Pair {
    let ((mary, john), handle) = (w.names(), w.handle().past);
    let (look, thing) = (w.pick(w.words.looks), w.thing());
    let plural = w.coin();
    let number = if plural {
        w.pick(&["two", "three", "four"])
    } else {
        "one"
    };
    let thing = thing.form(plural);
    let several = w.pick(&["five", "six", "several"]);
    (
        format!("{mary} {handle} {number} {look} {thing} and {john} {handle} {several}."),
        format!("{mary} {handle} {number} {thing} and {john} {handle} {several} {look}."),
    )
}

// Irregular forms.

fn past_wanted(w: &mut Writer) -> Pair {
    let (someone, time) = (w.someone(), w.pick(TIMES));
    let (past, participle, tail) = w.pick(w.words.irregular);
    (
        format!("{someone} {past} {tail} {time}."),
        format!("{someone} {participle} {tail} {time}."),
    )
}

fn participle_wanted(w: &mut Writer) -> Pair {
    let (someone, had) = (w.someone(), w.pick(&["had", "has"]));
    let (past, participle, tail) = w.pick(w.words.irregular);
    (
        format!("{someone} {had} {participle} {tail}."),
        format!("{someone} {had} {past} {tail}."),
    )
}

// Inversion: a question puts its auxiliary first, an embedded question does not.

fn inversion_wanted(w: &mut Writer) -> Pair {
    let (someone, handle, thing) = (w.someone(), w.handle().base, w.thing().singular);
    let will = w.pick(&["will", "should", "can"]);
    (
        format!("which {thing} {will} {someone} {handle}?"),
        format!("which {thing} {someone} {will} {handle}?"),
    )
}

fn inversion_refused(w: &mut Writer) -> Pair {
    let (name, person) = (w.name(), w.person().singular);
    let (handle, thing) = (w.handle().base, w.thing().singular);
    let know = Verb::new(w.pick(w.words.learns)).past;
    let would = w.pick(&["would", "should", "could"]);
    (
        format!("{name} {know} which {thing} the {person} {would} {handle}."),
        format!("{name} {know} which {thing} {would} the {person} {handle}."),
    )
}
