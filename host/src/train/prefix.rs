//! The output of the layers below the lowest active module, kept from one epoch to the next.
//!
//! A token's hidden state there depends on its own sequence, the frozen weights and the adapters of those layers
//! alone, so that it is computed once per example and kept until one of these adapters was written to. Without
//! dropout this is exact.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;

use burn::tensor::{Tensor, TensorData};
use dynalora_plugin_api::Sizes;

use super::trainee::{Trainee, read, upload};
use crate::adapter::Pass;
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::kernel::{Ad, Kernels};

/// Hidden states of examples after the first layers, in memory up to a limit and in a temporary file beyond.
pub struct PrefixCache {
    limit: usize,
    depth: usize,
    /// The [versions](crate::adapter::Adapters::versions) of the adapters below that depth.
    versions: Vec<u64>,
    used: usize,
    entries: HashMap<usize, Entry>,
    /// Made when the memory is used up; the system deletes it with the process.
    file: Option<File>,
    written: u64,
    /// Sequences that had to be run since the last [`take_computed`](Self::take_computed).
    computed: Sizes,
}

enum Entry {
    Memory(Vec<f32>),
    /// Offset and number of values.
    Disk(u64, usize),
}

impl PrefixCache {
    /// An empty cache that keeps at most `limit` bytes in memory.
    pub fn new(limit: usize) -> Self {
        PrefixCache {
            limit,
            depth: 0,
            versions: Vec::new(),
            used: 0,
            entries: HashMap::new(),
            file: None,
            written: 0,
            computed: Sizes::default(),
        }
    }

    /// The sequences whose prefix was run rather than found, since this was last asked.
    pub fn take_computed(&mut self) -> Sizes {
        std::mem::take(&mut self.computed)
    }

    /// The hidden states of `batch` after the first `depth` layers, `[tokens, hidden]`. What is not kept yet
    /// is computed; another depth or other adapters below it than last time empty the cache first.
    pub fn states<B: Kernels>(
        &mut self,
        trainee: &Trainee<B>,
        batch: &Batch,
        depth: usize,
        device: &B::Device,
    ) -> Result<Tensor<Ad<B>, 2>> {
        let (adapters, layers) = (&trainee.adapters, trainee.model.base.depth());
        let modules = 0..adapters.modules.len();
        let below = modules.filter(|module| adapters.layers_below(*module, layers) < depth);
        let versions = below.flat_map(|module| adapters.versions(module));
        let versions: Vec<u64> = versions.collect();
        if depth != self.depth || versions != self.versions {
            *self = PrefixCache {
                depth,
                versions,
                computed: self.take_computed(),
                ..PrefixCache::new(self.limit)
            };
        }
        let missing: Vec<usize> = (0..batch.indices.len())
            .filter(|at| !self.entries.contains_key(&batch.indices[*at]))
            .collect();
        if !missing.is_empty() {
            let part = batch.part(&missing);
            self.computed.add(&part.offsets);
            let mut pass = Pass::evaluate(&trainee.adapters, &trainee.head);
            let input = upload::<B>(&part, device);
            let states = trainee.model.base.prefix(&input, depth, &mut pass);
            let width = states.dims()[1];
            let values = read(states.inner())?;
            for (at, index) in part.indices.iter().enumerate() {
                let range = part.offsets[at] * width..part.offsets[at + 1] * width;
                self.keep(*index, &values[range])?;
            }
        }
        let mut values = Vec::new();
        for index in &batch.indices {
            self.append(*index, &mut values)?;
        }
        let tokens = batch.tokens();
        let width = values.len() / tokens.max(1);
        Ok(Tensor::from_data(
            TensorData::new(values, [tokens, width]),
            device,
        ))
    }

    fn keep(&mut self, index: usize, values: &[f32]) -> Result<()> {
        let bytes = size_of_val(values);
        let entry = if self.used + bytes <= self.limit {
            self.used += bytes;
            Entry::Memory(values.to_vec())
        } else {
            let cannot = |error| {
                Error::failure("cannot write the cache of the frozen prefix")
                    .because(error)
                    .help("free some space in the folder for temporary files (TMPDIR), raise train.cache_memory_mib, or set train.cache_frozen_prefix = false")
            };
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(tempfile::tempfile().map_err(cannot)?),
            };
            file.write_all(bytemuck::cast_slice(values))
                .map_err(cannot)?;
            let offset = self.written;
            self.written += bytes as u64;
            Entry::Disk(offset, values.len())
        };
        self.entries.insert(index, entry);
        Ok(())
    }

    fn append(&self, index: usize, out: &mut Vec<f32>) -> Result<()> {
        match &self.entries[&index] {
            Entry::Memory(values) => out.extend_from_slice(values),
            Entry::Disk(offset, len) => {
                let start = out.len();
                out.resize(start + len, 0.0);
                let file = self.file.as_ref().expect("entries on disk have a file");
                read_at(file, bytemuck::cast_slice_mut(&mut out[start..]), *offset).map_err(
                    |error| {
                        Error::failure("cannot read the cache of the frozen prefix").because(error)
                    },
                )?;
            }
        }
        Ok(())
    }
}

/// Reads from `offset` without moving the end at which the file is written.
#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

/// Reads from `offset`, then goes back to the end, at which the file is written.
#[cfg(not(unix))]
fn read_at(mut file: &File, out: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(out)?;
    file.seek(SeekFrom::End(0)).map(|_| ())
}
