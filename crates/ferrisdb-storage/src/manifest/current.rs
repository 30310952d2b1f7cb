//! CURRENT: the small file that names the live manifest.
//!
//! It is text, so that a person can read it, in exactly one form, so that every flipped bit shows:
//!
//! ```text
//! FERRISDB CURRENT 1
//! manifest 000007
//! engine 000102030405060708090a0b0c0d0e0f
//! crc32c 89abcdef
//! ```
//!
//! The last line is the CRC-32C of all bytes before it; it stays the last line in every later format version. The file is
//! replaced by renaming, never written in place, and is shorter than a sector.

use std::path::Path;

use super::edit::EngineId;
use crate::error::{Error, Result};

/// The file's name.
pub(crate) const CURRENT: &str = "CURRENT";
/// The name under which the next CURRENT is written before it is renamed.
pub(crate) const CURRENT_TMP: &str = "CURRENT.tmp";

const FORMAT: u32 = 1;
const FIRST_WORDS: &str = "FERRISDB CURRENT ";
const CHECKSUM_WORD: &str = "crc32c ";
/// "crc32c ", eight digits, newline.
const CHECKSUM_LINE_BYTES: usize = CHECKSUM_WORD.len() + 8 + 1;

/// What CURRENT says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Current {
    /// The number of the live manifest.
    pub manifest: u64,
    /// The engine that it belongs to.
    pub engine_id: EngineId,
}

impl Current {
    /// The file's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let body = format!("{FIRST_WORDS}{FORMAT}\nmanifest {:06}\nengine {}\n", self.manifest, self.engine_id);
        let checksum = crc_fast::crc32_iscsi(body.as_bytes());
        format!("{body}{CHECKSUM_WORD}{checksum:08x}\n").into_bytes()
    }

    /// Reads the bytes of `file`.
    pub(crate) fn decode(file: &Path, bytes: &[u8]) -> Result<Current> {
        let corrupt = |what: &str| Error::corruption(file, 0, format!("CURRENT: {what}"));
        if bytes.is_empty() {
            return Err(corrupt("the file is empty"));
        }
        let body_bytes = bytes.len().checked_sub(CHECKSUM_LINE_BYTES).ok_or_else(|| corrupt("cut short"))?;
        let (body, last_line) = bytes.split_at(body_bytes);
        if last_line != format!("{CHECKSUM_WORD}{:08x}\n", crc_fast::crc32_iscsi(body)).as_bytes() {
            return Err(corrupt("checksum"));
        }
        let body = std::str::from_utf8(body).map_err(|_| corrupt("not text"))?;
        let mut lines = body.lines();
        let format = lines.next().and_then(|line| line.strip_prefix(FIRST_WORDS)?.parse::<u32>().ok());
        match format {
            Some(FORMAT) => {}
            Some(found) if found > FORMAT => {
                return Err(Error::FormatTooNew { file: file.into(), found, supported: FORMAT });
            }
            _ => return Err(corrupt("first line")),
        }
        let manifest = lines.next().and_then(|line| line.strip_prefix("manifest ")?.parse::<u64>().ok());
        let engine_id = lines.next().and_then(|line| parse_engine_id(line.strip_prefix("engine ")?));
        let current = match (manifest, engine_id) {
            (Some(manifest), Some(engine_id)) => Current { manifest, engine_id },
            _ => return Err(corrupt("manifest or engine line")),
        };
        // One form only: signs, leading zeros, capitals or further lines are not what we wrote.
        if current.encode() == bytes { Ok(current) } else { Err(corrupt("not in its one form")) }
    }
}

fn parse_engine_id(hex: &str) -> Option<EngineId> {
    if hex.len() != 32 || !hex.is_ascii() {
        return None;
    }
    Some(EngineId(u128::from_str_radix(hex, 16).ok()?.to_be_bytes()))
}
