//! Group commit without threads: who syncs, and how the others wait.
//!
//! At most one sync runs at a time, and who runs it holds the [`SyncClaim`]. While it runs, appends go on: they form the next group.
//! A blocking writer drives it like this, and needs no background job:
//!
//! ```text
//! let position = wal.append(&[payload])?;
//! loop {
//!     match block_on(wal.sync_turn(position))? {
//!         Turn::Synced => break,
//!         Turn::Claimed(claim) => { claim.sync()?; }
//!     }
//! }
//! ```
//!
//! A caller that must not block holds a [`SyncTicket`] and leaves the syncing to a job, which is woken when a ticket
//! has to wait and nobody syncs ([`Wal::set_sync_waker`]).
//!
//! # Invariants
//! - Every waiter is woken when a sync has covered its position, and when the WAL is poisoned.
//! - While nobody holds the claim, somebody who may take it has been woken: one of the writers that wait for their turn, and the job. A
//!   writer that was woken for its turn and goes away without it passes the wake on.
//! - A claim always ends: by the end of its sync, or when it is dropped. Dropped unused, it is free again; dropped while its
//!   sync ran (a panic), nobody can say what is durable, and the WAL is poisoned.
//!
//! The proof that nobody is left waiting is that each way out of a claim ([`SyncClaim::drop`] is the only one) goes through
//! `Inner::release` or `Inner::poison`, and that a waiter registers under the lock under which both look for waiters.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Poll, Waker};

use super::{Inner, RecordKind, Segment, Space, Wal, WalPosition, frame};
use crate::error::{Error, Result};
use crate::planted::{Bug, planted};

/// Who waits. Guarded by a lock of its own, held for a few instructions.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    claimed: bool,
    next_id: u64,
    /// In the order of registration.
    list: Vec<Waiter>,
    /// The background job that syncs for tickets.
    job: Option<Waker>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    position: WalPosition,
    waker: Waker,
    /// May take the claim.
    wants_turn: bool,
    /// Has been woken to take it, and has not come back yet.
    called: bool,
}

impl Waiters {
    pub(super) fn summary(&self) -> (bool, usize) {
        (self.claimed, self.list.len())
    }

    /// Whom to wake so that a free claim finds a taker.
    fn call_next(&mut self) -> Vec<Waker> {
        if self.claimed || self.list.is_empty() {
            return Vec::new();
        }
        let mut wakers = Vec::new();
        if !self.list.iter().any(|waiter| waiter.called)
            && let Some(next) = self.list.iter_mut().find(|waiter| waiter.wants_turn)
        {
            next.called = true;
            wakers.push(next.waker.clone());
        }
        // Tickets cannot take it; if nobody else waits, the job must, and it does no harm if it comes as well.
        if wakers.is_empty() {
            wakers.extend(self.job.clone());
        }
        wakers
    }
}

/// What came of waiting for a turn.
#[derive(Debug)]
pub enum Turn {
    /// The record is durable.
    Synced,
    /// It is not, and nobody syncs: the caller may.
    Claimed(SyncClaim),
}

/// The right to run the next sync. Dropping it gives the right back.
#[derive(Debug)]
pub struct SyncClaim {
    wal: Wal,
    running: bool,
}

impl Wal {
    /// Takes the right to sync; `None` if somebody else has it.
    pub fn try_begin_sync(&self) -> Result<Option<SyncClaim>> {
        self.inner.check_poisoned()?;
        let mut waiters = self.inner.waiters();
        if waiters.claimed {
            return Ok(None);
        }
        waiters.claimed = true;
        Ok(Some(SyncClaim { wal: self.clone(), running: false }))
    }

    /// Syncs everything appended so far, if nobody else is syncing: then it says up to where the WAL is durable now. `None`: someone
    /// else is, and what was appended before that sync began is in it.
    pub fn sync(&self) -> Result<Option<WalPosition>> {
        self.try_begin_sync()?.map(SyncClaim::sync).transpose()
    }

    /// A future that is ready when the record at `position` is durable, or, if nobody syncs, gives the caller the claim.
    pub fn sync_turn(&self, position: WalPosition) -> SyncTurn {
        SyncTurn { wait: Wait { wal: self.clone(), position, id: None, wants_turn: true } }
    }

