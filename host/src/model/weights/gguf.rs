//! GGUF, the files of llama.cpp (github.com/ggml-org/ggml, docs/gguf.md): metadata, where each tensor lies, and the
//! values, mostly in blocks of few bits. Here under the names that Transformers has for the tensors, and in its order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use serde_json::Value;

use super::Placed;
use super::stored::Stored;

/// What stands before the values.
#[derive(Debug)]
pub struct Header {
    /// By key; of arrays, whose elements are as many as there are tokens, nothing.
    pub metadata: BTreeMap<String, Value>,
    /// In the file's order.
    pub tensors: Vec<Info>,
}

/// A tensor of the file.
#[derive(Debug)]
pub struct Info {
    /// Its name in the file.
    pub name: String,
    /// Its sizes, that of a row last.
    pub shape: Vec<usize>,
    stored: Stored,
    /// Where its values begin in the file.
    start: u64,
}

/// `gguf_metadata_value_type` of a text and of an array.
const TEXT: u32 = 8;
const ARRAY: u32 = 9;
/// Arrays in arrays: nobody writes any.
const DEEPEST: u32 = 4;
/// ggml has tensors of up to four axes.
const AXES: u32 = 4;
/// Where the file does not say how values are aligned.
const ALIGNMENT: u64 = 32;

impl Header {
    /// Reads it, or says what is wrong.
    pub fn read(file: &File) -> Result<Self, String> {
        let length = file.metadata().map_err(|error| error.to_string())?.len();
        let mut reader = Reader {
            file: BufReader::new(file),
            at: 0,
            length,
        };
        reader.seek(0)?;
        if reader.take()? != *b"GGUF" {
            return Err("it does not begin as a GGUF file does".to_owned());
        }
        let version = reader.number()?;
        if !(2..=3).contains(&version) {
            return Err(match version.swap_bytes() {
                1..=3 => "its byte order is big, not little".to_owned(),
                _ => format!("it is of version {version} of the format; 2 and 3 are read"),
            });
        }
        let (tensors, entries) = (reader.long()?, reader.long()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..entries {
            let key = reader.text()?;
            let kind = reader.number()?;
            let value = reader.value(kind, 0)?;
            metadata.insert(key, value);
        }
        let mut header = Header {
            metadata,
            tensors: Vec::new(),
        };
        for _ in 0..tensors {
            header.tensors.push(reader.info()?);
        }
        let alignment = match header.metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(given) => given
                .as_u64()
                .filter(|n| n.is_power_of_two())
                .ok_or_else(|| {
                    format!("its general.alignment is {given}, which is no power of two")
                })?,
        };
        let begin = reader.at.next_multiple_of(alignment);
        for tensor in &mut header.tensors {
            tensor.place(begin, length)?;
        }
        Ok(header)
    }

    /// What the file says the model is: `llama`.
    pub fn architecture(&self) -> Option<&str> {
        self.metadata.get("general.architecture")?.as_str()
    }

    /// A value of the model's, `block_count` of `llama.block_count`.
    pub fn of_model(&self, key: &str) -> Option<&Value> {
        self.metadata
            .get(&format!("{}.{key}", self.architecture()?))
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.iter().any(|tensor| tensor.name == name)
    }

    /// Its tensors as Transformers has them.
    fn placed(self) -> Result<Vec<Placed>, String> {
        if let Some(parts) = self.metadata.get("split.count").and_then(Value::as_u64)
            && parts > 1
        {
            return Err(format!(
                "it is one of {parts} parts: put them together by `llama-gguf-split --merge`"
            ));
        }
        let names = Names::of(&self)?;
        let placed = self.tensors.into_iter().map(|tensor| names.placed(tensor));
        placed.collect()
    }
}

/// What tensors the file has, and where; or why it cannot be read.
pub fn tensors(file: &File) -> Result<Vec<Placed>, String> {
    Header::read(file)?.placed()
}

/// A family's names: in the file, and in Transformers.
struct Names {
    /// Outside the layers.
    around: &'static [(&'static str, &'static str)],
    /// What a layer's begin with in Transformers, its number behind it.
    layer: &'static str,
    /// In a layer.
    within: &'static [(&'static str, &'static str)],
    /// Heads of the queries and of the keys whose rows are interleaved.
    interleaved: Option<[usize; 2]>,
    /// Those of which rows are columns.
    transposed: &'static [&'static str],
}

const DECODER: Names = Names {
    around: &[
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
    ],
    layer: "model.layers",
    within: &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ],
    interleaved: None,
    transposed: &[],
};

