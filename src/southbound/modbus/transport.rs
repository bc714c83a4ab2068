//! The octet stream under a Modbus link: a TCP socket or a serial port.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_serial::{ClearBuffer, SerialPort, SerialPortBuilderExt, SerialStream};

use super::{DataBits, Link, Parity, SerialLine, StopBits};

/// An open connection.
#[derive(Debug)]
pub enum Transport {
    /// TCP.
    Tcp(TcpStream),
    /// Serial port.
    Serial(SerialStream),
}

/// Idle time before the first keep-alive probe, and between probes; three lost ones end the connection.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

impl Transport {
    /// Opens the link. Names are looked up anew each time; all addresses of a name are tried in turn.
    pub async fn open(link: &Link) -> io::Result<Self> {
        match link {
            Link::Tcp { host, port } | Link::RtuOverTcp { host, port } => {
                open_tcp(host, *port).await.map(Transport::Tcp)
            }
            Link::Serial(line) => open_serial(line).map(Transport::Serial),
        }
    }

    /// Octets that lie ready to be read (at least: TCP says 1 for any number). An error of kind `UnexpectedEof` when the
    /// peer has closed. Asks the operating system, not the event loop, which may not have noticed yet.
    pub fn waiting(&self) -> io::Result<usize> {
        let stream = match self {
            Transport::Tcp(stream) => SockRef::from(stream),
            Transport::Serial(port) => return Ok(port.bytes_to_read().map_err(io::Error::from)? as usize),
        };
        match stream.peek(&mut [MaybeUninit::uninit()]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            waiting => waiting,
        }
    }

    /// Throws away what the operating system holds of a serial port, both ways.
    pub fn clear(&mut self) -> io::Result<()> {
        match self {
            Transport::Tcp(_) => Ok(()),
            Transport::Serial(port) => port.clear(ClearBuffer::All).map_err(io::Error::from),
        }
    }
}

async fn open_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let stream = match bare.parse::<IpAddr>() {
        Ok(address) => TcpStream::connect(SocketAddr::new(address, port)).await?,
        Err(_) => TcpStream::connect((bare, port)).await?,
    };
    stream.set_nodelay(true)?;
    let (time, interval, retries) = KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

fn open_serial(line: &SerialLine) -> io::Result<SerialStream> {
    let builder = tokio_serial::new(line.path.as_str(), line.baud)
        .data_bits(match line.data_bits {
            DataBits::Seven => tokio_serial::DataBits::Seven,
            DataBits::Eight => tokio_serial::DataBits::Eight,
        })
        .parity(match line.parity {
            Parity::None => tokio_serial::Parity::None,
            Parity::Even => tokio_serial::Parity::Even,
            Parity::Odd => tokio_serial::Parity::Odd,
        })
        .stop_bits(match line.stop_bits {
            StopBits::One => tokio_serial::StopBits::One,
            StopBits::Two => tokio_serial::StopBits::Two,
        });
    let port = builder.open_native_async().map_err(io::Error::from)?;
    // What arrived before the port had its settings is not ours.
    port.clear(ClearBuffer::All).map_err(io::Error::from)?;
    Ok(port)
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Transport::Serial(port) => Pin::new(port).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_write(cx, octets),
            Transport::Serial(port) => Pin::new(port).poll_write(cx, octets),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Neither keeps octets back. Waiting for a serial port to drain would block the thread.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Serial(port) => Pin::new(port).poll_shutdown(cx),
        }
    }
}
