//! Pretrained weights, mapped from their safetensors files.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{AllocationProperty, Bytes, DType, Shape, Tensor, TensorData};
use burn_backend::Backend;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result};

/// The tensors of a checkpoint, by name. The files stay mapped as long as a tensor made from them lives:
/// an f32 weight on the CPU is the file's own pages, read when first used.
pub struct Weights {
    entries: BTreeMap<String, Entry>,
    files: Vec<PathBuf>,
    mappings: Vec<Arc<Mmap>>,
}

struct Mapping(Arc<Mmap>);

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

struct Entry {
    bytes: bytes::Bytes,
    dtype: Dtype,
    shape: Vec<usize>,
    file: usize,
}

impl Weights {
    /// Maps `files`, the one `model.safetensors` or all its shards.
    pub fn open(files: &[PathBuf]) -> Result<Self> {
        let mut entries = BTreeMap::new();
        let mut mappings = Vec::new();
        for (file, path) in files.iter().enumerate() {
            let mapping = Arc::new(map(path)?);
            mappings.push(mapping.clone());
            let mapped = bytes::Bytes::from_owner(Mapping(mapping));
            let tensors = SafeTensors::deserialize(&mapped).map_err(|error| {
                Error::user(format!(
                    "{} is not a readable safetensors file: {error}",
                    path.display()
                ))
                .help("the file is damaged or its download was cut short: delete it and fetch it again")
            })?;
            for (name, view) in tensors.tensors() {
                let bytes = mapped.slice_ref(view.data());
                let entry = Entry {
                    bytes,
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    file,
                };
                entries.insert(name, entry);
            }
        }
        Ok(Weights {
            entries,
            files: files.to_vec(),
            mappings,
        })
    }

    /// Gives back the memory of the pages read so far; whatever is still needed is read from the files again.
    pub fn release(&self) {
        #[cfg(unix)]
        for mapping in &self.mappings {
            // SAFETY: the mapping is read-only and backed by its file, so no value is lost.
            let released = unsafe { mapping.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            if let Err(error) = released {
                tracing::debug!("pages of the weights stay in memory: {error}");
            }
        }
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The number of values in all tensors of floats.
    pub fn parameters(&self) -> u64 {
        let floats = [Dtype::F32, Dtype::F16, Dtype::BF16];
        let entries = self
            .entries
            .values()
            .filter(|entry| floats.contains(&entry.dtype));
        entries
            .map(|entry| entry.shape.iter().product::<usize>() as u64)
            .sum()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The tensor `name` in f32, which must have `shape`.
    pub fn tensor<B: Backend, const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &B::Device,
    ) -> Result<Tensor<B, D>> {
        let entry = self.entries.get(name).ok_or_else(|| self.missing(name))?;
        let path = self.files[entry.file].display();
        if entry.shape != shape {
            return Err(Error::user(format!(
                "{path}: tensor {name} has shape {:?}, but config.json asks for {shape:?}",
                entry.shape
            ))
            .help("config.json and the weights must come from the same model"));
        }
        let bytes = match entry.dtype {
            Dtype::F32 if entry.bytes.as_ptr().align_offset(align_of::<f32>()) == 0 => {
                Bytes::from_shared(entry.bytes.clone(), AllocationProperty::File)
            }
            Dtype::F32 => widen(&entry.bytes, f32::from_le_bytes),
            Dtype::F16 => widen(&entry.bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => widen(&entry.bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            other => {
                return Err(Error::user(format!(
                    "{path}: tensor {name} has element type {other:?}; f32, f16 and bf16 are supported"
                ))
                .help("convert the checkpoint to one of these"));
            }
        };
        let data = TensorData {
            bytes,
            shape: Shape::from(shape),
            dtype: DType::F32,
        };
        Ok(Tensor::from_data(data, device))
    }

    fn missing(&self, name: &str) -> Error {
        let files: Vec<String> = self
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        let near = self
            .entries
            .keys()
            .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)))
            .map(|near| format!("; the nearest name there is {near}"))
            .unwrap_or_default();
        Error::user(format!("{}: no tensor {name}{near}", files.join(", "))).help(
            "the checkpoint does not belong to its config.json, or is of a family that is not supported",
        )
    }
}

fn map(path: &Path) -> Result<Mmap> {
    let cannot_read = |error: std::io::Error| {
        Error::user(format!("cannot read {}: {error}", path.display()))
            .help("check that model.name points to a complete model folder")
    };
    let file = File::open(path).map_err(cannot_read)?;
    // SAFETY: a mapping changes if someone writes to the file while the program runs. No program of this
    // kind guards against that; what is written by dynalora itself is renamed into place, never changed.
    unsafe { Mmap::map(&file) }.map_err(cannot_read)
}

fn widen<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Bytes {
    Bytes::from_elems(
        bytes
            .as_chunks::<N>()
            .0
            .iter()
            .map(|bytes| convert(*bytes))
            .collect::<Vec<_>>(),
    )
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
