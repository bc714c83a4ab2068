//! Firmware over Modbus: the bytes as file records (function 21, V1.1b3 section 6.15), control through holding registers.
//!
//! The profile says which registers and files a kind of device uses. A record is one register; a file has at most 10,000 of
//! them, so longer artifacts go on in the next file number. Every write is echoed and every number is absolute, so a piece
//! may be written twice without harm.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use super::device::{DeviceInfo, DeviceRun, DeviceTransfer, TransferError};
use super::{Job, Version};

/// Read holding registers.
const READ: u8 = 0x03;
/// Write multiple registers.
const WRITE: u8 = 0x10;
/// Write file record.
const WRITE_FILE: u8 = 0x15;
/// The only reference type there is.
const REFERENCE: u8 = 6;
/// Most registers in one file record request: 251 bytes of data, 7 of them its header.
const MAX_REGISTERS: u16 = 122;
/// Most records of a file (V1.1b3: record numbers 0 to 0x270F).
const MAX_RECORDS: u16 = 10_000;
/// "Acknowledge" and "server device busy": come back later.
const EXCEPTIONS_TO_WAIT_FOR: [u8; 2] = [5, 6];
/// How often a busy device is asked, and how much longer each pause is than the one before.
const BUSY_TRIES: u32 = 6;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Carries one request to a device and brings the answer: the link that polls it, so that the bus is shared fairly.
pub trait PduLink: Send {
    /// Exchanges PDUs (function code and data, no address, no checksum).
    fn exchange(&mut self, request: &[u8]) -> impl Future<Output = Result<Vec<u8>, String>> + Send;
}

/// Where a kind of device has what. Register addresses are 0-based.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecordProfile {
    /// File number of the first bytes.
    pub first_file: u16,
    /// Records per file, at most 10,000.
    pub records_per_file: u16,
    /// Registers per request, at most 122.
    pub registers_per_write: u16,
    /// Register with the state.
    pub status: u16,
    /// Register that takes commands.
    pub command: u16,
    /// Two registers (high word first) for the size in bytes.
    pub size: u16,
    /// Two registers (high word first) with the bytes received without a gap; `None` when the device does not say: a broken
    /// transfer then begins again.
    pub received: Option<u16>,
    /// 16 registers for the SHA-256; `None` when the device does not check.
    pub digest: Option<u16>,
    /// First register of the running version's text (ASCII, padded with zeros).
    pub version: u16,
    /// Registers of that text.
    pub version_registers: u16,
    /// Commands: begin, activate, roll back.
    pub commands: [u16; 3],
    /// States: idle, receiving, verified, activating, failed.
    pub states: [u16; 5],
}

impl FileRecordProfile {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Which one is out of range.
    pub fn check(&self) -> Result<(), String> {
        let ranges = [
            ("records_per_file", self.records_per_file, MAX_RECORDS),
            ("registers_per_write", self.registers_per_write, MAX_REGISTERS),
            ("version_registers", self.version_registers, 125),
        ];
        match ranges.iter().find(|(_, value, most)| *value == 0 || value > most) {
            Some((name, value, most)) => Err(format!("{name} = {value} is outside 1 to {most}")),
            None => Ok(()),
        }
    }

    /// Most bytes that fit: file numbers are 16 bits wide.
    pub fn capacity(&self) -> u64 {
        (u64::from(u16::MAX - self.first_file) + 1) * u64::from(self.records_per_file) * 2
    }

