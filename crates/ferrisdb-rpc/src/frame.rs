//! Frames: how messages lie in a stream of bytes.
//!
//! # Format
//!   0    u32  little-endian: the bytes that follow, which is 4 + length of the message
//!   4    …    the message (`proto/ferrisdb.proto`)
//!   4+n  u32  little-endian: CRC-32C of the length field and the message
//!
//! The check value is there because TCP's has 16 bits and network hardware has been seen to damage what it forwards (`N5` among the faults that we
//! inject). It also covers the length, so that a damaged length is found as soon as as many bytes have come as it claims.
//!
//! A message above [`MESSAGE_BYTES_MAX`] travels in pieces, each in a frame of its own, so that a short message behind it waits for one piece and
//! not for all. Invariant: at most one long message is under way in each direction of a connection, so that a receiver needs one buffer
//! for it and can be told its whole length before it sets anything aside.
//!
//! Nothing is allocated by a length that has not been checked against a maximum.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::wire::{Envelope, proto};

/// Bytes of the length field, and of the check value.
const FIELD_BYTES: usize = 4;
/// The longest message that travels in one frame: what a short message may have to wait for, and what a connection may have to
/// buffer before it knows what it is about.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// The longest hello message. A client is nobody yet when it sends one.
pub(crate) const HELLO_BYTES_MAX: usize = 4 << 10;
/// Bytes of a long message that one frame carries. Half the maximum: with its envelope it must stay below it.
const PIECE_BYTES: usize = 32 << 10;
/// The room that a read is given at first, and when the connection has been idle: what ten thousand idle connections hold each.
const READ_BYTES_MIN: usize = 512;
/// The room that a busy connection's read is given. A value that is kept keeps the whole read in memory, which is why it is no larger.
const READ_BYTES_MAX: usize = 32 << 10;

/// Bytes from the other side that are not what the protocol allows. The connection cannot go on: where the next frame begins is unknown,
/// or the other side is not what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProtocolError {
    /// A frame claims more bytes than a frame may have, or fewer than one must have.
    FrameLength {
        /// What it claims.
        bytes: u32,
        /// What it may have.
        max: usize,
    },
    /// The check value does not fit the frame.
    Checksum,
    /// The message is not one of the protocol's.
    Message(String),
    /// A field that must be there is not, or has a value that it cannot have.
    Field(&'static str),
    /// A long message is longer than the receiver takes.
    LongMessage {
        /// What its first piece says.
        bytes: u64,
        /// What the receiver takes.
        max: usize,
    },
    /// The pieces of a long message do not fit together.
    Pieces(&'static str),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::FrameLength { bytes, max } => {
                write!(f, "a frame claims {bytes} bytes; one has {FIELD_BYTES} to {max}")
            }
            ProtocolError::Checksum => f.write_str("the check value of a frame does not fit its bytes"),
            ProtocolError::Message(what) => write!(f, "a frame holds no message of this protocol: {what}"),
            ProtocolError::Field(what) => write!(f, "a message is not valid: {what}"),
            ProtocolError::LongMessage { bytes, max } => {
                write!(f, "a message of {bytes} bytes is announced; the limit is {max}")
            }
            ProtocolError::Pieces(what) => write!(f, "the pieces of a long message do not fit together: {what}"),
        }
    }
}

impl std::error::Error for ProtocolError {}

/// Appends a message as one frame, whatever its length.
fn put_frame(out: &mut Vec<u8>, message: &impl Message) {
    let start = begin_frame(out);
    message.encode(out).expect("a Vec takes as many bytes as there are");
    end_frame(out, start);
}

fn begin_frame(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; FIELD_BYTES]);
    start
}

fn end_frame(out: &mut Vec<u8>, start: usize) {
    // The length counts the check value and not itself, and the two fields are equally long.
    let len = u32::try_from(out.len() - start).expect("what is put into one frame has been bounded");
    out[start..start + FIELD_BYTES].copy_from_slice(&len.to_le_bytes());
    let check = check_value(&out[start..]);
    out.extend_from_slice(&check.to_le_bytes());
}

/// Appends a hello. They are short: see [`HELLO_BYTES_MAX`].
pub(crate) fn put_hello(out: &mut Vec<u8>, message: &impl Message) {
    put_frame(out, message);
}

