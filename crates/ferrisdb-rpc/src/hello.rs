//! The hello: who are you, and do we understand each other.
//!
//! Each side's first bytes are [`MAGIC`] and one frame with its hello message, the client first. Until the client's hello has been read, it may make the
//! server hold [`HELLO_BYTES_MAX`](crate::frame::HELLO_BYTES_MAX) and a read, and no more. Both tell the range of protocol versions that they speak; the
//! greatest that both do is spoken. If there is none, or the client wants another cluster, the server says so in its hello and closes, and
//! both sides log and report the same sentence with both versions. The client also says whether it is another process of the cluster, a peer.
//!
//! What does not begin with the magic is answered in words that a person sees who came with the wrong program, HTTP clients in HTTP, and
//! closed.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use ferrisdb_core::{Code, Error, Result};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::api::Description;
use crate::frame::{HELLO_BYTES_MAX, Inbox, MESSAGE_BYTES_MAX, ProtocolError, decode, put_hello};
use crate::options::{ClientOptions, ServeOptions};
use crate::stats::Rejection;
use crate::wire::{cluster_id_in, description_in, description_out, error_in, error_out, proto};

/// What both sides begin with. The first byte is no text, so that nothing that a person types is taken for it.
pub(crate) const MAGIC: &[u8; 8] = b"\x89FERRIS\n";
/// The protocol versions that this program speaks. See "How versions change" in `docs/decisions/0012-transport.md`.
pub const PROTOCOL_MIN: u32 = 1;
/// See [`PROTOCOL_MIN`].
pub const PROTOCOL_MAX: u32 = 1;

/// How much of the other side's own name is believed.
const SOFTWARE_BYTES_MAX: usize = 100;
/// A server's hello has the connection string in it, which may name many addresses.
const SERVER_HELLO_BYTES_MAX: usize = MESSAGE_BYTES_MAX;

/// Why a client is not served, what the log says and what the client is sent.
pub(crate) struct Refusal {
    pub(crate) rejection: Option<Rejection>,
    pub(crate) detail: String,
    pub(crate) answer: Vec<u8>,
}

impl Refusal {
    /// In words, to something that does not speak our protocol.
    fn in_words(rejection: Rejection, detail: &str) -> Refusal {
        const SENTENCE: &str = "This is a FerrisDB server. It speaks FerrisDB's own protocol: use `ferrisdb --connect HOST:PORT` or a client library.\n";
        let answer = match rejection {
            Rejection::Http => format!(
                "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{SENTENCE}",
                SENTENCE.len()
            ),
            _ => SENTENCE.to_owned(),
        };
        Refusal { rejection: Some(rejection), detail: detail.to_owned(), answer: answer.into_bytes() }
    }

    /// To something that does.
    fn in_hello(rejection: Rejection, code: Code, detail: String) -> Refusal {
        Refusal { rejection: Some(rejection), answer: refusing_hello(&Error::with(code, detail.clone())), detail }
    }

    /// To something that is gone.
    fn silent(rejection: Option<Rejection>, detail: impl Into<String>) -> Refusal {
        Refusal { rejection, detail: detail.into(), answer: Vec::new() }
    }
}

impl From<ProtocolError> for Refusal {
    fn from(error: ProtocolError) -> Refusal {
        let detail = format!("the hello cannot be read: {error}");
        Refusal::in_hello(Rejection::Protocol, Code::ClientInvalidOperation, detail)
    }
}

/// The bytes of a server's hello that refuses the connection.
pub(crate) fn refusing_hello(error: &Error) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let refused = Some(error_out(error));
    put_hello(&mut bytes, &proto::ServerHello { refused, ..server_hello() });
    bytes
}

fn server_hello() -> proto::ServerHello {
    proto::ServerHello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        software: concat!("ferrisdb ", env!("CARGO_PKG_VERSION")).to_owned(),
        ..proto::ServerHello::default()
    }
}

/// What programs begin with that people point at the wrong port.
fn recognise(begin: &[u8]) -> (Rejection, &'static str) {
    const HTTP: [&[u8]; 8] = [b"GET", b"HEA", b"POS", b"PUT", b"DEL", b"OPT", b"PRI", b"CON"];
    if HTTP.iter().any(|method| begin.starts_with(method)) {
        (Rejection::Http, "it speaks HTTP")
    } else if begin.starts_with(&[0x16, 0x03]) {
        (Rejection::Tls, "it speaks TLS, and this listener does not")
    } else {
        (Rejection::NotFerris, "it does not speak FerrisDB's protocol")
    }
}

/// The bytes of a name that another program gives itself, fit for a log and an error message.
fn printable(name: &str) -> String {
    name.chars().filter(|letter| !letter.is_control()).take(SOFTWARE_BYTES_MAX).collect()
}

