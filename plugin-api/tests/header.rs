//! The C header says what the Rust types say: it is made of them.

use std::collections::HashMap;
use std::path::Path;

use dynalora_plugin_api::abi::API_VERSION;

/// Each item of `src/abi/mod.rs` that C sees, by the name it has there.
const NAMES: [(&str, &str); 17] = [
    ("Table", "DynaloraTable"),
    ("Message", "DynaloraMessage"),
    ("Field", "DynaloraField"),
    ("Sink", "DynaloraSink"),
    ("ANSWERED", "DYNALORA_ANSWERED"),
    ("FAILED", "DYNALORA_FAILED"),
    ("UNKNOWN", "DYNALORA_UNKNOWN"),
    ("TEXT", "DYNALORA_TEXT"),
    ("JSON", "DYNALORA_JSON"),
    ("BYTES", "DYNALORA_BYTES"),
    ("F32S", "DYNALORA_F32S"),
    ("F64S", "DYNALORA_F64S"),
    ("U64S", "DYNALORA_U64S"),
    ("BOOLS", "DYNALORA_BOOLS"),
    ("REAL", "DYNALORA_REAL"),
    ("INT", "DYNALORA_INT"),
    ("FLAG", "DYNALORA_FLAG"),
];

const ABOUT: &str = "\
/* The boundary of dynalora's plugins, for a plugin in C (or anything that can export C's functions).

   Made of the types in plugin-api/src/abi/mod.rs: UPDATE_HEADER=1 cargo test -p dynalora-plugin-api --test header.
   docs/plugins.md has the calls, their fields, and an allocator in C. */";

fn generated() -> String {
    let names = NAMES.iter();
    let config = cbindgen::Config {
        language: cbindgen::Language::C,
        header: Some(ABOUT.to_owned()),
        include_guard: Some("DYNALORA_PLUGIN_H".to_owned()),
        sys_includes: vec!["stddef.h".to_owned(), "stdint.h".to_owned()],
        no_includes: true,
        after_includes: Some(format!(
            "\n// The version of the boundary, of which the first number counts.\n\
             #define DYNALORA_API_VERSION \"{API_VERSION}\""
        )),
        trailer: Some(include_str!("header/tail.h").trim_end().to_owned()),
        usize_is_size_t: true,
        documentation_style: cbindgen::DocumentationStyle::C99,
        export: cbindgen::ExportConfig {
            include: names.clone().map(|(rust, _)| (*rust).to_owned()).collect(),
            // What modules beneath have.
            exclude: vec!["LONGEST".to_owned()],
            rename: HashMap::from_iter(
                names.map(|(rust, c)| ((*rust).to_owned(), (*c).to_owned())),
            ),
            item_types: vec![cbindgen::ItemType::Constants, cbindgen::ItemType::Structs],
            ..Default::default()
        },
        ..Default::default()
    };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/abi/mod.rs");
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(source)
        .generate()
        .expect("the types are fit for C");
    let mut header = Vec::new();
    bindings.write(&mut header);
    let header = String::from_utf8(header).expect("UTF-8");
    // Links between docs are Rust's.
    header.replace("[`", "`").replace("`]", "`")
}

#[test]
fn the_header_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/dynalora_plugin.h");
    let generated = generated();
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &generated).expect("the header can be written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == generated,
        "{} is not that of the types: UPDATE_HEADER=1 writes it",
        path.display()
    );
}

#[test]
fn everything_that_c_needs_is_in_it() {
    let generated = generated();
    for (_, name) in NAMES {
        assert!(generated.contains(name), "{name}:\n{generated}");
    }
}
