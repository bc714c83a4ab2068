//! A body that comes slowly, or ends too early.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::time::Sleep;

/// The body broke off as scripted.
#[derive(Debug, thiserror::Error)]
#[error("the body ends early, as scripted")]
pub(super) struct CutShort;

pub(super) struct Dribble {
    rest: Bytes,
    promised: u64,
    piece: usize,
    pause: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Bytes until the break.
    left: Option<usize>,
}

impl Dribble {
    pub fn new(body: Bytes, piece: usize, pause: Duration, truncate: Option<usize>) -> Self {
        let left = truncate.filter(|&left| left < body.len());
        Self { promised: body.len() as u64, rest: body, piece: piece.max(1), pause, sleep: None, left }
    }
}

impl hyper::body::Body for Dribble {
    type Data = Bytes;
    type Error = CutShort;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        if self.left == Some(0) {
            return Poll::Ready(Some(Err(CutShort)));
        }
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        if !self.pause.is_zero() {
            let pause = self.pause;
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
            ready!(sleep.as_mut().poll(context));
            self.sleep = None;
        }
        let length = self.piece.min(self.rest.len()).min(self.left.unwrap_or(usize::MAX));
        self.left = self.left.map(|left| left - length);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.promised.min(self.rest.len() as u64))
    }
}