fn versions(min: u32, max: u32) -> String {
    if min == max { format!("version {min}") } else { format!("versions {min} to {max}") }
}

/// Reads until a whole magic and frame have come. `Err(None)`: the other side closed the connection before.
async fn read_hello<S: AsyncRead + Unpin>(
    stream: &mut S,
    inbox: &mut Inbox,
    bytes_max: usize,
) -> std::result::Result<Bytes, HelloError> {
    let mut is_magic_read = false;
    loop {
        if !is_magic_read {
            let begin = inbox.buffered();
            let known = begin.len().min(MAGIC.len());
            // Three bytes tell apart what `recognise` knows; one is enough to see that it is not ours.
            if begin[..known] != MAGIC[..known] && begin.len() >= 3 {
                return Err(HelloError::OtherProtocol(begin[..begin.len().min(60)].to_vec()));
            }
            if begin.len() >= MAGIC.len() {
                inbox.skip(MAGIC.len());
                is_magic_read = true;
            }
        }
        if is_magic_read && let Some(frame) = inbox.next_frame(bytes_max).map_err(HelloError::Protocol)? {
            return Ok(frame);
        }
        let len = poll_fn(|context| inbox.poll_read(stream, context)).await.map_err(HelloError::Io)?;
        if len == 0 {
            return Err(match inbox.buffered() {
                [] => HelloError::Closed,
                begin if !is_magic_read && !MAGIC.starts_with(begin) => HelloError::OtherProtocol(begin.to_vec()),
                _ => HelloError::Closed,
            });
        }
    }
}

enum HelloError {
    Closed,
    OtherProtocol(Vec<u8>),
    Protocol(ProtocolError),
    Io(io::Error),
}

/// Who has connected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Visitor {
    /// The protocol version that is spoken from here on.
    pub(crate) protocol: u32,
    /// Another process of the cluster. Nobody proves it: see "Who may be a peer" in `docs/decisions/0012-transport.md`.
    pub(crate) is_peer: bool,
    /// A client that wants this process's own answers.
    pub(crate) asks_one: bool,
}

/// The server's part: reads the client's hello and answers it.
pub(crate) async fn greet_client<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    inbox: &mut Inbox,
    description: &Description,
    options: &ServeOptions,
) -> std::result::Result<Visitor, Refusal> {
    let frame = match tokio::time::timeout(options.hello_timeout, read_hello(stream, inbox, HELLO_BYTES_MAX)).await {
        Ok(Ok(frame)) => frame,
        Ok(Err(HelloError::Closed)) => return Err(Refusal::silent(None, "it closed the connection without a hello")),
        Ok(Err(HelloError::Io(error))) => return Err(Refusal::silent(None, error.to_string())),
        Ok(Err(HelloError::Protocol(error))) => return Err(error.into()),
        Ok(Err(HelloError::OtherProtocol(begin))) => {
            let (rejection, what) = recognise(&begin);
            return Err(Refusal::in_words(rejection, what));
        }
        Err(_) => {
            let what = format!("it did not say who it is within {:?}", options.hello_timeout);
            return Err(Refusal::silent(Some(Rejection::HelloTimeout), what));
        }
    };
    let hello: proto::ClientHello = decode(frame)?;
    let protocol = choose_protocol(&hello)?;
    if !hello.cluster_id.is_empty() && cluster_id_in(&hello.cluster_id)? != description.cluster_id {
        let detail = format!(
            "the client wants the cluster {}, this is {}",
            hex(&hello.cluster_id),
            hex(&description.cluster_id)
        );
        return Err(Refusal::in_hello(Rejection::ClusterId, Code::ClientInvalidOperation, detail));
    }
    if !hello.credentials.is_empty() {
        let detail = "the client brings credentials, which this version of the server cannot check".to_owned();
        return Err(Refusal::in_hello(Rejection::Credentials, Code::UnsupportedOperation, detail));
    }
    let request_bytes_max = if hello.is_peer { options.peer_request_bytes_max } else { options.request_bytes_max };
    let visitor = Visitor { protocol, is_peer: hello.is_peer, asks_one: hello.asks_one };
    let mut answer = MAGIC.to_vec();
    let hello = proto::ServerHello {
        protocol,
        description: Some(description_out(description)),
        request_bytes_max: request_bytes_max as u64,
        idle_timeout_ms: u64::try_from(options.idle_timeout.as_millis()).unwrap_or(u64::MAX),
        ..server_hello()
    };
    put_hello(&mut answer, &hello);
    match tokio::time::timeout(options.hello_timeout, stream.write_all(&answer)).await {
        Ok(Ok(())) => Ok(visitor),
        Ok(Err(error)) => Err(Refusal::silent(None, error.to_string())),
        Err(_) => Err(Refusal::silent(Some(Rejection::HelloTimeout), "it did not take the server's hello")),
    }
}