    /// A future that is ready when the record at `position` is durable. Somebody else must sync, such as the job whose waker
    /// was given to [`set_sync_waker`](Self::set_sync_waker). The position must be one that an append returned.
    pub fn sync_ticket(&self, position: WalPosition) -> SyncTicket {
        SyncTicket { wait: Wait { wal: self.clone(), position, id: None, wants_turn: false } }
    }

    /// Sets the waker of the job that syncs for tickets: woken when one waits and nobody syncs, and when the WAL is poisoned.
    pub fn set_sync_waker(&self, waker: Waker) {
        let mut waiters = self.inner.waiters();
        waiters.job = Some(waker);
        let wakers = waiters.call_next();
        drop(waiters);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// True if someone waits for a sync that has not begun: the question of the background job.
    pub fn has_sync_waiters(&self) -> bool {
        let waiters = self.inner.waiters();
        !waiters.claimed && !waiters.list.is_empty()
    }
}

impl SyncClaim {
    /// Makes everything durable that was appended before this began, in order, and returns the position up to which all is.
    /// One `fdatasync`, and one more for each segment finished since the last sync. No lock is held meanwhile.
    ///
    /// # Errors
    /// A failed sync poisons the WAL: what it covered may or may not be durable, and no later sync can tell.
    pub fn sync(mut self) -> Result<WalPosition> {
        self.run()
    }

    /// Syncs, then writes and syncs a mark, so that from now on damage to anything that was written is recognised as
    /// corruption; without it the last group could pass for a torn tail. For a clean close.
    pub fn sync_and_mark(mut self) -> Result<WalPosition> {
        let synced = self.run()?;
        let len = super::framed_len(0);
        let marked = self.wal.inner.append_framed(len, Space::Reserve, |writer, place, offset, synced| {
            frame(writer, place, offset, synced, RecordKind::Mark, &[]);
        });
        match marked {
            Ok(_) => self.run(),
            // The mark is worth less than a clean close of a full disk.
            Err(error) if error.is_no_space() => Ok(synced),
            Err(error) => Err(error),
        }
    }

    /// The handle it came from.
    pub fn wal(&self) -> &Wal {
        &self.wal
    }

    fn run(&mut self) -> Result<WalPosition> {
        let inner = Arc::clone(&self.wal.inner);
        inner.check_poisoned()?;
        self.running = true;
        let (target, files) = {
            let mut writer = inner.writer();
            (inner.appended(), std::mem::take(&mut writer.unsynced))
        };
        if planted(Bug::AckBeforeSync) {
            inner.synced.fetch_max(target.to_u64(), SeqCst);
        }
        if !planted(Bug::SkipWalSync) {
            inner.sync_files(&files)?;
        }
        self.synced_up_to(target);
        Ok(target)
    }

    /// For whoever does I/O under the claim that must not be cut short: until [`synced_up_to`](Self::synced_up_to), dropping the
    /// claim poisons.
    pub(super) fn begin(&mut self) {
        self.running = true;
    }

