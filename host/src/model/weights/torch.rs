//! Checkpoints of PyTorch, `pytorch_model.bin`: a zip archive of a pickle that describes tensors, and a record for each
//! storage, uncompressed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use rawzip::{
    CompressionMethod, FileReader, RECOMMENDED_BUFFER_SIZE, ZipArchive, ZipArchiveEntryWayfinder,
};

use super::Placed;
use super::pickle::{self, Described};
use super::stored::Stored;

/// What `torch.save` began a file with before PyTorch 1.6: the pickled number 0x1950a86a20f9469cfc6c.
const LEGACY: [u8; 14] = [
    0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19,
];

/// What tensors the file has, and where; or why it cannot be read.
pub fn tensors(file: &mut File) -> Result<Vec<Placed>, String> {
    let io = |error: std::io::Error| error.to_string();
    let mut start = Vec::new();
    let first = file
        .by_ref()
        .take(LEGACY.len() as u64)
        .read_to_end(&mut start);
    first.map_err(io)?;
    if start == LEGACY {
        return Err(
            "it is of the format that PyTorch had before 1.6, a program through and through"
                .to_owned(),
        );
    }
    let mut records = Records::open(file)?;
    if records.named.contains_key("byteorder") {
        let order = records.whole("byteorder")?;
        if order != b"little" {
            let order = String::from_utf8_lossy(&order).into_owned();
            return Err(format!("its byte order is {order:?}, not little"));
        }
    }
    let described = pickle::read(&records.whole("data.pkl")?)?;
    let placed = described.into_iter().map(|tensor| records.placed(tensor));
    placed.collect()
}

/// The records of an archive, by their names in its one folder.
struct Records<'a> {
    file: &'a mut File,
    archive: ZipArchive<FileReader>,
    named: HashMap<String, Record>,
    /// The file's bytes.
    length: u64,
}

/// A record of the archive.
#[derive(Clone, Copy)]
struct Record {
    /// Where its own header lies.
    place: ZipArchiveEntryWayfinder,
    checksum: u32,
    /// Whether its bytes are there as they are.
    plain: bool,
    /// Where they begin in the file and how many there are, once that was asked for.
    found: Option<(u64, u64)>,
}

impl<'a> Records<'a> {
    fn open(file: &'a mut File) -> Result<Self, String> {
        let wrong =
            |error: rawzip::Error| format!("it is no archive as torch.save writes it: {error}");
        let length = file.metadata().map_err(|error| error.to_string())?.len();
        let own = file.try_clone().map_err(|error| error.to_string())?;
        let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
        let archive = ZipArchive::from_file(own, &mut buffer).map_err(wrong)?;
        let mut all = Vec::new();
        let mut entries = archive.entries(&mut buffer);
        while let Some(entry) = entries.next_entry().map_err(wrong)? {
            let name = String::from_utf8_lossy(entry.file_path().as_bytes()).into_owned();
            let record = Record {
                place: entry.wayfinder(),
                checksum: entry.crc32(),
                plain: entry.compression_method() == CompressionMethod::STORE
                    && !entry.flags().is_encrypted(),
                found: None,
            };
            all.push((name, record));
        }
        let root = all.iter().find_map(|(name, _)| {
            let root = name.strip_suffix("data.pkl")?;
            (root.is_empty() || root.ends_with('/')).then(|| root.to_owned())
        });
        let root = root.ok_or("there is no data.pkl in its archive")?;
        let mut named = HashMap::new();
        for (name, record) in all {
            let Some(name) = name.strip_prefix(&root) else {
                continue;
            };
            if named.insert(name.to_owned(), record).is_some() {
                return Err(format!("its record {name} is there twice"));
            }
        }
        Ok(Records {
            file,
            archive,
            named,
            length,
        })
    }

    /// The bytes of a small record, held against its checksum.
    fn whole(&mut self, name: &str) -> Result<Vec<u8>, String> {
        let (start, length) = self.find(name)?;
        // No more than the file has.
        let mut bytes = vec![0; length as usize];
        let read = self.file.seek(SeekFrom::Start(start));
        let read = read.and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|error| format!("its record {name}: {error}"))?;
        match rawzip::crc32(&bytes) == self.named[name].checksum {
            true => Ok(bytes),
            false => Err(format!("its record {name} is not what its checksum says")),
        }
    }

    /// Where a record begins in the file, and how long it is.
    fn find(&mut self, name: &str) -> Result<(u64, u64), String> {
        let wrong = |why: String| format!("its record {name}: {why}");
        let record = self.named.get_mut(name);
        let record = record.ok_or_else(|| wrong("it is not there".to_owned()))?;
        if let Some(found) = record.found {
            return Ok(found);
        }
        if !record.plain {
            let why = "it is compressed or encrypted, which torch.save does to none";
            return Err(wrong(why.to_owned()));
        }
        let entry = self.archive.get_entry(record.place);
        let (start, end) = entry
            .map_err(|error| wrong(error.to_string()))?
            .compressed_data_range();
        if end > self.length {
            return Err(wrong("it ends behind the file".to_owned()));
        }
        Ok(*record.found.insert((start, end - start)))
    }

    /// Where a tensor's values are, all of which are within its storage and that within its record.
    fn placed(&mut self, tensor: Described) -> Result<Placed, String> {
        let Described {
            name,
            storage,
            offset,
            shape,
            strides,
        } = tensor;
        let stored = match storage.kind.as_str() {
            "Float" => Stored::F32,
            "Half" => Stored::F16,
            "BFloat16" => Stored::Bf16,
            other => Stored::Other(other.to_owned()),
        };
        let mut placed = Placed {
            view: None,
            alias: None,
            start: 0,
            stored,
            shape,
            name,
        };
        // Of what is not read nothing has to be there.
        let Some((_, bytes)) = placed.stored.block() else {
            return Ok(placed);
        };
        let wrong = |why: &str| format!("its tensor {}: {why}", placed.name);
        let (shape, values) = (&placed.shape, storage.values);
        let count = shape
            .iter()
            .try_fold(1, |count: usize, size| count.checked_mul(*size));
        if count.is_none_or(|count| count > values) {
            return Err(wrong(
                "it has more values than its storage, which repeat: save a copy of it",
            ));
        }
        let steps = shape
            .iter()
            .zip(&strides)
            .try_fold(offset, |end, (size, stride)| {
                size.saturating_sub(1)
                    .checked_mul(*stride)?
                    .checked_add(end)
            });
        if count != Some(0) && steps.is_none_or(|last| last >= values) {
            return Err(wrong("it ends behind its storage"));
        }
        let (start, length) = self.find(&format!("data/{}", storage.key))?;
        let [whole, before] =
            [values, offset].map(|values| (values as u64).checked_mul(bytes as u64));
        if whole.is_none_or(|whole| whole > length) {
            return Err(wrong("its storage has more values than its record"));
        }
        placed.start = start + before.unwrap_or(0);
        if count != Some(0) && !row_major(shape, &strides) {
            let axes = shape.iter().copied().zip(strides);
            placed.view = Some(axes.filter(|(size, _)| *size > 1).collect());
        }
        Ok(placed)
    }
}

/// Whether values lie one behind the other. Of an axis of one it does not matter how far apart its neighbours would be.
fn row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    let axes = shape.iter().zip(strides).rev();
    for (size, stride) in axes.filter(|(size, _)| **size != 1) {
        if *stride != expected {
            return false;
        }
        expected = expected.saturating_mul(*size);
    }
    true
}
