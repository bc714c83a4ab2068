//! One request to the fleet manager, and what its answer means.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::margo::api::{DeploymentStatus, Dialect, Request, Response};
use crate::margo::capabilities::Act;
use crate::margo::desired::{AcceptError, Exchange, ExchangeError, Head, Polled, poll};
use crate::margo::words::Digest;

/// What is asked.
#[derive(Debug, Clone)]
pub(super) enum Errand {
    Report(Act),
    Poll { head: Option<Head>, held: BTreeMap<Digest, Bytes> },
    Tell(u64, Box<DeploymentStatus>),
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Answer {
    Reported(Act, Result<Response, ExchangeError>),
    Polled(Result<Polled, AcceptError>),
    Told(u64, Box<DeploymentStatus>, Result<Response, ExchangeError>),
}

impl Errand {
    pub(super) async fn run<X: Exchange>(self, exchange: Arc<X>, dialect: Arc<dyn Dialect>, now: i64) -> Answer {
        match self {
            Self::Report(act) => {
                let request = match &act {
                    Act::Report { device, first } => dialect.report(device, *first),
                    Act::Forget(path) => dialect.forget(path),
                };
                let answer = send(&*exchange, &*dialect, request, now).await;
                Answer::Reported(act, answer)
            }
            Self::Poll { head, held } => Answer::Polled(poll(&*exchange, &*dialect, head.as_ref(), &held, now).await),
            Self::Tell(number, status) => {
                let answer = send(&*exchange, &*dialect, dialect.status(&status), now).await;
                Answer::Told(number, status, answer)
            }
        }
    }
}

async fn send<X: Exchange>(
    exchange: &X,
    dialect: &dyn Dialect,
    request: Request,
    now: i64,
) -> Result<Response, ExchangeError> {
    let sealed = dialect.seal(request, now).map_err(|error| ExchangeError::NotReady(error.to_string()))?;
    exchange.send(sealed).await
}
