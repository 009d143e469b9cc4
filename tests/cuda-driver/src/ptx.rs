//! What a compiled kernel says of its parameters.

/// One parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// An address on the device.
    Pointer,
    /// So many bytes by value: shapes and scalars, or a tensor map.
    Value(usize),
}

/// A kernel of a module.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub parameters: Vec<Parameter>,
}

/// The kernels of a module in PTX: `.visible .entry NAME(.param .u64 a, .param .align 8 .b8 b[24])`.
pub fn entries(ptx: &str) -> Vec<Entry> {
    let after = ptx.split(".entry").skip(1);
    after
        .filter_map(|text| {
            let (name, rest) = text.split_once('(')?;
            let (list, _) = rest.split_once(')')?;
            Some(Entry {
                name: name.trim().to_owned(),
                parameters: list.split(',').filter_map(parameter).collect(),
            })
        })
        .collect()
}

fn parameter(text: &str) -> Option<Parameter> {
    if !text.contains(".param") {
        return None;
    }
    if let Some((_, rest)) = text.split_once('[') {
        let (count, _) = rest.split_once(']')?;
        return Some(Parameter::Value(count.trim().parse().ok()?));
    }
    Some(Parameter::Pointer)
}
