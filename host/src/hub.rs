//! The Hugging Face Hub: repositories of models and data sets, fetched into its own cache.
//!
//! `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` and their like mean what they mean to
//! `huggingface_hub`, with which the cache is shared.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::error::{Error, Result};
use crate::file::{cannot_write, digest_of, entries, read_json, write_atomically, write_json};

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Dataset => "data set",
        }
    }

    /// The keys that name a repository and its revision in a recipe, and what it must hold.
    fn help(self) -> &'static str {
        match self {
            Kind::Model => {
                "check model.name and model.revision; the model must be saved as safetensors or pytorch_model.bin with \
                 a tokenizer.json, or preprocessor_config.json for images; of GGUF files fetch one and give its path"
            }
            Kind::Dataset => "check data.hub and data.revision",
        }
    }

    /// The key that takes something local in place of it.
    fn local(self) -> &'static str {
        match self {
            Kind::Model => "give model.name a local folder",
            Kind::Dataset => "give local files as data.train",
        }
    }

    fn of_hub(self) -> RepoType {
        match self {
            Kind::Model => RepoType::Model,
            Kind::Dataset => RepoType::Dataset,
        }
    }
}

/// `org/name`, or one of the Hub's old names without an organisation.
pub fn is_id(name: &str) -> bool {
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
#[derive(Clone, Debug)]
pub struct Hub {
    endpoint: Option<String>,
    cache: Cache,
    token: Option<String>,
    /// The variable that forbids the network, if one does.
    offline: Option<&'static str>,
}

impl Hub {
    /// As the environment says.
    pub fn from_environment() -> Result<Self> {
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
                .help("set HF_HOME to a folder, or give paths of your own")
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

    /// A repository at a branch, tag or commit.
    pub fn repository(&self, kind: Kind, id: &str, revision: &str) -> Result<Repository<'_>> {
        let repo = Repo::with_revision(id.to_owned(), kind.of_hub(), revision.to_owned());
        let folder = self.cache.path().join(repo.folder_name());
        let mut builder = ApiBuilder::from_cache(self.cache.clone()).with_token(self.token.clone());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        // A bar for each file, where somebody watches.
        let watched = std::io::stderr().is_terminal() && tracing::enabled!(tracing::Level::INFO);
        let api = builder.with_progress(watched).build().map_err(|error| {
            Error::failure(format!("cannot set up the connection to the Hub: {error}"))
        })?;
        Ok(Repository {
            hub: self,
            kind,
            id: id.to_owned(),
            revision: revision.to_owned(),
            snapshot: commit_of(&folder, revision)
                .map(|commit| folder.join("snapshots").join(commit)),
            folder,
            api: api.repo(repo),
        })
    }
}

/// The commit that a revision is, or that the cache knows a branch or tag to have stood at.
fn commit_of(folder: &Path, revision: &str) -> Option<String> {
    match is_commit(revision) {
        true => Some(revision.to_owned()),
        false => {
            let kept = std::fs::read_to_string(folder.join("refs").join(revision)).ok()?;
            Some(kept.trim().to_owned())
        }
    }
}

/// Attempts to get a lock, of five seconds each, while nothing comes of it.
const PATIENCE: u32 = 12;

/// A repository at a revision.
pub struct Repository<'a> {
    hub: &'a Hub,
    kind: Kind,
    id: String,
    revision: String,
    /// Where the cache has all that is of this repository.
    folder: PathBuf,
    /// Where it has what was fetched of this revision, once it is known which commit that is.
    snapshot: Option<PathBuf>,
    api: ApiRepo,
}

