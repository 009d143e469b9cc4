//! Small images to learn from.

use std::path::Path;

/// Writes `count` images of each of two classes below `folder`, as `CLASS/NUMBER.bmp`: stripes that stand or lie, of many
/// sizes and colours. Those of another `seed` are others.
pub fn write_stripes(folder: &Path, count: u32, seed: u32) {
    for (class, lying) in [("lying", true), ("standing", false)] {
        let folder = folder.join(class);
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        for number in 0..count {
            let image = stripes(number * 7 + seed, lying);
            std::fs::write(folder.join(format!("{number:03}.bmp")), image).expect("a file");
        }
    }
}

/// A BMP of 12 to 27 pixels in either direction, whose stripes are two or three pixels wide.
fn stripes(kind: u32, lying: bool) -> Vec<u8> {
    let (width, height, stripe) = (12 + kind % 16, 12 + kind / 3 % 16, 2 + kind % 2);
    // Of a row, whose length is a multiple of four.
    let padding = (4 - width * 3 % 4) % 4;
    let size = 54 + (width * 3 + padding) * height;
    let mut bytes = b"BM".to_vec();
    let mut word = |value: u32| bytes.extend(value.to_le_bytes());
    word(size);
    word(0);
    word(54);
    word(40);
    word(width);
    word(height);
    // One plane of 24 bits.
    word(1 | 24 << 16);
    for _ in 0..6 {
        word(0);
    }
    for row in 0..height {
        for column in 0..width {
            let at = if lying { row } else { column };
            let dark = (at / stripe + kind) % 2 == 0;
            let shade = match dark {
                true => kind * 31 % 90,
                false => 255 - kind * 17 % 90,
            } as u8;
            bytes.extend([shade, shade.wrapping_add(20), shade / 2]);
        }
        bytes.extend(std::iter::repeat_n(0, padding as usize));
    }
    bytes
}