fn check_value(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// What is to be written to a connection: short messages in frames, and long ones waiting to be cut.
#[derive(Default)]
pub(crate) struct Outbox {
    frames: Vec<u8>,
    /// Encoded, without frames, in order. Of the first one `piece_at` bytes are gone already.
    long: VecDeque<Bytes>,
    piece_at: usize,
    long_bytes: usize,
}

impl Outbox {
    /// Adds a message.
    pub(crate) fn put(&mut self, message: &impl Message) {
        let start = begin_frame(&mut self.frames);
        message.encode(&mut self.frames).expect("a Vec takes as many bytes as there are");
        if self.frames.len() - start - FIELD_BYTES <= MESSAGE_BYTES_MAX {
            end_frame(&mut self.frames, start);
        } else {
            let message = self.frames.split_off(start + FIELD_BYTES);
            self.frames.truncate(start);
            self.long_bytes += message.len();
            self.long.push_back(Bytes::from(message));
        }
    }

    /// Bytes that wait to be taken, about.
    pub(crate) fn len(&self) -> usize {
        self.frames.len() + self.long_bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.long.is_empty()
    }

    /// Moves all short messages and one piece of a long one into `out`, which is empty.
    fn take_into<E: Envelope>(&mut self, out: &mut Vec<u8>) {
        debug_assert!(out.is_empty(), "what was taken before has been written");
        std::mem::swap(&mut self.frames, out);
        let Some(front) = self.long.front_mut() else { return };
        let total_bytes = if self.piece_at == 0 { front.len() as u64 } else { 0 };
        let piece = front.split_to(front.len().min(PIECE_BYTES));
        self.piece_at += piece.len();
        self.long_bytes -= piece.len();
        if front.is_empty() {
            self.long.pop_front();
            self.piece_at = 0;
        }
        put_frame(out, &E::from_part(proto::Part { total_bytes, piece }));
    }
}

/// Writes what an [`Outbox`] holds. Apart from it, so that a client's outbox can be filled by many threads while this is written.
#[derive(Default)]
pub(crate) struct Writer {
    buffer: Vec<u8>,
    written: usize,
}

impl Writer {
    /// True if everything that was taken has been written.
    pub(crate) fn is_empty(&self) -> bool {
        self.written == self.buffer.len()
    }

    /// Bytes taken and not yet written.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len() - self.written
    }

    /// Takes the next bytes out of the outbox, once those before have been written.
    pub(crate) fn take_from<E: Envelope>(&mut self, outbox: &mut Outbox) {
        self.buffer.clear();
        self.written = 0;
        outbox.take_into::<E>(&mut self.buffer);
    }

    /// Writes until everything has been written (ready), or the stream takes no more. Also the bytes that were written.
    pub(crate) fn poll_write(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
        written: &mut usize,
    ) -> Poll<io::Result<()>> {
        while self.written < self.buffer.len() {
            let len = ready!(Pin::new(&mut *stream).poll_write(context, &self.buffer[self.written..]))?;
            if len == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += len;
            *written += len;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives memory back that a burst needed.
    pub(crate) fn release_memory(&mut self) {
        if self.is_empty() {
            *self = Writer::default();
        }
    }
}

impl Outbox {
    /// Gives memory back that a burst needed.
    pub(crate) fn release_memory(&mut self) {
        if self.is_empty() {
            *self = Outbox::default();
        }
    }
}

/// A long message of which some pieces have come.
struct Assembly {
    total: usize,
    bytes: Vec<u8>,
}

/// What has been read from a connection and not been understood yet.
pub(crate) struct Inbox {
    buffer: BytesMut,
    read_bytes: usize,
    assembly: Option<Assembly>,
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        Inbox { buffer: BytesMut::new(), read_bytes: READ_BYTES_MIN, assembly: None }
    }

    /// Reads once: how many bytes have come, 0 at the end of the stream.
    pub(crate) fn poll_read(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        // Room for the rest of a frame that has begun, so that a long one is not moved again and again. Its length has been checked by
        // `next_frame`, which is called after each read.
        self.buffer.reserve(self.read_bytes.max(self.missing_bytes()));
        let room = self.buffer.capacity() - self.buffer.len();
        let len = ready!(pin!(stream.read_buf(&mut self.buffer)).poll(context))?;
        if len == room {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        }
        Poll::Ready(Ok(len))
    }

    /// The bytes that have come and do not make a whole frame yet.
    pub(crate) fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// Drops the first `len` bytes that have come.
    pub(crate) fn skip(&mut self, len: usize) {
        self.buffer.advance(len);
    }

    /// The bytes that the frame that has begun still needs, as far as known and legal.
    fn missing_bytes(&self) -> usize {
        match self.buffer.first_chunk::<FIELD_BYTES>() {
            Some(len) => {
                let len = (u32::from_le_bytes(*len) as usize).min(FIELD_BYTES + MESSAGE_BYTES_MAX);
                (FIELD_BYTES + len).saturating_sub(self.buffer.len())
            }
            None => 0,
        }
    }

    /// The bytes of memory that reading on takes: what is buffered, and the rest of its frame.
    pub(crate) fn bytes_wanted(&self) -> usize {
        self.buffer.len() + self.missing_bytes()
    }

    /// The message of the next frame, if all of it has come. Checks length and check value.
    pub(crate) fn next_frame(&mut self, message_bytes_max: usize) -> Result<Option<Bytes>, ProtocolError> {
        let Some(field) = self.buffer.first_chunk::<FIELD_BYTES>() else { return Ok(None) };
        let bytes = u32::from_le_bytes(*field);
        let max = FIELD_BYTES + message_bytes_max;
        let len = bytes as usize;
        if !(FIELD_BYTES..=max).contains(&len) {
            return Err(ProtocolError::FrameLength { bytes, max });
        }
        if self.buffer.len() < FIELD_BYTES + len {
            return Ok(None);
        }
        let (checked, check) = self.buffer[..FIELD_BYTES + len].split_at(len);
        if check != check_value(checked).to_le_bytes() {
            return Err(ProtocolError::Checksum);
        }
        let mut frame = self.buffer.split_to(FIELD_BYTES + len).freeze();
        frame.advance(FIELD_BYTES);
        frame.truncate(len - FIELD_BYTES);
        Ok(Some(frame))
    }

    /// The whole length that the first piece of a long message announces: at most `max`, and only if no other is under way. For pieces behind the first
    /// one `None`.
    pub(crate) fn announced(&self, part: &proto::Part, max: usize) -> Result<Option<usize>, ProtocolError> {
        match (part.total_bytes, &self.assembly) {
            (0, Some(_)) => Ok(None),
            (0, None) => Err(ProtocolError::Pieces("a piece before the first one")),
            (_, Some(_)) => Err(ProtocolError::Pieces("a second long message before the end of the first one")),
            (bytes, None) => match usize::try_from(bytes) {
                Ok(total) if total <= max => Ok(Some(total)),
                _ => Err(ProtocolError::LongMessage { bytes, max }),
            },
        }
    }

    /// Adds a piece, for the first of which [`announced`](Self::announced) has been asked. The message, if it was the last one.
    pub(crate) fn add_piece(&mut self, part: &proto::Part) -> Result<Option<Bytes>, ProtocolError> {
        if part.piece.is_empty() {
            return Err(ProtocolError::Pieces("an empty piece"));
        }
        let assembly = self.assembly.get_or_insert_with(|| {
            let total = usize::try_from(part.total_bytes).unwrap_or(0);
            Assembly { total, bytes: Vec::with_capacity(total) }
        });
        if part.piece.len() > assembly.total - assembly.bytes.len() {
            return Err(ProtocolError::Pieces("more bytes than announced"));
        }
        assembly.bytes.extend_from_slice(&part.piece);
        if assembly.bytes.len() < assembly.total {
            return Ok(None);
        }
        Ok(self.assembly.take().map(|assembly| Bytes::from(assembly.bytes)))
    }

    /// The announced length of the long message that is under way.
    pub(crate) fn long_bytes(&self) -> Option<usize> {
        self.assembly.as_ref().map(|assembly| assembly.total)
    }

    /// Gives memory back that a burst needed.
    pub(crate) fn release_memory(&mut self) {
        self.read_bytes = READ_BYTES_MIN;
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }
}

/// Decodes a message. Its byte strings are slices of `frame`.
pub(crate) fn decode<M: Message + Default>(frame: Bytes) -> Result<M, ProtocolError> {
    M::decode(frame).map_err(|error| ProtocolError::Message(error.to_string()))
}
