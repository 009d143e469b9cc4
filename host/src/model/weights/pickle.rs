//! The pickles of `torch.save`, read without being run.
//!
//! A pickle is a program: its opcodes can call anything that Python can import. Of a state dict they make nothing but
//! dictionaries, tuples, texts, numbers, and tensors by a few calls that are known here by name (`torch.save`,
//! `torch/serialization.py`; the opcodes are those of `pickletools.py`). Those calls are answered with descriptions of
//! tensors; every other name is refused as soon as it is read, and so is every other opcode.

use std::collections::HashMap;
use std::rc::Rc;

/// A tensor as a pickle describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// The storage that its values lie in.
    pub storage: Rc<Storage>,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Where its first value lies in the storage, in values.
    pub offset: usize,
    /// How far apart neighbours along each axis are, in values.
    pub strides: Vec<usize>,
}

/// A storage: a record of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Its class without its end: `Float` of `torch.FloatStorage`.
    pub kind: String,
    /// The record's name.
    pub key: String,
    /// How many values it has.
    pub values: usize,
}

/// Reads the state dict that `bytes` describe, or says what is wrong.
pub fn read(bytes: &[u8]) -> Result<Vec<Described>, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        memo: HashMap::new(),
        tables: Vec::new(),
    };
    match machine.run()? {
        Value::Table(table) => machine.tensors(table),
        other => Err(format!(
            "it holds {}, and no table of tensors",
            other.shown()
        )),
    }
}

/// What opcodes put on the stack.
#[derive(Clone, Debug)]
enum Value {
    Mark,
    None,
    Bool,
    Number(i64),
    Fraction,
    Text(Rc<str>),
    Global(Global),
    Tuple(Rc<Tuple>),
    /// A list: of a state dict's tensors it says nothing.
    List,
    /// A dictionary, by its place among all.
    Table(usize),
    Storage(Rc<Storage>),
    Tensor(Rc<Described>),
}

#[derive(Debug)]
struct Tuple {
    values: Vec<Value>,
    /// Tuples in tuples: they are let go of one in another.
    depth: usize,
}

/// What a pickle may call by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(&'static str),
}

/// The classes of storages, without their end.
const STORAGES: [&str; 11] = [
    "Float",
    "Half",
    "BFloat16",
    "Double",
    "Long",
    "Int",
    "Short",
    "Char",
    "Byte",
    "Bool",
    "ComplexFloat",
];
/// Nobody nests tuples deeper.
const DEEPEST: usize = 16;

impl Global {
    fn of(module: &str, name: &str) -> Option<Self> {
        let storage = |name: &str| {
            let kind = name.strip_suffix("Storage")?;
            STORAGES.into_iter().find(|known| *known == kind)
        };
        match (module, name) {
            ("collections", "OrderedDict") => Some(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
                Some(Global::RebuildTensor)
            }
            ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
            ("torch", name) => storage(name).map(Global::Storage),
            _ => None,
        }
    }
}

