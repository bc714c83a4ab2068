//! A Modbus TCP server whose every device answers each read with its next number.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

type Answers = Arc<Mutex<BTreeMap<u8, Vec<Instant>>>>;

/// The plant. Its threads live as long as the test's process.
pub struct CountingPlant {
    port: u16,
    answers: Answers,
}

impl CountingPlant {
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback gives a port");
        let port = listener.local_addr().expect("bound").port();
        let answers = Answers::default();
        let all = answers.clone();
        std::thread::spawn(move || {
            for link in listener.incoming().flatten() {
                let answers = all.clone();
                std::thread::spawn(move || serve(link, &answers));
            }
        });
        Self { port, answers }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// When each number was answered, by device; the number n stands at n - 1.
    pub fn answers(&self) -> BTreeMap<u8, Vec<Instant>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Numbers answered in all.
    pub fn count(&self) -> usize {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).values().map(Vec::len).sum()
    }
}

fn serve(mut link: TcpStream, answers: &Answers) {
    let _ = link.set_nodelay(true);
    let mut head = [0; 7];
    while link.read_exact(&mut head).is_ok() {
        let mut pdu = vec![0; usize::from(u16::from_be_bytes([head[4], head[5]])).saturating_sub(1)];
        if link.read_exact(&mut pdu).is_err() || pdu.is_empty() {
            return;
        }
        let reply = answer(head[6], &pdu, answers);
        let mut out = head[..4].to_vec();
        out.extend((reply.len() as u16 + 1).to_be_bytes());
        out.push(head[6]);
        out.extend(reply);
        if link.write_all(&out).is_err() {
            return;
        }
    }
}

fn answer(unit: u8, pdu: &[u8], answers: &Answers) -> Vec<u8> {
    let [3, _, _, 0, words] = *pdu else { return vec![pdu[0] | 0x80, 1] };
    let mut all = answers.lock().unwrap_or_else(PoisonError::into_inner);
    let mine = all.entry(unit).or_default();
    mine.push(Instant::now());
    // The number again and again, so that everything that is read changes with it.
    let body: Vec<u8> = (mine.len() as u32).to_be_bytes().into_iter().cycle().take(usize::from(words) * 2).collect();
    let mut reply = vec![3, words * 2];
    reply.extend(body);
    reply
}
