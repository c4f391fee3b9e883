//! TCP as it is, and what the system can be asked about it.

use super::Transport;
use crate::node::channel::{Broken, Read};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::ffi::c_int;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

impl Transport for TcpStream {
    fn read(&mut self, waker: &Waker, buffer: &mut [u8]) -> Read {
        let mut buffer = ReadBuf::new(buffer);
        let cx = &mut Context::from_waker(waker);
        match Pin::new(self).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => Read::Bytes(buffer.filled().len()),
            Poll::Ready(_) => Read::Ended,
            Poll::Pending => Read::Nothing,
        }
    }

    fn write(&mut self, waker: &Waker, bytes: &[u8]) -> Result<usize, Broken> {
        let cx = &mut Context::from_waker(waker);
        let mut written = 0;
        while written < bytes.len() {
            match Pin::new(&mut *self).poll_write(cx, &bytes[written..]) {
                Poll::Ready(Ok(n)) if n > 0 => written += n,
                Poll::Ready(_) => return Err(Broken),
                Poll::Pending => break,
            }
        }
        Ok(written)
    }

    fn unread(&self) -> u64 {
        // Whoever cannot be asked has said nothing.
        rustix::io::ioctl_fionread(self).unwrap_or(0)
    }

    fn hung_up(&self) -> bool {
        let mut asked = [PollFd::new(self, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut asked, Some(&at_once)).is_ok_and(|events| events > 0)
    }

    fn untaken(&self) -> u64 {
        unacknowledged(self).unwrap_or(0)
    }

    fn flush(&mut self, _: &Waker) -> bool {
        true
    }

    fn shut(&mut self, waker: &Waker) -> bool {
        let cx = &mut Context::from_waker(waker);
        Pin::new(self).poll_shutdown(cx).is_ready()
    }

    fn drain(&mut self, waker: &Waker, buffer: &mut [u8]) -> Read {
        Transport::read(self, waker, buffer)
    }

    fn conclude(&mut self, _: &Waker) -> bool {
        true // closing the socket says all
    }
}

/// Bytes written to a TCP connection that the peer's system has not acknowledged (`SIOCOUTQ`, see `tcp(7)`).
#[allow(unsafe_code)] // the one question to the system that no library asks for us
fn unacknowledged(stream: &TcpStream) -> rustix::io::Result<u64> {
    const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
    // SAFETY: with this number the system writes one `int` and reads nothing.
    let queued: c_int = unsafe {
        let getter = rustix::ioctl::Getter::<SIOCOUTQ, c_int>::new();
        rustix::ioctl::ioctl(stream, getter)?
    };
    Ok(u64::try_from(queued).unwrap_or(0))
}
