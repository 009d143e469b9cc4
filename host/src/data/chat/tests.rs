//! What templates write, against Transformers, and what is refused.

use std::collections::BTreeMap;

use super::*;

/// What the oracle has written: templates, conversations, and what Transformers makes of them.
#[derive(Deserialize)]
struct Golden {
    templates: BTreeMap<String, String>,
    tokens: BTreeMap<String, String>,
    conversations: Vec<Vec<Value>>,
    /// By template: the text of each conversation, with and without the start of an answer; none where the template
    /// refuses it.
    written: BTreeMap<String, Vec<Option<[String; 2]>>>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/chat.json");
    let text = std::fs::read_to_string(path).expect("a fixture");
    serde_json::from_str(&text).expect("a fixture")
}

fn template(golden: &Golden, name: &str) -> Template {
    let tokens = golden.tokens.clone().into_iter().collect();
    Template::new(PathBuf::from(name), &golden.templates[name], tokens).expect(name)
}

#[test]
fn every_template_writes_what_transformers_does() {
    let golden = golden();
    let (mut written, mut refused) = (0, 0);
    for (name, expected) in &golden.written {
        let template = template(&golden, name);
        for (at, (messages, expected)) in golden.conversations.iter().zip(expected).enumerate() {
            let ours = [true, false].map(|open| template.write(messages, open));
            match (expected, ours) {
                (Some([open, closed]), [Ok(ours_open), Ok(ours_closed)]) => {
                    assert_eq!(&ours_open, open, "{name}, conversation {at}");
                    assert_eq!(&ours_closed, closed, "{name}, conversation {at}");
                    written += 1;
                }
                (None, [Err(_), Err(_)]) => refused += 1,
                (_, ours) => panic!("{name}, conversation {at}: {ours:?}, not {expected:?}"),
            }
        }
    }
    assert!(
        written >= 1000 && refused > 0,
        "{written} written, {refused} refused"
    );
}

#[test]
fn answers_and_what_stands_before_them_are_the_whole() {
    let golden = golden();
    for name in golden.templates.keys() {
        let template = template(&golden, name);
        let whole = golden.written[name].iter().zip(&golden.conversations);
        for (written, messages) in whole {
            let Some([_, closed]) = written else { continue };
            if !messages.last().is_some_and(is_of_assistant) {
                continue;
            }
            if is_of_assistant(&messages[0]) {
                // Of nothing, some templates write nothing.
                continue;
            }
            let answers = template.answers(messages).expect(name);
            let count = messages.iter().filter(|message| is_of_assistant(message));
            assert_eq!(answers.len(), count.count());
            let (before, answer) = answers.last().expect("one");
            assert_eq!(&format!("{before}{answer}"), closed);
            let said = messages.last().expect("one").get_attr("content");
            let said = said.expect("a content").to_string().replace('\n', " / ");
            let answer = answer.replace('\n', " / ");
            assert!(
                answer.contains(said.trim()),
                "{name}: {answer:?} of {said:?}"
            );
        }
    }
}

#[test]
fn what_is_no_conversation_is_refused_by_place() {
    let golden = golden();
    let template = template(&golden, "chatml");
    let refused = |text: &str| {
        let example = Example {
            text: text.to_owned(),
            text_pair: None,
            label: None,
        };
        let places = Places::numbered("chats.jsonl", "line");
        let error = examples(&template, &[example], &places).expect_err(text);
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    for (text, part) in [
        ("3", "no conversation"),
        ("[]", "assistant"),
        (r#"[{"role": "user", "content": "Hi"}]"#, "assistant"),
        (r#"[{"from": "human", "value": "Hi"}]"#, "role"),
        (r#"[{"role": "assistant"}]"#, "content"),
    ] {
        let said = refused(text);
        assert!(
            said.contains(part) && said.contains("chats.jsonl, line 1"),
            "{said}"
        );
    }
    let error = Template::new(PathBuf::from("t"), "{% if %}", Vec::new());
    assert!(
        error
            .err()
            .expect("no template")
            .to_string()
            .contains("line 1")
    );
    // A template that begins an answer in another way when it is asked for one.
    let text = "{{ messages|length }}{% if add_generation_prompt %}<think>{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}";
    let other = Template::new(PathBuf::from("t"), text, Vec::new()).expect("a template");
    let chat = r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#;
    let said = other
        .answers(&messages(chat).expect("a conversation"))
        .expect_err("it cannot");
    assert!(said.contains("another way"), "{said}");
}