impl Value {
    fn shown(&self) -> &'static str {
        match self {
            Value::Mark => "a mark",
            Value::None => "None",
            Value::Bool => "a truth value",
            Value::Number(_) | Value::Fraction => "a number",
            Value::Text(_) => "a text",
            Value::Global(_) => "a name",
            Value::Tuple(_) => "a tuple",
            Value::List => "a list",
            Value::Table(_) => "a table",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    /// Keys and values of every dictionary.
    tables: Vec<Vec<(Value, Value)>>,
}

type Step<T> = Result<T, String>;

impl Machine<'_> {
    /// The value that the whole pickle makes.
    fn run(&mut self) -> Step<Value> {
        loop {
            let at = self.at;
            let [opcode] = self.take::<1>()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)
                .map_err(|why| format!("{why} (byte {at} of its data.pkl)"))?;
        }
    }

    fn step(&mut self, opcode: u8) -> Step<()> {
        let value = match opcode {
            // PROTO and FRAME say nothing of the values.
            0x80 => return self.take::<1>().map(drop),
            0x95 => return self.take::<8>().map(drop),
            b'(' => Value::Mark,
            b'N' => Value::None,
            0x88 | 0x89 => Value::Bool,
            b'J' => Value::Number(i32::from_le_bytes(self.take()?).into()),
            b'K' => Value::Number(u8::from_le_bytes(self.take()?).into()),
            b'M' => Value::Number(u16::from_le_bytes(self.take()?).into()),
            0x8a => self.long()?,
            b'G' => self.take::<8>().map(|_| Value::Fraction)?,
            0x8c => {
                let length = u8::from_le_bytes(self.take()?).into();
                self.text(length)?
            }
            b'X' => {
                let length = u32::from_le_bytes(self.take()?).into();
                self.text(length)?
            }
            0x8d => {
                let length = u64::from_le_bytes(self.take()?);
                self.text(length)?
            }
            b')' => tuple(Vec::new())?,
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let from = self.stack.len().checked_sub(count);
                let from = from.ok_or("its stack is empty")?;
                tuple(self.stack.split_off(from))?
            }
            b't' => tuple(self.marked()?)?,
            b']' => Value::List,
            b'l' => self.marked().map(|_| Value::List)?,
            b'}' => self.table(),
            b'a' => return self.pop().map(drop),
            b'e' => return self.marked().map(drop),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                return self.insert(vec![key, value]);
            }
            b'u' => {
                let entries = self.marked()?;
                return self.insert(entries);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                global(&module, &name)?
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&module, &name) {
                    (Value::Text(module), Value::Text(name)) => global(module, name)?,
                    _ => return Err("a name is no text".to_owned()),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                storage(&id)?
            }
            b'R' => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                self.call(&callee, &arguments)?
            }
            // The state of an OrderedDict is `_metadata`, versions of modules; whatever has one keeps its values.
            b'b' => return self.pop().map(drop),
            b'q' => {
                let place = u8::from_le_bytes(self.take()?).into();
                return self.keep(place);
            }
            b'r' => {
                let place = u32::from_le_bytes(self.take()?);
                return self.keep(place);
            }
            0x94 => {
                let place = u32::try_from(self.memo.len()).map_err(|error| error.to_string())?;
                return self.keep(place);
            }
            b'h' => {
                let place = u8::from_le_bytes(self.take()?).into();
                self.kept(place)?
            }
            b'j' => {
                let place = u32::from_le_bytes(self.take()?);
                self.kept(place)?
            }
            other => {
                return Err(format!(
                    "it has the opcode {other:#04x}, which no state dict has"
                ));
            }
        };
        self.stack.push(value);
        Ok(())
    }

    fn slice(&mut self, length: usize) -> Step<&[u8]> {
        let end = self.at.checked_add(length);
        let found = end.and_then(|end| self.bytes.get(self.at..end));
        let found = found.ok_or("its data.pkl is cut off")?;
        self.at += length;
        Ok(found)
    }

    fn take<const N: usize>(&mut self) -> Step<[u8; N]> {
        let found = self.slice(N)?.first_chunk::<N>();
        found
            .copied()
            .ok_or_else(|| "its data.pkl is cut off".to_owned())
    }

    fn text(&mut self, length: u64) -> Step<Value> {
        let length = usize::try_from(length).map_err(|error| error.to_string())?;
        let text = std::str::from_utf8(self.slice(length)?);
        let text = text.map_err(|error| format!("a text of it: {error}"))?;
        Ok(Value::Text(text.into()))
    }

    fn line(&mut self) -> Step<String> {
        let rest = &self.bytes[self.at..];
        let length = memchr::memchr(b'\n', rest).ok_or("its data.pkl is cut off")?;
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length + 1;
        Ok(line)
    }

    /// A number of up to eight bytes, the last of which has the sign.
    fn long(&mut self) -> Step<Value> {
        let [length] = self.take::<1>()?;
        let bytes = self.slice(length.into())?;
        if bytes.len() > 8 {
            return Err("it has a number of more than 64 bits".to_owned());
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        Ok(Value::Number(i64::from_le_bytes(whole)))
    }

    fn pop(&mut self) -> Step<Value> {
        self.stack
            .pop()
            .ok_or_else(|| "its stack is empty".to_owned())
    }

    /// What lies on the stack above the last mark, which goes.
    fn marked(&mut self) -> Step<Vec<Value>> {
        let mark = |value: &Value| matches!(value, Value::Mark);
        let at = self.stack.iter().rposition(mark);
        let found = self.stack.split_off(at.ok_or("it lacks a mark")? + 1);
        self.stack.pop();
        Ok(found)
    }

    fn keep(&mut self, place: u32) -> Step<()> {
        let top = self.stack.last().ok_or("its stack is empty")?;
        self.memo.insert(place, top.clone());
        Ok(())
    }

    fn kept(&self, place: u32) -> Step<Value> {
        let found = self.memo.get(&place).cloned();
        found.ok_or_else(|| format!("it asks for value {place}, which it has not kept"))
    }

    fn table(&mut self) -> Value {
        self.tables.push(Vec::new());
        Value::Table(self.tables.len() - 1)
    }

    /// Adds keys and values, one behind the other, to the dictionary that lies on the stack.
    fn insert(&mut self, entries: Vec<Value>) -> Step<()> {
        let Some(Value::Table(table)) = self.stack.last() else {
            return Err("it adds to something that is no table".to_owned());
        };
        let (pairs, rest) = entries.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("it has a key without a value".to_owned());
        }
        let pairs = pairs.iter().cloned();
        self.tables[*table].extend(pairs.map(|[key, value]| (key, value)));
        Ok(())
    }

    fn call(&mut self, callee: &Value, arguments: &Value) -> Step<Value> {
        let (Value::Global(callee), Value::Tuple(arguments)) = (callee, arguments) else {
            return Err("it calls something that has no name".to_owned());
        };
        match (callee, arguments.values.as_slice()) {
            (Global::OrderedDict, []) => Ok(self.table()),
            (Global::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                tensor(storage, offset, shape, strides)
            }
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
            _ => Err(format!(
                "it calls {callee:?} with other values than PyTorch does"
            )),
        }
    }

    /// The tensors of a state dict.
    fn tensors(&self, table: usize) -> Step<Vec<Described>> {
        let entries = self.tables[table].iter().map(|(key, value)| match (key, value) {
            (Value::Text(name), Value::Tensor(tensor)) => Ok(Described {
                name: name.as_ref().to_owned(),
                ..tensor.as_ref().clone()
            }),
            (Value::Text(name), other) => Err(format!(
                "`{name}` is {}, and no tensor: it is no state dict, or one inside another table",
                other.shown()
            )),
            (key, _) => Err(format!("it has {} for the name of a tensor", key.shown())),
        });
        entries.collect()
    }
}

