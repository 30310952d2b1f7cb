//! Watches: [`WatchFuture`] is ready once a key has changed.
//!
//! A watch belongs to its transaction until that has committed: it reads the key (which adds a read conflict), and fires at once if the
//! transaction itself changes what it saw. It ends with the transaction's timeout too, whether or not anybody calls the transaction by then. When the transaction has committed the watch is *armed* with the value and the commit's
//! version, and from then on lives by itself. If the transaction does not commit, it fails with the reason.
//!
//! An armed watch that is told of a change, loses its server, or finds no place there, reads the key again and goes on waiting if nothing changed. It may
//! miss a value that was changed back.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ferrisdb_core::planted::{Bug, planted};
use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Bytes, Code, Error, KeyRange, Result, Version};
use ferrisdb_rpc::api::{GetRequest, Priority, WatchRequest};
use futures_util::FutureExt as _;

use crate::database::{DatabaseInner, WatchPermit};
use crate::promise::Promise;
use crate::read::{Promised, ReadFuture};
use crate::state::{Inner, State};

/// The first delay before a watch that failed is set again.
const REARM_DELAY_INITIAL: Duration = Duration::from_millis(10);
/// The longest one.
const REARM_DELAY_MAX: Duration = Duration::from_secs(1);

/// Ready once the key's value is another than the one that the transaction saw; fails if the transaction does not commit. Dropping it
/// ends the watch.
#[must_use = "a watch tells nothing unless it is awaited"]
pub struct WatchFuture {
    /// The read of the value, driven by the commit too. `None` once it is done.
    read: Option<ReadFuture<()>>,
    rest: BoxFuture<Result<()>>,
}

/// How a watch leaves its transaction.
#[derive(Debug, Clone)]
enum Start {
    /// The transaction itself changed the value.
    Fired,
    Armed(Option<Bytes>, Version),
}

/// A watch whose transaction has not committed yet.
pub(crate) struct PendingWatch {
    key: Bytes,
    /// What the read found, once it has.
    seen: Option<Option<Bytes>>,
    /// What the transaction wrote since the watch was set.
    written: Option<Option<Bytes>>,
    start: Promise<Start>,
}

impl PendingWatch {
    pub(crate) fn fail(&self, error: Error) {
        self.start.set(Err(error));
    }

    pub(crate) fn arm(self, version: Version) {
        match self.seen {
            Some(value) => self.start.set(Ok(Start::Armed(value, version))),
            // Its read was given up: so was the watch.
            None => self.fail(Code::OperationCancelled.into()),
        }
    }

    fn differs(&self) -> bool {
        matches!((&self.seen, &self.written), (Some(seen), Some(written)) if seen != written)
    }
}

impl State {
    /// Fires watches in `range`, whose keys have now the value `value`, if that is known.
    pub(crate) fn note_written(&mut self, range: &KeyRange, value: Option<Option<&Bytes>>) {
        if self.watches.is_empty() {
            return;
        }
        let value = value.map(|value| value.cloned());
        let watches = std::mem::take(&mut self.watches);
        for mut watch in watches {
            if range.contains(&watch.key) {
                let contradicts = watch.written.is_some() && value != watch.written;
                if value.is_some() {
                    watch.written.clone_from(&value);
                }
                if value.is_none() || contradicts || watch.differs() {
                    self.after(move || watch.start.set(Ok(Start::Fired)));
                    continue;
                }
            }
            self.watches.push(watch);
        }
    }
}

/// Sets a watch. `read` is the transaction's read of the key, which has begun.
pub(crate) fn watch(
    inner: &Arc<Inner>,
    epoch: u64,
    key: Bytes,
    permit: WatchPermit,
    read: ReadFuture<Option<Bytes>>,
) -> WatchFuture {
    let start = Promise::new();
    let pending = PendingWatch { key: key.clone(), seen: None, written: None, start: start.clone() };
    inner.with(|state| {
        if state.epoch == epoch {
            state.watches.push(pending);
        }
    });
    let (noting, found) = (Arc::downgrade(inner), start.clone());
    let note = async move {
        let value = read.await;
        // While the read is under way somebody holds the transaction: either it is there, or it has told the watch of its end.
        let Some(inner) = noting.upgrade() else { return Ok(()) };
        inner.with(|state| note_seen(state, epoch, &found, value))
    };
    let read = ReadFuture::start(inner, epoch, false, note.boxed());
    let (unguarded, start) = (start.wait(), Promised::new(inner, epoch, &start));
    let rest = async move {
        match if planted(Bug::WatchOutlivesTimeout) { unguarded.await } else { start.await }? {
            Start::Fired => Ok(()),
            Start::Armed(value, version) => changed(&permit.database, key, value, version).await,
        }
    };
    WatchFuture { read: Some(read), rest: rest.boxed() }
}

