//! **A device that takes firmware over Modbus TCP**: file records (function 21) for the bytes, holding registers for the
//! rest. It keeps two images, checks the SHA-256, restarts, and goes back by itself when the new image does not start.
//!
//! | register | meaning |
//! |---|---|
//! | 0 | state: 0 idle, 1 receiving, 2 verified, 3 activating, 4 failed |
//! | 1 | command: 1 begin, 2 activate, 3 roll back |
//! | 2–3 | size of the artifact in bytes |
//! | 4–5 | bytes received without a gap |
//! | 6 | error: 1 wrong digest, 2 the new image did not start, 3 incomplete |
//! | 8–23 | SHA-256 of the artifact |
//! | 32–47 | running version (ASCII, zeros behind) |
//!
//! The version of an image is its second line after `echo `, or its first 32 bytes: enough for a simulated device.
//! Beginning the same artifact again (same size and digest) keeps what was received; another one starts from nothing.
//! Function 43/14 reveals vendor, product and the running version. Every unit id reaches the same device, so that one socket
//! can stand for a bus with a bus-mate on it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::modbus::frame::{Decoder, Framing, encode};

/// Records of a file.
const RECORDS: usize = 10_000;
/// Largest image in bytes.
const MAX_IMAGE: usize = 4 * 1024 * 1024;

/// What goes wrong, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// The device loses its power after that many writes of file records, once: what it had received is gone.
    PowerCutAfter(usize),
    /// The connection breaks after that many writes of file records, once.
    DisconnectAfter(usize),
    /// One bit of what it stores is wrong.
    BadMemory,
    /// The new image does not start; the device goes back to the old one.
    DoesNotStart,
    /// It never comes to rest after starting the new image, until it is told to go back.
    NeverReady,
    /// It answers "busy" to every third request.
    Busy,
    /// It refuses file records.
    Refuses,
}

impl Trouble {
    /// Troubles that can be asked for by name, and what they are called.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("none", Self::None),
        ("bad-memory", Self::BadMemory),
        ("does-not-start", Self::DoesNotStart),
        ("never-ready", Self::NeverReady),
        ("busy", Self::Busy),
        ("refuses", Self::Refuses),
    ];
}

impl std::str::FromStr for Trouble {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, trouble)| *trouble);
        found.ok_or_else(|| format!("one of {}", Self::NAMES.map(|(name, _)| name).join(", ")))
    }
}

/// How the device begins.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Version of its first image.
    pub version: String,
    /// How long it is silent while it restarts.
    pub restart: Duration,
    /// What goes wrong.
    pub trouble: Trouble,
}

#[derive(Debug)]
struct Device {
    running: Image,
    before: Option<Image>,
    state: u16,
    error: u16,
    size: [u16; 2],
    digest: [u16; 16],
    begun: Option<([u16; 2], [u16; 16])>,
    staging: Vec<u8>,
    received: usize,
    restart: Duration,
    silent_until: Option<tokio::time::Instant>,
    trouble: Trouble,
    writes: usize,
    requests: usize,
    /// Reads by unit id.
    reads: BTreeMap<u8, usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Image {
    version: String,
    bytes: Vec<u8>,
}

/// A running device; it ends when dropped.
#[derive(Debug)]
pub struct FirmwareTarget {
    address: SocketAddr,
    device: Arc<Mutex<Device>>,
    _tasks: JoinSet<()>,
}

enum Reply {
    Pdu(Vec<u8>),
    Disconnect,
}

fn locked(device: &Mutex<Device>) -> MutexGuard<'_, Device> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FirmwareTarget {
    /// Starts the device.
    pub async fn start(settings: Settings) -> std::io::Result<Self> {
        let listener = TcpListener::bind(settings.listen).await?;
        let address = listener.local_addr()?;
        let device = Arc::new(Mutex::new(Device {
            running: Image { version: settings.version, bytes: Vec::new() },
            before: None,
            state: 0,
            error: 0,
            size: [0; 2],
            digest: [0; 16],
            begun: None,
            staging: Vec::new(),
            received: 0,
            restart: settings.restart,
            silent_until: None,
            trouble: settings.trouble,
            writes: 0,
            requests: 0,
            reads: BTreeMap::new(),
        }));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, device.clone()));
        Ok(Self { address, device, _tasks: tasks })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The version that runs.
    pub fn version(&self) -> String {
        locked(&self.device).running.version.clone()
    }

    /// The image that runs; empty for the first one.
    pub fn image(&self) -> Vec<u8> {
        locked(&self.device).running.bytes.clone()
    }

    /// How many file records were written.
    pub fn writes(&self) -> usize {
        locked(&self.device).writes
    }

    /// How often registers were read under this unit id.
    pub fn reads(&self, unit: u8) -> usize {
        locked(&self.device).reads.get(&unit).copied().unwrap_or(0)
    }

    /// Changes what goes wrong.
    pub fn set_trouble(&self, trouble: Trouble) {
        locked(&self.device).trouble = trouble;
    }
}

