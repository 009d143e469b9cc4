//! Weights in files: what is there is known from their headers, values are read when asked for.
//!
//! Of safetensors, of PyTorch (`.bin`) and of llama.cpp (`.gguf`).

mod gguf;
mod pickle;
mod stored;
mod torch;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use burn::tensor::{AllocationProperty, Bytes, DType, Shape, Tensor, TensorData};
use burn_backend::Backend;
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorView};

use crate::error::{Error, Result};
use stored::Stored;

pub use gguf::Header;

/// What an error of a file of tensors advises, which depends on whose file it is.
#[derive(Clone, Copy, Debug)]
pub struct Advice {
    /// Which file says what shapes the tensors have.
    pub config: &'static str,
    /// Where the file cannot be opened.
    pub unreadable: &'static str,
    /// Where it is not whole.
    pub damaged: &'static str,
    /// Where a tensor is not there.
    pub missing: &'static str,
    /// Where a tensor has another shape.
    pub misshapen: &'static str,
}

impl Advice {
    /// For the weights of a pretrained model.
    pub const MODEL: Advice = Advice {
        config: "config.json",
        unreadable: "check that model.name points to a complete model folder",
        damaged: "the file is damaged or its download was cut short: delete it and fetch it again",
        missing: "the checkpoint does not belong to its config.json, or is of a family that is not supported",
        misshapen: "config.json and the weights must come from the same model",
    };

    /// For an adapter.
    pub const ADAPTER: Advice = Advice {
        config: "adapter_config.json and the base model",
        unreadable: "an adapter folder holds adapter_config.json and adapter_model.safetensors",
        damaged: "the file is damaged: export the adapter again (a run's best and last checkpoints still have it), or \
                  save it again with PEFT",
        missing: "the adapter is not whole, or belongs to another base model",
        misshapen: "the adapter belongs to another base model, or its adapter_config.json to another adapter",
    };
}

/// The tensors of a checkpoint, by name. Files stay open, but are not mapped: what has been read is the
/// program's own, whatever others do to the files, and a file that shrinks is an error, not a signal.
pub struct Weights {
    entries: BTreeMap<String, Entry>,
    files: Vec<Source>,
    advice: Advice,
}

struct Source {
    path: PathBuf,
    file: Mutex<File>,
}

struct Entry {
    tensor: Placed,
    file: usize,
}

/// A tensor as it lies in a file.
struct Placed {
    /// Its name, as Transformers has it.
    name: String,
    /// What the file calls it, where that is something else.
    alias: Option<String>,
    stored: Stored,
    shape: Vec<usize>,
    /// Where its values begin in the file.
    start: u64,
    /// Where they do not lie in the order of the shape: sizes of axes and how far apart neighbours along each are, in
    /// values.
    view: Option<Vec<(usize, usize)>>,
}

/// Values that are worth a temporary file; fewer stay in memory.
const SPILLED: usize = 2 << 20;
/// Bytes read at a time.
const CHUNK: usize = 256 * 1024;

impl Weights {
    /// Opens a model's `files`, the one `model.safetensors` or all its shards.
    pub fn open(files: &[PathBuf]) -> Result<Self> {
        Weights::open_with(files, Advice::MODEL)
    }

    /// Opens `files` of whatever kind `advice` is for.
    pub fn open_with(files: &[PathBuf], advice: Advice) -> Result<Self> {
        let mut weights = Weights {
            entries: BTreeMap::new(),
            files: Vec::new(),
            advice,
        };
        for path in files {
            let mut file = File::open(path).map_err(|error| {
                Error::user(format!("cannot read {}: {error}", path.display()))
                    .help(advice.unreadable)
            })?;
            let kind = Kind::of(path);
            let found = match kind {
                Kind::Safetensors => header(&mut file),
                Kind::Torch => torch::tensors(&mut file),
                Kind::Gguf => gguf::tensors(&file),
            };
            let found = found.map_err(|why| {
                Error::user(format!(
                    "{} is not a readable {}: {why}",
                    path.display(),
                    kind.name()
                ))
                .help(kind.advice(advice.damaged))
            })?;
            for tensor in found {
                let name = tensor.name.clone();
                let entry = Entry {
                    tensor,
                    file: weights.files.len(),
                };
                if let Some(other) = weights.entries.insert(name, entry) {
                    return Err(Error::user(format!(
                        "tensor {} is there twice: in {} and {}",
                        other.tensor.shown(),
                        weights
                            .files
                            .get(other.file)
                            .map_or(path, |file| &file.path)
                            .display(),
                        path.display()
                    ))
                    .help(advice.damaged));
                }
            }
            weights.files.push(Source {
                path: path.clone(),
                file: Mutex::new(file),
            });
        }
        Ok(weights)
    }