    pub(super) fn synced_up_to(&mut self, target: WalPosition) {
        let inner = &self.wal.inner;
        inner.synced.fetch_max(target.to_u64(), SeqCst);
        self.running = false;
        let wakers = inner.waiters().take_covered(inner.synced());
        wakers.into_iter().for_each(Waker::wake);
        inner.wake_readers();
    }
}

impl Waiters {
    fn take_covered(&mut self, synced: WalPosition) -> Vec<Waker> {
        self.list.extract_if(.., |waiter| synced > waiter.position).map(|waiter| waiter.waker).collect()
    }
}

impl Drop for SyncClaim {
    fn drop(&mut self) {
        let inner = &self.wal.inner;
        if self.running {
            // A sync that failed has poisoned the WAL already, with its own reason, which stays.
            inner.poison("a sync was interrupted by a panic");
        }
        let mut waiters = inner.waiters();
        waiters.claimed = false;
        let wakers = waiters.call_next();
        drop(waiters);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Inner {
    /// Syncs files in order; the first failure poisons.
    pub(super) fn sync_files(&self, files: &[Arc<Segment>]) -> Result<()> {
        files.iter().try_for_each(|segment| self.sync_file_of(segment))
    }

    /// Syncs one segment that has been written to; a failure poisons.
    ///
    /// The operating system reports a failure once for a file: of two syncs at a time one could be told that all is well although what
    /// it covers is lost. So there is one at a time, and none after a failure.
    pub(super) fn sync_file_of(&self, segment: &Segment) -> Result<()> {
        let _one_at_a_time = self.file_sync.lock().unwrap_or_else(|poison| poison.into_inner());
        self.check_poisoned()?;
        let mut synced = segment.file.sync_data();
        if planted(Bug::RetryFailedSync) && synced.is_err() {
            synced = segment.file.sync_data();
        }
        if let Err(error) = synced {
            let reason = Error::io("sync", &segment.path, error).to_string();
            return Err(self.poison(&reason));
        }
        // The first write carries the header.
        segment.header_durable.store(true, SeqCst);
        Ok(())
    }

    pub(super) fn wake_all_waiters(&self) {
        let mut waiters = self.waiters();
        let mut wakers: Vec<Waker> = waiters.list.drain(..).map(|waiter| waiter.waker).collect();
        wakers.extend(waiters.job.clone());
        drop(waiters);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// What the two futures share.
#[derive(Debug)]
struct Wait {
    wal: Wal,
    position: WalPosition,
    /// Set while registered, and afterwards until the future notices.
    id: Option<u64>,
    wants_turn: bool,
}

impl Wait {
    fn poll(&mut self, waker: &Waker) -> Poll<Result<Turn>> {
        let inner = &self.wal.inner;
        if self.id.is_none() && self.wal.is_synced(self.position) {
            return Poll::Ready(Ok(Turn::Synced));
        }
        let mut waiters = inner.waiters();
        // Under the lock: a sync that ends now, or a failure, will find this waiter, or is seen here.
        let registered = self.id.take().and_then(|id| waiters.list.iter().position(|waiter| waiter.id == id));
        if self.wal.is_synced(self.position) {
            let called = registered.is_some_and(|index| waiters.list.remove(index).called);
            let wakers = if called { waiters.call_next() } else { Vec::new() };
            drop(waiters);
            wakers.into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(Turn::Synced));
        }
        if let Err(error) = inner.check_poisoned() {
            registered.map(|index| waiters.list.remove(index));
            return Poll::Ready(Err(error));
        }
        if self.wants_turn && !waiters.claimed {
            registered.map(|index| waiters.list.remove(index));
            waiters.claimed = true;
            return Poll::Ready(Ok(Turn::Claimed(SyncClaim { wal: self.wal.clone(), running: false })));
        }
        let id = match registered {
            Some(index) => {
                let waiter = &mut waiters.list[index];
                waiter.waker.clone_from(waker);
                // It came, and the claim was gone again: whoever has it will call the next.
                waiter.called = false;
                waiter.id
            }
            None => {
                let id = waiters.next_id;
                waiters.next_id += 1;
                let (position, waker, wants_turn) = (self.position, waker.clone(), self.wants_turn);
                waiters.list.push(Waiter { id, position, waker, wants_turn, called: false });
                id
            }
        };
        let wakers = waiters.call_next();
        drop(waiters);
        self.id = Some(id);
        wakers.into_iter().for_each(Waker::wake);
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut waiters = self.wal.inner.waiters();
        waiters.list.retain(|waiter| waiter.id != id);
        let wakers = waiters.call_next();
        drop(waiters);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// See [`Wal::sync_turn`].
#[derive(Debug)]
#[must_use = "it waits for nothing until it is polled"]
pub struct SyncTurn {
    wait: Wait,
}

impl SyncTurn {
    /// Asks; if not ready, `waker` is woken when it is worth asking again.
    pub fn poll(&mut self, waker: &Waker) -> Poll<Result<Turn>> {
        self.wait.poll(waker)
    }
}

impl Future for SyncTurn {
    type Output = Result<Turn>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Turn>> {
        self.wait.poll(context.waker())
    }
}

/// See [`Wal::sync_ticket`].
#[derive(Debug)]
#[must_use = "it waits for nothing until it is polled"]
pub struct SyncTicket {
    wait: Wait,
}

impl SyncTicket {
    /// Asks; if not ready, `waker` is woken when it is worth asking again.
    pub fn poll(&mut self, waker: &Waker) -> Poll<Result<()>> {
        self.wait.poll(waker).map_ok(|turn| match turn {
            Turn::Synced => (),
            Turn::Claimed(_) => unreachable!("a ticket does not want a turn"),
        })
    }
}

impl Future for SyncTicket {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        SyncTicket::poll(&mut self, context.waker())
    }
}
