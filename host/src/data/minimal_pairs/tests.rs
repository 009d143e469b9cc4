use std::collections::{BTreeMap, HashMap, HashSet};

use super::*;

const SIZES: Sizes = Sizes {
    train: 4000,
    validation: 600,
    test: 600,
};

fn corpus(seed: u64) -> Splits {
    generate(seed, SIZES).expect("the default sizes fit")
}

fn splits(corpus: &Splits) -> [&[Sentence]; 3] {
    [&corpus.train, &corpus.validation, &corpus.test]
}

fn words(sentence: &Sentence) -> impl Iterator<Item = String> {
    sentence
        .text
        .split(|c: char| !c.is_alphabetic())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

/// Every form of every open-class word of a lexicon, in lower case.
fn open_class(lexicon: &Lexicon) -> HashSet<String> {
    use lexicon::{Noun, Verb};
    let plain = [
        lexicon.women,
        lexicon.men,
        lexicon.stuff,
        lexicon.moods,
        lexicon.looks,
    ];
    let nouns = [lexicon.female, lexicon.male, lexicon.people, lexicon.things];
    let verbs = [
        lexicon.acts,
        lexicon.handles,
        lexicon.treats,
        lexicon.fades,
        lexicon.asks,
        lexicon.learns,
        lexicon.thinks,
    ];
    let mut forms: HashSet<String> = plain
        .concat()
        .iter()
        .map(|word| word.to_lowercase())
        .collect();
    for noun in nouns.concat().into_iter().map(Noun::new) {
        forms.extend([noun.singular.to_owned(), noun.plural]);
    }
    for verb in verbs.concat().into_iter().map(Verb::new) {
        forms.extend([verb.base.to_owned(), verb.third, verb.past, verb.participle]);
    }
    for (past, participle, tail) in lexicon.irregular {
        forms.extend([past, participle].map(|word| (*word).to_owned()));
        forms.extend(
            tail.split(' ')
                .filter(|word| !FUNCTION.contains(word))
                .map(str::to_owned),
        );
    }
    forms
}

/// Function words within the fixed tails of irregular verbs.
const FUNCTION: &[&str] = &["the", "a", "to", "into", "across"];

#[test]
fn sizes_labels_and_phenomena_balance() {
    let corpus = corpus(1);
    assert!(phenomena().count() >= 12);
    for (split, size) in splits(&corpus).into_iter().zip([4000, 600, 600]) {
        assert_eq!(split.len(), size);
        let mut balance: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        let mut pairs: HashMap<u32, Vec<&Sentence>> = HashMap::new();
        for sentence in split {
            let (good, bad) = balance.entry(sentence.phenomenon).or_default();
            *if sentence.acceptable { good } else { bad } += 1;
            pairs.entry(sentence.pair).or_default().push(sentence);
        }
        assert!(
            balance
                .keys()
                .copied()
                .eq(phenomena().collect::<std::collections::BTreeSet<_>>())
        );
        let share = size / 2 / balance.len();
        for (name, (good, bad)) in balance {
            assert_eq!(good, bad, "{name}");
            assert!(
                (share..=share + 1).contains(&good),
                "{name} has {good} pairs"
            );
        }
        for pair in pairs.values() {
            assert_eq!(pair.len(), 2);
            assert_ne!(pair[0].acceptable, pair[1].acceptable);
            assert_eq!(pair[0].phenomenon, pair[1].phenomenon);
        }
        assert!(split.windows(2).all(|two| two[0].pair != two[1].pair));
    }
}

#[test]
fn no_sentence_comes_twice() {
    let corpus = corpus(2);
    let mut seen = HashSet::new();
    for sentence in splits(&corpus).into_iter().flatten() {
        assert!(
            seen.insert(sentence.text.to_lowercase()),
            "twice: {}",
            sentence.text
        );
    }
}

#[test]
fn open_classes_are_disjoint_and_function_words_shared() {
    let lexicons = [&lexicon::TRAIN, &lexicon::VALIDATION, &lexicon::TEST].map(open_class);
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        let both: Vec<_> = lexicons[one].intersection(&lexicons[other]).collect();
        assert!(both.is_empty(), "lexicons {one} and {other} share {both:?}");
    }
    let corpus = corpus(3);
    let used = splits(&corpus).map(|split| split.iter().flat_map(words).collect::<HashSet<_>>());
    let shared: [HashSet<&String>; 3] =
        std::array::from_fn(|split| used[split].difference(&lexicons[split]).collect());
    // A held-out split uses no function word that training has not seen. (The smaller splits need not
    // come upon every rare one.)
    for held_out in &shared[1..] {
        let unseen: Vec<_> = held_out
            .difference(&shared[0])
            .map(|word| word.as_str())
            .collect();
        // The particle of a held-out verb.
        assert!(unseen.iter().all(|word| *word == "across"), "{unseen:?}");
    }
    for word in [
        "the", "that", "whether", "himself", "ever", "every", "because", "these",
    ] {
        assert!(shared[0].contains(&word.to_owned()), "{word}");
    }
    assert!(
        shared[0].len() < 120,
        "open-class words in the templates: {:?}",
        shared[0]
    );
    // A word that is both would let a held-out sentence hold a word seen in training.
    for open in &lexicons {
        assert!(shared[0].iter().all(|word| !open.contains(*word)));
    }
}