    /// The same tensors under the names that `canonical` makes of those in the file; errors keep the latter.
    pub fn renamed(mut self, canonical: impl Fn(&str) -> String) -> Result<Self> {
        for (name, entry) in std::mem::take(&mut self.entries) {
            let (path, twice) = (self.path(&entry).to_owned(), entry.tensor.shown());
            if let Some(other) = self.entries.insert(canonical(&name), entry) {
                return Err(Error::user(format!(
                    "{}: {twice} and {} are one tensor under two names",
                    path.display(),
                    other.tensor.shown()
                ))
                .help("leave one of them out"));
            }
        }
        Ok(self)
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// What the checkpoint calls the tensor `name`, to Transformers.
    pub fn name_in_file<'a>(&'a self, name: &'a str) -> &'a str {
        let entry = self.entries.get(name);
        entry.map_or(name, |entry| &entry.tensor.name)
    }

    /// The number of values in all tensors of floats, those that are there under two names counted once.
    pub fn parameters(&self) -> u64 {
        let floats = self.entries.values();
        let floats = floats.filter(|entry| entry.tensor.stored.is_float());
        let mut places: BTreeMap<(usize, u64), u64> = BTreeMap::new();
        for entry in floats {
            let most = places.entry((entry.file, entry.tensor.start)).or_default();
            *most = (*most).max(entry.tensor.count() as u64);
        }
        places.values().sum()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Whether a tensor is kept in half precision.
    pub fn is_half(&self, name: &str) -> bool {
        let entry = self.entries.get(name);
        entry.is_some_and(|entry| matches!(entry.tensor.stored, Stored::F16 | Stored::Bf16))
    }

    /// The shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries
            .get(name)
            .map(|entry| entry.tensor.shape.as_slice())
    }

    /// Refuses a checkpoint whose header has no tensor `name` of floats with `shape`; reads no value.
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.entry(name, shape).map(|_| ())
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry> {
        let entry = self.entries.get(name).ok_or_else(|| self.missing(name))?;
        let path = self.path(entry).display();
        let tensor = &entry.tensor;
        if tensor.shape != shape {
            return Err(Error::user(format!(
                "{path}: tensor {} has shape {:?}, but {} asks for {shape:?}",
                tensor.shown(),
                tensor.shape,
                self.advice.config
            ))
            .help(self.advice.misshapen));
        }
        if let Stored::Other(kind) = &tensor.stored {
            let (read, help) = Kind::of(self.path(entry)).read();
            return Err(Error::user(format!(
                "{path}: tensor {} has element type {kind}; {read} are supported",
                tensor.shown()
            ))
            .help(help));
        }
        Ok(entry)
    }

    /// The tensor `name` in f32, which must have `shape` and only finite values.
    pub fn tensor<B: Backend, const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &B::Device,
    ) -> Result<Tensor<B, D>> {
        let values = self.values(self.entry(name, &shape)?)?;
        Ok(Tensor::from_data(TensorData::new(values, shape), device))
    }

    /// The tensor `name` under a new one, to be written again in f32; none where it is not of floats.
    pub fn saved(&self, name: &str, new: String) -> Result<Option<Saved>> {
        let entry = self.entries.get(name).ok_or_else(|| self.missing(name))?;
        if !entry.tensor.stored.is_float() {
            return Ok(None);
        }
        Ok(Some(Saved {
            name: new,
            shape: entry.tensor.shape.clone(),
            values: self.values(entry)?,
        }))
    }

    /// As [`tensor`](Self::tensor), for a matrix of which rows are looked up here and there: an f32 one is copied
    /// into a temporary file that has no name, whose pages are in memory once they are touched.
    pub fn rows<B: Backend>(
        &self,
        name: &str,
        shape: [usize; 2],
        device: &B::Device,
    ) -> Result<Tensor<B, 2>> {
        let entry = self.entry(name, &shape)?;
        let data = match self.spilled(entry)? {
            Some(bytes) => TensorData {
                bytes,
                shape: Shape::from(shape),
                dtype: DType::F32,
            },
            None => TensorData::new(self.values(entry)?, shape),
        };
        Ok(Tensor::from_data(data, device))
    }