async fn accept(listener: TcpListener, device: Arc<Mutex<Device>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => { connections.spawn(serve(socket, device.clone())); }
                Err(error) => tracing::warn!(%error, "firmware target: accept failed"),
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut socket: TcpStream, device: Arc<Mutex<Device>>) {
    let mut decoder = Decoder::new(Framing::Tcp);
    let mut buffer = vec![0; 1024];
    loop {
        loop {
            let request = match decoder.next_request() {
                Ok(Some(request)) => request,
                Ok(None) => break,
                Err(_) => return,
            };
            let reply = locked(&device).answer(request.unit, &request.pdu);
            match reply {
                Some(Reply::Pdu(pdu)) => {
                    let frame = encode(Framing::Tcp, request.transaction, request.unit, &pdu);
                    if socket.write_all(&frame).await.is_err() {
                        return;
                    }
                }
                Some(Reply::Disconnect) => return,
                None => {}
            }
        }
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => decoder.push(&buffer[..read]),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

impl Device {
    /// `None` is silence.
    fn answer(&mut self, unit: u8, pdu: &[u8]) -> Option<Reply> {
        if self.silent_until.is_some_and(|until| tokio::time::Instant::now() < until) {
            return Some(Reply::Disconnect);
        }
        if self.silent_until.take().is_some() {
            self.restarted();
        }
        self.requests += 1;
        let function = *pdu.first()?;
        let exception = |code: u8| Reply::Pdu(vec![function | 0x80, code]);
        *self.reads.entry(unit).or_default() += usize::from(function == 0x03);
        if self.trouble == Trouble::Busy && self.requests.is_multiple_of(3) {
            return Some(exception(6));
        }
        let reply = match function {
            0x03 => self.read(pdu).map(Reply::Pdu),
            0x10 => self.write(pdu).map(Reply::Pdu),
            0x15 if self.trouble == Trouble::Refuses => None,
            0x15 => self.write_file(pdu),
            0x2B if pdu.get(1) == Some(&0x0E) => Some(Reply::Pdu(self.identification())),
            _ => return Some(exception(1)),
        };
        Some(reply.unwrap_or_else(|| exception(2)))
    }

    fn register(&self, address: u16) -> Option<u16> {
        let received = (self.received as u32).to_be_bytes();
        let version = self.running.version.as_bytes();
        Some(match address {
            0 => self.state,
            2 | 3 => self.size[usize::from(address) - 2],
            4 => u16::from_be_bytes([received[0], received[1]]),
            5 => u16::from_be_bytes([received[2], received[3]]),
            6 => self.error,
            8..=23 => self.digest[usize::from(address) - 8],
            32..=47 => {
                let at = (usize::from(address) - 32) * 2;
                let byte = |at: usize| version.get(at).copied().unwrap_or(0);
                u16::from_be_bytes([byte(at), byte(at + 1)])
            }
            _ => return None,
        })
    }

    fn identification(&self) -> Vec<u8> {
        let objects = ["Simulated", "FW-1", self.running.version.as_str()];
        let mut reply = vec![0x2B, 0x0E, 1, 1, 0, 0, objects.len() as u8];
        for (id, text) in objects.iter().enumerate() {
            let text = &text.as_bytes()[..text.len().min(64)];
            reply.extend([id as u8, text.len() as u8]);
            reply.extend(text);
        }
        reply
    }

    fn read(&self, pdu: &[u8]) -> Option<Vec<u8>> {
        let (address, count) = (word(pdu, 1)?, word(pdu, 3)?);
        if count == 0 || count > 125 {
            return None;
        }
        let mut reply = vec![0x03, (count * 2) as u8];
        for offset in 0..count {
            reply.extend(self.register(address.checked_add(offset)?)?.to_be_bytes());
        }
        Some(reply)
    }

    fn write(&mut self, pdu: &[u8]) -> Option<Vec<u8>> {
        let (address, count) = (word(pdu, 1)?, word(pdu, 3)?);
        if usize::from(*pdu.get(5)?) != usize::from(count) * 2 || pdu.len() != 6 + usize::from(count) * 2 {
            return None;
        }
        for offset in 0..count {
            let value = word(pdu, 6 + usize::from(offset) * 2)?;
            match address.checked_add(offset)? {
                1 => self.command(value)?,
                at @ 2..=3 => self.size[usize::from(at) - 2] = value,
                at @ 8..=23 => self.digest[usize::from(at) - 8] = value,
                _ => return None,
            }
        }
        Some(pdu[..5].to_vec())
    }

    fn command(&mut self, command: u16) -> Option<()> {
        match command {
            1 => {
                let wanted = (self.size, self.digest);
                let size = (usize::from(self.size[0]) << 16) | usize::from(self.size[1]);
                if size == 0 || size > MAX_IMAGE {
                    return None;
                }
                if self.begun != Some(wanted) {
                    (self.begun, self.received, self.staging) = (Some(wanted), 0, vec![0; size]);
                }
                (self.state, self.error) = (1, 0);
            }
            2 => self.activate(),
            3 => {
                if let Some(before) = self.before.take() {
                    self.running = before;
                    (self.state, self.error) = (4, 2);
                    self.silent_until = Some(tokio::time::Instant::now() + self.restart);
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn write_file(&mut self, pdu: &[u8]) -> Option<Reply> {
        let (length, reference) = (usize::from(*pdu.get(1)?), *pdu.get(2)?);
        let (file, record, count) = (word(pdu, 3)?, word(pdu, 5)?, word(pdu, 7)?);
        let data = pdu.get(9..)?;
        let right = length + 2 == pdu.len() && reference == 6 && data.len() == usize::from(count) * 2;
        if !right || self.state != 1 || file == 0 || usize::from(record) + usize::from(count) > RECORDS {
            return None;
        }
        self.writes += 1;
        match self.trouble {
            Trouble::PowerCutAfter(writes) if self.writes > writes => {
                self.trouble = Trouble::None;
                (self.begun, self.received, self.state) = (None, 0, 0);
                self.silent_until = Some(tokio::time::Instant::now() + self.restart);
                return Some(Reply::Disconnect);
            }
            Trouble::DisconnectAfter(writes) if self.writes > writes => {
                self.trouble = Trouble::None;
                return Some(Reply::Disconnect);
            }
            _ => {}
        }
        let at = ((usize::from(file) - 1) * RECORDS + usize::from(record)) * 2;
        let end = (at + data.len()).min(self.staging.len());
        if at >= end || at > self.received {
            return None;
        }
        self.staging[at..end].copy_from_slice(&data[..end - at]);
        self.received = self.received.max(end);
        Some(Reply::Pdu(pdu.to_vec()))
    }

    fn activate(&mut self) {
        if self.staging.is_empty() || self.received < self.staging.len() {
            (self.state, self.error) = (4, 3);
            return;
        }
        let mut bytes = self.staging.clone();
        if self.trouble == Trouble::BadMemory {
            bytes[0] ^= 1;
        }
        let wanted: Vec<u8> = self.digest.iter().flat_map(|word| word.to_be_bytes()).collect();
        if sha256(&bytes).to_vec() != wanted {
            (self.state, self.error, self.begun) = (4, 1, None);
            return;
        }
        self.state = 3;
        if self.trouble != Trouble::DoesNotStart {
            let image = Image { version: version_of(&bytes), bytes };
            self.before = Some(std::mem::replace(&mut self.running, image));
        }
        self.silent_until = Some(tokio::time::Instant::now() + self.restart);
    }

    fn restarted(&mut self) {
        match (self.state, self.trouble) {
            (3, Trouble::DoesNotStart) => (self.state, self.error) = (4, 2),
            (3, Trouble::NeverReady) => {}
            (3, _) => self.state = 0,
            _ => {}
        }
        (self.begun, self.received) = (None, 0);
    }
}

fn version_of(image: &[u8]) -> String {
    let text = String::from_utf8_lossy(&image[..image.len().min(200)]).into_owned();
    let echoed = text.lines().find_map(|line| line.strip_prefix("echo ")).map(str::to_owned);
    echoed.unwrap_or_else(|| text.chars().take(32).collect())
}

/// SHA-256 (FIPS 180-4), written down here so that the device does not share the gateway's code.
fn sha256(message: &[u8]) -> [u8; 32] {
    let primes: Vec<u64> = (2u64..).filter(|n| (2..*n).all(|d| n % d != 0)).take(64).collect();
    // The first 32 bits of the fractional parts of roots of primes, by integer search: no table to mistype.
    let root = |n: u64, power: u32| -> u32 {
        let target = u128::from(n) << (32 * power);
        let (mut low, mut high) = (0u128, 1u128 << 40);
        while high - low > 1 {
            let middle = (low + high) / 2;
            if middle.pow(power) <= target { low = middle } else { high = middle }
        }
        low as u32
    };
    let k: Vec<u32> = primes.iter().map(|&prime| root(prime, 3)).collect();
    let mut h: Vec<u32> = primes[..8].iter().map(|&prime| root(prime, 2)).collect();
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks(64) {
        let mut w: Vec<u32> = block.chunks(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]])).collect();
        for i in 16..64 {
            let s0 = w[i - 15].rotate_right(7) ^ w[i - 15].rotate_right(18) ^ (w[i - 15] >> 3);
            let s1 = w[i - 2].rotate_right(17) ^ w[i - 2].rotate_right(19) ^ (w[i - 2] >> 10);
            w.push(w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1));
        }
        let mut v = h.clone();
        for i in 0..64 {
            let s1 = v[4].rotate_right(6) ^ v[4].rotate_right(11) ^ v[4].rotate_right(25);
            let choice = (v[4] & v[5]) ^ (!v[4] & v[6]);
            let t1 = v[7].wrapping_add(s1).wrapping_add(choice).wrapping_add(k[i]).wrapping_add(w[i]);
            let s0 = v[0].rotate_right(2) ^ v[0].rotate_right(13) ^ v[0].rotate_right(22);
            let majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
            let t2 = s0.wrapping_add(majority);
            v.rotate_right(1);
            v[4] = v[4].wrapping_add(t1);
            v[0] = t1.wrapping_add(t2);
        }
        h.iter_mut().zip(&v).for_each(|(h, v)| *h = h.wrapping_add(*v));
    }
    let mut digest = [0; 32];
    digest.chunks_mut(4).zip(&h).for_each(|(out, word)| out.copy_from_slice(&word.to_be_bytes()));
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_standard() {
        let hex = |bytes: &[u8]| sha256(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hex(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let two_blocks = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        assert_eq!(hex(two_blocks), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    }
}
