//! Each fault, seen from both ends of a real connection.

use std::io::ErrorKind;
use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const SOON: Duration = Duration::from_secs(5);

/// An echo server, a proxy in front of it and a client of the proxy.
struct Bench {
    proxy: Proxy,
    client: TcpStream,
    echo: tokio::task::JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.echo.abort();
    }
}

async fn bench() -> Bench {
    let listener = TcpListener::bind(ANYWHERE).await.expect("loopback");
    let upstream = listener.local_addr().expect("bound");
    let echo = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let proxy = Proxy::start(ANYWHERE, upstream).await.expect("loopback");
    let client = TcpStream::connect(proxy.address()).await.expect("accepted");
    Bench { proxy, client, echo }
}

impl Bench {
    async fn echo(&mut self, bytes: &[u8]) -> std::io::Result<Duration> {
        let began = tokio::time::Instant::now();
        self.client.write_all(bytes).await?;
        let mut back = vec![0; bytes.len()];
        tokio::time::timeout(SOON, self.client.read_exact(&mut back)).await.map_err(|_| ErrorKind::TimedOut)??;
        assert_eq!(back, bytes);
        Ok(began.elapsed())
    }

    async fn again(&mut self) {
        self.client = TcpStream::connect(self.proxy.address()).await.expect("accepted");
    }
}

#[tokio::test]
async fn a_faultless_link_carries_everything_in_order() {
    let mut bench = bench().await;
    let bytes: Vec<u8> = (0..60_000_u32).map(|i| (i * 7) as u8).collect();
    bench.echo(&bytes).await.expect("carried");
    let stats = bench.proxy.stats();
    assert_eq!((stats.up, stats.down, stats.open), (60_000, 60_000, 1));
}

#[tokio::test]
async fn an_end_of_file_passes_through_after_the_last_byte() {
    let mut bench = bench().await;
    bench.client.write_all(b"last").await.expect("sent");
    bench.client.shutdown().await.expect("closed");
    let mut back = Vec::new();
    tokio::time::timeout(SOON, bench.client.read_to_end(&mut back)).await.expect("in time").expect("ends");
    assert_eq!(back, b"last");
}

#[tokio::test]
async fn latency_delays_without_limiting_the_rate() {
    let mut bench = bench().await;
    bench.proxy.change(|faults| faults.down.latency = Duration::from_millis(80));
    let took = bench.echo(&[1; 50_000]).await.expect("carried");
    assert!(took >= Duration::from_millis(80), "{took:?}");
    assert!(took < Duration::from_millis(900), "{took:?} for chunks that travel together");
}

#[tokio::test]
async fn a_throttle_keeps_its_rate_and_slices_keep_the_bytes() {
    let mut bench = bench().await;
    bench.proxy.change(|faults| faults.up.bytes_per_second = Some(2_000));
    let took = bench.echo(&[2; 500]).await.expect("carried");
    assert!(took >= Duration::from_millis(190), "{took:?}");
    bench.proxy.clear();
    bench.proxy.change(|faults| faults.down.slice = Some(1));
    bench.echo(b"one byte at a time").await.expect("carried");
}

#[tokio::test]
async fn cuts_are_seen_as_what_they_are() {
    let mut bench = bench().await;
    bench.echo(b"x").await.expect("carried");
    bench.proxy.cut(CutKind::Fin);
    let end = tokio::time::timeout(SOON, bench.client.read(&mut [0; 8])).await.expect("in time");
    assert_eq!(end.expect("an orderly end"), 0);

    bench.again().await;
    bench.echo(b"x").await.expect("carried");
    bench.proxy.cut(CutKind::Rst);
    let end = tokio::time::timeout(SOON, bench.client.read(&mut [0; 8])).await.expect("in time");
    assert_eq!(end.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    assert_eq!(bench.proxy.stats().cut, 2);
}

#[tokio::test]
async fn a_cut_after_so_many_bytes_delivers_exactly_those() {
    let mut bench = bench().await;
    bench.proxy.change(|faults| faults.cut_after = Some((15, CutKind::Fin)));
    bench.client.write_all(&[3; 10]).await.expect("sent");
    let mut back = Vec::new();
    tokio::time::timeout(SOON, bench.client.read_to_end(&mut back)).await.expect("in time").expect("ends");
    assert_eq!(back.len(), 5, "10 up and 5 down are 15");
}

#[tokio::test]
async fn random_cuts_come() {
    let mut bench = bench().await;
    bench.proxy.change(|faults| faults.cut_random = Some((Duration::from_millis(20), CutKind::Fin)));
    let end = tokio::time::timeout(SOON, bench.client.read(&mut [0; 8])).await.expect("cut in time");
    assert_eq!(end.expect("an orderly end"), 0);
}

#[tokio::test]
async fn a_hold_loses_nothing() {
    let mut bench = bench().await;
    bench.proxy.change(|faults| faults.hold = true);
    bench.client.write_all(b"patience").await.expect("sent");
    let mut back = [0; 8];
    let held = tokio::time::timeout(Duration::from_millis(100), bench.client.read_exact(&mut back)).await;
    assert!(held.is_err(), "arrived while held");
    bench.proxy.change(|faults| faults.hold = false);
    tokio::time::timeout(SOON, bench.client.read_exact(&mut back)).await.expect("in time").expect("carried");
    assert_eq!(&back, b"patience");
}

#[tokio::test]
async fn a_black_hole_kills_what_it_hit_and_nothing_else() {
    let mut bench = bench().await;
    bench.echo(b"before").await.expect("carried");
    bench.proxy.change(|faults| faults.blackhole = true);
    bench.client.write_all(b"lost").await.expect("the system still takes it");
    let silent = tokio::time::timeout(Duration::from_millis(100), bench.client.read(&mut [0; 8])).await;
    assert!(silent.is_err(), "a black hole must not close");
    bench.proxy.clear();
    bench.client.write_all(b"lost too").await.expect("the system still takes it");
    let silent = tokio::time::timeout(Duration::from_millis(100), bench.client.read(&mut [0; 8])).await;
    assert!(silent.is_err(), "what it hit stays dead");
    assert_eq!(bench.proxy.stats().swallowed, 12);
    bench.again().await;
    bench.echo(b"new connections work").await.expect("carried");
}

#[tokio::test]
async fn refusing_closes_the_port_and_opens_it_again() {
    let mut bench = bench().await;
    bench.echo(b"accepted").await.expect("carried");
    bench.proxy.change(|faults| faults.refuse = true);
    // A connection that was waiting to be accepted when the port closed is reset; the next ones are refused.
    let refused = async {
        let connect = async || TcpStream::connect(bench.proxy.address()).await;
        while !connect().await.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, refused).await.expect("refused in time");
    bench.echo(b"open ones live on").await.expect("carried");
    bench.proxy.change(|faults| faults.refuse = false);
    let accepted = async {
        while TcpStream::connect(bench.proxy.address()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, accepted).await.expect("opens again");
}

#[tokio::test]
async fn an_absent_server_and_a_public_address_are_refused() {
    let nobody = TcpListener::bind(ANYWHERE).await.expect("loopback").local_addr().expect("bound");
    let proxy = Proxy::start(ANYWHERE, nobody).await.expect("loopback");
    let mut client = TcpStream::connect(proxy.address()).await.expect("accepted");
    let end = tokio::time::timeout(SOON, client.read(&mut [0; 8])).await.expect("in time");
    assert_eq!(end.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    proxy.stop().await;
    let public = "0.0.0.0:0".parse().expect("an address");
    assert!(matches!(Proxy::start(public, nobody).await, Err(SimError::NotLoopback(_))));
}