impl Repository<'_> {
    /// What the cache has of this revision: of a branch, as it stood when it was last asked for.
    pub fn cached(&self) -> Option<&Path> {
        self.snapshot
            .as_deref()
            .filter(|snapshot| snapshot.is_dir())
    }

    /// What the cache has, where the network is forbidden.
    pub fn offline(&self) -> Option<Result<&Path>> {
        let variable = self.hub.offline?;
        let (kind, id) = (self.kind.name(), &self.id);
        Some(self.cached().ok_or_else(|| {
            Error::user(format!(
                "the {kind} {id} at revision \"{}\" is not in the Hub's cache {}, and {variable} is set",
                self.revision,
                self.hub.cache.path().display()
            ))
            .help(format!("unset it, or {}", self.kind.local()))
        }))
    }

    /// Whether the revision is a commit, which never changes.
    pub fn is_fixed(&self) -> bool {
        is_commit(&self.revision)
    }

    /// The commit that a fetched `file` is of, so that all files are of one, whatever the branch does meanwhile.
    pub fn at_commit_of(&self, file: &Path, path: &str) -> Result<Self> {
        let depth = path.split('/').count();
        let snapshot = file.ancestors().nth(depth).unwrap_or(Path::new("."));
        let commit = snapshot.file_name().and_then(|name| name.to_str());
        let revision = commit.filter(|commit| is_commit(commit));
        let revision = revision.unwrap_or(&self.revision);
        let mut there = self.hub.repository(self.kind, &self.id, revision)?;
        there.snapshot = Some(snapshot.to_owned());
        Ok(there)
    }

    /// A file, from the cache or the Hub.
    pub fn get(&self, file: &str) -> Result<PathBuf> {
        let found = self.optional(file)?;
        found.ok_or_else(|| self.no_such_file(file))
    }

    /// That there is no such file.
    pub fn no_such_file(&self, file: &str) -> Error {
        Error::user(format!(
            "cannot fetch {file} of the {} {}: the Hub has no such file at revision \"{}\"",
            self.kind.name(),
            self.id,
            self.revision
        ))
        .help(self.kind.help())
    }

    /// A file, from the cache or the Hub; none where the Hub has none.
    pub fn optional(&self, file: &str) -> Result<Option<PathBuf>> {
        if let Some(path) = self.in_cache(file) {
            return Ok(Some(path));
        }
        if let Some(variable) = self.hub.offline {
            return Err(Error::user(format!(
                "{file} of the {} {} is not in the Hub's cache {}, and {variable} is set",
                self.kind.name(),
                self.id,
                self.hub.cache.path().display()
            ))
            .help(format!("unset it, or {}", self.kind.local())));
        }
        tracing::info!("{}: {file}", self.id);
        self.download(file)
    }

    /// Fetches a file; one that another process is fetching is waited for, as long as that goes on.
    fn download(&self, file: &str) -> Result<Option<PathBuf>> {
        let (mut fetched, mut unmoved) = (self.fetched(), 0);
        let found = loop {
            match self.api.download(file) {
                Err(error) if status(&error) == Some(404) => return Ok(None),
                Err(error) => {
                    // Another process was faster.
                    if let Some(path) = self.in_cache(file) {
                        return Ok(Some(path));
                    }
                    let now = self.fetched();
                    unmoved = if now == fetched { unmoved + 1 } else { 0 };
                    fetched = now;
                    // Each attempt has waited for some seconds.
                    if !matches!(error, ApiError::LockAcquisition(_)) || unmoved == PATIENCE {
                        return Err(self.failed(file, error));
                    }
                    tracing::info!("{}: {file} is being fetched by another process", self.id);
                }
                Ok(path) => break path,
            }
        };
        self.verify(file, &found)?;
        Ok(Some(found))
    }

    /// Bytes that the cache has of this repository, whole files or not.
    fn fetched(&self) -> u64 {
        let blobs = std::fs::read_dir(self.folder.join("blobs"));
        let sizes = blobs
            .into_iter()
            .flatten()
            .flatten()
            .map(|blob| blob.metadata());
        sizes.flatten().map(|blob| blob.len()).sum()
    }

    /// A file that was fetched before.
    fn in_cache(&self, file: &str) -> Option<PathBuf> {
        let path = self.cached()?.join(file);
        path.exists().then_some(path)
    }

    /// Holds a large file, which the cache names by its SHA-256, against that.
    fn verify(&self, file: &str, path: &Path) -> Result<()> {
        let blob = std::fs::read_link(path).ok();
        let name = blob.as_ref().and_then(|blob| blob.file_name()?.to_str());
        let hexadecimal = |name: &&str| name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let Some(expected) = name.filter(|name| name.len() == 64).filter(hexadecimal) else {
            return Ok(());
        };
        let (_, found) = digest_of(path)?;
        if found.eq_ignore_ascii_case(expected) {
            return Ok(());
        }
        let error = Error::user(format!(
            "{file} of the {} {} was fetched with another content than the Hub announced: its SHA-256 is {found}, not \
             {expected}",
            self.kind.name(),
            self.id
        ))
        .help("try again; if it stays so, the Hub, a mirror or something between is broken");
        // Not to be taken for the file the next time.
        let blob = path.canonicalize();
        let _ = std::fs::remove_file(path);
        let _ = blob.map(std::fs::remove_file);
        Err(error)
    }

    /// Fetches a file that may not be there and is not worth failing for. That there is none is noted where
    /// `huggingface_hub` notes it.
    pub fn beside(&self, name: &str, why: &str) {
        let Some(snapshot) = self.cached().filter(|snapshot| !knows(snapshot, name)) else {
            return;
        };
        match self.download(name) {
            Ok(Some(_)) => {}
            Ok(None) => {
                if let Some(mark) = no_exist(snapshot, name) {
                    let folder = mark.parent().unwrap_or(snapshot);
                    // Without the mark it is only asked for again.
                    let _ =
                        std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&mark, ""));
                }
            }
            Err(error) => tracing::warn!("{}: {name} cannot be fetched ({error}): {why}", self.id),
        }
    }

    /// That there is no such repository, or that it has no such revision.
    pub fn no_such_revision(&self) -> Error {
        Error::user(format!(
            "the Hub has no {} {} with a revision \"{}\"",
            self.kind.name(),
            self.id,
            self.revision
        ))
        .help(self.kind.help())
    }

    /// The repository at the commit that the revision stands at, and the paths of all files there; none where there is no
    /// such revision. What a commit has is kept beside it, and which one a branch stood at where `huggingface_hub` keeps
    /// that.
    pub fn listed(&self) -> Result<Option<(Self, Vec<String>)>> {
        let at = |commit: &str| self.hub.repository(self.kind, &self.id, commit);
        if let Some(commit) = commit_of(&self.folder, &self.revision) {
            if let Some(files) = read_json::<Vec<String>>(&self.listing_of(&commit))? {
                return Ok(Some((at(&commit)?, files)));
            }
            // Fetched by others, as far as it was.
            if let (Some(_), Some(snapshot)) = (self.hub.offline, self.cached()) {
                return Ok(Some((at(&commit)?, files_below(snapshot)?)));
            }
        }
        if let Some(missing) = self.offline() {
            return missing.map(|_| None);
        }
        let found = match self.api.info() {
            Err(error) if status(&error) == Some(404) => return Ok(None),
            found => found.map_err(|error| self.failed("the list of files", error))?,
        };
        let files: Vec<String> = found
            .siblings
            .into_iter()
            .map(|file| file.rfilename)
            .collect();
        // Names within the folder that they are fetched into.
        let outside = |file: &&String| file.split('/').any(|part| matches!(part, "" | "." | ".."));
        if let (Some(name), _) | (_, Some(name)) = (
            files.iter().find(outside),
            Some(&found.sha).filter(|sha| !is_commit(sha)),
        ) {
            return Err(Error::user(format!(
                "the list of files of the {} {} has {name:?}, which is no name of a file or commit",
                self.kind.name(),
                self.id
            ))
            .help("the Hub, a mirror or something between is broken"));
        }
        self.keep(&found.sha, &files)?;
        Ok(Some((at(&found.sha)?, files)))
    }

    fn listing_of(&self, commit: &str) -> PathBuf {
        self.folder.join(".files").join(format!("{commit}.json"))
    }

    /// Several processes may keep the same at once.
    fn keep(&self, commit: &str, files: &[String]) -> Result<()> {
        let own = |path: &Path| path.with_extension(format!("{}.new", std::process::id()));
        let made = |path: &Path| {
            let folder = path.parent().unwrap_or(&self.folder);
            std::fs::create_dir_all(folder).map_err(|error| cannot_write(folder, error))
        };
        let renamed = |path: &Path| {
            let renamed = std::fs::rename(own(path), path);
            renamed.map_err(|error| cannot_write(path, error))
        };
        let listing = self.listing_of(commit);
        made(&listing)?;
        write_json(&own(&listing), &files)?;
        renamed(&listing)?;
        if !self.is_fixed() {
            let branch = self.folder.join("refs").join(&self.revision);
            made(&branch)?;
            write_atomically(&own(&branch), commit.as_bytes())?;
            renamed(&branch)?;
        }
        Ok(())
    }

    fn failed(&self, file: &str, error: ApiError) -> Error {
        let (what, help) = match status(&error) {
            None if matches!(error, ApiError::LockAcquisition(_)) => (
                "another process has locked it, and nothing comes of that".to_owned(),
                "end that process, or set HF_HUB_CACHE to a file system that has locks".to_owned(),
            ),
            Some(401 | 403) => (
                "the Hub refuses access to it".to_owned(),
                format!(
                    "accept the {}'s terms on its page and set HF_TOKEN, or check the id",
                    self.kind.name()
                ),
            ),
            Some(other) => (
                format!("the Hub answers with status {other}"),
                "try again later".to_owned(),
            ),
            None => (
                "the Hub cannot be reached, or the download broke off".to_owned(),
                format!(
                    "check the network, or {}; what was fetched before is kept",
                    self.kind.local()
                ),
            ),
        };
        Error::user(format!(
            "cannot fetch {file} of the {} {}: {what}",
            self.kind.name(),
            self.id
        ))
        .help(help)
        .because(error)
    }
}

