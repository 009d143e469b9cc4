//! Weights in safetensors files: what is there is known from their headers, values are read when asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use burn::tensor::{AllocationProperty, Bytes, DType, Shape, Tensor, TensorData};
use burn_backend::Backend;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorView};

use crate::error::{Error, Result};

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
    /// Its name in the file.
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    file: usize,
    /// Where its values begin in the file.
    start: u64,
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
            let (begin, metadata) = header(&mut file).map_err(|why| {
                Error::user(format!(
                    "{} is not a readable safetensors file: {why}",
                    path.display()
                ))
                .help(advice.damaged)
            })?;
            for (name, info) in metadata.tensors() {
                let entry = Entry {
                    name: name.clone(),
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    file: weights.files.len(),
                    start: begin + info.data_offsets.0 as u64,
                };
                if let Some(other) = weights.entries.insert(name, entry) {
                    return Err(Error::user(format!(
                        "tensor {} is in two files: {} and {}",
                        other.name,
                        weights.files[other.file].path.display(),
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
            let (path, twice) = (self.path(&entry).to_owned(), entry.name.clone());
            if let Some(other) = self.entries.insert(canonical(&name), entry) {
                return Err(Error::user(format!(
                    "{}: {twice} and {} are one tensor under two names",
                    path.display(),
                    other.name
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

    /// What the file calls the tensor `name`.
    pub fn name_in_file<'a>(&'a self, name: &'a str) -> &'a str {
        self.entries.get(name).map_or(name, |entry| &entry.name)
    }

    /// The number of values in all tensors of floats.
    pub fn parameters(&self) -> u64 {
        let floats = self.entries.values().filter(|entry| is_float(entry.dtype));
        floats
            .map(|entry| entry.shape.iter().product::<usize>() as u64)
            .sum()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Whether a tensor is kept in half precision.
    pub fn is_half(&self, name: &str) -> bool {
        let entry = self.entries.get(name);
        entry.is_some_and(|entry| matches!(entry.dtype, Dtype::F16 | Dtype::BF16))
    }

    /// The shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Refuses a checkpoint whose header has no tensor `name` of floats with `shape`; reads no value.
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.entry(name, shape).map(|_| ())
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry> {
        let entry = self.entries.get(name).ok_or_else(|| self.missing(name))?;
        let path = self.path(entry).display();
        if entry.shape != shape {
            return Err(Error::user(format!(
                "{path}: tensor {} has shape {:?}, but {} asks for {shape:?}",
                entry.name, entry.shape, self.advice.config
            ))
            .help(self.advice.misshapen));
        }
        if !is_float(entry.dtype) {
            return Err(Error::user(format!(
                "{path}: tensor {} has element type {:?}; f32, f16 and bf16 are supported",
                entry.name, entry.dtype
            ))
            .help("convert the checkpoint to one of these"));
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
        if !is_float(entry.dtype) {
            return Ok(None);
        }
        Ok(Some(Saved {
            name: new,
            shape: entry.shape.clone(),
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
        if entry.shape.iter().product::<usize>() < SPILLED {
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
                tracing::debug!("{} stays in memory: {error}", entry.name);
                Ok(None)
            }
        }
    }

    fn values(&self, entry: &Entry) -> Result<Vec<f32>> {
        // The header was held against the file's length: this is no more than the file has, twice that for halves.
        let mut values = Vec::with_capacity(entry.shape.iter().product());
        self.read(entry, |chunk| values.extend_from_slice(chunk))?;
        Ok(values)
    }

    /// Hands a tensor's values to `sink`, part by part.
    fn read(&self, entry: &Entry, mut sink: impl FnMut(&[f32])) -> Result<()> {
        let path = self.path(entry).display();
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::UnexpectedEof => Error::user(format!(
                "{path}: the file has become shorter since it was opened: tensor {} is cut off",
                entry.name
            ))
            .help(self.advice.damaged),
            _ => Error::failure(format!("cannot read {path}: {error}")),
        };
        // A lock that a panic left is as good as any: each reader seeks first.
        let source = &self.files[entry.file].file;
        let mut file = source.lock().unwrap_or_else(|poison| poison.into_inner());
        file.seek(SeekFrom::Start(entry.start)).map_err(failed)?;
        let count: usize = entry.shape.iter().product();
        let mut left = count * entry.dtype.bitsize() / 8;
        let mut buffer = vec![0; left.min(CHUNK)];
        let mut values: Vec<f32> = Vec::new();
        let mut read = 0;
        while left > 0 {
            let chunk = &mut buffer[..left.min(CHUNK)];
            file.read_exact(chunk).map_err(failed)?;
            left -= chunk.len();
            values.clear();
            match entry.dtype {
                Dtype::F16 => widen(chunk, &mut values, |bytes| {
                    f16::from_le_bytes(bytes).to_f32()
                }),
                Dtype::BF16 => widen(chunk, &mut values, |bytes| {
                    bf16::from_le_bytes(bytes).to_f32()
                }),
                _ => widen(chunk, &mut values, f32::from_le_bytes),
            }
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(Error::user(format!(
                    "{path}: tensor {} has the value {} (element {} of {count})",
                    entry.name,
                    values[at],
                    read + at
                ))
                .help(
                    "nothing can be computed with it: the weights come from a training that diverged, or are damaged",
                ));
            }
            read += values.len();
            sink(&values);
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

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Where a file's values begin, and what its header says of them: one tensor behind the other, from there to the
/// file's end. The header is read after its length has been held against the file's.
fn header(file: &mut File) -> Result<(u64, Metadata), String> {
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
    Ok((begin, metadata))
}

fn widen<const N: usize>(bytes: &[u8], values: &mut Vec<f32>, convert: impl Fn([u8; N]) -> f32) {
    values.extend(bytes.as_chunks::<N>().0.iter().map(|bytes| convert(*bytes)));
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
