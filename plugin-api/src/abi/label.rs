//! The static manifest: what a library says of its plugin before any of its code has run.
//!
//! [`export_plugin!`](crate::export_plugin) lays these bytes among the library's read-only data, so that they
//! can be found in its file, in every format that libraries have:
//!
//! ```text
//! magic (16 bytes) | length of the text, u32 | FNV-1a of the text, u64 | the text in UTF-8     little-endian
//! ```
//!
//! A checksum of 0 is none: the preprocessor of C, which lays the same bytes (`include/dynalora_plugin.h`), cannot
//! compute one.
//!
//! The text is one `key=value` a line. Who reads it asks by key and passes over those that it does not know:
//! `format`, `name`, `kind` (`scorer`, `allocator`, or both words), `version` (the plugin's crate), `api` (this crate) and
//! `panic` (the strategy it was built with; `none` where the language has no panics). Everything else (description, parameters, needs) is asked of the
//! loaded library.

/// What a static manifest begins with.
pub const MAGIC: [u8; 16] = *b"\xd7DYNALORA\0PLUGIN";

/// Bytes before the text.
pub const HEAD: usize = MAGIC.len() + 4 + 8;

/// The longest text a reader takes.
pub const LONGEST: usize = 4096;

/// The value of `format`.
pub const FORMAT: &str = "1";

/// The checksum of a text: FNV-1a with 64 bits.
pub const fn checksum(text: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < text.len() {
        hash = (hash ^ text[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash
}

/// `text`, which may stand in a static manifest: it has no control characters. Anything else does not compile.
pub const fn word(text: &str) -> &str {
    let bytes = text.as_bytes();
    assert!(!bytes.is_empty(), "a plugin's NAME must not be empty");
    let mut at = 0;
    while at < bytes.len() {
        assert!(
            bytes[at] >= b' ' && bytes[at] != 0x7f,
            "a plugin's NAME must have no control characters"
        );
        at += 1;
    }
    text
}

/// Whether two texts are the same.
pub const fn same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// The length of the static manifest whose text is these parts.
pub const fn length(parts: &[&str]) -> usize {
    let mut length = HEAD;
    let mut part = 0;
    while part < parts.len() {
        length += parts[part].len();
        part += 1;
    }
    assert!(length <= HEAD + LONGEST, "a plugin's NAME is too long");
    length
}

/// The static manifest whose text is these parts; `N` is their [`length`].
pub const fn bytes<const N: usize>(parts: &[&str]) -> [u8; N] {
    // The text first, because its checksum goes before it.
    let mut all = [0; N];
    let mut at = HEAD;
    let mut part = 0;
    while part < parts.len() {
        put(&mut all, at, parts[part].as_bytes());
        at += parts[part].len();
        part += 1;
    }
    let (_, text) = all.split_at(HEAD);
    let (length, sum) = (text.len() as u32, checksum(text));
    put(&mut all, 0, &MAGIC);
    put(&mut all, MAGIC.len(), &length.to_le_bytes());
    put(&mut all, MAGIC.len() + 4, &sum.to_le_bytes());
    all
}

const fn put(all: &mut [u8], at: usize, bytes: &[u8]) {
    let mut index = 0;
    while index < bytes.len() {
        all[at + index] = bytes[index];
        index += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_fnv_1a() {
        // From the authors' list of test vectors.
        assert_eq!(checksum(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(checksum(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(checksum(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn it_is_laid_out_as_said() {
        const PARTS: [&str; 3] = ["name=", word("top-k"), "\n"];
        const BYTES: [u8; length(&PARTS)] = bytes(&PARTS);
        assert_eq!(BYTES[..16], MAGIC);
        assert_eq!(BYTES[16..20], 11_u32.to_le_bytes());
        assert_eq!(BYTES[20..28], checksum(b"name=top-k\n").to_le_bytes());
        assert_eq!(&BYTES[28..], b"name=top-k\n");
    }
}
