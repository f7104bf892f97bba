//! The receiving half of a link: whole, checked frames out of a byte stream, with few system calls.

use super::sock::{Sock, Until, link_error};
use super::tls;
use crate::base::sync::Mutex;
use crate::base::{Error, Kind, Result, limits};
use crate::format::frame::{self, HEADER_BYTES, Header};
use rustls::Connection;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes taken from the socket with one call.
const READ_BYTES: usize = 128 << 10;
/// Room for what one read of the socket can decrypt to, with what TLS still held from the one before (one record at most).
const BUFFER_BYTES: usize = READ_BYTES + (64 << 10);
/// A frame's buffer grows by this much ahead of the bytes that have come, so that a length alone allocates little (G10).
const GROW_BYTES: usize = 1 << 20;

/// TLS state shared with the writer. The mutex is held for cryptography only, never across a socket call: a reader that
/// waits for bytes cannot hold up the writer, nor a writer that waits for room the reader.
pub(super) type Tls = Arc<Mutex<Connection>>;

/// Receives frames. One thread at a time; the [`super::FrameWriter`] may be used by another at the same time.
pub struct FrameReader {
    sock: Arc<Sock>,
    tls: Option<(Tls, Vec<u8>)>,
    /// Plain bytes from the socket: `start..end` are not yet used.
    inbuf: Vec<u8>,
    start: usize,
    end: usize,
    /// The frame being put together: `got` bytes are valid. Survives a timeout.
    part: Vec<u8>,
    got: usize,
    limit: usize,
    dead: Option<Error>,
    timeout: Option<Duration>,
    /// Set while a frame must be whole by then, however slowly its bytes trickle.
    deadline: Option<Instant>,
}

impl FrameReader {
    pub(super) fn new(sock: Arc<Sock>, tls: Option<Tls>) -> FrameReader {
        FrameReader {
            sock,
            tls: tls.map(|t| (t, vec![0; READ_BYTES])),
            inbuf: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            part: Vec::new(),
            got: 0,
            limit: limits::FRAME_BYTES_MAX,
            dead: None,
            timeout: None,
            deadline: None,
        }
    }

    /// Receives one whole frame (header and body, CRC checked, G7) into `buf` and returns its header. `buf` is replaced; the
    /// memory it brought along is used again.
    ///
    /// [`Kind::Timeout`]: nothing came within the read timeout; call again, nothing is lost. [`Kind::Link`]: the peer closed or
    /// the link broke. [`Kind::Corrupt`]: bad bytes or a length over the limit; the link is of no further use.
    pub fn recv(&mut self, buf: &mut Vec<u8>) -> Result<Header> {
        if let Some(e) = &self.dead {
            return Err(e.clone());
        }
        let r = self.assemble(buf);
        if let Err(e) = &r
            && e.kind != Kind::Timeout
        {
            self.dead = Some(e.clone());
        }
        r
    }

    /// [`FrameReader::recv`] that must have the whole frame within `total`: a peer that trickles bytes gets no more time
    /// than a silent one. For peers that have not been admitted yet.
    pub fn recv_within(&mut self, buf: &mut Vec<u8>, total: Duration) -> Result<Header> {
        self.deadline = Some(Instant::now() + total);
        let r = self.recv(buf);
        self.deadline = None;
        self.sock.set_read_timeout(self.timeout)?;
        r
    }

    fn assemble(&mut self, buf: &mut Vec<u8>) -> Result<Header> {
        self.want(HEADER_BYTES)?;
        let Some(h) = self.part.first_chunk::<HEADER_BYTES>() else {
            return Err(Error::corrupt("frame: shorter than its header"));
        };
        let len = frame::parse_header(h)?.len as usize;
        if len > self.limit {
            return Err(Error::corrupt(format!("frame: {len} bytes, more than {} allowed here", self.limit)));
        }
        let whole = HEADER_BYTES + len;
        self.want(whole)?;
        self.part.truncate(whole);
        let head = frame::check(&self.part)?;
        std::mem::swap(buf, &mut self.part);
        self.got = 0;
        Ok(head)
    }