const GPT2: Names = Names {
    around: &[
        ("token_embd", "transformer.wte"),
        ("position_embd", "transformer.wpe"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
    layer: "transformer.h",
    within: &[
        ("attn_norm", "ln_1"),
        ("attn_qkv", "attn.c_attn"),
        ("attn_output", "attn.c_proj"),
        ("ffn_norm", "ln_2"),
        ("ffn_up", "mlp.c_fc"),
        ("ffn_down", "mlp.c_proj"),
    ],
    interleaved: None,
    transposed: &["attn_qkv", "attn_output", "ffn_up", "ffn_down"],
};

impl Names {
    fn of(header: &Header) -> Result<Self, String> {
        match header.architecture() {
            // Mistral too.
            Some("llama") => {
                let heads = |key: &str| {
                    let found = header.of_model(key).and_then(Value::as_u64);
                    found
                        .and_then(|heads| usize::try_from(heads).ok())
                        .filter(|heads| *heads > 0)
                };
                let queries = heads("attention.head_count")
                    .ok_or("it lacks llama.attention.head_count, a number above 0")?;
                let keys = match header.of_model("attention.head_count_kv") {
                    None => queries,
                    Some(_) => heads("attention.head_count_kv")
                        .ok_or("its llama.attention.head_count_kv is no number above 0")?,
                };
                Ok(Names {
                    interleaved: Some([queries, keys]),
                    ..DECODER
                })
            }
            Some("qwen2" | "qwen3") => Ok(DECODER),
            Some("gpt2") => Ok(GPT2),
            Some(other) => Err(format!(
                "its general.architecture is {other:?}; llama, qwen2, qwen3 and gpt2 are read"
            )),
            None => Err("it lacks general.architecture".to_owned()),
        }
    }

    /// A tensor's name in Transformers, and the part of it that the family knows. What it does not know keeps its name.
    fn translate(&self, name: &str) -> Option<(String, &'static str)> {
        let (path, part) = name.rsplit_once('.')?;
        if let Some((_, new)) = self.around.iter().find(|(old, _)| *old == path) {
            return Some((format!("{new}.{part}"), ""));
        }
        let (layer, of_layer) = path.strip_prefix("blk.")?.split_once('.')?;
        let (old, new) = self.within.iter().find(|(old, _)| *old == of_layer)?;
        Some((format!("{}.{layer}.{new}.{part}", self.layer), old))
    }

    fn placed(&self, tensor: Info) -> Result<Placed, String> {
        let Info {
            name,
            mut shape,
            stored,
            start,
        } = tensor;
        let Some((new, part)) = self.translate(&name) else {
            return Ok(Placed {
                name,
                alias: None,
                stored,
                shape,
                start,
                view: None,
            });
        };
        let heads = match (part, self.interleaved) {
            ("attn_q", Some([queries, _])) => Some(queries),
            ("attn_k", Some([_, keys])) => Some(keys),
            _ => None,
        };
        let view = match (heads, shape.as_mut_slice()) {
            (Some(heads), [rows, rest @ ..]) => match rows.is_multiple_of(2 * heads) {
                // Of each head the first row of either half, then the second of either: back to halves, as
                // `_reverse_permute_weights` of Transformers' `modeling_gguf_pytorch_utils.py` does it.
                true => {
                    let (half, row) = (*rows / heads / 2, rest.iter().product::<usize>());
                    Some(vec![
                        (heads, 2 * half * row),
                        (2, row),
                        (half, 2 * row),
                        (row, 1),
                    ])
                }
                false => {
                    return Err(format!(
                        "its tensor {name} has {rows} rows, which are not those of {heads} heads"
                    ));
                }
            },
            (None, [outputs, inputs]) if self.transposed.contains(&part) => {
                std::mem::swap(outputs, inputs);
                let [rows, columns] = [*outputs, *inputs];
                Some(vec![(rows, 1), (columns, rows)])
            }
            _ => None,
        };
        Ok(Placed {
            name: new,
            alias: Some(name),
            stored,
            shape,
            start,
            view,
        })
    }
}

impl Info {
    /// Sets where its values begin, which must be in the file to their end.
    fn place(&mut self, begin: u64, length: u64) -> Result<(), String> {
        self.start = begin.saturating_add(self.start);
        let Some((values, bytes)) = self.stored.block() else {
            return Ok(());
        };
        let wrong = |why: String| Err(format!("its tensor {}: {why}", self.name));
        let row = self.shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(values) {
            return wrong(format!(
                "a row of {row} values is no whole number of blocks of {values}"
            ));
        }
        let count = self
            .shape
            .iter()
            .try_fold(1u64, |count, size| count.checked_mul(*size as u64));
        let end = count.and_then(|count| {
            let bytes = (count / values as u64).checked_mul(bytes as u64)?;
            self.start.checked_add(bytes)
        });
        match end {
            Some(end) if end <= length => Ok(()),
            _ => wrong("it ends behind the file".to_owned()),
        }
    }
}

/// Reads from a file of known length: nothing is taken at its word that the file is too short for.
struct Reader<'a> {
    file: BufReader<&'a File>,
    at: u64,
    length: u64,
}

impl Reader<'_> {
    fn seek(&mut self, at: u64) -> Result<(), String> {
        self.at = at;
        let sought = self.file.seek(SeekFrom::Start(at));
        sought.map(drop).map_err(|error| error.to_string())
    }

    /// Refuses to read beyond the file's end.
    fn ask(&mut self, bytes: u64) -> Result<(), String> {
        let end = self.at.checked_add(bytes);
        self.at = end
            .filter(|end| *end <= self.length)
            .ok_or_else(|| format!("its header is cut off at byte {}", self.length))?;
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.ask(N as u64)?;
        let mut bytes = [0; N];
        let read = self.file.read_exact(&mut bytes);
        read.map(|()| bytes).map_err(|error| error.to_string())
    }

    fn number(&mut self) -> Result<u32, String> {
        self.take().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Result<u64, String> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.long()?;
        self.ask(length)?;
        // No more than the file has.
        let mut bytes = vec![0; length as usize];
        let read = self.file.read_exact(&mut bytes);
        read.map_err(|error| error.to_string())?;
        String::from_utf8(bytes).map_err(|error| format!("a text of its header: {error}"))
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => self.take().map(u8::from_le_bytes)?.into(),
            1 => self.take().map(i8::from_le_bytes)?.into(),
            2 => self.take().map(u16::from_le_bytes)?.into(),
            3 => self.take().map(i16::from_le_bytes)?.into(),
            4 => self.number()?.into(),
            5 => self.take().map(i32::from_le_bytes)?.into(),
            6 => self.take().map(f32::from_le_bytes)?.into(),
            7 => (self.take()? != [0]).into(),
            TEXT => self.text()?.into(),
            ARRAY => {
                let kind = self.number()?;
                let count = self.long()?;
                self.skip(kind, count, depth)?;
                Value::Null
            }
            10 => self.long()?.into(),
            11 => self.take().map(i64::from_le_bytes)?.into(),
            12 => self.take().map(f64::from_le_bytes)?.into(),
            other => {
                return Err(format!(
                    "its header has a value of the unknown type {other}"
                ));
            }
        })
    }

    /// Passes over the elements of an array.
    fn skip(&mut self, kind: u32, count: u64, depth: u32) -> Result<(), String> {
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            TEXT => {
                for _ in 0..count {
                    let length = self.long()?;
                    self.ask(length)?;
                    self.seek_by(length)?;
                }
                return Ok(());
            }
            ARRAY if depth < DEEPEST => {
                for _ in 0..count {
                    let kind = self.number()?;
                    let count = self.long()?;
                    self.skip(kind, count, depth + 1)?;
                }
                return Ok(());
            }
            other => {
                return Err(format!(
                    "its header has an array of the unknown type {other}"
                ));
            }
        };
        let bytes = count.saturating_mul(size);
        self.ask(bytes)?;
        self.seek_by(bytes)
    }

    /// Goes on behind bytes that were asked for.
    fn seek_by(&mut self, bytes: u64) -> Result<(), String> {
        let bytes = i64::try_from(bytes).map_err(|error| error.to_string())?;
        let sought = self.file.seek_relative(bytes);
        sought.map_err(|error| error.to_string())
    }

    fn info(&mut self) -> Result<Info, String> {
        let name = self.text()?;
        let axes = self.number()?;
        if axes > AXES {
            return Err(format!(
                "its tensor {name} has {axes} axes, more than {AXES}"
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            let size = usize::try_from(self.long()?);
            shape.push(size.map_err(|error| format!("its tensor {name}: {error}"))?);
        }
        // ggml begins with the size of a row.
        shape.reverse();
        Ok(Info {
            stored: Stored::of_ggml(self.number()?),
            // So far from where the values begin.
            start: self.long()?,
            shape,
            name,
        })
    }
}