    /// The PDU that writes `bytes` at `offset` (even), as far as they fit into one request and one file, and how many bytes
    /// that are.
    fn write_request(&self, offset: u64, bytes: &[u8]) -> Result<(Vec<u8>, usize), TransferError> {
        let word = offset / 2;
        let per_file = u64::from(self.records_per_file);
        let record = (word % per_file) as u16;
        let file = u64::from(self.first_file) + word / per_file;
        let file = u16::try_from(file).map_err(|_| TransferError::Unfit("it is longer than all files".to_owned()))?;
        let registers = (bytes.len().div_ceil(2) as u64).min(u64::from(self.registers_per_write.min(MAX_REGISTERS)));
        let registers = registers.min(per_file - u64::from(record)) as u16;
        let taken = bytes.len().min(usize::from(registers) * 2);
        let mut data = bytes[..taken].to_vec();
        data.resize(usize::from(registers) * 2, 0);
        let mut request = vec![WRITE_FILE, (7 + data.len()) as u8, REFERENCE];
        for number in [file, record, registers] {
            request.extend(number.to_be_bytes());
        }
        request.extend(data);
        Ok((request, taken))
    }
}

/// Firmware over file records.
#[derive(Debug)]
pub struct FileRecordTransfer<L> {
    profile: FileRecordProfile,
    link: L,
}

impl<L: PduLink + fmt::Debug> FileRecordTransfer<L> {
    /// A transfer over `link`.
    ///
    /// # Errors
    /// What is wrong with the profile.
    pub fn new(profile: FileRecordProfile, link: L) -> Result<Self, String> {
        profile.check()?;
        Ok(Self { profile, link })
    }
}

impl<L: PduLink> FileRecordTransfer<L> {
    /// Exchanges; a device that is busy (erasing its flash) is asked a few times more.
    async fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>, TransferError> {
        let mut tries = 0;
        loop {
            let answer = self.link.exchange(request).await.map_err(TransferError::NoAnswer)?;
            match answer[..] {
                [function, code] if function == request[0] | 0x80 && EXCEPTIONS_TO_WAIT_FOR.contains(&code) => {
                    tries += 1;
                    if tries == BUSY_TRIES {
                        return Err(TransferError::NoAnswer(format!("it is busy (exception {code})")));
                    }
                    tokio::time::sleep(BUSY_PAUSE * tries).await;
                }
                [function, code] if function == request[0] | 0x80 => {
                    return Err(TransferError::Refused(format!("exception {code} to function {}", request[0])));
                }
                [function, ..] if function == request[0] => return Ok(answer),
                _ => return Err(TransferError::NoAnswer("its answer belongs to another request".to_owned())),
            }
        }
    }

    async fn read(&mut self, address: u16, count: u16) -> Result<Vec<u8>, TransferError> {
        let request = [&[READ][..], &address.to_be_bytes(), &count.to_be_bytes()].concat();
        let answer = self.exchange(&request).await?;
        let data = answer.get(2..).unwrap_or_default();
        if answer.get(1).map(|&n| usize::from(n)) != Some(data.len()) || data.len() != usize::from(count) * 2 {
            return Err(TransferError::NoAnswer("its answer has another length".to_owned()));
        }
        Ok(data.to_vec())
    }

    async fn write(&mut self, address: u16, data: &[u8]) -> Result<(), TransferError> {
        let count = (data.len() / 2) as u16;
        let head = [&[WRITE][..], &address.to_be_bytes(), &count.to_be_bytes(), &[data.len() as u8]].concat();
        let answer = self.exchange(&[&head[..], data].concat()).await?;
        match answer[..] == head[..5] {
            true => Ok(()),
            false => Err(TransferError::NoAnswer("its answer names other registers".to_owned())),
        }
    }

    async fn command(&mut self, which: usize) -> Result<(), TransferError> {
        let (register, command) = (self.profile.command, self.profile.commands[which]);
        self.write(register, &command.to_be_bytes()).await
    }
}

impl<L: PduLink> DeviceTransfer for FileRecordTransfer<L> {
    async fn info(&mut self) -> Result<DeviceInfo, TransferError> {
        let (address, count) = (self.profile.version, self.profile.version_registers);
        let text = self.read(address, count).await?;
        let text: String = text.iter().take_while(|&&byte| byte != 0).map(|&byte| char::from(byte)).collect();
        let version = Version::parse(text.trim()).map_err(TransferError::Refused)?;
        let status = self.read(self.profile.status, 1).await?;
        let status = u16::from_be_bytes([status[0], status[1]]);
        let [idle, receiving, verified, activating, _] = self.profile.states;
        let run = match status {
            status if status == idle => DeviceRun::Idle,
            status if status == receiving => DeviceRun::Receiving,
            status if status == verified => DeviceRun::Verified,
            status if status == activating => DeviceRun::Activating,
            other => DeviceRun::Failed(format!("state {other}")),
        };
        Ok(DeviceInfo { version, run })
    }

