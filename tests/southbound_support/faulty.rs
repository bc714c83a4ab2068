//! Servers that do what a test tells them, request by request, on TCP and on a pseudo terminal.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fieldgate::model::Value;
use fieldgate::southbound::modbus::{Config, Link, Parity, SerialLine, Table};
use fieldgate::southbound::{DeviceConfig, Scan, breaker};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::{PATIENCE, PtyPair, device, pty_pair, words};

pub const FAST: Duration = Duration::from_millis(50);

/// A request as the server sees it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub transaction: [u8; 2],
    pub unit: u8,
    pub pdu: Vec<u8>,
    /// Requests before this one, over all connections.
    pub number: usize,
}

/// What a server does about a request.
pub enum Act {
    /// Sends these octets, one after the other with a pause between them.
    Send(Vec<Vec<u8>>, Duration),
    /// Says nothing.
    Silence,
    /// Sends this after a delay, on whatever connection is the newest then, while it goes on with the next request.
    Later(Vec<u8>, Duration),
    /// Closes the connection.
    Close,
}

pub type Behaviour = Arc<dyn Fn(&Asked) -> Act + Send + Sync>;

impl Asked {
    pub fn address(&self) -> u16 {
        u16::from_be_bytes([self.pdu[1], self.pdu[2]])
    }

    /// The right PDU: register a holds a + 1000 × unit; FC 8 echoes; everything else is an illegal function.
    pub fn right_pdu(&self) -> Vec<u8> {
        match self.pdu[0] {
            3 => {
                let count = u16::from_be_bytes([self.pdu[3], self.pdu[4]]);
                let words = (0..count).map(|offset| self.address() + offset + 1000 * u16::from(self.unit));
                let data: Vec<u8> = words.flat_map(u16::to_be_bytes).collect();
                [vec![3, data.len() as u8], data].concat()
            }
            8 => self.pdu.clone(),
            function => vec![function | 0x80, 1],
        }
    }

    pub fn frame(&self, rtu: bool, pdu: &[u8]) -> Vec<u8> {
        if rtu {
            let body = [&[self.unit][..], pdu].concat();
            let sum = crc(&body);
            [body, sum.to_le_bytes().to_vec()].concat()
        } else {
            let length = (pdu.len() as u16 + 1).to_be_bytes();
            [&self.transaction[..], &[0, 0], &length, &[self.unit], pdu].concat()
        }
    }

    pub fn right(&self, rtu: bool) -> Act {
        Act::Send(vec![self.frame(rtu, &self.right_pdu())], Duration::ZERO)
    }
}

pub fn crc(octets: &[u8]) -> u16 {
    octets.iter().fold(0xFFFF, |sum, octet| {
        (0..8).fold(sum ^ u16::from(*octet), |sum, _| if sum & 1 == 1 { (sum >> 1) ^ 0xA001 } else { sum >> 1 })
    })
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin), rtu: bool) -> Option<Asked> {
    if rtu {
        // Unit, function, and four octets of every request used here, then the checksum.
        let mut head = [0; 2];
        stream.read_exact(&mut head).await.ok()?;
        let rest = match head[1] {
            43 => 5,
            17 => 2,
            _ => 6,
        };
        let mut body = vec![0; rest];
        stream.read_exact(&mut body).await.ok()?;
        let pdu = [&head[1..], &body[..rest - 2]].concat();
        return Some(Asked { transaction: [0; 2], unit: head[0], pdu, number: 0 });
    }
    let mut head = [0; 7];
    stream.read_exact(&mut head).await.ok()?;
    let mut pdu = vec![0; usize::from(u16::from_be_bytes([head[4], head[5]])) - 1];
    stream.read_exact(&mut pdu).await.ok()?;
    Some(Asked { transaction: [head[0], head[1]], unit: head[6], pdu, number: 0 })
}

/// The newest connection of a server, for replies that come late.
pub type Newest<S> = Arc<std::sync::Mutex<Option<Output<S>>>>;
pub type Output<S> = Arc<tokio::sync::Mutex<tokio::io::WriteHalf<S>>>;

pub async fn converse<S: AsyncRead + AsyncWrite + Send + 'static>(
    stream: S,
    rtu: bool,
    count: Arc<AtomicUsize>,
    behaviour: Behaviour,
    newest: Newest<S>,
) {
    let (mut input, output) = tokio::io::split(stream);
    let output = Arc::new(tokio::sync::Mutex::new(output));
    *newest.lock().unwrap() = Some(output.clone());
    while let Some(mut asked) = read_request(&mut input, rtu).await {
        asked.number = count.fetch_add(1, Ordering::SeqCst);
        match behaviour(&asked) {
            Act::Send(parts, pause) => {
                for part in parts {
                    if output.lock().await.write_all(&part).await.is_err() {
                        return;
                    }
                    sleep(pause).await;
                }
            }
            Act::Silence => {}
            Act::Later(octets, delay) => {
                let newest = newest.clone();
                tokio::spawn(async move {
                    sleep(delay).await;
                    let output = newest.lock().unwrap().clone().unwrap();
                    let _ = output.lock().await.write_all(&octets).await;
                });
            }
            Act::Close => return,
        }
    }
}

/// A server on TCP; returns its port and the number of requests so far.
pub async fn server(rtu: bool, behaviour: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let (behaviour, counter): (Behaviour, _) = (Arc::new(behaviour), count.clone());
    let newest = Newest::default();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, rtu, counter.clone(), behaviour.clone(), newest.clone()));
        }
    });
    (port, count)
}

/// A server on one end of a pseudo terminal pair.
pub async fn serial_server(behaviour: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> (Link, PtyPair) {
    let pair = pty_pair().await;
    let port = open_pty(&pair.theirs);
    tokio::spawn(converse(port, true, Arc::default(), Arc::new(behaviour), Newest::default()));
    (serial(&pair.ours), pair)
}

pub fn open_pty(path: &std::path::Path) -> tokio_serial::SerialStream {
    use tokio_serial::SerialPortBuilderExt;
    tokio_serial::new(path.to_str().unwrap(), 115_200).open_native_async().unwrap()
}

pub fn serial(path: &std::path::Path) -> Link {
    Link::Serial(SerialLine { parity: Parity::None, ..SerialLine::new(path.to_str().unwrap(), 115_200) })
}

/// Registers 0 to 4 of a unit, every 50 ms, with time to answer: a machine under load is no fault.
pub fn plain(name: &str, link: Link, unit: u8) -> DeviceConfig {
    let mut config = quick(link, unit);
    config.reply_timeout = Some(PATIENCE);
    device(name, config, FAST)
}

/// As [`plain`], with 150 ms to answer, for units that will not.
pub fn hasty(name: &str, link: Link, unit: u8) -> DeviceConfig {
    device(name, quick(link, unit), FAST)
}

pub fn quick(link: Link, unit: u8) -> Config {
    let mut config = Config::new(link, unit);
    config.points = words(Table::Holding, 0..5);
    config.reply_timeout = Some(Duration::from_millis(150));
    config.identify = false;
    config.breaker = breaker::Settings {
        backoff_min: Duration::from_millis(200),
        backoff_max: Duration::from_secs(1),
        ..breaker::Settings::default()
    };
    config
}

pub fn assert_right(scan: &Scan, unit: u64) {
    for result in &scan.results {
        assert_eq!(result.outcome, Ok(Value::Uint(u64::from(result.point) + 1000 * unit)));
    }
}
