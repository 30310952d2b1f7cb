//! [`Lone`]: whether a server has, for the time being, a single client that asks one thing at a time.
//!
//! Then the thread that reads its questions has nothing to do until it has answered, and may as well do the work of the answer itself. With anybody else there it must
//! not: they would wait for as long. So what counts is not only that nothing else is under way now, but that it has been so for a while.

use std::sync::atomic::{AtomicU64, Ordering};

/// Who asks alone, and for how many questions in a row. Shared by the connections of a server; a race between two of them leaves it at what either says, and the next question
/// of any of them tells again.
#[derive(Debug, Default)]
pub(super) struct Lone {
    /// A connection's number, and how many questions in a row were its: the lowest eight bits.
    streak: AtomicU64,
    connections: AtomicU64,
}

impl Lone {
    /// So many questions in a row, each asked with nothing else under way, make a lone client. About a millisecond or two of one.
    const QUESTIONS: u64 = 16;

    /// A number for a connection.
    pub(super) fn connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// This connection asks one thing, with nothing else of it under way. True if it is a lone client's.
    pub(super) fn asks_one(&self, connection: u64) -> bool {
        let streak = self.streak.load(Ordering::Relaxed);
        let (who, questions) = (streak >> 8, streak & 0xff);
        if who == connection && questions >= Self::QUESTIONS {
            return true;
        }
        let questions = if who == connection { questions + 1 } else { 0 };
        self.streak.store(connection << 8 | questions, Ordering::Relaxed);
        false
    }

    /// Some connection asks several things at once.
    pub(super) fn asks_many(&self) {
        if self.streak.load(Ordering::Relaxed) != 0 {
            self.streak.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client is alone after a while of asking one thing at a time, and no longer with the first question of another, or two at once.
    #[test]
    fn who_asks_one_thing_at_a_time_is_alone_after_a_while() {
        let lone = Lone::default();
        let (one, other) = (lone.connection(), lone.connection());
        let becomes_alone = |connection| (0..=Lone::QUESTIONS).position(|_| lone.asks_one(connection));
        assert_eq!(becomes_alone(one), None);
        assert!(lone.asks_one(one));
        assert!(!lone.asks_one(other));
        assert!(!lone.asks_one(one), "the other was there");
        for _ in 0..Lone::QUESTIONS * 2 {
            lone.asks_one(one);
        }
        assert!(lone.asks_one(one));
        lone.asks_many();
        assert!(!lone.asks_one(one));
    }
}
