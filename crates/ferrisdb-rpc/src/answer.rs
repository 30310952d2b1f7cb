//! [`Answer`]: a result that is there already, or comes later.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use ferrisdb_core::runtime::BoxFuture;
use ferrisdb_core::{Error, Result};

/// The answer to a question put to an [`Endpoint`](crate::Endpoint). What memory can answer is answered at once, without an allocation and
/// without a wait. Dropping an answer that has not come gives up the question, but for a commit: that goes on.
#[must_use = "an answer says whether anything happened"]
pub enum Answer<T> {
    /// It is here. `None` once it has been taken.
    Now(Option<Result<T>>),
    /// It will come.
    Later(BoxFuture<Result<T>>),
}

impl<T> Answer<T> {
    /// An answer that is here.
    pub fn now(result: Result<T>) -> Answer<T> {
        Answer::Now(Some(result))
    }

    /// An answer that comes from a future.
    pub fn later(future: impl Future<Output = Result<T>> + Send + 'static) -> Answer<T> {
        Answer::Later(Box::pin(future))
    }

    /// The result if it is here already, otherwise the answer back.
    pub fn try_now(self) -> Result<Result<T>, Answer<T>> {
        match self {
            Answer::Now(Some(result)) => Ok(result),
            later => Err(later),
        }
    }
}

impl<T> From<Error> for Answer<T> {
    fn from(error: Error) -> Answer<T> {
        Answer::now(Err(error))
    }
}

impl<T: Unpin> Future for Answer<T> {
    type Output = Result<T>;

    /// # Panics
    /// If it is polled again after it was ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        match self.get_mut() {
            Answer::Now(result) => Poll::Ready(result.take().expect("an answer is taken once")),
            Answer::Later(future) => future.as_mut().poll(context),
        }
    }
}

impl<T> fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Answer::Now(_) => "Answer::Now",
            Answer::Later(_) => "Answer::Later",
        })
    }
}