    /// A tensor's values in a temporary file of nobody else's; none where they are few, or where there is no room
    /// for it.
    fn spilled(&self, entry: &Entry) -> Result<Option<Bytes>> {
        if entry.tensor.count() < SPILLED {
            return Ok(None);
        }
        let mut file = tempfile::tempfile();
        self.read(entry, |values| {
            let written = file
                .as_mut()
                .map(|file| file.write_all(bytemuck::cast_slice(values)));
            if let Ok(Err(error)) = written {
                file = Err(error);
            }
        })?;
        // SAFETY: the file has no name, so that nobody can write to it or cut it off, and all of it was written.
        match file.and_then(|file| unsafe { Mmap::map(&file) }) {
            Ok(mapping) => {
                let shared = bytes::Bytes::from_owner(mapping);
                Ok(Some(Bytes::from_shared(shared, AllocationProperty::File)))
            }
            Err(error) => {
                tracing::debug!("{} stays in memory: {error}", entry.tensor.shown());
                Ok(None)
            }
        }
    }

    fn values(&self, entry: &Entry) -> Result<Vec<f32>> {
        // The header was held against the file's length: this is a small factor of what the file has.
        let mut values = Vec::with_capacity(entry.tensor.count());
        self.read(entry, |chunk| values.extend_from_slice(chunk))?;
        Ok(values)
    }

    /// Hands a tensor's values to `sink`, part by part, in the order of its shape. All are finite.
    fn read(&self, entry: &Entry, mut sink: impl FnMut(&[f32])) -> Result<()> {
        let (tensor, mut read) = (&entry.tensor, 0);
        let mut sink = |values: &[f32]| {
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(Error::user(format!(
                    "{}: tensor {} has the value {} (element {} of {})",
                    self.path(entry).display(),
                    tensor.shown(),
                    values[at],
                    read + at,
                    tensor.count()
                ))
                .help(
                    "nothing can be computed with it: the weights come from a training that diverged, or are damaged",
                ));
            }
            read += values.len();
            sink(values);
            Ok(())
        };
        let Some(axes) = tensor.view.as_ref().filter(|_| tensor.count() > 0) else {
            return self.stored(entry, tensor.count(), sink);
        };
        let reach = axes.iter().map(|(size, stride)| (size - 1) * stride);
        let reach = reach.sum::<usize>() + 1;
        let mut stored = Vec::with_capacity(reach);
        self.stored(entry, reach, |values| {
            stored.extend_from_slice(values);
            Ok(())
        })?;
        let mut ordered = Vec::new();
        gather(&stored, axes, &mut ordered);
        sink(&ordered)
    }

    /// Hands the first `count` of a tensor's values to `sink`, part by part, as they lie in the file.
    fn stored(
        &self,
        entry: &Entry,
        count: usize,
        mut sink: impl FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let (path, tensor) = (self.path(entry).display(), &entry.tensor);
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::UnexpectedEof => Error::user(format!(
                "{path}: the file has become shorter since it was opened: tensor {} is cut off",
                tensor.shown()
            ))
            .help(self.advice.damaged),
            _ => Error::failure(format!("cannot read {path}: {error}")),
        };
        // `entry` has refused what has none.
        let (per_block, bytes) = tensor.stored.block().unwrap_or((1, 1));
        // A lock that a panic left is as good as any: each reader seeks first.
        let source = &self.files[entry.file].file;
        let mut file = source.lock().unwrap_or_else(|poison| poison.into_inner());
        file.seek(SeekFrom::Start(tensor.start)).map_err(failed)?;
        let mut left = count.div_ceil(per_block) * bytes;
        let at_a_time = CHUNK / bytes * bytes;
        let mut buffer = vec![0; left.min(at_a_time)];
        let mut values: Vec<f32> = Vec::new();
        while left > 0 {
            let chunk = &mut buffer[..left.min(at_a_time)];
            file.read_exact(chunk).map_err(failed)?;
            left -= chunk.len();
            values.clear();
            tensor.stored.decode(chunk, &mut values);
            sink(&values)?;
        }
        Ok(())
    }

    fn path(&self, entry: &Entry) -> &Path {
        &self.files[entry.file].path
    }

    fn missing(&self, name: &str) -> Error {
        let paths = self
            .files
            .iter()
            .map(|file| file.path.display().to_string());
        let files: Vec<String> = paths.collect();
        let near = self
            .entries
            .keys()
            .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)))
            .map(|near| format!("; the nearest name there is {near}"))
            .unwrap_or_default();
        Error::user(format!("{}: no tensor {name}{near}", files.join(", ")))
            .help(self.advice.missing)
    }
}

/// What kind of file holds tensors, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Safetensors,
    Torch,
    Gguf,
}

