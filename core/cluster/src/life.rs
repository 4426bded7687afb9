//! What tells the lives of a node apart.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// The number of a life that begins now: larger than that of each earlier one; two of the same millisecond have
/// different ones.
pub fn new_boot() -> Result<u64, getrandom::Error> {
    let mut dice = [0; 4];
    getrandom::fill(&mut dice)?;
    Ok(unix_ms() << 20 | u64::from(u32::from_le_bytes(dice)) & 0xf_ffff)
}