/// The read of a watched key has ended.
fn note_seen(state: &mut State, epoch: u64, found: &Promise<Start>, value: Result<Option<Bytes>>) -> Result<()> {
    if state.epoch != epoch {
        return value.map(|_| ());
    }
    let is_it = |watch: &PendingWatch| watch.start.is(found);
    let Some(at) = state.watches.iter().position(is_it) else { return value.map(|_| ()) };
    match value {
        Err(error) => {
            let watch = state.watches.swap_remove(at);
            let told = error.clone();
            state.after(move || watch.fail(told));
            Err(error)
        }
        Ok(value) => {
            state.watches[at].seen = Some(value);
            if planted(Bug::WatchArmedEarly) {
                let (watch, version) = (state.watches.swap_remove(at), state.known_version().unwrap_or(Version::ZERO));
                state.after(move || watch.arm(version));
                return Ok(());
            }
            if state.watches[at].differs() {
                let watch = state.watches.swap_remove(at);
                state.after(move || watch.start.set(Ok(Start::Fired)));
            }
            Ok(())
        }
    }
}

/// Waits until the key's value is not `value`, as which it is known at `version`.
async fn changed(database: &Arc<DatabaseInner>, key: Bytes, value: Option<Bytes>, mut version: Version) -> Result<()> {
    let mut delay = REARM_DELAY_INITIAL;
    loop {
        let request = WatchRequest { key: key.clone(), value: value.clone(), version };
        let told = match database.endpoint.watch(request).await {
            Ok(changed_at) => {
                let at = version.max(changed_at);
                let read = GetRequest { key: key.clone(), version: at };
                database.endpoint.get(read).await.map(|now| (at, now))
            }
            Err(error) => Err(error),
        };
        let found = match told {
            Ok((_, now)) if now != value => return Ok(()),
            // Told of a change that was none, without news: not again at once.
            Ok((at, now)) if at > version => Ok((at, now)),
            Ok(_) => Err(Code::FutureVersion.into()),
            Err(error) => Err(error),
        };
        match found {
            Ok((at, _)) => {
                version = at;
                delay = REARM_DELAY_INITIAL;
            }
            Err(error) if passes(&error) => {
                database.runtime.sleep(delay).await;
                delay = (delay * 2).min(REARM_DELAY_MAX);
                // What happened meanwhile nobody has watched: look.
                match look(database, &key).await {
                    Ok((_, now)) if now != value => return Ok(()),
                    Ok((at, _)) => version = at,
                    Err(error) if passes(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Asking again may help. A server that has too many watches is asked for the value from time to time.
fn passes(error: &Error) -> bool {
    error.is_retryable() || matches!(error.code(), Code::ConnectionFailed | Code::TooManyWatches)
}

/// The key's value now.
async fn look(database: &Arc<DatabaseInner>, key: &Bytes) -> Result<(Version, Option<Bytes>)> {
    // Its transaction was admitted before: a lock of the database does not end a watch.
    let version = database.beginnings.begin(Priority::Default).wait().await?.version;
    let value = database.endpoint.get(GetRequest { key: key.clone(), version }).await?;
    Ok((version, value))
}

impl WatchFuture {
    pub(crate) fn failed(error: Error) -> WatchFuture {
        WatchFuture { read: None, rest: std::future::ready(Err(error)).boxed() }
    }
}

impl Future for WatchFuture {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        if let Some(read) = &mut self.read {
            match Pin::new(read).poll(context) {
                Poll::Ready(Ok(())) => self.read = None,
                Poll::Ready(Err(error)) => {
                    self.read = None;
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => {}
            }
        }
        self.rest.as_mut().poll(context)
    }
}

impl fmt::Debug for WatchFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchFuture")
    }
}