fn tuple(values: Vec<Value>) -> Step<Value> {
    let depth = values.iter().map(|value| match value {
        Value::Tuple(inner) => inner.depth + 1,
        _ => 0,
    });
    match depth.max().unwrap_or(0) {
        depth if depth > DEEPEST => Err("its tuples are nested too deep".to_owned()),
        depth => Ok(Value::Tuple(Rc::new(Tuple { values, depth }))),
    }
}

fn global(module: &str, name: &str) -> Step<Value> {
    let found = Global::of(module, name).map(Value::Global);
    found.ok_or_else(|| {
        format!(
            "it asks for {}, which is no part of a state dict; nothing of it was run",
            shortened(&format!("{module}.{name}"))
        )
    })
}

/// A name from the file, to be shown.
fn shortened(name: &str) -> String {
    name.escape_debug().take(80).collect()
}

/// `('storage', torch.FloatStorage, key, device, values)`.
fn storage(id: &Value) -> Step<Value> {
    if let Value::Tuple(id) = id
        && let [
            Value::Text(kind),
            Value::Global(Global::Storage(class)),
            Value::Text(key),
            _,
            values,
            ..,
        ] = id.values.as_slice()
        && kind.as_ref() == "storage"
    {
        return Ok(Value::Storage(Rc::new(Storage {
            kind: (*class).to_owned(),
            key: key.as_ref().to_owned(),
            values: size(values)?,
        })));
    }
    Err("it has a reference to something that is no storage".to_owned())
}

/// What `_rebuild_tensor_v2(storage, offset, size, stride, …)` describes.
fn tensor(storage: &Value, offset: &Value, shape: &Value, strides: &Value) -> Step<Value> {
    let Value::Storage(storage) = storage else {
        return Err(format!("a tensor lies in {}", storage.shown()));
    };
    let (shape, strides) = (sizes(shape)?, sizes(strides)?);
    if shape.len() != strides.len() {
        return Err("a tensor has more axes than strides, or fewer".to_owned());
    }
    Ok(Value::Tensor(Rc::new(Described {
        name: String::new(),
        storage: storage.clone(),
        offset: size(offset)?,
        shape,
        strides,
    })))
}

fn sizes(value: &Value) -> Step<Vec<usize>> {
    match value {
        Value::Tuple(values) => values.values.iter().map(size).collect(),
        other => Err(format!("a size is {}", other.shown())),
    }
}

fn size(value: &Value) -> Step<usize> {
    match value {
        Value::Number(number) => {
            usize::try_from(*number).map_err(|_| format!("a size is {number}"))
        }
        other => Err(format!("a size is {}", other.shown())),
    }
}
