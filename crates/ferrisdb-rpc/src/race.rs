//! Several attempts at one thing, the first that succeeds wins: an address that swallows what is sent to it must not hold up the others.
//!
//! The attempts begin one after another, each when the one before has failed or has been at it for [`HEAD_START`]. None is given up before one has won.
//! They are polled in the order in which they began, so that of two that are ready at once the same one wins in each run of a simulation.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use ferrisdb_core::runtime::BoxFuture;

/// How long an attempt has before the next one begins beside it. Much more than a round trip to the other side of the world, so that who answers is
/// hardly ever asked in vain; and little enough to wait for, once, when somebody does not.
pub(crate) const HEAD_START: Duration = Duration::from_millis(500);

/// The number and the result of the attempt that won, or why each one failed, in their order. `begin` begins the attempt with a number below `count`.
pub(crate) async fn first_of<T, E>(
    count: usize,
    mut begin: impl FnMut(usize) -> BoxFuture<Result<T, E>>,
) -> Result<(usize, T), Vec<E>> {
    let mut attempts: Vec<Attempt<T, E>> = Vec::with_capacity(count);
    let mut head_start = pin!(tokio::time::sleep(HEAD_START));
    let won = poll_fn(|context| {
        loop {
            let mut is_any_running = false;
            for (number, attempt) in attempts.iter_mut().enumerate() {
                let Attempt::Running(future) = attempt else { continue };
                match future.as_mut().poll(context) {
                    Poll::Ready(Ok(won)) => return Poll::Ready(Some((number, won))),
                    Poll::Ready(Err(error)) => *attempt = Attempt::Failed(error),
                    Poll::Pending => is_any_running = true,
                }
            }
            let is_last_running = matches!(attempts.last(), Some(Attempt::Running(_)));
            if attempts.len() == count {
                return if is_any_running { Poll::Pending } else { Poll::Ready(None) };
            }
            if is_last_running && head_start.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            attempts.push(Attempt::Running(begin(attempts.len())));
            head_start.as_mut().reset(tokio::time::Instant::now() + HEAD_START);
        }
    })
    .await;
    won.ok_or_else(|| {
        let error = |attempt| match attempt {
            Attempt::Failed(error) => Some(error),
            Attempt::Running(_) => None,
        };
        attempts.into_iter().filter_map(error).collect()
    })
}

enum Attempt<T, E> {
    Running(BoxFuture<Result<T, E>>),
    Failed(E),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::run;
    use tokio::time::{Instant, sleep};

    type Raced = Result<(usize, &'static str), Vec<&'static str>>;

    /// What becomes of attempts that take so many milliseconds and then succeed or fail; who won and after how many milliseconds.
    fn race(attempts: &'static [(u64, Result<&'static str, &'static str>)]) -> (Raced, u64) {
        run(async move {
            let began = Instant::now();
            let won = first_of(attempts.len(), |number| {
                let (millis, result) = attempts[number];
                Box::pin(async move {
                    sleep(Duration::from_millis(millis)).await;
                    result
                })
            });
            let won = won.await;
            (won, began.elapsed().as_millis() as u64)
        })
    }

    const NEVER: u64 = 1_000_000;

    #[test]
    fn the_first_that_succeeds_wins() {
        assert_eq!(race(&[(10, Ok("a")), (1, Ok("b"))]), (Ok((0, "a")), 10), "the second is not needed");
        assert_eq!(race(&[(10, Err("a")), (10, Ok("b"))]), (Ok((1, "b")), 20), "at once after a failure");
        assert_eq!(race(&[(NEVER, Ok("a")), (10, Ok("b"))]), (Ok((1, "b")), 510));
        assert_eq!(race(&[(NEVER, Ok("a")), (NEVER, Ok("b")), (10, Ok("c"))]), (Ok((2, "c")), 1010));
        assert_eq!(race(&[(NEVER, Ok("a")), (200, Err("b")), (10, Ok("c"))]), (Ok((2, "c")), 710));
        assert_eq!(race(&[(600, Ok("a")), (NEVER, Ok("b"))]), (Ok((0, "a")), 600), "none is given up");
        assert_eq!(race(&[(510, Ok("a")), (10, Ok("b"))]), (Ok((0, "a")), 510), "of two that are ready the earlier");
    }

    #[test]
    fn who_fails_says_why_in_order() {
        assert_eq!(race(&[(30, Err("a"))]), (Err(vec!["a"]), 30));
        assert_eq!(race(&[(700, Err("a")), (10, Err("b")), (10, Err("c"))]), (Err(vec!["a", "b", "c"]), 700));
        assert_eq!(race(&[]), (Err(Vec::new()), 0));
    }
}
