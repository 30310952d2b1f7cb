//! [`KeptState`]: what is kept with a flush, beside the data.
//!
//! # Format (the engine's owner state)
//!   u8      format, 1
//!   varint  leased versions; for each a varint: the version, ascending
//!   u8      1 if the owner has given a state of its own, otherwise 0
//!   bytes   that state, to the end

use std::path::Path;

use ferrisdb_core::codec::{DecodeError, Decoder, put_varint};
use ferrisdb_core::{Code, Error, Result, Version};
use ferrisdb_storage::batch::OWNER_STATE_BYTES_MAX;

const FORMAT: u8 = 1;

/// The leases and the owner's state, as of one version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeptState {
    /// Ascending, each once.
    pub(super) leased: Vec<Version>,
    pub(super) owner: Option<Vec<u8>>,
}

impl KeptState {
    /// Its bytes.
    ///
    /// # Errors
    /// `internal_error` if they are more than the engine keeps.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let mut out = vec![FORMAT];
        put_varint(&mut out, self.leased.len() as u64);
        self.leased.iter().for_each(|version| put_varint(&mut out, version.get()));
        out.push(u8::from(self.owner.is_some()));
        out.extend_from_slice(self.owner.as_deref().unwrap_or_default());
        if out.len() > OWNER_STATE_BYTES_MAX {
            let detail = format!(
                "the state to be kept with version and leases takes {} bytes; at most {OWNER_STATE_BYTES_MAX} can be kept",
                out.len()
            );
            return Err(Error::with(Code::InternalError, detail));
        }
        Ok(out)
    }

    /// The state with these bytes; without any, that of a new directory.
    pub(super) fn decode(bytes: Option<&[u8]>, dir: &Path) -> Result<KeptState> {
        let Some(bytes) = bytes else { return Ok(KeptState::default()) };
        KeptState::decode_bytes(bytes).map_err(|error| {
            Error::with(
                Code::IoError,
                format!("what {} keeps for the storage server is damaged: {error}", dir.display()),
            )
        })
    }

    fn decode_bytes(bytes: &[u8]) -> std::result::Result<KeptState, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        if decoder.u8("storage state format")? != FORMAT {
            return Err(DecodeError { what: "storage state format: a newer FerrisDB wrote it" });
        }
        let count = decoder.varint_usize("leased versions")?;
        let mut leased = Vec::with_capacity(count.min(bytes.len()));
        for _ in 0..count {
            let version = decoder.varint("leased version")?;
            leased.push(Version::new(version).ok_or(DecodeError { what: "leased version" })?);
        }
        let has_owner = decoder.u8("owner state mark")? != 0;
        Ok(KeptState { leased, owner: has_owner.then(|| decoder.rest().to_vec()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes in comes out; every cut is found; the bytes are those of the format.
    #[test]
    fn the_state_survives_its_bytes() {
        let leased = vec![Version::from_u64(5), Version::from_u64(300)];
        let state = KeptState { leased, owner: Some(b"abc".to_vec()) };
        let bytes = state.encode().unwrap();
        assert_eq!(bytes, [1, 2, 5, 0xAC, 0x02, 1, b'a', b'b', b'c']);
        assert_eq!(KeptState::decode(Some(&bytes), Path::new("d")), Ok(state));
        assert_eq!(KeptState::decode(None, Path::new("d")), Ok(KeptState::default()));
        for cut in 0..6 {
            let error = KeptState::decode(Some(&bytes[..cut]), Path::new("d")).unwrap_err();
            assert_eq!(error.code(), Code::IoError, "cut at {cut}");
        }
        let large = KeptState { leased: Vec::new(), owner: Some(vec![0; OWNER_STATE_BYTES_MAX]) };
        assert_eq!(large.encode().unwrap_err().code(), Code::InternalError);
    }
}
