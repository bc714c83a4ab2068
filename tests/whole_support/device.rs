//! A Modbus TCP device that counts what it sees and misbehaves when told to. Registers hold their address plus 1,000.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What it does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Answers.
    Well = 0,
    /// Takes it and says nothing.
    Hangs = 1,
    /// Answers reads, takes writes and says nothing.
    HangsOnWrites = 2,
    /// Sends octets without sense.
    Noise = 3,
}

#[derive(Default)]
struct Shared {
    mode: AtomicU8,
    connections: AtomicU64,
    requests: AtomicU64,
    writes: Mutex<Vec<(u16, u16)>>,
    refused: Mutex<Vec<u16>>,
}

/// The device; it listens until the test process ends.
pub struct FakeDevice {
    port: u16,
    shared: Arc<Shared>,
}

impl FakeDevice {
    /// Starts it on a port of its own.
    pub fn start(mode: Mode) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback gives a port");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Shared { mode: AtomicU8::new(mode as u8), ..Shared::default() });
        let device = Self { port, shared: shared.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        device
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// Writes of this register are answered with an exception from now on.
    pub fn refuse(&self, register: u16) {
        self.shared.refused.lock().unwrap_or_else(PoisonError::into_inner).push(register);
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Requests received so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Registers written by function code 6 or 16, with their values, in order.
    pub fn writes(&self) -> Vec<(u16, u16)> {
        self.shared.writes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    let mut head = [0; 8];
    while stream.read_exact(&mut head).is_ok() {
        let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
        let mut body = vec![0; length.saturating_sub(2)];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let mode = shared.mode.load(Ordering::SeqCst);
        let function = head[7];
        let is_write = matches!(function, 6 | 16);
        let register = body.get(..2).map(|register| u16::from_be_bytes([register[0], register[1]]));
        let refused = is_write
            && register.is_some_and(|register| {
                shared.refused.lock().unwrap_or_else(PoisonError::into_inner).contains(&register)
            });
        if is_write && body.len() >= 4 && !refused {
            let value = if function == 6 { [body[2], body[3]] } else { [body[5], body[6]] };
            let written = (u16::from_be_bytes([body[0], body[1]]), u16::from_be_bytes(value));
            shared.writes.lock().unwrap_or_else(PoisonError::into_inner).push(written);
        }
        let answer = match mode {
            1 => continue,
            2 if is_write => continue,
            3 => junk(&mut noise, &head),
            _ if refused => framed(&head, &[function | 0x80, 4]),
            _ => framed(&head, &reply(function, &body)),
        };
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

fn reply(function: u8, body: &[u8]) -> Vec<u8> {
    match function {
        3 | 4 => {
            let (first, count) = (u16::from_be_bytes([body[0], body[1]]), u16::from_be_bytes([body[2], body[3]]));
            let words = (first..first + count).flat_map(|address| (address + 1_000).to_be_bytes());
            [function, (2 * count) as u8].into_iter().chain(words).collect()
        }
        6 | 16 => [&[function][..], &body[..4]].concat(),
        other => vec![other | 0x80, 1],
    }
}

fn framed(head: &[u8; 8], pdu: &[u8]) -> Vec<u8> {
    let length = (pdu.len() as u16 + 1).to_be_bytes();
    [&head[..4], &length, &head[6..7], pdu].concat()
}

/// Octets without sense: pure noise, or noise behind a good header, so that every layer of the reader gets its share.
fn junk(state: &mut u64, head: &[u8; 8]) -> Vec<u8> {
    let mut next = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    };
    let octets: Vec<u8> = (0..next() % 300).map(|_| next() as u8).collect();
    match next() % 3 {
        0 => octets,
        1 => framed(head, &octets),
        _ => framed(head, &[&[head[7], next() as u8][..], &octets].concat()),
    }
}
