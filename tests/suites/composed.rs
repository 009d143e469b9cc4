//! The golden values on operations that burn composes, which is what runs on a GPU; all but MiniLM's fifty steps, which take
//! minutes in this way.

#[path = "golden/cases.rs"]
#[expect(dead_code)]
mod cases;

use dynalora::kernel::Composed as B;

/// Whether the same sums are made in the same order.
const EXACT: bool = false;