    async fn begin(&mut self, job: &Job) -> Result<u64, TransferError> {
        let capacity = self.profile.capacity();
        let size = u32::try_from(job.size).ok().filter(|_| job.size <= capacity);
        let size = size.ok_or_else(|| TransferError::Unfit(format!("it takes at most {capacity} bytes")))?;
        self.write(self.profile.size, &size.to_be_bytes()).await?;
        if let Some(address) = self.profile.digest {
            self.write(address, &digest(&job.sha256)).await?;
        }
        self.command(0).await?;
        match self.profile.received {
            // An odd number of bytes is a half register: write that one again.
            Some(address) => self.read(address, 2).await.map(|data| {
                let received = u32::from_be_bytes([data[0], data[1], data[2], data[3]]);
                if received >= size { u64::from(received) } else { u64::from(received & !1) }
            }),
            None => Ok(0),
        }
    }

    async fn send(&mut self, offset: u64, bytes: &[u8]) -> Result<u64, TransferError> {
        let (request, taken) = self.profile.write_request(offset, bytes)?;
        let answer = self.exchange(&request).await?;
        match answer == request {
            true => Ok(offset + taken as u64),
            false => Err(TransferError::NoAnswer("its echo differs from what was written".to_owned())),
        }
    }

    fn piece(&self) -> usize {
        usize::from(self.profile.registers_per_write) * 2
    }

    async fn activate(&mut self, _: &Job) -> Result<(), TransferError> {
        self.command(1).await
    }

    async fn roll_back(&mut self, _: &Job) -> Result<(), TransferError> {
        self.command(2).await
    }
}

fn digest(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).filter_map(|i| u8::from_str_radix(hex.get(i * 2..i * 2 + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn profile(first_file: u16, records_per_file: u16, registers_per_write: u16) -> FileRecordProfile {
        FileRecordProfile {
            first_file,
            records_per_file,
            registers_per_write,
            status: 0,
            command: 1,
            size: 2,
            received: Some(4),
            digest: Some(8),
            version: 32,
            version_registers: 16,
            commands: [1, 2, 3],
            states: [0, 1, 2, 3, 4],
        }
    }

    proptest! {
        #[test]
        fn any_artifact_is_written_once_in_legal_requests(
            length in 1usize..3_000, first in 0u16..100, records in 1u16..=400, registers in 1u16..=122,
        ) {
            let profile = profile(first, records, registers);
            prop_assert!(profile.check().is_ok());
            let bytes: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
            let mut memory = vec![0u8; length + 1];
            let (mut offset, mut requests) = (0usize, 0);
            while offset < length {
                let (request, taken) = profile.write_request(offset as u64, &bytes[offset..]).unwrap();
                prop_assert!(request.len() <= 253 && usize::from(request[1]) == request.len() - 2);
                prop_assert!((0x09..=0xfb).contains(&request[1]));
                let word = |at: usize| usize::from(u16::from_be_bytes([request[at], request[at + 1]]));
                let (file, record, count) = (word(3), word(5), word(7));
                prop_assert!(record + count <= usize::from(records), "a request stays in its file");
                let at = ((file - usize::from(first)) * usize::from(records) + record) * 2;
                memory[at..at + taken].copy_from_slice(&request[9..9 + taken]);
                offset += taken;
                requests += 1;
            }
            prop_assert_eq!(&memory[..length], &bytes[..]);
            prop_assert!(requests <= length.div_ceil(2 * usize::from(registers)) + length / (2 * usize::from(records)) + 1);
        }
    }
}