/// All files below a folder, as a repository names them.
fn files_below(folder: &Path) -> Result<Vec<String>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for path in entries(&next)? {
            match path.strip_prefix(folder) {
                _ if path.is_dir() => folders.push(path),
                Ok(name) => files.push(name.to_string_lossy().replace('\\', "/")),
                Err(_) => {}
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Where it is noted that a snapshot has no such file.
fn no_exist(snapshot: &Path, name: &str) -> Option<PathBuf> {
    let repo = snapshot.parent()?.parent()?;
    let mark = repo.join(".no_exist").join(snapshot.file_name()?);
    Some(mark.join(name))
}

/// Whether a snapshot has a file, or is known to have none.
pub fn knows(snapshot: &Path, name: &str) -> bool {
    let mark = no_exist(snapshot, name).is_some_and(|mark| mark.exists());
    mark || snapshot.join(name).exists()
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

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;

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
    fn names_that_are_neither_folder_nor_id() {
        for name in ["a/b/c", "/no/such", "../up", "org/", "sp ace/x", ""] {
            assert!(!is_id(name), "{name}");
        }
        for name in [
            "bert-base-uncased",
            "sentence-transformers/all-MiniLM-L6-v2",
        ] {
            assert!(is_id(name), "{name}");
        }
    }
}