fn choose_protocol(hello: &proto::ClientHello) -> std::result::Result<u32, Refusal> {
    if hello.protocol_min == 0 || hello.protocol_min > hello.protocol_max {
        return Err(ProtocolError::Field("the protocol versions of a hello").into());
    }
    let protocol = hello.protocol_max.min(PROTOCOL_MAX);
    if protocol < hello.protocol_min.max(PROTOCOL_MIN) {
        let ours = server_hello();
        let detail = mismatch(
            (&hello.software, hello.protocol_min, hello.protocol_max),
            (&ours.software, PROTOCOL_MIN, PROTOCOL_MAX),
        );
        return Err(Refusal::in_hello(Rejection::ProtocolVersion, Code::IncompatibleProtocolVersion, detail));
    }
    Ok(protocol)
}

fn mismatch(client: (&str, u32, u32), server: (&str, u32, u32)) -> String {
    format!(
        "the client ({}) speaks protocol {}, the server ({}) {}: update the older one",
        printable(client.0),
        versions(client.1, client.2),
        printable(server.0),
        versions(server.1, server.2)
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a client learns from a server's hello.
#[derive(Debug, Clone)]
pub(crate) struct Greeting {
    pub(crate) description: Description,
    pub(crate) request_bytes_max: usize,
    pub(crate) idle_timeout: Duration,
}

/// The bytes of a client's hello.
pub(crate) fn client_hello(options: &ClientOptions) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let hello = proto::ClientHello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        software: options.software.clone(),
        cluster_id: options.cluster_id.map(|id| Bytes::copy_from_slice(&id)).unwrap_or_default(),
        credentials: Bytes::new(),
        is_peer: options.is_peer,
        asks_one: options.asks_one,
    };
    put_hello(&mut bytes, &hello);
    bytes
}

/// The client's part: says hello and reads the server's.
pub(crate) async fn greet_server<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    inbox: &mut Inbox,
    peer: &str,
    options: &ClientOptions,
) -> Result<Greeting> {
    let failed = |what: String| Error::with(Code::ConnectionFailed, format!("cannot connect to {peer}: {what}"));
    let bytes = client_hello(options);
    // The server may have refused the connection already and closed it: what it said is worth more than that.
    let sent = stream.write_all(&bytes).await;
    let frame = match read_hello(stream, inbox, SERVER_HELLO_BYTES_MAX).await {
        Ok(frame) => frame,
        Err(HelloError::Closed) => {
            let what = sent.map_or_else(|error| error.to_string(), |()| "it closed the connection".to_owned());
            return Err(failed(what));
        }
        Err(HelloError::Io(error)) => return Err(failed(error.to_string())),
        Err(HelloError::Protocol(error)) => return Err(failed(format!("its hello cannot be read: {error}"))),
        Err(HelloError::OtherProtocol(begin)) => {
            let begin = ferrisdb_core::key::printable(&begin);
            return Err(failed(format!("what answers there is not a FerrisDB server; it begins with `{begin}`")));
        }
    };
    let unreadable = |error: ProtocolError| failed(format!("its hello cannot be read: {error}"));
    let hello: proto::ServerHello = decode(frame).map_err(unreadable)?;
    if let Some(refused) = hello.refused {
        let error = error_in(refused).map_err(unreadable)?;
        let detail = error.detail().unwrap_or(error.code().message()).to_owned();
        return Err(Error::with(error.code(), format!("{peer} refuses the connection: {detail}")));
    }
    if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&hello.protocol) {
        let server = (hello.software.as_str(), hello.protocol_min, hello.protocol_max);
        let detail = mismatch((&options.software, PROTOCOL_MIN, PROTOCOL_MAX), server);
        return Err(Error::with(Code::IncompatibleProtocolVersion, format!("cannot connect to {peer}: {detail}")));
    }
    let description = hello.description.ok_or(ProtocolError::Field("no description"));
    let description = description.and_then(description_in).map_err(unreadable)?;
    if let Some(wanted) = options.cluster_id.filter(|wanted| *wanted != description.cluster_id) {
        let found = hex(&description.cluster_id);
        let detail = format!("{peer} belongs to the cluster {found}, not to {}", hex(&wanted));
        return Err(Error::with(Code::ClientInvalidOperation, detail));
    }
    Ok(Greeting {
        description,
        request_bytes_max: usize::try_from(hello.request_bytes_max).unwrap_or(usize::MAX),
        idle_timeout: Duration::from_millis(hello.idle_timeout_ms),
    })
}
