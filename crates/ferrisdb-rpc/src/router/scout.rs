//! [`Scout`]: the task that finds out for a router where things are, and opens the ways to them.
//!
//! Questions never wait for it: what a question misses it notes, the scout is rung for, and the question goes home.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ferrisdb_core::key::SYSTEM_END;
use ferrisdb_core::{Clock, KeyRange};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Inner, State, WayId};
use crate::api::{Endpoint, LocationsRequest};
use crate::client::{Connector, attempt};
use crate::connection::Connection;
use crate::options::ClientOptions;

/// How long what was told about a part of the keys is used.
pub(super) const LOCATIONS_LIVE: Duration = Duration::from_secs(30);
/// How often it is looked at who leads, and which connections nobody uses.
pub(super) const REFRESH: Duration = Duration::from_secs(10);
/// After so many looks at a way that nobody wanted, it is closed.
const UNUSED_MAX: u32 = 6;
/// The least time between two rounds: when many keys move at once, most questions go home meanwhile.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a database without a coordinator is taken for one process, which is all that can be asked. It may become a cluster.
const QUIET: Duration = Duration::from_secs(5);
/// How long a cluster is given to find one.
const ELECTION: Duration = Duration::from_millis(200);
/// How long a process that could not be reached is left alone.
const RETRY: Duration = Duration::from_secs(2);

pub(super) struct Scout {
    pub(super) inner: Arc<Inner>,
    pub(super) connector: Arc<dyn Connector>,
    /// Of connections to one process.
    pub(super) options: ClientOptions,
}

impl Scout {
    /// Until the last router is dropped.
    pub(super) async fn run(self, mut is_alive: oneshot::Receiver<()>) {
        // Attempts to connect, and then what runs the connections.
        let mut drivers = JoinSet::new();
        let mut refresh_at = Instant::now() + REFRESH;
        loop {
            tokio::select! {
                biased;
                _ = &mut is_alive => break,
                () = self.inner.bell.notified() => {}
                () = tokio::time::sleep_until(refresh_at) => {
                    refresh_at = Instant::now() + REFRESH;
                    self.age();
                }
                Some(_) = drivers.join_next(), if !drivers.is_empty() => continue,
            }
            let round = async {
                self.learn().await;
                self.open(&mut drivers);
                tokio::time::sleep(PAUSE).await;
            };
            tokio::select! {
                biased;
                _ = &mut is_alive => break,
                () = round => {}
            }
        }
        let state = std::mem::take(&mut *self.inner.state());
        // Outside of the lock: a last handle wakes its driver.
        drop(state);
        // What was sent last, such as a commit whose answer nobody waits for, is still written.
        let written = async { while drivers.join_next().await.is_some() {} };
        drop(tokio::time::timeout(self.options.connect_timeout, written).await);
    }

    /// Asks what somebody wanted to know.
    async fn learn(&self) {
        loop {
            let key = {
                let mut state = self.inner.state();
                let now = self.inner.timers.now();
                let State { wanted, locations, wants_coordinator, .. } = &mut *state;
                // What is known meanwhile need not be asked.
                while wanted.front().is_some_and(|key| locations.of_key(key, now).is_some()) {
                    wanted.pop_front();
                }
                match wanted.pop_front() {
                    Some(key) => Some(key),
                    None if *wants_coordinator => None,
                    None => return,
                }
            };
            let range = KeyRange { begin: key.clone().unwrap_or_default(), end: Bytes::from_static(SYSTEM_END) };
            let limit = if key.is_some() { 0 } else { 2 };
            // Whoever misses it goes home, and rings again.
            let told = self.inner.home.locations(LocationsRequest { range, limit }).await;
            let mut state = self.inner.state();
            let now = self.inner.timers.now();
            state.wants_coordinator = false;
            let Ok(told) = told else { return };
            let Some(coordinator) = &told.coordinator else {
                state.quiet_until = now + if state.is_cluster { ELECTION } else { QUIET };
                state.wanted.clear();
                return;
            };
            state.is_cluster = true;
            let id = state.way(coordinator);
            state.coordinator = Some(id);
            if let Some(way) = state.ways.get_mut(&id) {
                way.is_wanted = true;
            }
            if key.is_some() {
                let mut locations = std::mem::take(&mut state.locations);
                locations.learn(&told, now + LOCATIONS_LIVE, |address| state.way(address));
                state.locations = locations;
            }
        }
    }

    /// Opens the ways that somebody wanted.
    fn open(&self, drivers: &mut JoinSet<()>) {
        let now = self.inner.timers.now();
        let mut state = self.inner.state();
        for (&id, way) in &mut state.ways {
            if way.connection.is_some() || way.is_opening || !way.is_wanted || now < way.retry_at {
                continue;
            }
            way.is_opening = true;
            let attempt = attempt(Arc::clone(&self.connector), way.address.clone(), self.options.clone());
            // Not held: the router's end is to end the connections.
            let inner = Arc::downgrade(&self.inner);
            drop(drivers.spawn(async move {
                let driver = match attempt.await {
                    Ok((connection, driver)) => {
                        if let Some(inner) = inner.upgrade() {
                            inner.opened(id, Some(connection));
                        }
                        driver
                    }
                    Err(error) => {
                        tracing::debug!(event = "rpc.way_failed", error = %error, "cannot be asked directly");
                        if let Some(inner) = inner.upgrade() {
                            inner.opened(id, None);
                        }
                        return;
                    }
                };
                driver.await;
                if let Some(inner) = inner.upgrade() {
                    inner.ended(id);
                }
            }));
        }
    }

    /// Has the coordinator looked up again if there was one, and closes what nobody uses.
    fn age(&self) {
        let mut state = self.inner.state();
        state.wants_coordinator |= state.coordinator.is_some();
        let State { ways, by_address, coordinator, .. } = &mut *state;
        let mut unused = Vec::new();
        ways.retain(|id, way| {
            way.unused = if std::mem::take(&mut way.is_wanted) { 0 } else { way.unused + 1 };
            let stays = way.unused < UNUSED_MAX || way.is_opening || *coordinator == Some(*id);
            if !stays {
                by_address.remove(&way.address);
                unused.extend(way.connection.take());
                self.inner.pace.forget(*id);
            }
            stays
        });
        drop(state);
        // Outside of the lock: a last handle wakes its driver.
        drop(unused);
    }
}

impl Inner {
    /// An attempt to connect has ended.
    fn opened(&self, way: WayId, connection: Option<Connection>) {
        let now = self.timers.now();
        let mut state = self.state();
        if let Some(way) = state.ways.get_mut(&way) {
            way.is_opening = false;
            if connection.is_none() {
                way.retry_at = now + RETRY;
            }
            way.connection = connection;
        }
    }

    /// A connection has ended.
    fn ended(&self, way: WayId) {
        let mut state = self.state();
        state.shut(way);
    }
}
