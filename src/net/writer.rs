//! The sending half of a link: frames in few system calls.

use super::reader::Tls;
use super::sock::{Sock, link_error};
use crate::base::{Error, Result};
use crate::os::sock::SLICES_MAX;
use std::io::{IoSlice, Write};
use std::sync::Arc;
use std::time::Duration;

/// Plain bytes encrypted at a time, under the TLS mutex: bounds how long the reader waits for it.
const SEAL_BYTES: usize = 256 << 10;

/// Sends frames. There is one per link and its methods take `&mut self`, so wire order is encryption order.
pub struct FrameWriter {
    sock: Arc<Sock>,
    tls: Option<Tls>,
    /// Encrypted bytes on their way out.
    out: Vec<u8>,
    dead: Option<Error>,
}

impl FrameWriter {
    pub(super) fn new(sock: Arc<Sock>, tls: Option<Tls>) -> FrameWriter {
        FrameWriter { sock, tls, out: Vec::new(), dead: None }
    }

    /// Sends one frame, as [`crate::format::frame::build`] made it. Returns when the kernel has it.
    ///
    /// [`crate::base::Kind::Timeout`] (no progress within the write timeout) and [`crate::base::Kind::Link`] both end the
    /// link: part of the frame may be out.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.send_many(&[frame])
    }

    /// Sends several frames with as few system calls as can be. Errors as [`FrameWriter::send`].
    pub fn send_many(&mut self, frames: &[impl AsRef<[u8]>]) -> Result<()> {
        if let Some(e) = &self.dead {
            return Err(e.clone());
        }
        let r = match self.tls.clone() {
            None => self.send_plain(frames),
            Some(tls) => self.send_sealed(&tls, frames),
        };
        if let Err(e) = &r {
            self.dead = Some(Error::link(format!("the link has failed before: {e}")));
            // Half a frame may be out: the peer must not wait for the rest.
            self.sock.shutdown();
        }
        r
    }

    fn send_plain(&mut self, frames: &[impl AsRef<[u8]>]) -> Result<()> {
        for group in frames.chunks(SLICES_MAX) {
            let mut slices: Vec<IoSlice<'_>> = group.iter().map(|f| IoSlice::new(f.as_ref())).collect();
            self.sock.send_all(&mut slices).map_err(|e| link_error(&e, "sending"))?;
        }
        Ok(())
    }

    fn send_sealed(&mut self, tls: &Tls, frames: &[impl AsRef<[u8]>]) -> Result<()> {
        let (mut slices, mut size) = (Vec::new(), 0);
        for f in frames {
            let mut rest = f.as_ref();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(SEAL_BYTES - size));
                slices.push(IoSlice::new(now));
                size += now.len();
                rest = later;
                if size == SEAL_BYTES {
                    self.seal(tls, &slices, size)?;
                    slices.clear();
                    size = 0;
                }
            }
        }
        if size > 0 { self.seal(tls, &slices, size) } else { Ok(()) }
    }

    fn seal(&mut self, tls: &Tls, slices: &[IoSlice<'_>], size: usize) -> Result<()> {
        self.out.clear();
        {
            let mut conn = tls.lock();
            let n = conn.writer().write_vectored(slices).map_err(|e| link_error(&e, "sending"))?;
            if n != size {
                return Err(Error::link(format!("sending: TLS took {n} of {size} bytes")));
            }
            while conn.wants_write() {
                conn.write_tls(&mut self.out).map_err(|e| link_error(&e, "sending"))?;
            }
        }
        self.sock.send_all(&mut [IoSlice::new(&self.out)]).map_err(|e| link_error(&e, "sending"))
    }

    /// How long a send may make no progress; `None`: for ever.
    pub fn set_write_timeout(&self, t: Option<Duration>) -> Result<()> {
        Ok(self.sock.set_write_timeout(t)?)
    }
}