impl Kind {
    fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("bin") => Kind::Torch,
            Some("gguf") => Kind::Gguf,
            _ => Kind::Safetensors,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Safetensors => "safetensors file",
            Kind::Torch => "file of torch.save",
            Kind::Gguf => "GGUF file",
        }
    }

    /// What to do about a file that cannot be read, where `damaged` is what to do about one that is not whole.
    fn advice(self, damaged: &str) -> String {
        match self {
            Kind::Torch => format!(
                "only state dicts of tensors are read, and no pickle is ever run. Where you trust the file, convert \
                 it: load it in PyTorch and write it by `safetensors.torch.save_file`; else {damaged}"
            ),
            Kind::Safetensors | Kind::Gguf => damaged.to_owned(),
        }
    }

    /// The element types that are read, and what to do about others.
    fn read(self) -> (&'static str, &'static str) {
        match self {
            Kind::Safetensors | Kind::Torch => (
                "f32, f16 and bf16",
                "convert the checkpoint to one of these",
            ),
            Kind::Gguf => (
                "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K",
                "take the model as Q4_K_M or Q8_0, or unquantised",
            ),
        }
    }
}

impl Placed {
    /// Its values.
    fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its name, as one finds it in the file.
    fn shown(&self) -> String {
        match &self.alias {
            Some(alias) => format!("{alias} ({})", self.name),
            None => self.name.clone(),
        }
    }
}

/// Values in the order of a view's axes.
fn gather(stored: &[f32], axes: &[(usize, usize)], ordered: &mut Vec<f32>) {
    match axes {
        [] => ordered.extend(stored.first()),
        [(size, 1)] => ordered.extend_from_slice(&stored[..*size]),
        [(size, stride), rest @ ..] => {
            for nth in 0..*size {
                gather(&stored[nth * stride..], rest, ordered);
            }
        }
    }
}

/// What a safetensors file's header says of its tensors, whose values lie one behind the other from the header's end to
/// the file's. The header is read after its length has been held against the file's.
fn header(file: &mut File) -> Result<Vec<Placed>, String> {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let mut size = [0; 8];
    file.read_exact(&mut size)
        .map_err(|_| format!("{length} bytes are too few"))?;
    let size = u64::from_le_bytes(size);
    let begin = size.checked_add(8).filter(|begin| *begin <= length);
    let begin = begin
        .ok_or_else(|| format!("its header is {size} bytes long, but the whole file {length}"))?;
    let mut text = vec![0; size as usize];
    file.read_exact(&mut text)
        .map_err(|error| error.to_string())?;
    let metadata: Metadata =
        serde_json::from_slice(&text).map_err(|error| format!("its header: {error}"))?;
    let end = begin.checked_add(metadata.data_len() as u64);
    if end != Some(length) {
        return Err(format!(
            "its header speaks of {} bytes of values, but {} follow it",
            metadata.data_len(),
            length - begin
        ));
    }
    let tensors = metadata.tensors().into_iter();
    let placed = tensors.map(|(name, info)| Placed {
        name,
        alias: None,
        stored: match info.dtype {
            Dtype::F32 => Stored::F32,
            Dtype::F16 => Stored::F16,
            Dtype::BF16 => Stored::Bf16,
            other => Stored::Other(format!("{other:?}")),
        },
        shape: info.shape.clone(),
        start: begin + info.data_offsets.0 as u64,
        view: None,
    });
    Ok(placed.collect())
}

/// A tensor on its way into a file.
pub struct Saved {
    /// Its name there.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Its values in row-major order.
    pub values: Vec<f32>,
}

impl Saved {
    /// A tensor read back from its device. `shape` may differ from the tensor's own (a bias is kept as
    /// `[1, n]`), not its number of elements.
    pub fn new<B: Backend>(name: String, shape: Vec<usize>, tensor: &Tensor<B, 2>) -> Result<Self> {
        let values = tensor
            .clone()
            .into_data()
            .into_vec::<f32>()
            .map_err(|error| {
                Error::failure(format!(
                    "the device did not give f32 values of {name}: {error:?}"
                ))
            })?;
        Ok(Saved {
            name,
            shape,
            values,
        })
    }
}

/// Writes tensors as one safetensors file of f32, with `metadata` in its header. The file must not be
/// one that somebody reads: write beside it and rename.
pub fn save(path: &Path, tensors: &[Saved], metadata: &[(&str, &str)]) -> Result<()> {
    let views = tensors
        .iter()
        .map(|tensor| {
            let bytes = bytemuck::cast_slice(&tensor.values);
            let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)
                .map_err(|error| Error::failure(format!("tensor {}: {error}", tensor.name)))?;
            Ok((tensor.name.as_str(), view))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let cannot = |error: String| {
        Error::failure(format!("cannot write {}: {error}", path.display()))
            .help("check the folder's permissions and the space left on the disk")
    };
    // Not by `serialize_to_file`, whose files nobody but their owner may read, whatever the umask.
    let bytes = safetensors::serialize(views, Some(metadata));
    let bytes = bytes.map_err(|error| cannot(error.to_string()))?;
    std::fs::write(path, bytes).map_err(|error| cannot(error.to_string()))
}