    /// Brings the frame under way to `n` bytes at least.
    fn want(&mut self, n: usize) -> Result<()> {
        while self.got < n {
            if self.start == self.end {
                if self.tls.is_none() && n - self.got >= READ_BYTES {
                    self.read_straight(n)?;
                    continue;
                }
                self.fill()?;
            }
            let take = (n - self.got).min(self.end - self.start);
            self.room(self.got + take);
            self.part[self.got..self.got + take].copy_from_slice(&self.inbuf[self.start..self.start + take]);
            self.start += take;
            self.got += take;
        }
        Ok(())
    }

    fn room(&mut self, n: usize) {
        if self.part.len() < n {
            self.part.resize(n, 0);
        }
    }

    /// The middle of a large frame on a plain socket goes to its place without a copy.
    fn read_straight(&mut self, n: usize) -> Result<()> {
        let upto = n.min(self.got + GROW_BYTES);
        self.room(upto);
        let k = read(&self.sock, self.deadline, &mut self.part[self.got..upto])?;
        self.some(k)?;
        self.got += k;
        Ok(())
    }

    fn some(&self, n: usize) -> Result<()> {
        match (n, self.got) {
            (0, 0) => Err(Error::link("the peer closed the link")),
            (0, got) => Err(Error::link(format!("the link was closed in the middle of a frame (after {got} bytes)"))),
            _ => Ok(()),
        }
    }

    /// Refills the empty buffer.
    fn fill(&mut self) -> Result<()> {
        (self.start, self.end) = (0, 0);
        let Some((tls, raw)) = &mut self.tls else {
            let n = read(&self.sock, self.deadline, &mut self.inbuf)?;
            self.some(n)?;
            self.end = n;
            return Ok(());
        };
        let mut end = drain(&mut tls.lock(), &mut self.inbuf, 0)?;
        let mut closed = false;
        while end == 0 && !closed {
            let n = read(&self.sock, self.deadline, raw)?;
            closed = n == 0;
            let mut conn = tls.lock();
            let mut rest = raw.get(..n).unwrap_or_default();
            while !rest.is_empty() && !closed {
                let k = conn.read_tls(&mut rest).map_err(|e| link_error(&e, "receiving"))?;
                let state = conn.process_new_packets().map_err(|e| tls::stream_error(&e))?;
                end = drain(&mut conn, &mut self.inbuf, end)?;
                // After close_notify nothing more is taken.
                closed = state.peer_has_closed() || k == 0;
            }
        }
        self.some(end)?;
        self.end = end;
        Ok(())
    }

    /// True if a further whole frame is in memory already: a receiver acknowledges cumulatively once this is false.
    pub fn has_buffered(&self) -> bool {
        let b = self.inbuf.get(self.start..self.end).unwrap_or_default();
        match b.first_chunk::<HEADER_BYTES>() {
            // With a frame under way (after a timeout) everything buffered has been moved to it already.
            _ if self.got > 0 || self.dead.is_some() => false,
            None => false,
            // Bytes that are no header make `recv` return at once, too.
            Some(h) => frame::parse_header(h).map_or(true, |h| b.len() - HEADER_BYTES >= h.len as usize),
        }
    }

    /// How long [`FrameReader::recv`] waits for the next byte; `None`: for ever.
    pub fn set_read_timeout(&mut self, t: Option<Duration>) -> Result<()> {
        self.timeout = t;
        Ok(self.sock.set_read_timeout(t)?)
    }

    /// Lowers the largest accepted frame body, bytes: for peers that have not been admitted yet.
    pub fn set_frame_limit(&mut self, bytes: usize) {
        self.limit = bytes.min(limits::FRAME_BYTES_MAX);
    }
}

fn read(sock: &Sock, deadline: Option<Instant>, buf: &mut [u8]) -> Result<usize> {
    match deadline {
        None => sock.read(buf),
        Some(deadline) => Until { sock, deadline }.read(buf),
    }
    .map_err(|e| link_error(&e, "receiving"))
}

/// Moves decrypted bytes into `buf` from `end` on; returns the new end.
fn drain(conn: &mut Connection, buf: &mut [u8], mut end: usize) -> Result<usize> {
    loop {
        let Some(room) = buf.get_mut(end..).filter(|r| !r.is_empty()) else { return Ok(end) };
        match conn.reader().read(room) {
            Ok(0) => return Ok(end),
            Ok(n) => end += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(end),
            Err(e) => return Err(link_error(&e, "receiving")),
        }
    }
}
