//! Which process of which cluster a directory is: [`Identity`], in the file `process`.
//!
//! The file is there from the moment at which the directory belongs to a cluster, and is replaced as a whole.
//!
//! # Format
//!   0  8    magic "FERRISP" and 0xDB
//!   8  u32  format version, 1
//!  12  16   cluster id
//!  28  16   instance
//!  44  u64  process
//!  52  u32  tag of its storage server
//!  56  u64  generation
//!  64  u64  what there was below this version the storage server has never seen; 0 also before it has begun
//!  72  u8   1 if the storage server has told the log of something durable, otherwise 0
//!  73  u32  CRC-32C of bytes 0..73

use std::path::Path;

use ferrisdb_core::codec::{DecodeError, Decoder, put_u32, put_u64};
use ferrisdb_core::{Code, Error, Result, Version};
use ferrisdb_storage::Error as StorageError;
use ferrisdb_storage::fs::{FileSystem, OpenMode, read_exact_at};

use crate::failure::from_storage;
use crate::lifetime::write_file;
use crate::log::Tag;
use crate::log::replicated::ProcessId;

const MAGIC: [u8; 8] = *b"FERRISP\xDB";
const FORMAT_VERSION: u32 = 1;
const LEN: usize = 77;
/// The file's name.
pub(super) const FILE: &str = "process";

/// Who a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) cluster_id: [u8; 16],
    /// Sixteen random bytes, minted with the directory.
    pub(super) instance: [u8; 16],
    pub(super) process: ProcessId,
    pub(super) tag: Tag,
    /// How often it was started.
    pub(super) generation: u64,
    /// What there was below this version its storage server has never seen.
    pub(super) readable_from: Version,
    /// Its storage server has told the log that it has made something durable. Otherwise what it has is to be thrown away: the log has it all.
    pub(super) is_complete: bool,
}

impl Identity {
    /// A directory that is to join a cluster, and has not yet.
    pub(super) fn nobody(instance: [u8; 16]) -> Identity {
        Identity {
            cluster_id: [0; 16],
            instance,
            process: 0,
            tag: Tag::FIRST,
            generation: 0,
            readable_from: Version::ZERO,
            is_complete: false,
        }
    }

    /// The identity in `dir`; `None` if the directory belongs to no cluster yet.
    pub(super) fn read(fs: &dyn FileSystem, dir: &Path) -> Result<Option<Identity>> {
        let path = dir.join(FILE);
        let failed = |op, error| from_storage("cannot open the process", &StorageError::io(op, &path, error));
        if !fs.exists(&path).map_err(|error| failed("look for", error))? {
            return Ok(None);
        }
        let file = fs.open(&path, OpenMode::Read).map_err(|error| failed("open", error))?;
        let mut bytes = [0; LEN];
        read_exact_at(file.as_ref(), &mut bytes, 0).map_err(|error| failed("read", error))?;
        let damaged = |error: DecodeError| {
            let detail = format!(
                "{} cannot be read: {}. It says which process of which cluster this is, and no other process's file will do. If the cluster has others, keep {} as it is and start \
                 this process with an empty directory and --join HOST:PORT; otherwise restore a backup",
                path.display(),
                error.what,
                dir.display()
            );
            Error::with(Code::IoError, detail)
        };
        Identity::decode(&bytes).map(Some).map_err(damaged)
    }

    /// Writes it down, durably.
    pub(super) fn write(&self, fs: &dyn FileSystem, dir: &Path) -> Result<()> {
        write_file(fs, dir, FILE, &self.encode())
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        put_u32(&mut bytes, FORMAT_VERSION);
        bytes.extend_from_slice(&self.cluster_id);
        bytes.extend_from_slice(&self.instance);
        put_u64(&mut bytes, self.process);
        put_u32(&mut bytes, self.tag.0);
        put_u64(&mut bytes, self.generation);
        put_u64(&mut bytes, self.readable_from.get());
        bytes.push(u8::from(self.is_complete));
        let checksum = crc_fast::crc32_iscsi(&bytes);
        put_u32(&mut bytes, checksum);
        bytes
    }

    fn decode(bytes: &[u8; LEN]) -> std::result::Result<Identity, DecodeError> {
        let mut decoder = Decoder::new(bytes);
        if decoder.take(8, "magic")? != MAGIC {
            return Err(DecodeError { what: "it is not a process file" });
        }
        let format = decoder.u32("format version")?;
        let id = |decoder: &mut Decoder<'_>| -> std::result::Result<[u8; 16], DecodeError> {
            Ok(decoder.take(16, "process file")?.try_into().expect("sixteen bytes were taken"))
        };
        let identity = Identity {
            cluster_id: id(&mut decoder)?,
            instance: id(&mut decoder)?,
            process: decoder.u64("process")?,
            tag: Tag(decoder.u32("tag")?),
            generation: decoder.u64("generation")?,
            readable_from: Version::new(decoder.u64("readable from")?).ok_or(DecodeError { what: "readable from" })?,
            is_complete: decoder.u8("mark of completeness")? == 1,
        };
        if decoder.u32("checksum")? != crc_fast::crc32_iscsi(&bytes[..LEN - 4]) {
            return Err(DecodeError { what: "process file: checksum" });
        }
        if format != FORMAT_VERSION {
            return Err(DecodeError {
                what: "process file: a format that this build does not know; use a newer FerrisDB",
            });
        }
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrisdb_storage::fs::sim::SimFileSystem;

    /// What is written is read; any other byte anywhere is found.
    #[test]
    fn the_file_says_who_it_is() {
        let (fs, dir) = (SimFileSystem::new(), Path::new("/p"));
        fs.create_dir_all(dir).unwrap();
        assert_eq!(Identity::read(&fs, dir), Ok(None));
        let identity = Identity {
            cluster_id: [1; 16],
            instance: [2; 16],
            process: 3,
            tag: Tag(4),
            generation: 5,
            readable_from: Version::from_u64(6),
            is_complete: true,
        };
        identity.write(&fs, dir).unwrap();
        let again = Identity { generation: 6, ..identity };
        again.write(&fs, dir).unwrap();
        assert_eq!(Identity::read(&fs, dir), Ok(Some(again)));
        let bytes: [u8; LEN] = again.encode().try_into().unwrap();
        for at in 0..LEN {
            let mut damaged = bytes;
            damaged[at] ^= 4;
            assert!(Identity::decode(&damaged).is_err(), "byte {at}");
        }
    }
}