#[test]
fn sentences_look_like_sentences() {
    for sentence in splits(&corpus(4)).into_iter().flatten() {
        let text = &sentence.text;
        assert!((3..=14).contains(&text.split(' ').count()), "{text}");
        assert!(text.starts_with(|c: char| c.is_ascii_uppercase()), "{text}");
        assert!(text.ends_with(['.', '?']), "{text}");
        let inner = &text[..text.len() - 1];
        assert!(
            inner.chars().all(|c| c.is_ascii_alphabetic() || c == ' '),
            "{text}"
        );
        assert!(!text.contains("  "), "{text}");
        for vowel in ["a", "e", "i", "o", "u"] {
            assert!(!text.contains(&format!(" a {vowel}")), "{text}");
        }
    }
}

#[test]
fn a_seed_fixes_the_corpus() {
    let one = corpus(5);
    assert_eq!(one, corpus(5));
    assert_ne!(one.train, corpus(6).train);
    // The size of one split leaves the others alone.
    let fewer = generate(5, Sizes { train: 40, ..SIZES }).expect("small sizes fit");
    assert_eq!(fewer.test, one.test);
    assert_eq!(fewer.train.len(), 40);
}

/// The same on every machine and in every release, until a word or template is changed on purpose.
#[test]
fn the_generator_does_not_drift() {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for sentence in splits(&corpus(7)).into_iter().flatten() {
        for byte in sentence.text.bytes().chain([u8::from(sentence.acceptable)]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    assert_eq!(
        hash, FINGERPRINT,
        "FNV-1a of the corpus of seed 7 is now {hash:#x}"
    );
}

const FINGERPRINT: u64 = 0xc340_4ff2_f663_39a7;

#[test]
fn too_much_is_refused() {
    let error = generate(
        0,
        Sizes {
            validation: 1_000_000,
            ..SIZES
        },
    )
    .expect_err("too many");
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("validation"), "{error}");
    let empty = generate(
        0,
        Sizes {
            train: 0,
            validation: 1,
            test: 2,
        },
    )
    .expect("tiny sizes");
    assert_eq!(
        [empty.train.len(), empty.validation.len(), empty.test.len()],
        [0, 0, 2]
    );
}

/// Naive Bayes over words, with add-one smoothing: what can be learned without any order.
fn naive_bayes(train: &[&Sentence], test: &[Sentence]) -> f64 {
    let mut counts: HashMap<String, [f64; 2]> = HashMap::new();
    let mut totals = [0.0; 2];
    for sentence in train {
        let label = usize::from(sentence.acceptable);
        for word in words(sentence) {
            counts.entry(word).or_default()[label] += 1.0;
            totals[label] += 1.0;
        }
    }
    let kinds = counts.len() as f64;
    // Ties, the fate of two sentences of the same words, count as half right.
    let right: f64 = test
        .iter()
        .map(|sentence| {
            let score: f64 = words(sentence)
                .filter_map(|word| counts.get(&word))
                .map(|[bad, good]| {
                    ((good + 1.0) / (totals[1] + kinds)).ln()
                        - ((bad + 1.0) / (totals[0] + kinds)).ln()
                })
                .sum();
            if score == 0.0 {
                0.5
            } else {
                f64::from(u8::from((score > 0.0) == sentence.acceptable))
            }
        })
        .sum();
    right / test.len() as f64
}

#[test]
fn a_bag_of_words_is_no_help() {
    let corpus = corpus(8);
    let train: Vec<&Sentence> = corpus.train.iter().collect();
    // Four in five pairs to learn from, the fifth with the same vocabulary to be judged on.
    let (seen, unseen): (Vec<_>, Vec<_>) =
        train.iter().partition(|sentence| sentence.pair % 5 != 0);
    let unseen: Vec<Sentence> = unseen.into_iter().cloned().collect();
    for (name, accuracy) in [
        ("validation", naive_bayes(&train, &corpus.validation)),
        ("test", naive_bayes(&train, &corpus.test)),
        ("training words", naive_bayes(&seen, &unseen)),
    ] {
        assert!(
            (0.4..=0.6).contains(&accuracy),
            "naive Bayes on {name}: {accuracy}"
        );
    }
}

#[test]
fn texts_are_of_one_mind_and_the_same_each_time() {
    let corpus = corpus(3);
    let labels: HashMap<&str, bool> = (corpus.train.iter())
        .map(|sentence| (sentence.text.as_str(), sentence.acceptable))
        .collect();
    let texts = texts(&corpus.train, 6, 1);
    assert_eq!(texts, super::texts(&corpus.train, 6, 1));
    assert_ne!(texts, super::texts(&corpus.train, 6, 2));
    assert_eq!(texts.len(), corpus.train.len());
    for (sentence, (text, acceptable)) in corpus.train.iter().zip(&texts) {
        let parts: Vec<&str> = text.split_inclusive(['.', '?']).map(str::trim).collect();
        assert_eq!((parts.len(), parts[0]), (6, sentence.text.as_str()));
        assert!(
            parts.iter().all(|part| labels[part] == *acceptable),
            "{text}"
        );
        assert_eq!(parts.iter().collect::<HashSet<_>>().len(), 6, "{text}");
    }
    // One sentence is the sentence; more than there are, all there are.
    let few = &corpus.validation[..10];
    let alone: Vec<String> = few.iter().map(|it| it.text.clone()).collect();
    let one: Vec<String> = super::texts(few, 1, 1).into_iter().map(|it| it.0).collect();
    assert_eq!(one, alone);
    for (text, acceptable) in super::texts(few, 99, 1) {
        let all = few.iter().filter(|it| it.acceptable == acceptable).count();
        assert_eq!(text.matches(['.', '?']).count(), all);
    }
}

#[test]
fn content_words_take_no_side() {
    let corpus = corpus(9);
    let open = open_class(&lexicon::TRAIN);
    let mut counts: BTreeMap<String, [u32; 2]> = BTreeMap::new();
    for sentence in &corpus.train {
        for word in words(sentence).filter(|word| open.contains(word)) {
            counts.entry(word).or_default()[usize::from(sentence.acceptable)] += 1;
        }
    }
    assert!(
        counts.len() > 300,
        "only {} content words in use",
        counts.len()
    );
    for (word, [bad, good]) in counts.iter().filter(|(_, [bad, good])| bad + good >= 30) {
        let share = f64::from(*good) / f64::from(bad + good);
        assert!(
            (0.35..=0.65).contains(&share),
            "{word}: {good} acceptable, {bad} unacceptable"
        );
    }
}
