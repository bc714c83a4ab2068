//! The simulated device as one piece of hardware: a plant's registers and a firmware target behind one Modbus TCP address,
//! so that what takes the new image is what is polled, commanded and exchanged.
//!
//! Registers from [`FIRMWARE`] on and file records belong to the firmware; the revision in its identification is the version
//! that runs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use fieldgate_simulators::firmware_target::FirmwareTarget;

/// Where the firmware's registers begin.
pub const FIRMWARE: u16 = 1_000;

/// Where the unit id stands in a frame; the function and an address follow.
const UNIT: usize = 6;
const FUNCTION: usize = 7;
const READ: u8 = 0x03;
const WRITE: u8 = 0x10;
const WRITE_FILE: u8 = 0x15;
const IDENTIFY: u8 = 0x2B;
/// Identification object with the revision.
const REVISION: u8 = 2;

/// What is behind the front now.
#[derive(Clone)]
pub struct Behind {
    pub plant: SocketAddr,
    pub firmware: Arc<FirmwareTarget>,
}

/// The address; it stays when what is behind it is exchanged, and listens until the test process ends.
pub struct Front {
    port: u16,
    behind: Arc<Mutex<Option<Behind>>>,
}

impl Front {
    /// Listens on a port of its own, with nothing behind it yet.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback gives a port");
        let port = listener.local_addr().expect("bound").port();
        let behind = Arc::new(Mutex::new(None));
        let front = Self { port, behind: Arc::clone(&behind) };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let now: Option<Behind> = behind.lock().unwrap().clone();
                // Without power nobody answers: the connection ends.
                let Some(now) = now else { continue };
                std::thread::spawn(move || serve(client, &now));
            }
        });
        front
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Another piece, or none; connections to the one before end with their next request.
    pub fn put(&self, behind: Option<Behind>) {
        *self.behind.lock().unwrap() = behind;
    }

    /// The firmware of the piece that is there.
    pub fn firmware(&self) -> Arc<FirmwareTarget> {
        self.behind.lock().unwrap().as_ref().expect("it has power").firmware.clone()
    }
}

/// Passes requests on, one after the other, until either side is gone.
fn serve(mut client: TcpStream, behind: &Behind) -> Option<()> {
    let mut plant = TcpStream::connect(behind.plant).ok()?;
    let mut firmware: Option<TcpStream> = None;
    for side in [&client, &plant] {
        side.set_nodelay(true).ok()?;
    }
    loop {
        let mut request = frame(&mut client)?;
        let function = *request.get(FUNCTION)?;
        let is_registers = matches!(function, READ | WRITE) && address(&request)? >= FIRMWARE;
        let answer = if is_registers || function == WRITE_FILE {
            if is_registers {
                shift(&mut request, |address| address - FIRMWARE)?;
            }
            if firmware.is_none() {
                firmware = Some(TcpStream::connect(behind.firmware.address()).ok()?);
            }
            let mut answer = exchange(firmware.as_mut()?, &request)?;
            if answer.get(FUNCTION) == Some(&WRITE) {
                shift(&mut answer, |address| address + FIRMWARE)?;
            }
            answer
        } else {
            let answer = exchange(&mut plant, &request)?;
            if function == IDENTIFY { revised(&answer, &behind.firmware.version())? } else { answer }
        };
        client.write_all(&answer).ok()?;
    }
}

fn exchange(server: &mut TcpStream, request: &[u8]) -> Option<Vec<u8>> {
    server.write_all(request).ok()?;
    frame(server)
}

/// One frame of Modbus TCP, header included.
fn frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; UNIT];
    stream.read_exact(&mut frame).ok()?;
    let length = usize::from(u16::from_be_bytes([frame[4], frame[5]]));
    frame.resize(UNIT + length, 0);
    stream.read_exact(&mut frame[UNIT..]).ok()?;
    Some(frame)
}

fn address(frame: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes([*frame.get(FUNCTION + 1)?, *frame.get(FUNCTION + 2)?]))
}

fn shift(frame: &mut [u8], by: impl Fn(u16) -> u16) -> Option<()> {
    let address = by(address(frame)?);
    frame[FUNCTION + 1..FUNCTION + 3].copy_from_slice(&address.to_be_bytes());
    Some(())
}

/// An identification with the version that runs as its revision; an exception stays as it is.
fn revised(answer: &[u8], version: &str) -> Option<Vec<u8>> {
    if *answer.get(FUNCTION)? != IDENTIFY {
        return Some(answer.to_vec());
    }
    // Function, kind, level, conformity, more, next and the number of objects.
    let (head, mut objects) = answer.split_at_checked(FUNCTION + 7)?;
    let mut revised = head.to_vec();
    while let [id, length, rest @ ..] = objects {
        let (text, rest) = rest.split_at_checked(usize::from(*length))?;
        let text = if *id == REVISION { version.as_bytes() } else { text };
        revised.extend([*id, text.len() as u8]);
        revised.extend(text);
        objects = rest;
    }
    let length = (revised.len() - UNIT) as u16;
    revised[4..6].copy_from_slice(&length.to_be_bytes());
    Some(revised)
}
