//! The broker's own client: proves at intervals that it still serves.
//!
//! A connection through memory instead of a socket does what any client does: CONNECT, SUBSCRIBE, and waits for a message.
//! Three failures in a row are a failure of the broker, so that a supervisor restarts it rather than leave it deaf.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::{sleep, timeout};

use super::connection::{Peer, serve};
use super::embedded::Shared;
use super::hub::Effects;
use super::{Publication, Qos, Retain};

/// Topic of the probe; clients cannot publish to it and `#` does not match it.
const TOPIC: &str = "$fieldgate/probe";
/// Longest time for one probe.
const PATIENCE: Duration = Duration::from_secs(5);
/// Failures in a row that fail the broker.
const MOST_FAILURES: u32 = 3;

/// Probes until the broker stops.
pub(super) async fn run(shared: Arc<Shared>, every: Duration) {
    let mut failures = 0;
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = sleep(every) => {}
        }
        match timeout(PATIENCE, probe(&shared)).await {
            Ok(Ok(())) => failures = 0,
            failed if !shared.stop.is_cancelled() => {
                failures += 1;
                tracing::warn!(failures, ?failed, "the broker does not serve its own probe");
                if failures == MOST_FAILURES {
                    return shared.fail("it does not serve its own probe");
                }
            }
            _ => {}
        }
    }
}

async fn probe(shared: &Arc<Shared>) -> io::Result<()> {
    let (mut client, server) = duplex(1024);
    let peer = Peer { address: None, tls_name: None, certificate: None, anonymous: true };
    shared.tasks.spawn(serve(shared.clone(), server, peer));
    // CONNECT 3.1.1, clean, keep-alive 10 s, id "$probe"; SUBSCRIBE 1 to the topic at QoS 0.
    client.write_all(b"\x10\x12\0\x04MQTT\x04\x02\0\x0a\0\x06$probe").await?;
    expect(&mut client, &[0x20, 2, 0, 0]).await?;
    let mut subscribe = vec![0x82, TOPIC.len() as u8 + 5, 0, 1, 0, TOPIC.len() as u8];
    subscribe.extend_from_slice(TOPIC.as_bytes());
    subscribe.push(0);
    client.write_all(&subscribe).await?;
    expect(&mut client, &[0x90, 3, 0, 1, 0]).await?;
    let topic = Arc::from(TOPIC);
    let ping = Publication { topic, payload: Bytes::from_static(b"?"), qos: Qos::AtMostOnce, retain: Retain::No };
    let mut fx = Effects::default();
    let now = shared.now();
    shared.hub().publish([ping], now, &mut fx);
    shared.settle(fx);
    let mut publish = vec![0x30, TOPIC.len() as u8 + 3, 0, TOPIC.len() as u8];
    publish.extend_from_slice(TOPIC.as_bytes());
    publish.push(b'?');
    expect(&mut client, &publish).await?;
    client.write_all(&[0xe0, 0]).await?;
    // Probes are not clients.
    shared.hub().count(|stats| {
        stats.connects -= 1;
        stats.published -= 1;
        stats.messages_out -= 1;
    });
    Ok(())
}

async fn expect(client: &mut (impl AsyncReadExt + Unpin), expected: &[u8]) -> io::Result<()> {
    let mut got = vec![0; expected.len()];
    client.read_exact(&mut got).await?;
    if got == expected { Ok(()) } else { Err(io::Error::other(format!("{got:02x?} instead of {expected:02x?}"))) }
}
