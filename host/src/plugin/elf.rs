//! Whether an ELF file is whole enough to be loaded: the system's loader trusts what it reads, and a damaged file
//! ends the process by SIGSEGV or SIGBUS. What this cannot see is found out in a child (see `probe`).

/// What is wrong with a library's bytes; nothing where they are no 64-bit little-endian ELF, which is left to
/// the system.
pub fn fault(bytes: &[u8]) -> Option<String> {
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    Elf(bytes).check().err()
}

const LOAD: u64 = 1;
const DYNAMIC: u64 = 2;
const NO_BITS: u64 = 8;

struct Elf<'a>(&'a [u8]);

impl Elf<'_> {
    fn check(&self) -> Result<(), String> {
        let shared = self.number(0x10, 2)? == 3;
        if !shared {
            return Err("it is no shared library".to_owned());
        }
        let machine = self.number(0x12, 2)?;
        if OWN.is_some_and(|own| own != machine) {
            return Err("it was built for another processor".to_owned());
        }
        self.segments()?;
        self.sections()
    }

    fn segments(&self) -> Result<(), String> {
        let (table, size, count) = (
            self.number(0x20, 8)?,
            self.number(0x36, 2)?,
            self.number(0x38, 2)?,
        );
        if size != 56 {
            return Err("its table of segments is damaged".to_owned());
        }
        // Where the last segment that is loaded ends in memory.
        let (mut end, mut loaded, mut dynamic) = (0, Vec::new(), None);
        for index in 0..count {
            let at = within(table, index * size)?;
            let field = |offset, length| self.number(within(at, offset)?, length);
            let kind = field(0, 4)?;
            let (offset, address) = (field(0x08, 8)?, field(0x10, 8)?);
            let (in_file, in_memory, align) = (field(0x20, 8)?, field(0x28, 8)?, field(0x30, 8)?);
            self.holds(offset, in_file)?;
            match kind {
                LOAD => {
                    let aligned = align.is_power_of_two() && offset % align == address % align;
                    if !aligned || in_file > in_memory || address < end || in_memory > 1 << 32 {
                        return Err("a segment contradicts itself".to_owned());
                    }
                    end = within(address, in_memory)?;
                    loaded.push(address..end);
                }
                DYNAMIC => dynamic = Some(address..within(address, in_memory)?),
                _ => {}
            }
        }
        let inside = dynamic.is_some_and(|dynamic| {
            loaded
                .iter()
                .any(|loaded| loaded.start <= dynamic.start && dynamic.end <= loaded.end)
        });
        match inside {
            true => Ok(()),
            false => Err("what the loader needs of it is not among its segments".to_owned()),
        }
    }

    /// The loader reads none of these, but the last of them end where the file does.
    fn sections(&self) -> Result<(), String> {
        let (table, size, count) = (
            self.number(0x28, 8)?,
            self.number(0x3a, 2)?,
            self.number(0x3c, 2)?,
        );
        if table == 0 || count == 0 {
            return Ok(());
        }
        if size != 64 {
            return Err("its table of sections is damaged".to_owned());
        }
        for index in 0..count {
            let at = within(table, index * size)?;
            let field = |offset, length| self.number(within(at, offset)?, length);
            if field(0x04, 4)? != NO_BITS {
                self.holds(field(0x18, 8)?, field(0x20, 8)?)?;
            }
        }
        Ok(())
    }

    /// Refuses a range that the file ends before.
    fn holds(&self, offset: u64, length: u64) -> Result<(), String> {
        match within(offset, length)? <= self.0.len() as u64 {
            true => Ok(()),
            false => Err(SHORT.to_owned()),
        }
    }

    fn number(&self, at: u64, length: usize) -> Result<u64, String> {
        let at = usize::try_from(at).map_err(|_| SHORT.to_owned())?;
        let end = at.checked_add(length).ok_or(SHORT)?;
        let mut number = [0; 8];
        number[..length].copy_from_slice(self.0.get(at..end).ok_or(SHORT)?);
        Ok(u64::from_le_bytes(number))
    }
}

const SHORT: &str = "the file is cut short";

fn within(from: u64, by: u64) -> Result<u64, String> {
    from.checked_add(by).ok_or_else(|| SHORT.to_owned())
}

/// What ELF calls this processor.
const OWN: Option<u64> = if cfg!(target_arch = "x86_64") {
    Some(62)
} else if cfg!(target_arch = "aarch64") {
    Some(183)
} else {
    None
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_left_to_the_system_and_ends_are_found() {
        assert_eq!(fault(b"not a library"), None);
        assert_eq!(fault(b"\x7fELF\x02\x01").as_deref(), Some(SHORT));
        // Every length of a header that says nothing true.
        for length in 6..200 {
            let mut bytes = vec![0xff; length];
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            assert!(fault(&bytes).is_some());
            bytes[6..].fill(0);
            assert!(fault(&bytes).is_some());
        }
    }
}
